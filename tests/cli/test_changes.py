from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from fuse_ckpt.cli.changes import Event, Seen, events
from fuse_ckpt.model import Checkpoint, Metadata, Shape, State
from fuse_ckpt.session import PendingUnit


def checkpoint(number: int = 1, **more: Any) -> Checkpoint:
    fields: dict[str, Any] = {
        "id": f"0197f6a2-0000-7000-8000-00000000000{number}",
        "job": "digits",
        "name": "ckpt.pt",
        "shape": Shape.FLAT,
        "ordinal": number,
        "node": "0",
        "state": State.AVAILABLE,
        "created_ns": 100 * number,
        "committed_ns": 100 * number + 1,
        "size": 1,
        "files": 1,
        "metadata": Metadata(),
    }
    return Checkpoint(**fields | more)


def kinds(told: list[Event]) -> list[str]:
    return [event.kind for event in told]


def seen(*checkpoints: Checkpoint, pending: tuple[str, ...] = ()) -> Seen:
    return Seen({one.id: one for one in checkpoints}, frozenset(pending))


DELETED = checkpoint(state=State.DELETED, deleted_from=State.AVAILABLE)
FAILED = checkpoint(state=State.FAILED, failure="torn")


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (None, checkpoint(), ["available"]),
        (None, FAILED, ["failed"]),
        (None, DELETED, ["available", "deleted"]),
        (None, replace(DELETED, deleted_from=State.FAILED), ["failed", "deleted"]),
        (checkpoint(), checkpoint(), []),
        (checkpoint(), checkpoint(pinned=True, tags=("x",)), []),
        (checkpoint(), checkpoint(revision=2), ["amended"]),
        (checkpoint(), checkpoint(revision=4), ["amended"]),
        (FAILED, checkpoint(revision=2), ["amended", "available"]),
        (FAILED, checkpoint(promoted=True), ["available"]),
        (checkpoint(), DELETED, ["deleted"]),
        (checkpoint(), replace(DELETED, revision=2), ["amended", "deleted"]),
        (DELETED, checkpoint(), ["restored"]),
        (DELETED, FAILED, ["restored"]),
        (checkpoint(), None, ["deleted"]),
        (DELETED, None, []),
    ],
)
def test_what_happened_follows_from_two_records(
    before: Checkpoint | None, now: Checkpoint | None, told: list[str]
) -> None:
    found, then = events("digits", seen(*[before] if before else []), None, [now] if now else [])
    assert kinds(found) == told
    assert events("digits", then, None, [now] if now else [])[0] == []


def test_many_events_come_in_the_order_of_the_ids() -> None:
    told, _ = events("digits", seen(checkpoint(2)), None, [checkpoint(3), checkpoint(1)])
    assert [(event.kind, event.record["id"]) for event in told] == [
        ("available", checkpoint(1).id),
        ("deleted", checkpoint(2).id),
        ("available", checkpoint(3).id),
    ]


def test_an_event_has_the_keys_of_the_listing_and_what_happened() -> None:
    (made, gone), _ = events("digits", seen(), None, [DELETED])
    assert list(made.record)[:3] == ["event", "id", "name"]
    assert (made.record["event"], made.record["status"]) == ("available", "available")
    assert (gone.record["event"], gone.record["status"]) == ("deleted", "deleted")


def unit(since_ns: int, name: str = "ckpt.pt") -> PendingUnit:
    return PendingUnit(name, since_ns, 1)


def test_what_begins_is_pending_once() -> None:
    told, then = events("digits", seen(), [unit(50)], [])
    assert kinds(told) == ["pending"]
    assert (told[0].record["event"], told[0].record["id"], told[0].record["job"]) == ("pending", None, "digits")
    told, then = events("digits", then, [unit(60)], [])
    assert told == []
    told, then = events("digits", then, None, [])
    assert told == []
    assert kinds(events("digits", then, [unit(60)], [])[0]) == []


def test_what_was_committed_between_two_looks_was_pending_before_it_was_available() -> None:
    told, then = events("digits", seen(), [unit(100)], [checkpoint()])
    assert kinds(told) == ["pending", "available"]
    assert then.pending == frozenset()


def test_the_next_version_is_pending_after_the_one_before_is_available() -> None:
    told, then = events("digits", seen(pending=("ckpt.pt",)), [unit(150)], [checkpoint()])
    assert kinds(told) == ["available", "pending"]
    assert then.pending == {"ckpt.pt"}


def test_a_version_that_begins_while_nobody_asks_is_pending_later() -> None:
    told, then = events("digits", seen(pending=("ckpt.pt",)), None, [checkpoint()])
    assert kinds(told) == ["available"]
    assert kinds(events("digits", then, [unit(150)], [checkpoint()])[0]) == ["pending"]
