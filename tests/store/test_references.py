from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from fuse_ckpt.errors import InvalidReference, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, Metadata, Shape, State
from fuse_ckpt.store.references import best, latest, resolve

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
        self.alive = [one for one in self.all if one.state is not State.DELETED]

    def by_id(self, checkpoint: str) -> Checkpoint | None:
        return next((one for one in self.alive if one.id == checkpoint), None)

    def version(self, job: str, name: str, ordinal: int) -> Checkpoint | None:
        return next((one for one in self.alive if (one.job, one.name, one.ordinal) == (job, name, ordinal)), None)

    def newest(self, job: str, name: str) -> Checkpoint | None:
        return next((one for one in reversed(self.alive) if (one.job, one.name) == (job, name)), None)

    def checkpoints(self, job: str | None = None) -> Iterator[Checkpoint]:
        return (one for one in self.all if job in (None, one.job))

    def ids(self) -> Iterator[str]:
        return (one.id for one in self.all)


A1 = make("019f0000-0000-7000-8000-0000aaaa1111")
A2 = make("019f0000-0000-7000-8000-0000bbbb2222", ordinal=2, metadata=Metadata(weights=True, eval_loss=0.1))
DIR = make("019f0000-0000-7000-8000-0000cccc3333", name="nested/step_5")
ROOT = make("019f0000-0000-7000-8000-0000dddd4444", name="", metadata=WEIGHTS)
AT = make("019f0000-0000-7000-8000-0000eeee5555", name="odd@7", state=State.FAILED)
GONE = make("019f0000-0000-7000-8000-0000ffff6666", name="gone", state=State.DELETED)
OTHER = make("020f0000-0000-7000-8000-000099997777", job="other", metadata=Metadata())
CATALOG = FakeCatalog(A1, A2, DIR, ROOT, AT, GONE, OTHER)


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
        ("020f", OTHER),
        ("020f0000-0000", OTHER),
    ],
)
def test_a_reference_means_what_a_person_expects(reference: str, meant: Checkpoint) -> None:
    assert resolve(reference, CATALOG) is meant


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
    assert f"fits 5 checkpoints: {A1.id} job/c.pt, {A2.id} job/c.pt" in str(caught.value)
    assert GONE.id not in str(caught.value)


def test_a_very_ambiguous_fragment_lists_five() -> None:
    many = [make(f"019f0000-0000-7000-8000-00000000000{n}", ordinal=n + 1) for n in range(8)]
    with pytest.raises(InvalidReference, match="and 3 more"):
        resolve("019f0000", FakeCatalog(*many))


def test_an_empty_reference_is_refused_in_words() -> None:
    with pytest.raises(InvalidReference, match="empty"):
        resolve("", CATALOG)


def test_latest_prefers_an_older_resumable_one_to_newer_weights() -> None:
    assert latest([A1, ROOT]) is A1


def test_latest_falls_back_to_weights_and_never_to_a_report() -> None:
    assert latest([ROOT, OTHER]) is ROOT
    assert latest([OTHER]) is None


@pytest.mark.parametrize("state", [State.FAILED, State.PENDING, State.DELETED])
def test_latest_and_best_are_available_ones_only(state: State) -> None:
    one = make("1", state=state, metadata=Metadata(eval_loss=0.0, resumable=True))
    assert latest([A1, one]) is A1
    assert best([A2, one]) is A2


def test_best_is_the_newest_of_equals_and_ignores_losses_that_are_no_numbers() -> None:
    losses = [0.5, 0.2, 0.2, math.nan, -math.inf, None, 0.3]
    saved = [make(str(n), metadata=Metadata(eval_loss=loss)) for n, loss in enumerate(losses)]
    assert best(saved) is saved[2]
