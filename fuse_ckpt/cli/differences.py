"""What two checkpoints differ by, as a document and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import formats
from fuse_ckpt.cli.inventory import shape, table

if TYPE_CHECKING:
    from fuse_ckpt.contents import Comparison, FileChange, Tensor, TensorChange

Document = dict[str, object]

_CHANGES = ("added", "removed", "changed", "unchanged", "not compared")


def document(before: Document, after: Document, compared: Comparison) -> Document:
    """Everything in JSON, what is unchanged too."""
    return {
        "before": before,
        "after": after,
        "identical": compared.identical,
        "fileCounts": _counts(compared.files),
        "tensorCounts": _counts(compared.tensors),
        "files": [_file(one) for one in compared.files],
        "tensors": [_tensor(one) for one in compared.tensors],
        "problems": [{"path": one.path, "problem": one.what, "corrupt": one.corrupt} for one in compared.problems],
    }


def _counts(changes: Iterable[FileChange | TensorChange]) -> dict[str, int]:
    found = Counter(str(one.change) for one in changes)
    return {change: found[change] for change in _CHANGES}


def _file(one: FileChange) -> Document:
    return {
        "change": str(one.change),
        "before": one.before,
        "after": one.after,
        "sizeBytesBefore": one.size_before,
        "sizeBytesAfter": one.size_after,
    }


def _tensor(one: TensorChange) -> Document:
    far = one.distance
    return {
        "name": one.name,
        "change": str(one.change),
        "before": _side(one.before),
        "after": _side(one.after),
        "maxAbs": None if far is None else formats.finite(far.max_abs),
        "relativeL2": None if far is None else formats.finite(far.relative_l2),
        "nan": None if far is None else list(far.nan),
        "infinite": None if far is None else list(far.infinite),
        "note": one.note or None,
    }


def _side(tensor: Tensor | None) -> Document | None:
    if tensor is None:
        return None
    return {"group": tensor.group, "dtype": tensor.dtype, "shape": list(tensor.shape), "sizeBytes": tensor.size}


def show(title: str, compared: Comparison, *, colour: bool) -> None:
    """Print tables of the files and tensors that differ, and how many there are of each kind."""
    click.echo(title)
    if compared.identical:
        click.echo(f"The same: {_summary(compared.files)}.")
        return
    files = [_file_row(one) for one in compared.files if one.change != "unchanged"]
    click.echo()
    table(f"Files: {_summary(compared.files)}", ("FILE", "CHANGE", "BEFORE", "AFTER"), files, colour=colour)
    tensors = [_tensor_row(one) for one in compared.tensors if one.change != "unchanged"]
    click.echo()
    headers = ("TENSOR", "CHANGE", "SHAPE", "TYPE", "MAX ABS", "REL L2", "NAN", "INF", "FILE", "NOTE")
    table(f"Tensors: {_summary(compared.tensors)}", headers, tensors, colour=colour)


def _summary(changes: Iterable[FileChange | TensorChange]) -> str:
    return ", ".join(f"{count} {change}" for change, count in _counts(changes).items() if count) or "none"


def _file_row(one: FileChange) -> list[object]:
    renamed = one.before is not None and one.after is not None and one.before != one.after
    name = f"{one.before} → {one.after}" if renamed else one.before or one.after
    sizes = (None if size is None else formats.size(size) for size in (one.size_before, one.size_after))
    return [name, str(one.change), *sizes]


def _tensor_row(one: TensorChange) -> list[object]:
    far = one.distance
    before, after = one.before or one.after, one.after or one.before
    assert before is not None
    assert after is not None
    return [
        one.name,
        str(one.change),
        _both(shape(before.shape), shape(after.shape)),
        _both(before.dtype, after.dtype),
        None if far is None else formats.loss(far.max_abs),
        None if far is None else formats.loss(far.relative_l2),
        None if far is None or not any(far.nan) else _both(str(far.nan[0]), str(far.nan[1])),
        None if far is None or not any(far.infinite) else _both(str(far.infinite[0]), str(far.infinite[1])),
        after.group,
        one.note,
    ]


def _both(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
