from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from fuse_ckpt.errors import InvalidReference, InvalidTag, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, Metadata, Shape, State
from fuse_ckpt.store import briefs
from fuse_ckpt.store.briefs import Brief
from fuse_ckpt.store.references import best, check_tag, latest, resolve, resolve_deleted

RESUMABLE = Metadata(resumable=True, weights=True)
WEIGHTS = Metadata(weights=True)


def make(id: str, job: str = "job", name: str = "c.pt", ordinal: int = 1, **more: object) -> Checkpoint:
    fields = {"state": State.AVAILABLE, "metadata": RESUMABLE, **more}
    return Checkpoint(
        id, job, name, Shape.FLAT, ordinal, "0", created_ns=1, committed_ns=1, size=0, files=0, **fields  # type: ignore[arg-type]
    )  # fmt: skip


class FakeCatalog:
    def __init__(self, *checkpoints: Checkpoint) -> None:
        self.all = sorted(checkpoints, key=lambda one: one.id)

    def _known(self, deleted: bool) -> list[Checkpoint]:
        return [one for one in self.all if deleted or one.state is not State.DELETED]

    def by_id(self, checkpoint: str, *, deleted: bool = False) -> Checkpoint | None:
        return next((one for one in self._known(deleted) if one.id == checkpoint), None)

    def tagged(self, tag: str) -> Checkpoint | None:
        return next((one for one in self._known(False) if tag in one.tags), None)

    def version(self, job: str, name: str, ordinal: int, *, deleted: bool = False) -> Checkpoint | None:
        wanted = (job, name, ordinal)
        return next((one for one in self._known(deleted) if (one.job, one.name, one.ordinal) == wanted), None)

    def newest(self, job: str, name: str) -> Checkpoint | None:
        return next((one for one in reversed(self._known(False)) if (one.job, one.name) == (job, name)), None)

    def offered(self, job: str, *, newest_first: bool = False) -> Iterator[tuple[str, Brief]]:
        mine = [(one.id, briefs.of(one)) for one in self.all if one.job == job]
        return iter(mine[::-1] if newest_first else mine)

    def ids_like(self, fragment: str) -> list[str]:
        return [one.id for one in self.all if one.id.startswith(fragment) or one.id.endswith(fragment)]


A1 = make("019f0000-0000-7000-8000-0000aaaa1111")
A2 = make("019f0000-0000-7000-8000-0000bbbb2222", ordinal=2, metadata=Metadata(weights=True, eval_loss=0.1))
DIR = make("019f0000-0000-7000-8000-0000cccc3333", name="nested/step_5")
ROOT = make("019f0000-0000-7000-8000-0000dddd4444", name="", metadata=WEIGHTS)
AT = make("019f0000-0000-7000-8000-0000eeee5555", name="odd@7", state=State.FAILED)
GONE = make("019f0000-0000-7000-8000-0000ffff6666", name="gone", state=State.DELETED)
OTHER = make("020f0000-0000-7000-8000-000099997777", job="other", metadata=Metadata())
TAGGED = make("020f0000-0000-7000-8000-0000abcd8888", job="tagged", tags=("release-1",))
PUSHED = make("020f0000-0000-7000-8000-0000abcd9999", job="", name="gpt2-small")
SHADOWED = make("020f0000-0000-7000-8000-0000abcdaaaa", job="", name="release-1")
CATALOG = FakeCatalog(A1, A2, DIR, ROOT, AT, GONE, OTHER, TAGGED, PUSHED, SHADOWED)


@pytest.mark.parametrize(
    ("reference", "meant"),
    [
        (A1.id, A1),
        (A1.id.upper(), A1),
        ("job:latest", DIR),
        ("job:best", A2),
        ("job/c.pt@1", A1),
        ("job/c.pt@2", A2),
        ("job/c.pt", A2),
        ("job/nested/step_5", DIR),
        ("job/", ROOT),
        ("job/@1", ROOT),
        ("job/odd@7", AT),
        ("job/odd@7@1", AT),
        ("bbbb2222", A2),
        ("BBBB2222", A2),
        ("2222", A2),
        ("00099997777", OTHER),
        ("8000-000099997777", OTHER),
        ("release-1", TAGGED),
        ("gpt2-small", PUSHED),
        ("/gpt2-small@1", PUSHED),
    ],
)
def test_a_reference_means_what_a_person_expects(reference: str, meant: Checkpoint) -> None:
    assert resolve(reference, CATALOG) is meant


@pytest.mark.parametrize("reference", [GONE.id, GONE.id.upper(), "ffff6666", "job/gone@1"])
def test_a_deleted_one_is_found_for_restoring(reference: str) -> None:
    assert resolve_deleted(reference, CATALOG) is GONE


def test_a_deleted_pushed_one_is_found_by_its_number() -> None:
    gone = make("020f0000-0000-7000-8000-0000abcdbbbb", job="", name="old", state=State.DELETED)
    assert resolve_deleted("old@1", FakeCatalog(gone)) is gone


