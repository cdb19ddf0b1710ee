from __future__ import annotations

import io
import json
import math
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fuse_ckpt.cli import charts, pictures
from fuse_ckpt.cli.charts import Chart, Scale, Series, nice_ticks
from fuse_ckpt.cli.curves import Curve
from fuse_ckpt.metadata import History, loss_history
from fuse_ckpt.model import Metadata, Provenance, Shape
from tests.cli.background import Background

ROOT = "{http://www.w3.org/2000/svg}"


class Training:
    """Runs of a training whose loss at a step is 1/step, saved on the shelf; a Trainer's if `history` says so."""

    def __init__(self, shelf: Any) -> None:
        self._shelf = shelf
        self._clock = 0

    def run(
        self, job: str, steps: Iterable[int], parent: str | None = None, *, history: bool = False, scale: float = 1
    ) -> list[str]:
        self._clock += 1
        self._shelf.store.ensure_job(job, self._clock)
        run = self._shelf.store.begin_run(job, ["train"], self._clock, parent=parent, provenance=Provenance())
        return [self._save(job, step, run.id, parent, history, scale) for step in steps]

    def _save(self, job: str, step: int, run: str, parent: str | None, history: bool, scale: float) -> str:
        said = Metadata(step=step, train_loss=scale / step, eval_loss=2 * scale / step if step % 2 == 0 else None)
        logged = [{"step": n, "loss": scale / n} for n in range(1, step + 1)] + [{"step": step, "eval_loss": 9.0}]
        files = {"model.bin": f"{job}{step}{run}".encode()}
        if history:
            files["trainer_state.json"] = json.dumps({"log_history": logged}).encode()
        name = f"checkpoint-{step}"
        made = self._shelf.put(name, files, job=job, shape=Shape.DIRECTORY, run=run, parent=parent, metadata=said)
        found: str = made.id
        return found


@pytest.fixture
def training(shelf: Any) -> Training:
    return Training(shelf)


def points(program: Any, *jobs: str) -> list[dict[str, Any]]:
    result = program("checkpoint", "plot", *jobs, "--json")
    assert (result.code, result.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def steps(curve: dict[str, Any], what: str = "train") -> list[int]:
    return [point["step"] for point in curve[what]]


def test_a_curve_is_made_of_what_each_checkpoint_says(program: Any, training: Training) -> None:
    made = training.run("digits", [1, 2, 3, 4])
    (curve,) = points(program, "digits")
    assert curve["jobs"] == ["digits"]
    assert curve["train"] == [{"step": n, "loss": 1 / n} for n in (1, 2, 3, 4)]
    assert curve["eval"] == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}]
    assert [one["id"] for one in curve["checkpoints"]] == made
    assert [one["step"] for one in curve["checkpoints"]] == [1, 2, 3, 4]


def test_a_trainers_history_gives_every_step_of_the_curve(program: Any, training: Training) -> None:
    training.run("digits", [10, 20], history=True)
    (curve,) = points(program, "digits")
    assert steps(curve) == list(range(1, 21))
    assert curve["eval"] == [{"step": 20, "loss": 9.0}]


