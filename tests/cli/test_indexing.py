"""`index rebuild` and `doctor --store`, as a person calls them."""

from __future__ import annotations

from tests.cli.conftest import Program, Shelf


def test_a_healthy_store_is_called_so(program: Program, shelf: Shelf) -> None:
    shelf.put()
    for source in shelf.scratch.iterdir():  # a name that its blob has elsewhere, and that nobody knows to be sealed
        assert program("doctor", "--store").code == 4
        source.unlink()
    said = program("doctor", "--store")
    assert (said.code, said.err) == (0, "")
    assert "agree" in said.out


def test_the_doctor_names_what_is_amiss_and_mends_it(program: Program, shelf: Shelf) -> None:
    one = shelf.put()
    shelf.store.layout.manifest(one.id).unlink()
    said = program("doctor", "--store")
    assert said.code == 4
    assert one.id in said.out
    assert "--repair" in said.out
    assert program("doctor", "--store").code == 4, "it was only looked at"
    mended = program("doctor", "--store", "--repair")
    assert (mended.code, mended.err) == (0, "")
    assert "All is mended." in mended.out
    assert program("doctor", "--store").code == 0


def test_what_cannot_be_mended_is_left_and_told(program: Program, shelf: Shelf) -> None:
    one = shelf.put()
    draft = shelf.store.layout.pending(one.job) / "torn"
    draft.mkdir()
    (draft / "journal.json").write_bytes(b"{")
    (draft / "m0").write_bytes(b"the only copy")
    said = program("doctor", "--store", "--repair")
    assert said.code == 4
    assert "look at it yourself" in said.out
    assert "1 are left" in said.out


def test_repair_alone_makes_no_sense(program: Program) -> None:
    said = program("doctor", "--repair")
    assert said.code == 2
    assert "--store --repair" in said.err


def test_an_index_that_is_gone_is_built_anew(program: Program, shelf: Shelf) -> None:
    one, other = shelf.put(), shelf.put("b.pt")
    shelf.close()
    (shelf.root / "index" / "data.mdb").unlink()
    said = program("index", "rebuild")
    assert (said.code, said.err) == (0, "")
    assert "Recorded 2 checkpoints" in said.out
    listed = program("checkpoint", "list", "--json")
    assert one.id in listed.out
    assert other.id in listed.out


def test_a_rebuild_says_where_the_old_index_is_and_what_is_missing(program: Program, shelf: Shelf) -> None:
    one = shelf.put()
    shelf.store.blob_path(shelf.store.manifest(one.id).entries[0].digest).unlink()
    said = program("index", "rebuild")
    assert said.code == 1
    assert "The old index is kept as" in said.out
    assert one.id in said.err
    assert "missing" in said.err


def test_a_job_that_is_mounted_is_named(program: Program, shelf: Shelf) -> None:
    shelf.put()
    with shelf.store.lock_job("digits"):
        said = program("index", "rebuild")
    assert said.code == 5
    assert "digits" in said.err


def test_a_store_that_is_not_there_is_no_store_to_mend(program: Program) -> None:
    for command in (["doctor", "--store"], ["index", "rebuild"]):
        said = program(*command)
        assert said.code == 1
        assert "There is no store" in said.err
