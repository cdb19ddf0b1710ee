from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fuse_ckpt.cli import following
from fuse_ckpt.model import Metadata, RunStatus
from fuse_ckpt.store import Store
from tests.cli.background import Background
from tests.mount.harness import wait_until

TORN = "model.pt ends in the middle of a tensor"

Start = Callable[..., Background]


@pytest.fixture
def start(shelf: Any, tmp_path: Path) -> Iterator[Start]:
    """Start the program on the shelf's store in the background."""
    started: list[Background] = []

    def run(*arguments: str) -> Background:
        one = Background(shelf.root, tmp_path, *arguments)
        started.append(one)
        return one

    yield run
    for one in started:
        one.end()


def test_wait_prints_the_id_of_what_is_there(program: Any, shelf: Any) -> None:
    found = shelf.put()
    result = program("checkpoint", "wait", "digits/ckpt.pt")
    assert (result.code, result.out, result.err) == (0, f"{found.id}\n", "")
    said = json.loads(program("checkpoint", "wait", found.id, "--json").out)
    assert (said["id"], said["status"]) == (found.id, "available")


@pytest.mark.parametrize("reference", ["digits/next.pt", "digits/ckpt.pt@2", "digits:best"])
def test_wait_ends_when_what_it_waits_for_is_there(shelf: Any, start: Start, reference: str) -> None:
    shelf.put(metadata=Metadata())
    waiting = start("checkpoint", "wait", reference)
    waiting.wait_until_it_looks()
    shelf.put("other.pt", metadata=Metadata())
    assert waiting.process.poll() is None
    name = "next.pt" if "next" in reference else "ckpt.pt"
    found = shelf.put(name, metadata=Metadata(eval_loss=0.5, weights=True))
    assert waiting.wait() == 0
    assert (waiting.out, waiting.err) == (f"{found.id}\n", "")


def test_wait_knows_a_job_that_appears_a_moment_later(
    program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def appear(seconds: float) -> None:
        assert seconds == following.LOOK
        made.append(shelf.put())
        shelf.close()

    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=time.monotonic, sleep=appear))
    result = program("checkpoint", "wait", "digits:latest")
    assert (result.code, result.out, len(made)) == (0, f"{made[0].id}\n", 1)


@pytest.mark.parametrize("store_exists", [False, True])
def test_wait_for_a_job_that_does_not_appear_is_not_found(
    program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch, store_exists: bool
) -> None:
    monkeypatch.setattr(following, "JOB_PATIENCE", 0.1)
    if store_exists:
        shelf.put()
    for arguments in (("wait", "nobody/ckpt.pt"), ("wait", "nobody:latest"), ("watch", "nobody")):
        result = program("checkpoint", *arguments)
        assert (result.code, result.out) == (3, "")
        assert result.err.startswith("Unknown training job: nobody")
        assert result.err.endswith('{"code":"ET0002"}\n')


def test_wait_for_an_id_that_is_not_there_is_an_error_at_once(program: Any, shelf: Any) -> None:
    gone = shelf.put()
    shelf.store.delete([gone.id])
    for reference in (gone.id, "abcdef12"):
        result = program("checkpoint", "wait", reference)
        assert (result.code, result.out, result.err) == (3, "", f"Unknown Checkpoint: {reference}\n")


def test_wait_for_one_that_failed_says_why(program: Any, shelf: Any) -> None:
    found = shelf.put(failure=TORN)
    result = program("checkpoint", "wait", "digits/ckpt.pt")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"{found.id} (digits/ckpt.pt@1) failed: {TORN}.\n"


def test_wait_ends_when_what_it_waits_for_fails(shelf: Any, start: Start) -> None:
    shelf.store.ensure_job("digits", 1)
    waiting = start("checkpoint", "wait", "digits/ckpt.pt")
    waiting.wait_until_it_looks()
    shelf.put(failure=TORN)
    assert waiting.wait() == 1
    assert TORN in waiting.err