def test_what_a_job_was_resumed_from_comes_before_it(program: Any, training: Training) -> None:
    first = training.run("a", [1, 2, 3, 4, 5])
    second = training.run("b", [4, 5, 6], first[2])
    training.run("c", [7, 8], second[2])
    curves = points(program, "c")
    assert [curve["jobs"] for curve in curves] == [["a", "b", "c"]]
    assert steps(curves[0]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [one["job"] for one in curves[0]["checkpoints"]] == ["a", "a", "a", "b", "b", "b", "c", "c"]
    assert points(program, "a", "c", "b") == curves


def test_jobs_that_have_nothing_to_do_with_each_other_are_curves_of_their_own(program: Any, training: Training) -> None:
    training.run("a", [1, 2])
    training.run("b", [1, 2, 3])
    assert [curve["jobs"] for curve in points(program, "a", "b", "a")] == [["a"], ["b"]]


def test_what_was_rolled_back_is_replaced_by_what_came_after(program: Any, training: Training) -> None:
    first = training.run("digits", [1, 2, 3, 4, 5])
    training.run("digits", [3, 4], first[1], scale=7)
    (curve,) = points(program, "digits")
    assert [(point["step"], point["loss"]) for point in curve["train"]] == [(1, 1), (2, 0.5), (3, 7 / 3), (4, 7 / 4)]
    assert [one["step"] for one in curve["checkpoints"]] == [1, 2, 3, 4]


def test_a_restart_that_found_its_output_directory_goes_on_with_the_curve(program: Any, training: Training) -> None:
    training.run("digits", [1, 2, 3])
    training.run("digits", [4, 5])
    (curve,) = points(program, "digits")
    assert steps(curve) == [1, 2, 3, 4, 5]


def test_a_history_that_began_anew_is_completed_by_the_one_before(program: Any, training: Training, shelf: Any) -> None:
    first = training.run("a", [5], history=True)
    run = shelf.store.begin_run("a", ["train"], 99, parent=first[0])
    fresh = json.dumps({"log_history": [{"step": n, "loss": 0.1} for n in (6, 7)]}).encode()
    shelf.put("", {"trainer_state.json": fresh}, job="a", shape=Shape.ROOT, run=run.id, metadata=Metadata(step=7))
    (curve,) = points(program, "a")
    assert steps(curve) == [1, 2, 3, 4, 5, 6, 7]


def test_failed_and_deleted_checkpoints_are_not_in_the_curve(program: Any, shelf: Any) -> None:
    gone = shelf.put("1", metadata=Metadata(step=1, train_loss=1))
    shelf.put("2", metadata=Metadata(step=2, train_loss=1), failure="torn")
    shelf.put("3", metadata=Metadata(step=3, train_loss=1))
    shelf.store.delete([gone.id])
    (curve,) = points(program, "digits")
    assert steps(curve) == [3]
    assert len(curve["checkpoints"]) == 1


@pytest.mark.parametrize("state", [b"", b"[]", b"{", b'{"log_history": 5}', b"[" * 100_000])
def test_a_broken_history_leaves_what_the_checkpoints_say(program: Any, shelf: Any, state: bytes) -> None:
    shelf.put("1", {"trainer_state.json": state}, shape=Shape.DIRECTORY, metadata=Metadata(step=1, train_loss=0.5))
    (curve,) = points(program, "digits")
    assert curve["train"] == [{"step": 1, "loss": 0.5}]


def test_history_keeps_what_is_a_step_and_a_finite_loss() -> None:
    entries = [
        {"step": 2, "loss": 0.5},
        {"step": 1, "loss": 3},
        {"step": 2, "loss": 0.25, "eval_loss": 1.5},
        {"step": -1, "loss": 1},
        {"step": 2.5, "loss": 1},
        {"step": True, "loss": 1},
        {"loss": 1},
        {"step": 3, "loss": math.nan},
        {"step": 3, "loss": "x"},
        {"step": 3, "loss": [1]},
        {"step": 10**30, "loss": 1},
        {"step": 3, "loss": 10**400},
        "x",
    ]
    data = json.dumps({"log_history": entries}).encode()
    assert loss_history(lambda: io.BytesIO(data)) == History(((1, 3.0), (2, 0.25)), ((2, 1.5),))


# the terminal


def test_the_terminal_shows_the_curve_its_axes_and_a_legend(program: Any, training: Training) -> None:
    training.run("digits", range(1, 101), history=False)
    result = program("checkpoint", "plot", "digits")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "Loss of digits"
    assert lines[1].lstrip().startswith("1 ┤")
    assert lines[-3:] == ["⠒⠒ train loss", "◆ eval loss", "▲ 100 checkpoints"]
    axis = lines[-5]
    assert [int(word) for word in axis.split()] == [20, 40, 60, 80, 100]
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_a_chart_keeps_to_its_room(columns: int, unicode: bool) -> None:
    random.seed(columns)
    series = [
        Series("x", [(n * 1000, random.random()) for n in range(500)], "cyan"),
        Series("y", [(3, 1e-9)], "red", "o"),
    ]
    chart = Chart(series, [0, 250_000], columns, 10, unicode)
    lines = ["".join(text for text, _ in line) for line in chart.lines()]
    assert len(lines) == 10 + 3
    assert max(map(len, lines)) <= columns
    assert all(line.isascii() for line in lines) is not unicode


def test_a_falling_line_falls_and_marks_stand_where_they_should() -> None:
    line = Series("x", [(0, 1.0), (10, 0.0)], "cyan")
    chart = Chart([line, Series("y", [(10, 1.0)], "red", "o")], [0, 10], 14, 5, False)
    drawn = ["".join(text for text, _ in one).rstrip() for one in chart.lines()]
    assert drawn == [
        "1 +**        o",
        "  |  **",
        "  |    ***",
        "  |       **",
        "0 +         **",
        "  ++---------+",
        "   0        10",
        "   ^         ^",
    ]


@pytest.mark.parametrize(
    "values",
    [[(1, 1.0)], [(5, 2.0), (5, 2.0)], [(0, 0.0)], [(1, 1e308), (2, -1e308)], [(1, 5e-324), (2, 0.0)], [(2**62, 1.0)]],
)
def test_extreme_losses_are_drawn(values: list[tuple[int, float]]) -> None:
    lines = list(Chart([Series("x", values, "cyan")], [values[0][0]], 40, 8, True).lines())
    assert len(lines) == 11
    pictures.svg([Curve(("j",), values, values)])


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [(0, 100, 5, [0, 20, 40, 60, 80, 100]), (0.6, 2.3, 4, [1, 1.5, 2]), (3, 97, 2, [50]), (0, 1, 0, [])],
)
def test_ticks_are_round(low: float, high: float, most: int, ticks: list[float]) -> None:
    assert nice_ticks(Scale(low, high), most) == pytest.approx(ticks)


