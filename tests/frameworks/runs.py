"""Programs of real frameworks under `training run`: what they said of their saves beside what became of these."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from msgspec import Struct

from fuse_ckpt.model import Checkpoint, Kind
from fuse_ckpt.store import Store
from tests.mount.harness import wait_until
from tests.mount.runs import INPUT, SCRIPTS, Desk

PROGRAMS = SCRIPTS / "training" / "frameworks"
PATIENCE = 240.0  # seconds for a program that takes ten on an idle machine

# What stands before the program: a shell that puts the one view for the other.
_LAYOUT = f'export {INPUT}="${{{INPUT}/by-id/layout}}"; exec "$@"'
WAYS = {"bound": [], "named": [], "layout": ["bash", "-c", _LAYOUT, "bash"]}

Files = dict[str, str]  # path → SHA-256


class Run(Struct):
    """What a program printed: the loss of each step, and the files of each save, in the order of saving."""

    losses: dict[int, float]
    saves: list[Files]
    output: str

    def files_of(self, name: str) -> list[Files]:
        """Of each save that has files of the unit `name`, those files, by their path below the checkpoint's root."""
        found = []
        for save in self.saves:
            if name == "":
                files = {path: digest for path, digest in save.items() if "/" not in path}
            elif name in save:
                files = {name.rpartition("/")[2]: save[name]}
            else:
                head = f"{name}/"
                files = {path.removeprefix(head): digest for path, digest in save.items() if path.startswith(head)}
            if files:
                found.append(files)
        return found


class Listed(Struct):
    """A checkpoint as the store has it: what is listed of it, and the digests of its files, read anew."""

    checkpoint: Checkpoint
    files: Files
    links: dict[str, str]
    companions: dict[str, str]  # path below the output directory → content, or a symlink's target


def train(
    desk: Desk, job: str, program: str, *arguments: str, ranks: int = 1, resume: str | None = None, way: str = "bound"
) -> Run:
    """Run a program as a job, to its end.

    `resume`: a checkpoint to go on from, and `way`, how it is given: "bound" at a directory of the test's own, "named"
    by the variable, or "layout", the view beside that with the files under their path in the output directory.
    """
    command = [*WAYS[way], sys.executable, *([str(PROGRAMS / "ranks.py"), str(ranks)] if ranks > 1 else [])]
    environment = {"MPLCONFIGDIR": str(desk.top), "TORCH_EXTENSIONS_DIR": str(desk.top)}
    options = []
    if resume is not None:
        options = ["-C", resume]
        if way == "bound":
            place = desk.top / "input"
            place.mkdir(exist_ok=True)
            environment[INPUT] = str(place)
    started = desk.start(job, *options, command=[*command, str(PROGRAMS / program), *arguments], env=environment)
    wait_until(f"{program} has ended", lambda: started.process.poll() is not None, PATIENCE)
    assert started.wait() == 0, started.err
    assert "not committed" not in started.err
    assert "not whole" not in started.err
    losses = {int(step): float(loss) for step, loss in re.findall(r"^loss (\d+) (\S+)$", started.out, re.MULTILINE)}
    saves = [json.loads(said) for said in re.findall(r"^saved (.*)$", started.out, re.MULTILINE)]
    return Run(losses, saves, started.out)


def listed(desk: Desk, job: str) -> list[Listed]:
    """All checkpoints of a job, in the order in which they are listed; each is available, and has an id of its own."""
    by_command = desk.listed(job, all=True)
    assert {one["status"] for one in by_command} == {"available"}, by_command
    assert len({one["id"] for one in by_command}) == len(by_command)
    with Store.open(desk.store) as store:
        found = [_read(store, checkpoint) for checkpoint in store.checkpoints(job)]
    assert [one.checkpoint.id for one in found] == [one["id"] for one in by_command]
    return found


def _read(store: Store, checkpoint: Checkpoint) -> Listed:
    manifest = store.manifest(checkpoint.id)
    files = {e.path: _sha256(store.blob_path(e.digest)) for e in manifest.entries if e.kind is Kind.FILE}
    links = {e.path: e.target for e in manifest.entries if e.kind is Kind.SYMLINK}
    beside = {e.path: e.target or store.blob_path(e.digest).read_text(errors="replace") for e in manifest.companions}
    return Listed(checkpoint, files, links, beside)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names(found: list[Listed]) -> list[str]:
    return [one.checkpoint.name for one in found]


def check_bytes(found: list[Listed], run: Run) -> None:
    """Each checkpoint holds exactly what the program saved under its name: the n-th of a name, the n-th save."""
    for one in found:
        name, ordinal = one.checkpoint.name, one.checkpoint.ordinal
        assert one.files == run.files_of(name)[ordinal - 1], f"{name}@{ordinal}"


def check_resumed(resumed: Run, whole: Run, after: int, *, within: float = 0.0) -> None:
    """The losses after step `after` are those of the run that was not interrupted, `within` a relative difference."""
    expected = {step: loss for step, loss in whole.losses.items() if step > after}
    assert expected, "no step is left to compare"
    assert {step: loss for step, loss in resumed.losses.items() if step > after}.keys() == expected.keys()
    for step, loss in expected.items():
        assert abs(resumed.losses[step] - loss) <= within * abs(loss), f"step {step}"