def test_wait_says_when_the_time_is_up_and_looks_seldom(
    program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put()
    looks: list[int] = []
    generation = Store.generation

    def counted(store: Store) -> int:
        looks.append(1)
        return generation(store)

    monkeypatch.setattr(Store, "generation", counted)
    result = program("checkpoint", "wait", "digits/next.pt", "--timeout", "0.5")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("digits/next.pt is not available after 0.5 s")
    assert "fuse-ckpt training checkpoints digits --all" in result.err
    assert result.err.count("\n") == 1
    assert len(looks) <= 2 + 0.5 / following.LOOK


def test_wait_for_what_is_of_no_job_says_where_to_look(program: Any, shelf: Any) -> None:
    shelf.put()
    result = program("checkpoint", "wait", "no-such-tag", "--timeout", "0")
    assert (result.code, '"fuse-ckpt checkpoint list" tells what there is' in result.err) == (1, True)


@pytest.mark.parametrize("arguments", [("",), ("digits/ckpt.pt", "--timeout", "-1"), ("x", "--status", "gone")])
def test_wait_for_what_makes_no_sense_is_a_usage_error(program: Any, shelf: Any, arguments: tuple[str, ...]) -> None:
    shelf.put()
    result = program("checkpoint", "wait", *arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_watch_tells_what_happens_until_a_signal_ends_it(shelf: Any, start: Start, number: int, code: int) -> None:
    before = shelf.put("before.pt")
    watching = start("checkpoint", "watch", "digits", "--from", before.id)  # whenever its first look is
    made = shelf.put("made.pt")
    shelf.put("elsewhere.pt", job="other")
    watching.wait_for_events(1)
    torn = shelf.put("torn.pt", failure=TORN)
    watching.wait_for_events(2)
    shelf.store.delete([before.id])
    told = watching.wait_for_events(3)
    assert watching.signal(number) == code
    assert [(event["event"], event["id"], event["status"]) for event in told] == [
        ("available", made.id, "available"),
        ("failed", torn.id, "failed"),
        ("deleted", before.id, "deleted"),
    ]
    assert (watching.events, watching.err) == (told, "")


def test_watch_tells_what_is_restored(shelf: Any, start: Start) -> None:
    found = shelf.put()
    watching = start("checkpoint", "watch", "digits", "--from", found.id)
    shelf.put("other.pt")
    watching.wait_for_events(1)
    shelf.store.delete([found.id])
    watching.wait_for_events(2)
    shelf.store.restore(found.id)
    told = watching.wait_for_events(3)
    assert [(event["event"], event["id"]) for event in told[1:]] == [("deleted", found.id), ("restored", found.id)]


def test_watch_loses_no_event_of_many(shelf: Any, start: Start) -> None:
    watching = start("checkpoint", "watch", "digits", "--from", shelf.put("before.pt").id)
    watching.wait_until_it_looks()
    shelf.put("first.pt")
    watching.wait_for_events(1)
    made = [shelf.put(f"{n}.pt") for n in range(60)]
    shelf.store.delete([one.id for one in made[::2]])
    told = watching.wait_for_events(91)[1:]
    assert [event["id"] for event in told if event["event"] == "available"] == [one.id for one in made]
    assert {event["id"] for event in told if event["event"] == "deleted"} == {one.id for one in made[::2]}
    assert watching.signal(signal.SIGTERM) == 143


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--since", "all"], ["a", "b", "c"]),
        (["--since", "now"], []),
        (["--from", "digits/a"], ["b", "c"]),
        (["--from", "digits/c"], []),
    ],
)
def test_watch_tells_first_of_what_is_there(program: Any, shelf: Any, options: list[str], names: list[str]) -> None:
    ended(shelf)
    for name in ("a", "b", "gone", "c"):
        shelf.put(name)
    shelf.store.delete([shelf.store.newest("digits", "gone").checkpoint.id])
    result = program("checkpoint", "watch", "digits", "--until-end", *options)
    assert (result.code, result.err) == (0, "")
    assert [json.loads(line)["name"] for line in result.out.splitlines()] == names