@pytest.mark.parametrize("reference", [A1.id, "bbbb2222", "job/c.pt@1", "job/gone", "job:latest", "", "fff"])
def test_only_a_deleted_one_is_found_for_restoring(reference: str) -> None:
    with pytest.raises(UnknownCheckpoint, match=r"^Unknown Checkpoint: "):
        resolve_deleted(reference, CATALOG)


@pytest.mark.parametrize("tag", ["release-1", "best", "v1.0", "größte", "a=b", "dead-end", "abc", "deadbeefg"])
def test_what_can_be_a_tag(tag: str) -> None:
    assert check_tag(tag) == tag


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "dead",
        "BEEF",
        "2024",
        "a-b-c-d",
        "x" * 201,
        "a:b",
        "a/b",
        "a@b",
        "a\nb",
        "\x1b[1m",
        "-x",
        ".x",
        " x",
        "x ",
        A1.id,
    ],
)
def test_a_tag_never_hides_another_reference(tag: str) -> None:
    with pytest.raises(InvalidTag) as caught:
        check_tag(tag)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "reference",
    [
        "222", "bbbb222", GONE.id, "ffff6666", "job/gone", "job/gone@1", "job/c.pt@3", "job/c.pt@0", "job/none",
        "none/c.pt", "none:latest", "other:latest", "other:best", "job:newest", "job", "c.pt", "job/c.pt:latest",
        "zzzz", "job/c.pt@99999999999",
    ],
)  # fmt: skip
def test_what_is_not_there_or_deleted_is_unknown(reference: str) -> None:
    with pytest.raises(UnknownCheckpoint, match=r"^Unknown Checkpoint: "):
        resolve(reference, CATALOG)


def test_an_ambiguous_fragment_lists_the_candidates() -> None:
    with pytest.raises(InvalidReference) as caught:
        resolve("019f", CATALOG)
    assert f"fits 5 checkpoints: {A1.id} job/c.pt@1, {A2.id} job/c.pt@2" in str(caught.value)
    assert GONE.id not in str(caught.value)


def test_a_very_ambiguous_fragment_lists_five() -> None:
    many = [make(f"019f0000-0000-7000-8000-00000000000{n}", ordinal=n + 1) for n in range(8)]
    with pytest.raises(InvalidReference, match="and 3 more"):
        resolve("019f0000", FakeCatalog(*many))


def test_an_empty_reference_is_refused_in_words() -> None:
    with pytest.raises(InvalidReference, match="empty"):
        resolve("", CATALOG)


def rows(*checkpoints: Checkpoint) -> list[tuple[str, Brief]]:
    return [(one.id, briefs.of(one)) for one in checkpoints]


def test_latest_prefers_an_older_resumable_one_to_newer_weights() -> None:
    assert latest(rows(ROOT, A1)) == A1.id


def test_latest_falls_back_to_weights_and_never_to_a_report() -> None:
    assert latest(rows(OTHER, ROOT)) == ROOT.id
    assert latest(rows(OTHER)) is None


@pytest.mark.parametrize("state", [State.FAILED, State.PENDING, State.DELETED])
def test_latest_and_best_are_available_ones_only(state: State) -> None:
    one = make("1", state=state, metadata=Metadata(eval_loss=0.0, resumable=True))
    assert latest(rows(one, A1)) == A1.id
    assert best(rows(A2, one)) == A2.id


def losses(said: list[float | None], **more: Any) -> list[tuple[str, Brief]]:
    return rows(*(make(str(n), metadata=Metadata(weights=True, eval_loss=one, **more)) for n, one in enumerate(said)))


def test_best_is_the_newest_of_equals_and_ignores_losses_that_are_no_numbers() -> None:
    assert best(losses([0.5, 0.2, 0.2, math.nan, -math.inf, None, 0.3])) == "2"


def test_best_goes_by_the_training_loss_only_where_no_evaluation_is_told() -> None:
    trained = rows(*(make(f"t{n}", metadata=Metadata(weights=True, train_loss=0.1 * n)) for n in (3, 1, 2)))
    assert best(trained) == "t1"
    assert best([*trained, *losses([9.0])]) == "0"
    assert best(losses([None])) is None


def test_best_is_never_a_report() -> None:
    assert best(rows(make("1", metadata=Metadata(eval_loss=0.1)), A2)) == A2.id


@pytest.mark.parametrize(
    "one", [A1, A2, ROOT, GONE, OTHER, make("1", metadata=Metadata(train_loss=0.5, eval_loss=1e-300))]
)
def test_a_brief_is_read_back_as_it_was_written(one: Checkpoint) -> None:
    assert briefs.unpack(b"key", briefs.pack(b"key", briefs.of(one))) == briefs.of(one)


def test_a_damaged_brief_is_none() -> None:
    row = briefs.pack(b"key", briefs.of(A2))
    for n in range(len(row)):
        assert briefs.unpack(b"key", row[:n] + bytes([row[n] ^ 4]) + row[n + 1 :]) is None
    assert briefs.unpack(b"other", row) is None
    assert briefs.unpack(b"key", b"") is None
