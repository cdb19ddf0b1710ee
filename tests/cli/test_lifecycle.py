"""`checkpoint delete|restore|tag|untag|pin|unpin`, as a person uses them."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click
import pytest

from fuse_ckpt.cli.formats import duration
from fuse_ckpt.model import Metadata, State
from fuse_ckpt.store.accounts import TRASH_TTL_NS

HELD = "0 bytes come free when the trash is emptied (checkpoint gc), 4 KB stay in working trees (checkpoint gc --work)."


def test_delete_without_a_terminal_needs_yes(program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shelf.put()
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        result = program("checkpoint", "delete", found.id)
    assert result.code == 2
    assert "--yes" in result.err
    assert shelf.store.checkpoint(found.id) == found


class Person:
    """A terminal with somebody in front of it."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "left", "code"), [("y", 0, 0), ("n", 1, 130)])
def test_delete_asks_on_a_terminal(
    program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch, answer: str, left: int, code: int
) -> None:
    found = shelf.put()
    monkeypatch.setattr(sys, "stdin", Person(answer))
    monkeypatch.setattr(click.termui, "visible_prompt_func", lambda prompt="": answer)
    result = program("checkpoint", "delete", found.id)
    assert result.code == code
    assert found.id in result.err
    assert len(shelf.store.checkpoints()) == left


def test_delete_names_what_it_deleted_and_the_list_forgets_it(program: Any, shelf: Any) -> None:
    first, second = shelf.put(), shelf.put("b.pt")
    result = program("checkpoint", "delete", "--yes", "digits/ckpt.pt", first.id)
    assert (result.code, result.out) == (0, f"Deleted {first.id} (digits/ckpt.pt@1)\n{HELD}\n")
    assert [row[0] for row in program("checkpoint", "list").rows] == [second.id]


def test_a_dry_run_deletes_nothing(program: Any, shelf: Any) -> None:
    found = shelf.put()
    result = program("checkpoint", "delete", found.id, "--dry-run")
    assert result.out == f"Would delete {found.id} (digits/ckpt.pt@1)\n{HELD}\n"
    assert shelf.store.checkpoint(found.id) == found


def test_nothing_is_deleted_where_one_is_unknown(program: Any, shelf: Any) -> None:
    found = shelf.put()
    assert program("checkpoint", "delete", "--yes", found.id, "no-such-one").code == 3
    assert shelf.store.checkpoint(found.id) == found


def test_nothing_is_deleted_where_one_is_in_use(program: Any, shelf: Any) -> None:
    found, used = shelf.put(), shelf.put("b.pt")
    with shelf.store.lease(used.id):
        result = program("checkpoint", "delete", "--yes", found.id, used.id)
    assert result.code == 5
    assert used.id in result.err
    assert len(shelf.store.checkpoints()) == 2
    assert "in use by process" in result.err


def test_delete_tells_what_comes_free_and_what_does_not(program: Any, shelf: Any) -> None:
    one = shelf.put("a.pt", {"own": b"o" * 5000, "shared": b"s" * 5000})
    shelf.put("b.pt", {"shared": b"s" * 5000})
    for file in shelf.scratch.iterdir():
        file.rename(file.with_suffix(".kept"))
        if file.with_suffix(".kept").read_bytes()[:1] == b"o":
            file.with_suffix(".kept").unlink()
    said = program("checkpoint", "delete", one.id, "--dry-run").out.splitlines()[1]
    assert said == "8 KB come free when the trash is emptied (checkpoint gc), 8 KB stay with other checkpoints."


# restore


@pytest.mark.parametrize("by", [lambda one: one.id, lambda one: one.id[-8:], lambda one: f"digits/{one.name}@1"])
def test_restore_undoes_a_delete(program: Any, shelf: Any, by: Any) -> None:
    one = shelf.put()
    shelf.store.tag(one.id, "paper")
    program("checkpoint", "delete", "--yes", one.id)
    assert program("checkpoint", "inspect", one.id).code == 3
    result = program("checkpoint", "restore", by(one))
    assert (result.code, result.out, result.err) == (0, f"Restored {one.id} (digits/ckpt.pt@1)\n", "")
    assert shelf.store.checkpoint(one.id).tags == ("paper",)


def test_restore_of_what_is_there_says_so(program: Any, shelf: Any) -> None:
    one = shelf.put()
    result = program("checkpoint", "restore", "digits:latest")
    assert (result.code, result.out) == (0, f"{one.id} (digits/ckpt.pt@1) is not deleted.\n")