def ended(shelf: Any) -> None:
    shelf.store.ensure_job("digits", 1)
    run = shelf.store.begin_run("digits", ["train"], 1)
    shelf.store.end_run(run, 2, 0, RunStatus.SUCCEEDED)


def test_watch_until_the_end_waits_for_the_run_and_its_last_command(shelf: Any, start: Start, tmp_path: Path) -> None:
    shelf.store.ensure_job("digits", 1)
    run = shelf.store.begin_run("digits", ["train"], 1)
    out = tmp_path / "evaluated"
    with shelf.store.lock_job("digits"):
        begin = ("--from", shelf.put("before.pt").id)
        command = f"echo {{name}} >> {out}; exit 7"
        watching = start("checkpoint", "watch", "digits", *begin, "--until-end", "--exec", command)
        made = [shelf.put(name) for name in ("first.pt", "last.pt")]
        watching.wait_for_events(2)
        assert watching.process.poll() is None
    shelf.store.end_run(run, 2, 0, RunStatus.SUCCEEDED)
    assert watching.wait() == 0
    assert out.read_text() == "first.pt\nlast.pt\n"
    assert [event["event"] for event in watching.events] == ["available", "available"]
    assert watching.err.count("ended with 7") == 2
    assert f"the command for {made[1].id} (last.pt) ended with 7" in watching.err


def test_the_commands_own_output_is_not_among_the_events(shelf: Any, start: Start) -> None:
    ended(shelf)
    shelf.put()
    watching = start("checkpoint", "watch", "digits", "--until-end", "--since", "all", "--exec", "echo spoken")
    assert (watching.wait(), len(watching.events), watching.out.count("\n")) == (0, 1, 1)
    assert "spoken\n" in watching.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_that_runs(shelf: Any, start: Start, tmp_path: Path, number: int, code: int) -> None:
    shelf.store.ensure_job("digits", 1)
    shelf.put()
    command = f"echo $$ > {tmp_path}/pid; sleep 100"
    watching = start("checkpoint", "watch", "digits", "--since", "all", "--exec", command)
    pid = wait_until("it runs", lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    assert watching.signal(number) == code
    assert not Path(f"/proc/{pid}").exists()
    assert "Traceback" not in watching.err


def test_pending_units_are_told(program: Any, shelf: Any, pending: list[SimpleNamespace]) -> None:
    ended(shelf)
    pending.append(SimpleNamespace(name="next.pt", since_ns=1, size=7))
    result = program("checkpoint", "watch", "digits", "--until-end")
    (told,) = map(json.loads, result.out.splitlines())
    assert (told["event"], told["id"], told["name"], told["sizeBytes"]) == ("pending", None, "next.pt", 7)


def test_a_job_that_nobody_serves_and_whose_run_never_ended_is_over_after_a_while(
    program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "JOB_PATIENCE", 0.2)
    shelf.store.ensure_job("digits", 1)
    shelf.store.begin_run("digits", ["train"], 1)
    assert program("checkpoint", "watch", "digits", "--until-end").code == 0


@pytest.mark.parametrize(
    "arguments", [("a/b",), ("digits", "--since", "all", "--from", "x"), ("digits", "--since", "x")]
)
def test_watch_of_what_makes_no_sense_is_a_usage_error(program: Any, shelf: Any, arguments: tuple[str, ...]) -> None:
    shelf.put()
    result = program("checkpoint", "watch", *arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_watch_from_an_unknown_checkpoint_is_not_found(program: Any, shelf: Any) -> None:
    shelf.put()
    assert program("checkpoint", "watch", "digits", "--from", "digits/nothing").code == 3
