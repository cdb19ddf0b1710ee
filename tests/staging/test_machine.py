"""Random programs in the output directory, without a kernel and on a clock of ours: nothing that was saved is lost, and
nothing half-written is called whole."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fuse_ckpt.model import InodeKey, Kind, State, Unit
from fuse_ckpt.staging import Area, Settings, recover
from fuse_ckpt.staging.commit import commit
from fuse_ckpt.staging.units import is_companion, is_log, is_set, is_temporary
from fuse_ckpt.store import Store
from tests.staging.trainer import JOB, Clock, key_of

DIRECTORIES = ["checkpoint-1", "checkpoint-1/sub", "checkpoints", "checkpoints/step_2", "x.tmp"]
FLAT = ["a.bin", "b-rank0.bin", "b-rank1.bin", "config.json", "c.tmp", "train.log", "README.md", "a-unfinished"]
PATHS = [*FLAT, *(f"{directory}/{name}" for directory in DIRECTORIES for name in ("a.bin", "b.bin", "c.tmp"))]
PROCESSES = [10**6 + 1, 10**6 + 2, 10**6 + 3, 0]

paths = st.sampled_from(PATHS)
indices = st.integers(0, 1000)  # of the files that are there
processes = st.sampled_from(PROCESSES)


class Programs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="fuse-ckpt-staging-"))
        self.store = Store.open(self.directory / "store")
        self.store.ensure_job(JOB, 1)
        self.work = self.store.layout.work(JOB)
        self.clock = Clock()
        self.serial = 0
        self.closed: set[bytes] = set()  # contents that a file had when nobody had it open for writing
        self.destroyed: set[bytes] = set()  # and those that were then unlinked or replaced, as flat files
        self.handles: list[tuple[int, InodeKey, int, bool]] = []  # descriptor, inode, process, whether it was written
        self.mount()
        for directory in DIRECTORIES:
            (self.work / directory).mkdir()
        for path in ("a.bin", "checkpoint-1/a.bin", "checkpoints/a.bin"):
            self.save(path, PROCESSES[0])

    def mount(self) -> None:
        self.store.recover()
        self.root_fd = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        pending = self.store.layout.pending(JOB)
        self.area = Area(self.root_fd, pending, Settings(), self.clock)
        self.unheard: list[int] = []
        self.area.watch = self.unheard.append
        recover(self.area, self.store, JOB, pending)

    # -- what programs do ---------------------------------------------------------------------------------------------

    def there(self, which: int) -> str | None:
        """One of the files in the tree."""
        found = sorted(str(path.relative_to(self.work)) for path in self.work.rglob("*") if path.is_file())
        return found[which % len(found)] if found else None

    def data(self) -> bytes:
        self.serial += 1
        return b"%d\n" % self.serial

    def is_open(self, key: InodeKey) -> bool:
        return any(key == other for _, other, _, _ in self.handles)

    def opened(self, path: str, flags: int, process: int, *, made: bool) -> None:
        fd = os.open(self.work / path, os.O_RDWR | flags)
        key = key_of(self.work / path)
        if made and flags & os.O_CREAT:
            self.area.sealed.created(key)
        # `process_of` asks /proc, which knows none of these
        self.area._open.opened(path, key, process, changed=made)
        unit = self.area.rules.member_of(path)
        if unit is not None:
            if unit in self.area.drafts:
                self.area.drafts[unit].version += 1
            if made and (unit in self.area.drafts or self.area._started_by(path) is not None):
                self.area._touch(unit, process)
            self.area._hint_others(unit, process)
        self.handles.append((fd, key, process, made))

    @rule(path=paths, process=processes)
    def create(self, path: str, process: int) -> None:
        place = self.work / path
        if place.parent.is_dir() and not os.path.lexists(place):
            self.opened(path, os.O_CREAT | os.O_EXCL, process, made=True)
            os.write(self.handles[-1][0], self.data())

    @rule(path=paths, process=processes)
    def save(self, path: str, process: int) -> None:
        before = len(self.handles)
        self.create(path, process)
        if len(self.handles) > before:
            self.close(before, None)

    @rule(which=indices, process=processes, close=st.booleans())
    def rewrite(self, which: int, process: int, close: bool) -> None:
        """open(path, "wb")"""
        path = self.there(which)
        if path is None:
            return
        place = self.work / path
        self.about_to_destroy(path)
        self.area.about_to_lose(path, rewritten=True)
        if key_of(place) in self.area.sealed:
            self.break_seal(place, b"")
        self.opened(path, os.O_TRUNC, process, made=True)
        os.write(self.handles[-1][0], self.data())
        if close:
            self.close(len(self.handles) - 1, None)

    @rule(which=indices, process=processes)
    def append(self, which: int, process: int) -> None:
        path = self.there(which)
        if path is None:
            return
        place = self.work / path
        if key_of(place) in self.area.sealed:
            self.break_seal(place, place.read_bytes())
        self.opened(path, os.O_APPEND, process, made=False)
        fd, key, process, _ = self.handles.pop()
        os.write(fd, self.data())
        self.handles.append((fd, key, process, True))

    def break_seal(self, place: Path, data: bytes) -> None:
        """A sealed file gets a successor under all its names, as the filesystem does."""
        key = key_of(place)
        fresh = self.directory / "fresh"
        fresh.write_bytes(data)
        for path in [path for path in self.work.rglob("*") if path.is_file() and key_of(path) == key]:
            spare = self.directory / "spare"
            os.link(fresh, spare)
            os.rename(spare, path)
            self.area.sealed.names_changed(key, -1)
        self.area.sealed.created(key_of(fresh))
        fresh.unlink()

    @rule(which=st.integers(0), death=st.sampled_from([None, None, "its writer was killed by signal 9"]))
    def close(self, which: int, death: str | None) -> None:
        if not self.handles:
            return
        fd, key, _, written = self.handles.pop(which % len(self.handles))
        status = os.fstat(fd)
        content = os.pread(fd, 1000, 0)
        os.close(fd)
        if death is None and not self.is_open(key):
            self.closed.add(content)
        names = [str(p.relative_to(self.work)) for p in self.work.rglob("*") if p.is_file() and key_of(p) == key]
        self.area.released(key, changed=written, death=death, names=names)
        assert status.st_ino == key.ino

    @rule(directory=st.sampled_from(DIRECTORIES))
    def mkdir(self, directory: str) -> None:
        place = self.work / directory
        if place.parent.is_dir() and not os.path.lexists(place):
            place.mkdir()

    @rule(which=indices)
    def unlink(self, which: int) -> None:
        path = self.there(which)
        if path is not None:
            self.remove(path)

    def remove(self, path: str) -> None:
        self.about_to_destroy(path)
        self.area.about_to_lose(path, rewritten=False)
        key = key_of(self.work / path)
        (self.work / path).unlink()
        self.area.sealed.names_changed(key, -1)
        self.area.removed(path, os.getpid())

    @rule(directory=st.sampled_from(DIRECTORIES))
    def rmtree(self, directory: str) -> None:
        place = self.work / directory
        if place.is_dir():
            for path in sorted(place.rglob("*"), reverse=True):
                name = str(path.relative_to(self.work))
                self.remove(name) if path.is_file() else self.rmdir(name)
            self.rmdir(directory)

    def rmdir(self, directory: str) -> None:
        (self.work / directory).rmdir()
        self.area.removed(directory, os.getpid())

    @rule(which=indices, new=paths)
    def rename(self, which: int, new: str) -> None:
        old = self.there(which)
        if old is None or old == new or not (self.work / new).parent.is_dir():
            return
        source, target = self.work / old, self.work / new
        if target.is_file() and key_of(source) == key_of(target):
            return
        self.area.about_to_move(old, new, directory=False)
        if target.is_file():
            self.about_to_destroy(new)
            replaced = key_of(target)
        self.area.about_to_lose(new, rewritten=True)
        if target.is_file():
            self.area.sealed.names_changed(replaced, -1)
        os.rename(source, target)
        self.area.renamed(old, new, os.getpid(), directory=False)

    @rule(old=st.sampled_from(DIRECTORIES), new=st.sampled_from(DIRECTORIES))
    def rename_directory(self, old: str, new: str) -> None:
        source, target = self.work / old, self.work / new
        if not source.is_dir() or os.path.lexists(target) or not target.parent.is_dir() or new.startswith(old):
            return
        self.area.about_to_move(old, new, directory=True)
        os.rename(source, target)
        self.area.renamed(old, new, os.getpid(), directory=True)

    @rule(which=indices, new=paths)
    def link(self, which: int, new: str) -> None:
        old = self.there(which)
        if old is None:
            return
        source, target = self.work / old, self.work / new
        if target.parent.is_dir() and not os.path.lexists(target):
            os.link(source, target)
            self.area.sealed.names_changed(key_of(target), 1)
            self.area.arrived(new, os.getpid())

    @rule(process=processes, death=st.sampled_from([None, "its writer exited with status 1"]))
    def exit(self, process: int, death: str | None) -> None:
        for number in reversed(range(len(self.handles))):
            if self.handles[number][2] == process:
                self.close(number, death)
        if process:
            self.area.exited(process, death)

    def about_to_destroy(self, path: str) -> None:
        """A flat file that was closed, and that nobody has open: what it holds must not be lost. (Of several files that
        are one checkpoint, one that is rewritten within a second belongs to the same save.)"""
        unit = self.area.rules.unit_of(path)
        key = key_of(self.work / path)
        content = (self.work / path).read_bytes()
        if (
            unit is not None
            and unit.name == path
            and not is_set(unit)
            and content in self.closed
            and not self.is_open(key)
        ):
            draft = self.area.drafts.get(unit)
            if draft is None or draft.first_closed is not None:
                self.destroyed.add(content)

    # -- what the mount does ------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.1, 6.0, 31.0, 700.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        for file in list(self.area.orphans.idle(self.clock.now)):
            self.area.left_open(file)
        for _ in range(50):
            due = self.area.due({})
            if due is None or due[0] > self.clock.now or not self.seal(due[1]):
                break
        self.commit()

    def seal(self, unit: Unit) -> bool:
        draft = self.area.drafts[unit]
        scan, fault = self.area.inspect(unit)
        if not scan.files:
            self.area.drafts.drop(unit)
        elif fault is not None and not self.area.is_over(unit):
            self.area.not_whole(draft, fault)
        else:
            return self.area.seal(unit, scan, fault)
        return True

    @rule()
    def commit(self) -> None:
        while self.area.queue:
            sealed = self.area.queue.pop(0)
            committed = commit(self.store, JOB, sealed)
            self.area.sealed.settle(sealed, committed.blobs)
            if committed.checkpoint is not None:
                self.area.recent.committed(sealed, self.clock.now)

    @rule()
    def finish(self) -> None:
        self.area.finish()
        self.pass_time(0.0)

    @rule()
    def settle(self) -> None:
        for one in self.store.checkpoints(JOB)[-1:]:
            self.store.settle(one.id)

    @rule()
    def remount(self) -> None:
        """After a kill: nobody hears of what is open, and the next mount begins with the tree and pending/."""
        self.close_all()
        self.closed |= {path.read_bytes() for path in self.work.rglob("*") if path.is_file()}  # nobody knows better
        os.close(self.root_fd)
        self.mount()

    def close_all(self) -> None:
        while self.handles:
            self.close(0, None)

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def no_path_is_in_two_drafts(self) -> None:
        seen: dict[str, Unit] = {}
        for unit in self.area.drafts:
            for found in self.area.tree.scan(unit).files:
                assert seen.setdefault(found.path, unit) == unit

    @invariant()
    def nothing_that_somebody_writes_is_sealed(self) -> None:
        for _, key, _, _ in self.handles:
            assert key not in self.area.sealed

    @invariant()
    def what_training_sees_of_links_is_its_own(self) -> None:
        names: dict[InodeKey, int] = {}
        for path in self.work.rglob("*"):
            if path.is_file():
                names[key_of(path)] = names.get(key_of(path), 0) + 1
        for path in self.work.rglob("*"):
            if path.is_file():
                links = path.stat().st_nlink
                assert links - self.area.sealed.hidden_links(key_of(path), links) == names[key_of(path)]

    def teardown(self) -> None:
        try:
            self.close_all()
            for process in PROCESSES[:3]:
                self.area.exited(process)
            self.pass_time(1000.0)
            self.finish()
            assert dict(self.area.drafts) == {}
            kept = self.contents()
            assert self.destroyed <= set().union(*kept.values())
            self.everything_is_somewhere()
            assert kept[State.AVAILABLE] <= self.closed, "something half-written was called whole"
            assert self.store.verify() == self.store.problems == []
            assert os.listdir(self.store.layout.pending(JOB)) == []
        finally:
            os.close(self.root_fd)
            self.store.close()
            shutil.rmtree(self.directory)

    def contents(self) -> dict[State, set[bytes]]:
        """What the checkpoints hold, by their state; logs apart."""
        kept: dict[State, set[bytes]] = {State.AVAILABLE: set(), State.FAILED: set()}
        for one in self.store.checkpoints(JOB):
            for entry in self.store.manifest(one.id).entries:
                if entry.kind is Kind.FILE and not entry.path.endswith(".log"):
                    kept[one.state].add(self.store.blob_path(entry.digest).read_bytes())
        return kept

    def everything_is_somewhere(self) -> None:
        """Each file of the tree is in the newest checkpoint of its unit, whole or failed, or is none's."""
        for path in self.work.rglob("*"):
            name = str(path.relative_to(self.work))
            unit = self.area.rules.unit_of(name)
            if not stat.S_ISREG(path.lstat().st_mode) or unit is None:
                loose = is_log(name) or is_companion(name) or any(map(is_temporary, name.split("/")))
                assert path.is_dir() or loose or name == "README.md"
                continue
            newest = self.store.newest(JOB, unit.name)
            assert newest is not None, name
            below = name[len(unit.prefix) + 1 :] if unit.prefix else name
            held = {entry.path: entry.digest for entry in newest.entries}
            assert self.store.blob_path(held[below]).read_bytes() == path.read_bytes(), name


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=list(HealthCheck),
)