@pytest.mark.parametrize("reference", ["nothing", "digits/ckpt.pt@7", "00000000-0000-7000-8000-000000000000", "a\nb"])
def test_restore_of_what_is_unknown_says_so(program: Any, shelf: Any, reference: str) -> None:
    shelf.put()
    result = program("checkpoint", "restore", reference)
    assert result.code == 3
    assert result.err.startswith("Unknown Checkpoint: ")
    assert result.err.count("\n") == 1


def test_restore_of_what_was_collected_says_so(program: Any, shelf: Any) -> None:
    one = shelf.put()
    program("checkpoint", "delete", "--yes", one.id)
    assert program("checkpoint", "gc", "--trash-ttl", "0").code == 0
    result = program("checkpoint", "restore", one.id)
    assert (result.code, result.err) == (3, f"Unknown Checkpoint: {one.id}\n")


def test_restore_tells_which_tag_has_gone(program: Any, shelf: Any) -> None:
    one, two = shelf.put(), shelf.put()
    shelf.store.tag(one.id, "paper")
    shelf.store.delete([one.id])
    shelf.store.tag(two.id, "paper")
    result = program("checkpoint", "restore", one.id)
    assert (result.code, result.err) == (0, "Another checkpoint has its tag paper by now.\n")


def test_an_ambiguous_deleted_one_lists_the_candidates(program: Any, shelf: Any) -> None:
    one, two = shelf.put(), shelf.put()
    shelf.store.delete([one.id, two.id])
    result = program("checkpoint", "restore", one.id[:6])
    assert result.code == 2
    assert one.id in result.err
    assert two.id in result.err


def test_the_trash_is_listed_with_the_time_that_remains(program: Any, shelf: Any) -> None:
    one = shelf.put()
    shelf.put("b.pt")
    shelf.store.delete([one.id])
    result = program("checkpoint", "list", "--status", "deleted")
    assert [cell.strip() for cell in result.out.splitlines()[1].split("│")][-2:] == ["STATUS", "REMAINING"]
    [row] = result.rows
    assert (row[0], row[-2], row[-1]) == (one.id, "deleted", "6 d 23 h")
    [record] = json.loads(program("checkpoint", "list", "--status", "deleted", "--json").out)
    assert {"deletedAt", "expiresAt", "remaining"} <= set(record)
    [deleted] = shelf.store.trash()
    assert shelf.store.expiries([deleted]) == {one.id: deleted.deleted_ns + TRASH_TTL_NS}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "none left"),
        (0, "none left"),
        (0.5, "1 s"),
        (59, "59 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (86_400 * 7, "7 d"),
        (86_400 + 30, "1 d"),
    ],
)
def test_a_duration_is_told_in_two_units(seconds: float, said: str) -> None:
    assert duration(int(seconds * 10**9)) == said


# tags and pins


def test_a_tag_is_listed_inspected_and_a_reference(program: Any, shelf: Any) -> None:
    one = shelf.put()
    shelf.put("b.pt")
    result = program("checkpoint", "tag", one.id, "release-1")
    assert (result.code, result.out) == (0, f"Tagged {one.id} (digits/ckpt.pt@1): release-1\n")
    assert [record["tags"] for record in json.loads(program("checkpoint", "list", "--json").out)] == [["release-1"], []]
    assert [row[0] for row in program("checkpoint", "list", "--tag", "release-1").rows] == [one.id]
    assert program("checkpoint", "list", "--tag", "none").rows == []
    assert program("checkpoint", "list", "--tag", "release-1", "--job", "digits").rows != []
    assert program("training", "checkpoints", "digits", "--wide").rows[0][-2] == "release-1"
    status = json.loads(program("checkpoint", "inspect", "release-1", "--json").out)["status"]
    assert (status["tags"], status["pinned"]) == (["release-1"], False)
    assert program("checkpoint", "untag", "release-1", "release-1").out == f"Untagged {one.id} (digits/ckpt.pt@1)\n"
    assert program("checkpoint", "untag", one.id, "release-1").code == 0
    assert program("checkpoint", "inspect", "release-1").code == 3


def test_a_tag_moves_only_by_force(program: Any, shelf: Any) -> None:
    one, two = shelf.put(), shelf.put()
    program("checkpoint", "tag", one.id, "release-1")
    result = program("checkpoint", "tag", two.id, "release-1")
    assert result.code == 5
    assert result.err == f"Tag release-1 is on {one.id} (digits/ckpt.pt@1): --force moves it here.\n"
    assert program("checkpoint", "tag", two.id, "release-1", "--force").code == 0
    assert shelf.store.resolve("release-1").id == two.id


@pytest.mark.parametrize("tag", ["deadbeef", "a:b", "a/b", "a\nb", "\x1b[2J", ""])
def test_a_tag_that_cannot_be_one_is_a_usage_error_in_one_line(program: Any, shelf: Any, tag: str) -> None:
    one = shelf.put()
    result = program("checkpoint", "tag", one.id, tag)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err


