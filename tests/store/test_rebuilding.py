"""The index is built anew from the manifests, whatever has become of the old one; and the doctor knows when to."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse_ckpt.errors import Busy
from fuse_ckpt.model import Checkpoint, InodeKey, RunStatus, State
from fuse_ckpt.store import Store, examine, mend, rebuild

Save = Callable[..., Checkpoint]


@pytest.fixture
def filled(root: Path, save: Save) -> Path:
    """A store of two jobs, four checkpoints (one failed, one deleted) and a run."""
    with Store.open(root) as store:
        store.ensure_job("job", 1)
        store.end_run(store.begin_run("job", ["train"], 5), 9, 0, RunStatus.SUCCEEDED)
        save(store, "a", {"m": b"one", "same": b"same"})
        save(store, "a", {"m": b"two", "same": b"same"})
        save(store, "b", {"m": b"torn"}, job="other", failure="torn")
        gone = save(store, "c", {"m": b"gone"}, job="other")
        store.delete([gone.id])
    return root


def told(root: Path) -> list[object]:
    """All that a store says of itself."""
    with Store.open(root) as store:
        every = store.checkpoints(states=set(State))
        alive = [one for one in every if one.state is not State.DELETED]
        assert store.verify() == store.problems == []
        return [
            every,
            [store.manifest(one.id) for one in alive],
            [store.resolve(f"{one.job}/{one.name}@{one.ordinal}").id for one in alive],
            [(job.name, store.runs(job.name)) for job in store.jobs()],
        ]


def test_of_a_whole_index_a_rebuild_keeps_everything(filled: Path, save: Save) -> None:
    before = told(filled)
    rebuilt = rebuild(filled)
    assert told(filled) == before
    assert (rebuilt.checkpoints, rebuilt.runs, rebuilt.problems) == (4, 1, ())
    assert rebuilt.kept is not None
    assert rebuilt.kept.is_file()
    assert os.listdir(filled / "tmp") == []
    with Store.open(filled) as store:
        store.recover()
        assert save(store, "a", {"m": b"three"}).ordinal == 3
    assert examine(filled) == []


def test_a_rebuild_keeps_what_was_said_of_checkpoints(filled: Path, save: Save) -> None:
    with Store.open(filled) as store:
        one, two, torn = store.checkpoints()
        store.tag(one.id, "release-1")
        store.pin(two.id)
        store.delete([one.id])
        store.tag(torn.id, "release-1")
        store.set_rules("job", "keep-last=3", 5, 7)
    for index in ("there", "gone"):
        if index == "gone":
            (filled / "index" / "data.mdb").unlink()
        rebuild(filled)
        with Store.open(filled) as store:
            assert store.resolve("release-1").id == torn.id
            assert store.checkpoint(two.id).pinned
            assert [gone.deleted_from for gone in store.trash()] == [State.AVAILABLE] * 2
            assert (store.job("job").retain == "keep-last=3") is (index == "there")
            assert store.totals().blobs == 5
            assert store.best("job") == store.latest("job")
    with Store.open(filled) as store:
        store.restore(one.id)
        assert store.checkpoint(one.id).tags == ()
        assert store.verify() == []


def test_a_rebuild_remembers_what_was_collected(filled: Path, save: Save) -> None:
    with Store.open(filled) as store:
        [_, last, _] = store.checkpoints()
        work = store.layout.work("job")
        (work / "m").write_bytes(b"two")
        os.utime(work / "m", ns=(1, 1))
        store.delete([last.id])
        with store.collecting("a test"):
            store.collect([last.id])
            store.clear_garbage()
        assert store.was_collected("job", "a", [("m", 3, 1)])
    rebuild(filled)
    with Store.open(filled) as store:
        assert store.was_collected("job", "a", [("m", 3, 1)])
        assert save(store, "a", {"m": b"three"}).ordinal == 3


def test_a_collection_that_was_cut_off_is_not_undone_by_a_rebuild(filled: Path) -> None:
    with Store.open(filled) as store:
        [gone] = store.trash()
        kept = store.layout.manifest(gone.id).read_bytes()
        with store.collecting("a test"):
            store.collect([gone.id])
            store.clear_garbage()
        store.layout.manifest(gone.id).write_bytes(kept)
    assert [one.cure for one in examine(filled)] == ["it is removed: a crash left it"]
    rebuild(filled)
    with Store.open(filled) as store:
        assert store.trash() == []
        store.recover()
        assert not store.layout.manifest(gone.id).exists()
    assert examine(filled) == []


@pytest.mark.parametrize("damage", ["gone", "empty", "garbage", "truncated"])
def test_without_an_index_everything_but_runs_comes_from_the_manifests(filled: Path, damage: str) -> None:
    checkpoints, manifests, references, jobs = told(filled)
    data = filled / "index" / "data.mdb"
    size = data.stat().st_size
    if damage == "gone":
        data.unlink()
    elif damage == "garbage":
        data.write_bytes(random.Random(1).randbytes(size))
    else:
        os.truncate(data, 0 if damage == "empty" else size // 2)
    rebuilt = rebuild(filled)
    assert rebuilt.checkpoints == 4
    after = told(filled)
    assert after[:3] == [checkpoints, manifests, references]
    assert isinstance(jobs, list)
    assert isinstance(after[3], list)
    assert [name for name, _ in after[3]] == [name for name, _ in jobs]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_an_index_that_was_cut_off_is_damaged_and_kills_no_process(filled: Path, share: float) -> None:
    """LMDB maps the file, and a page that is not there would be SIGBUS."""
    data = filled / "index" / "data.mdb"
    size = data.stat().st_size
    truth = listed(filled)
    os.truncate(data, int(size * share))
    found = listed(filled)
    assert found == truth or is_told(found), found
    assert mend(filled) == []
    assert listed(filled)[1:] == truth[1:]


def test_what_is_sealed_in_a_working_tree_is_sealed_again(filled: Path) -> None:
    with Store.open(filled) as store:
        blob = next(path for path in store.layout.blobs.glob("*/*") if path.stat().st_nlink > 1)
        key = key_of(blob)
        assert store.known_digest(key) == blob.name
    (filled / "index" / "data.mdb").unlink()
    rebuild(filled)
    with Store.open(filled) as store:
        assert store.known_digest(key) == blob.name


def key_of(path: Path) -> InodeKey:
    status = path.stat()
    return InodeKey(status.st_dev, status.st_ino)


def test_a_checkpoint_whose_bytes_are_not_there_is_recorded_as_failed(filled: Path) -> None:
    with Store.open(filled) as store:
        first, second = store.checkpoints("job")
        digest = next(one.digest for one in store.manifest(second.id).entries if one.path == "m")
        store.blob_path(digest).unlink()
    rebuilt = rebuild(filled)
    assert len(rebuilt.problems) == 1
    assert "'m'" in rebuilt.problems[0]
    with Store.open(filled) as store:
        assert [one.state for one in store.checkpoints("job")] == [State.AVAILABLE, State.FAILED]
        assert store.checkpoint(first.id).failure is None


@pytest.mark.parametrize("what", ["not JSON", "another's", "outside", "no digest", "twice"])
def test_a_manifest_that_cannot_be_trusted_is_named_and_not_recorded(filled: Path, what: str) -> None:
    with Store.open(filled) as store:
        victim, other, *_ = store.checkpoints()
        path = store.layout.manifest(victim.id)
    manifest = json.loads(path.read_bytes())
    entry = manifest["entries"][0]
    if what == "another's":
        manifest["checkpoint"]["id"] = other.id
    elif what == "outside":
        entry["path"] = "../../outside"
    elif what == "no digest":
        entry["digest"] = "../../../etc/passwd"
    elif what == "twice":
        manifest["entries"].append(entry)
    path.write_text("{" if what == "not JSON" else json.dumps(manifest))
    (filled / "index" / "data.mdb").unlink()
    rebuilt = rebuild(filled)
    assert rebuilt.checkpoints == 3
    assert victim.id in rebuilt.problems[0]
    assert path.exists()
    with Store.open(filled) as store:
        assert victim.id not in {one.id for one in store.checkpoints()}


def test_a_record_of_a_foreign_index_is_trusted_no_more_than_a_file(root: Path, save: Save) -> None:
    """Whoever can write a store can write the checksums of its records too."""
    with Store.open(root) as store:
        forged = save(store, "a", {"../../outside": b"x"})
    rebuilt = rebuild(root)
    assert rebuilt.checkpoints == 0
    assert all(forged.id in problem for problem in rebuilt.problems)
    assert "no path inside" in rebuilt.problems[0]


def test_a_job_that_is_served_is_named_and_nothing_is_touched(filled: Path) -> None:
    before = (filled / "index" / "data.mdb").read_bytes()
    with Store.open(filled) as store, store.lock_job("job") as lock:
        lock.note("/mnt/here")
        with pytest.raises(Busy, match="/mnt/here"):
            rebuild(filled)
    assert (filled / "index" / "data.mdb").read_bytes() == before
    assert os.listdir(filled / "index") == ["data.mdb"]


@pytest.mark.parametrize("looks", [True, False])
def test_whoever_had_the_store_open_goes_on_in_the_new_index(filled: Path, save: Save, looks: bool) -> None:
    """No mount is in the way of a rebuild, but a push or a notebook may be there: what it records is not to be lost."""
    with Store.open(filled) as store:
        before = store.generation()
        rebuild(filled)
        if looks:
            assert store.generation() > before
            assert len(store.checkpoints()) == 3
        told_once = store.generation()
        late = save(store, "late", {"m": b"late"})
        assert store.generation() > told_once
    with Store.open(filled) as store:
        store.recover()
        assert store.resolve("job/late@1").id == late.id
        assert store.verify() == []


def test_while_its_file_is_gone_an_open_index_is_all_that_there_is(filled: Path, save: Save) -> None:
    with Store.open(filled) as store:
        (filled / "index" / "data.mdb").unlink()
        late = save(store, "a", {"m": b"late"}, job="job")
        assert (len(store.checkpoints()), late.ordinal) == (4, 3)
    rebuild(filled)
    with Store.open(filled) as store:
        assert store.resolve("job/a@3").id == late.id


# -- the doctor -------------------------------------------------------------------------------------------------------


def test_a_healthy_store_has_no_ailment(filled: Path) -> None:
    assert examine(filled) == []
    assert mend(filled) == []


def break_records(root: Path, table: str) -> None:
    import lmdb

    with lmdb.open(str(root / "index"), max_dbs=32, lock=False, map_size=1 << 30) as env:
        records = env.open_db(table.encode())
        with env.begin(write=True) as transaction:
            key, value = next(iter(transaction.cursor(db=records)))
            transaction.put(key, bytes([value[0] ^ 1, *value[1:]]), db=records)


@pytest.mark.parametrize("table", ["checkpoints", "manifests", "by_name", "blobs", "inodes"])
def test_a_damaged_record_is_mended_from_the_manifests(filled: Path, table: str) -> None:
    before = told(filled)
    break_records(filled, table)
    assert any("damaged" in one.what for one in examine(filled))
    assert mend(filled) == []
    assert told(filled) == before


def test_the_other_ways_in_which_a_store_can_be_amiss(filled: Path) -> None:
    before = told(filled)
    with Store.open(filled) as store:
        first, second, *_ = store.checkpoints()
        store.layout.manifest(first.id).unlink()
        stray = store.blob_path("0" * 64)
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"stray")
        draft = store.layout.pending("job") / "torn"
        draft.mkdir()
        (draft / "journal.json").write_bytes(b"")
        os.link(next(store.layout.blobs.glob("*/*")), draft / "m0")
    filled.chmod(0o755)
    found = " ".join(one.what for one in examine(filled))
    assert all(sign in found for sign in (first.id, "0" * 64, "torn", "can be entered"))
    assert second.id not in found
    assert mend(filled) == []
    assert not draft.exists()
    assert not stray.exists()
    assert filled.stat().st_mode & 0o777 == 0o700
    assert told(filled) == before


def test_what_only_a_person_can_decide_is_left_as_it_is(filled: Path) -> None:
    draft = filled / "jobs" / "job" / "pending" / "torn"
    draft.mkdir()
    (draft / "journal.json").write_bytes(b"{")
    (draft / "m0").write_bytes(b"the only copy")
    (one,) = mend(filled)
    assert one.cure is None
    assert (draft / "m0").read_bytes() == b"the only copy"


def torn_draft(root: Path, name: str, **links: Path) -> Path:
    draft = root / "jobs" / "job" / "pending" / name
    draft.mkdir()
    (draft / "journal.json").write_bytes(b"")
    for link, file in links.items():
        os.link(file, draft / link)
    return draft


@pytest.mark.parametrize("drafts", [[["m0"], ["m0"]], [["m0", "m1"]]])
def test_torn_drafts_that_have_the_last_names_of_a_file_are_not_all_removed(
    filled: Path, drafts: list[list[str]]
) -> None:
    """A hard link makes a file a member twice, and its own names may have gone before the power did."""
    file = filled / "tmp" / "only"
    file.write_bytes(b"the only copy")
    made = [torn_draft(filled, f"torn{at}", **dict.fromkeys(links, file)) for at, links in enumerate(drafts)]
    file.unlink()
    mend(filled)
    assert [path.read_bytes() for draft in made for path in draft.glob("m0")] == [b"the only copy"]


def test_a_draft_with_names_that_are_no_utf8_is_not_torn(filled: Path) -> None:
    draft = torn_draft(filled, "sealed", m0=next((filled / "blobs").glob("*/*")))
    (draft / "journal.json").write_text(json.dumps({"files": [{"path": "w\udc80"}]}))
    assert mend(filled) == []
    assert (draft / "m0").exists()


# -- flipped bits -----------------------------------------------------------------------------------------------------

LIST = """
import sys
from pathlib import Path
from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.store import Store
try:
    with Store.open(Path(sys.argv[1]), create=False) as store:
        said = []
        for one in store.checkpoints():
            try:
                said.append(repr(store.manifest(one.id)))
            except FuseCkptError as error:
                store._index.problems[str(error)] = None
        print("problems" if store.problems else "well", *said, sep="\\n")
