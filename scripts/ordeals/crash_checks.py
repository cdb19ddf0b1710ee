"""What must hold after every crash, and the memory of what was acknowledged before it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from fuse_ckpt.model import Manifest, State
from fuse_ckpt.store import Store
from scripts.ordeals.mounts import PATIENCE, POLL, OrdealError, fuse_ckpt
from scripts.ordeals.writer import is_whole


class Checks:
    """The expectations of one store and one job mounted at `path`; what does not hold is added to `problems`."""

    def __init__(self, root: Path, job: str, path: Path, problems: list[str]) -> None:
        self.deleted: set[str] = set()  # asked for; each may have come to pass or not
        self.files_checked = 0
        self._root = root
        self._job = job
        self._path = path
        self._problems = problems
        self._known: dict[str, Manifest] = {}  # what was listed as available, with its digests
        self._logs: list[Path] = []

    @property
    def acknowledged(self) -> int:
        return len(self._known)

    def new_log(self, name: str) -> Path:
        """Where a writer of the coming round says what it does."""
        log = self._path.with_name(f"{name}.words")
        self._logs.append(log)
        return log

    def has_begun(self) -> bool:
        """Whether every writer of this round has said something."""
        return all(log.stat().st_size > 0 for log in self._logs)

    @property
    def known(self) -> dict[str, Manifest]:
        """What was acknowledged, by id."""
        return dict(self._known)

    def remember(self, manifests: Iterable[Manifest]) -> None:
        """These were acknowledged, in an earlier life."""
        self._known |= {one.checkpoint.id: one for one in manifests}

    def note_listed(self) -> None:
        """Whatever is listed as available from now on counts as acknowledged."""
        with Store.open(self._root) as store:
            for one in store.checkpoints(self._job, states={State.AVAILABLE}):
                if one.id not in self._known:
                    self._known[one.id] = store.manifest(one.id)

    def choose_to_delete(self, chance: random.Random, keep: int) -> list[str]:
        """Some of those above `keep`, and one of the others."""
        alive = [one for one in self._known if one not in self.deleted]
        chosen = alive[: max(0, len(alive) - keep)] + (chance.sample(alive, 1) if len(alive) > 3 else [])
        self.deleted.update(chosen)
        return list(dict.fromkeys(chosen))

    def delete(self, checkpoints: list[str]) -> None:
        """Delete some now, and empty the bin where the program can."""
        fuse_ckpt(self._root, "checkpoint", "delete", "--yes", *checkpoints)

    def after_a_mount(self, *, power: bool = True) -> None:
        """The job is mounted again and nobody writes: everything is there, and nothing is left over.

        `power`: it was no power cut, so what was closed is in the working tree too.
        """
        self._wait_until_settled()
        if power:
            self._compare_tree()
        self._logs.clear()
        with Store.open(self._root) as store:
            self._compare_lists(store)
            self._look_for_left_overs(store, torn_journals=not power)
            new = [
                one.id for one in store.checkpoints(self._job, states={State.AVAILABLE}) if one.id not in self._known
            ]
            self._problems += store.verify(new)
            for checkpoint in new:
                self._look_into(store, store.manifest(checkpoint))
        self.note_listed()

    def everything(self) -> None:
        """At the end: read every byte of every checkpoint again."""
        with Store.open(self._root) as store:
            self._problems += store.verify()
            self._compare_lists(store)
        said = fuse_ckpt(self._root, "checkpoint", "list", "--json")
        listed = {one["id"] for one in json.loads(said.stdout) if one["status"] == "available"}
        self._problems += [f"{one} is not in the list" for one in self._known if one not in listed | self.deleted]

    def _wait_until_settled(self) -> None:
        """Return once nothing is pending; a busy machine may take long, but not without one of them being done."""
        before = None
        while pending := self._pending():
            if pending != before:
                before, deadline = pending, time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                raise OrdealError(f"nothing is committed any more, pending for {PATIENCE:g} s: {pending}")
            time.sleep(POLL)

    def _pending(self) -> list[tuple[str, str]]:
        """Names and times."""
        said = fuse_ckpt(self._root, "training", "checkpoints", self._job, "--json", "--all")
        if said.returncode:
            raise OrdealError(f"checkpoints are not listed: {said.stderr.strip()}")
        return [(one["name"], one["timestamp"]) for one in json.loads(said.stdout) if one["status"] == "pending"]

    def _compare_lists(self, store: Store) -> None:
        there = {one.id: one for one in store.checkpoints(self._job)}
        for checkpoint, before in self._known.items():
            if checkpoint in self.deleted:
                continue
            if checkpoint not in there or there[checkpoint].state is not State.AVAILABLE:
                self._problems.append(f"{checkpoint} ({before.checkpoint.name}) was available, and is lost")
            elif store.manifest(checkpoint).entries != before.entries:
                self._problems.append(f"{checkpoint} ({before.checkpoint.name}) is not what it was")

    def _look_for_left_overs(self, store: Store, *, torn_journals: bool) -> None:
        """`torn_journals`: a power cut may have torn a journal, which is not fsynced before its commit begins; then the
        draft is kept for a person to look at (`doctor --store`), since its links may be the only ones.
        """
        every = store.checkpoints(self._job, states=set(State))
        if {path.stem for path in store.layout.manifests.iterdir()} - {one.id for one in every}:
            self._problems.append("manifests are left that no record names")
        named = set()
        for path in store.layout.manifests.iterdir():  # those of deleted ones too, whose bytes stay until collected
            told = json.loads(path.read_bytes())
            named |= {entry.get("digest", "") for entry in (*told["entries"], *told["companions"])}
        orphans = [path.name for path in store.layout.blobs.glob("*/*") if path.name not in named]
        if orphans:
            self._problems.append(f"{len(orphans)} blobs are left that no record names: {orphans[0]}")
        if any(store.layout.tmp.iterdir()):
            self._problems.append("half-made things are left in tmp/")
        drafts = list(store.layout.pending(self._job).iterdir())
        if any(not torn_journals or _is_readable(one / "journal.json") for one in drafts):
            self._problems.append("sealed drafts are left although nothing is pending")

    def _look_into(self, store: Store, manifest: Manifest) -> None:
        """Every file of a checkpoint that is called available must be one that a writer finished."""
        head = manifest.checkpoint
        for entry in manifest.entries:
            if entry.path.endswith(".safetensors") and not is_whole(store.blob_path(entry.digest).read_bytes()):
                self._problems.append(f"{head.id} ({head.name}) is available, but {entry.path} is torn")

    def _compare_tree(self) -> None:
        """What was closed before the kill is in the working tree as it was closed, and what was removed is not."""
        expected: dict[str, str | None] = {}  # digest; "" removed; None: being changed when the kill came
        for log in self._logs:
            for line in log.read_text().splitlines():
                word, path, *digest = line.split(" ")
                if word in ("begin", "done", "gone"):
                    expected[path] = None if word == "begin" else "".join(digest)
        for place, left in ((Path(name), left) for name, left in expected.items() if left is not None):
            self.files_checked += 1
            found = blake3(place.read_bytes()).hexdigest() if place.exists() else ""
            if found != left:
                self._problems.append(f"{place.name} is not in the working tree as its writer left it")


def _is_readable(journal: Path) -> bool:
    try:
        return isinstance(json.loads(journal.read_bytes()), dict)
    except (OSError, ValueError):
        return False