def test_a_leading_dash_is_no_option_behind_two(program: Any, shelf: Any) -> None:
    one = shelf.put("-x.pt")
    assert program("checkpoint", "pin", "--", "digits/-x.pt").out == f"Pinned {one.id} (digits/-x.pt@1)\n"
    assert program("checkpoint", "tag", "--", one.id, "-x").code == 2


def test_a_pinned_one_is_not_deleted(program: Any, shelf: Any) -> None:
    one = shelf.put()
    assert program("checkpoint", "pin", one.id).code == program("checkpoint", "pin", one.id).code == 0
    result = program("checkpoint", "delete", "--yes", one.id)
    assert result.code == 5
    assert "is pinned: checkpoint unpin it first" in result.err
    assert program("checkpoint", "unpin", one.id).code == program("checkpoint", "unpin", one.id).code == 0
    assert program("checkpoint", "delete", "--yes", one.id).code == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("delete --yes base", "(base@1) is pinned"),
        ("show base", "(base@1)"),
        ("scan base", "(base@1)"),
        ("diff base held", "(base@1) and "),
        ("wait torn", "(torn@1) failed"),
        ("tag base held", "(held-one@1): --force"),
        ("inspect {}", " base@1, "),
        ("gc --trash-ttl 0", "(gone): deleted"),
    ],
)
def test_a_pushed_one_is_called_by_its_own_name(program: Any, shelf: Any, command: str, said: str) -> None:
    made = {name: shelf.put(name, job="") for name in ("held-one", "base", "gone")}
    shelf.put("torn", job="", failure="torn")
    shelf.store.tag(made["held-one"].id, "held")
    shelf.store.pin(made["base"].id)
    shelf.store.delete([made["gone"].id])
    result = program("checkpoint", *command.format(made["base"].id[:4]).split())
    assert said in result.out + result.err


COMMANDS = (["delete", "--yes"], ["pin"], ["unpin"], ["tag"], ["untag"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_wrong_reference_is_one_line_and_changes_nothing(program: Any, shelf: Any, command: list[str]) -> None:
    kept, deleted = shelf.put(), shelf.put("gone.pt")
    shelf.store.delete([deleted.id])
    before = shelf.store.checkpoints()
    more = ["release-1"] if command[0].endswith("tag") else []
    codes = {}
    for reference in (deleted.id, "digits/gone.pt", "digits/x\ny", "none:latest", "", kept.id[:5]):
        result = program("checkpoint", *command, "--", reference, *more)
        codes[reference] = result.code
        assert (result.out, result.err.count("\n")) == ("", 1) or reference == kept.id[:5]
    assert codes.pop(kept.id[:5]) == 0  # of the two that it fits one is deleted
    assert codes == {deleted.id: 3, "digits/gone.pt": 3, "digits/x\ny": 3, "none:latest": 3, "": 2}
    if command[0] in ("unpin", "untag"):
        assert shelf.store.checkpoints() == before


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_an_ambiguous_reference_lists_the_candidates(program: Any, shelf: Any, command: list[str]) -> None:
    saved = [shelf.put() for _ in range(3)]
    more = ["release-1"] if command[0].endswith("tag") else []
    result = program("checkpoint", *command, saved[0].id[:6], *more)
    assert (result.code, result.out) == (2, "")
    assert all(one.id in result.err for one in saved)
    assert shelf.store.checkpoints() == saved


@pytest.mark.parametrize("command", ["pin", "unpin", "restore", "delete"])
def test_without_a_store_every_reference_is_unknown(program: Any, command: str) -> None:
    more = ["--yes"] if command == "delete" else []
    result = program("checkpoint", command, "x", *more)
    assert (result.code, result.err) == (3, "Unknown Checkpoint: x\n")


def test_a_failed_one_can_be_deleted_restored_and_tagged(program: Any, shelf: Any) -> None:
    one = shelf.put(failure="torn", metadata=Metadata())
    assert program("checkpoint", "tag", one.id, "salvage").code == 0
    program("checkpoint", "delete", "--yes", "salvage")
    program("checkpoint", "restore", one.id)
    assert shelf.store.resolve("salvage").state is State.FAILED


def test_the_best_is_by_the_training_loss_where_nothing_was_evaluated(program: Any, shelf: Any) -> None:
    losses = [0.5, 0.2, 0.3]
    saved = [shelf.put(f"s_{loss}.pt", metadata=Metadata(train_loss=loss, weights=True)) for loss in losses]
    document = json.loads(program("checkpoint", "inspect", "digits:best", "--json").out)
    assert document["metadata"]["id"] == saved[1].id