def test_a_stream_without_braille_gets_stars(shelf: Any, training: Training, tmp_path: Path) -> None:
    training.run("digits", [1, 2, 3])
    drawn = Background(shelf.root, tmp_path, "checkpoint", "plot", "digits", PYTHONIOENCODING="ascii")
    assert drawn.wait() == 0
    assert drawn.out.isascii()
    assert "*" in drawn.out


def test_several_jobs_are_told_apart_without_colours(program: Any, training: Training) -> None:
    training.run("a", [1, 2, 3])
    training.run("b", [1, 2, 3, 4], scale=3)
    out = program("checkpoint", "plot", "a", "b").out
    assert "\x1b" not in out
    assert out.splitlines()[0] == "Loss of a, b"
    assert "1 a\n" in out
    assert "2 b\n" in out


# pictures


def test_an_svg_has_a_line_for_each_loss_and_a_mark_for_each_checkpoint(
    program: Any, training: Training, tmp_path: Path
) -> None:
    training.run("digits", [1, 2, 3, 4])
    target = tmp_path / "loss.svg"
    result = program("checkpoint", "plot", "digits", "--output", str(target))
    assert (result.code, result.out) == (0, f"Wrote {target}\n")
    picture = ElementTree.fromstring(target.read_text())
    train, evaluation = (one.get("points", "").split() for one in picture.iter(f"{ROOT}polyline"))
    assert (len(train), len(evaluation)) == (4, 2)
    xs, ys = zip(*(map(float, place.split(",")) for place in train), strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)  # y goes down, and so do the losses
    titles = [one.text or "" for one in picture.iter(f"{ROOT}title")]
    assert sum("checkpoint-" in title for title in titles) == 4
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".loss")] == []


def test_a_hostile_name_is_text_in_the_svg(program: Any, shelf: Any, tmp_path: Path) -> None:
    shelf.put("<script>&\x1b]0;\x01\udcff", job="a<b>&c", metadata=Metadata(step=1, train_loss=0.5))
    target = tmp_path / "loss.svg"
    assert program("checkpoint", "plot", "a<b>&c", "--output", str(target)).code == 0
    picture = ElementTree.fromstring(target.read_bytes())
    titles = [one.text for one in picture.iter(f"{ROOT}title")]
    assert any(r"<script>&\x1b]0;\x01\xff" in (title or "") for title in titles)
    assert not list(picture.iter(f"{ROOT}script"))


def test_a_png_is_drawn_by_matplotlib(program: Any, training: Training, tmp_path: Path) -> None:
    training.run("digits", [1, 2, 3, 4])
    training.run("a$b_$c", [1, 2])
    target = tmp_path / "loss.PNG"
    result = program("checkpoint", "plot", "digits", "a$b_$c", "--output", str(target))
    assert (result.code, result.err) == (0, "")
    data = target.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == pictures.WIDTH


def test_a_png_without_matplotlib_is_an_error_that_says_what_to_install(
    program: Any, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.run("digits", [1, 2])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = program("checkpoint", "plot", "digits", "--output", str(tmp_path / "loss.png"))
    assert (result.code, result.out) == (1, "")
    assert "pip install 'fuse-ckpt[plot]'" in result.err
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("name", ["loss", "loss.jpg", "none/loss.svg", ".svg"])
def test_a_picture_that_cannot_be_written_is_a_usage_error(
    program: Any, training: Training, tmp_path: Path, name: str
) -> None:
    training.run("digits", [1])
    result = program("checkpoint", "plot", "digits", "--output", str(tmp_path / name))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_a_picture_that_fails_leaves_the_one_before(
    program: Any, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.run("digits", [1])
    target = tmp_path / "loss.svg"
    target.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = program("checkpoint", "plot", "digits", "--output", str(target))
    assert (result.code, result.err) == (1, "No space left on device\n")
    assert target.read_text() == "before"
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".loss")] == []


def test_a_job_that_tells_no_loss_is_said_to_have_none(program: Any, shelf: Any) -> None:
    shelf.put(metadata=Metadata(step=4))
    shelf.store.ensure_job("empty", 1)
    for job in ("digits", "empty"):
        result = program("checkpoint", "plot", job)
        assert (result.code, result.out) == (3, "")
        assert job in result.err
        (curve,) = points(program, job)
        assert (curve["train"], curve["eval"]) == ([], [])
    assert program("checkpoint", "plot", "nobody").code == 3
    assert program("checkpoint", "plot", "digits", "nobody").err.endswith('{"code":"ET0002"}\n')


def test_colours_are_named_as_click_names_them() -> None:
    from click.termui import _ansi_colors

    assert set(charts.COLOURS) <= set(_ansi_colors)