except (FuseCkptError, OSError) as error:
    print("refused", error)
"""


def test_a_flipped_bit_in_the_index_gives_no_wrong_listing_and_a_rebuild_mends_it(
    root: Path, tmp_path: Path, save: Save
) -> None:
    """Whatever it hits: a record, a page's header, the tree, or nothing at all."""
    with Store.open(root) as store:
        for number in range(40):
            save(store, f"n{number % 7}", {"m": b"%d" % number})
    truth = listed(root)
    assert truth[0] == "well"
    size = (root / "index" / "data.mdb").stat().st_size
    chance = random.Random(5)
    outcomes = {"same": 0, "told": 0, "died": 0}
    for _ in range(FLIPS):
        copy = tmp_path / "copy"
        shutil.copytree(root, copy, symlinks=True)
        flip(copy / "index" / "data.mdb", chance.randrange(size * 8))
        found = listed(copy)
        if found == truth:
            outcomes["same"] += 1
        elif is_told(found):
            outcomes["told"] += 1
            assert set(found[1:]) <= set(truth[1:]), "what is listed beside it is right"
        else:
            assert found[0] == "died", found[0]
            outcomes["died"] += 1
        shutil.rmtree(copy)
    print(outcomes)
    assert outcomes["told"] > 0


FLIPS = int(os.environ.get("FUSE_CKPT_FLIPS", "50"))


def is_told(found: list[str]) -> bool:
    """Whether a listing was refused, or came with the word that something is damaged."""
    return found[0] == "problems" or found[0].startswith("refused")


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def listed(root: Path) -> list[str]:
    """What a process of its own says of a store; "died" where LMDB took it with it."""
    command = [sys.executable, "-c", LIST, str(root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    return said.stdout.splitlines() if said.returncode == 0 else ["died", said.stderr]
