"""A real store filled by hand, and the program called as a person calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fuse_ckpt.cli import access, main
from fuse_ckpt.model import Checkpoint, Entry, Kind, Metadata, NewCheckpoint, Shape, Unit
from fuse_ckpt.store import Store

BORN_NS = 1_749_114_463_816_000_000  # 2025-06-05 09:07:43.816 UTC


@dataclass
class Shelf:
    """Publishes checkpoints into the store at `root` as a committer would."""

    root: Path
    scratch: Path
    _store: Store | None = field(default=None)

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store.open(self.root)
        return self._store

    def close(self) -> None:
        """A process may have a store open once: the program opens its own."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def put(
        self,
        name: str = "ckpt.pt",
        files: Mapping[str, bytes] | None = None,
        *,
        job: str = "digits",
        shape: Shape = Shape.FLAT,
        links: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Checkpoint:
        if job:  # "" is the job of pushed checkpoints
            self.store.ensure_job(job, BORN_NS)
        entries = [
            self._file(path, data) for path, data in (files or {"ckpt.pt": name.encode(errors="replace")}).items()
        ]
        entries += [Entry(path, Kind.SYMLINK, 0o777, BORN_NS, target=to) for path, to in (links or {}).items()]
        new = NewCheckpoint(
            job=job,
            unit=Unit(name, shape),
            node=more.pop("node", "0"),
            created_ns=more.pop("created_ns", BORN_NS),
            metadata=more.pop("metadata", Metadata(step=10, resumable=True, weights=True)),
            entries=tuple(entries),
            **more,
        )
        return self.store.publish(new)

    def _file(self, path: str, data: bytes) -> Entry:
        source = self.scratch / str(len(list(self.scratch.iterdir())))
        source.write_bytes(data)
        adopted = self.store.adopt(source)
        return Entry(path, Kind.FILE, 0o640, BORN_NS, size=len(data), digest=adopted.digest)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    shelf = Shelf(tmp_path / "store", scratch)
    yield shelf
    shelf.close()


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The table on standard output, without its title and its header."""
        return [[cell.strip() for cell in line.split("│")] for line in self.out.splitlines()[2:]]


Program = Callable[..., Said]


@pytest.fixture
def program(shelf: Shelf, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """Call the program on the shelf's store: exit code, standard output, standard error."""
    for name in ("FLEXAI_OUTPUT_CHECKPOINT_DIR", "FLEXAI_INPUT_CHECKPOINT_DIR", "XDG_DATA_HOME", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSE_CKPT_STORE", str(shelf.root))

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        shelf.close()
        code = main(arguments)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return call


@pytest.fixture
def pending(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What the jobs have written and not committed: a list that a test fills."""
    units: list[SimpleNamespace] = []
    monkeypatch.setattr(access, "pending", lambda store, job: units)
    return units
