"""What is in a checkpoint's files, as a document and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import formats, render

if TYPE_CHECKING:
    from fuse_ckpt.contents import Contents, Tensor, Total

Document = dict[str, object]


def document(seen: Contents, total: Total, *, each: bool) -> Document:
    """Everything in JSON; the tensors one by one only with `each`."""
    said: Document = {
        "files": [
            {
                "path": file.path,
                "digest": file.digest,
                "sizeBytes": file.size,
                "format": file.format or None,
                "tensors": file.tensors,
            }
            for file in seen.files
        ],
        "tensorCount": total.all.tensors,
        "tensorBytes": total.all.size,
        "parameters": total.parameters,
        "types": [
            {"dtype": name, "tensors": part.tensors, "elements": part.elements, "sizeBytes": part.size}
            for name, part in total.by_type.items()
        ],
        "problems": [{"path": one.path, "problem": one.what, "corrupt": one.corrupt} for one in seen.problems],
    }
    return said | ({"tensors": [_tensor(tensor) for tensor in seen.tensors]} if each else {})


def _tensor(tensor: Tensor) -> Document:
    return {
        "name": tensor.name,
        "group": tensor.group,
        "files": list(tensor.files),
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "elements": tensor.count,
        "sizeBytes": tensor.size,
        "fault": tensor.fault or None,
    }


def show(title: str, seen: Contents, total: Total, *, each: bool, colour: bool) -> None:
    """Print tables of the files, of the types, and with `each` of the tensors."""
    files = [[file.path, file.format, file.tensors or None, formats.size(file.size)] for file in seen.files]
    table(title, ("FILE", "FORMAT", "TENSORS", "SIZE"), files, colour=colour)
    types = [
        [name, part.tensors, f"{part.elements:,}", formats.size(part.size)] for name, part in total.by_type.items()
    ]
    count = "1 tensor" if total.all.tensors == 1 else f"{total.all.tensors:,} tensors"
    sums = f"{count}, {formats.size(total.all.size)}, {total.parameters:,} parameters"
    click.echo()
    table(sums, ("TYPE", "TENSORS", "ELEMENTS", "SIZE"), types, colour=colour)
    if each:
        rows = [
            [one.name, shape(one.shape), one.dtype, formats.size(one.size), one.group, one.fault]
            for one in seen.tensors
        ]  # fmt: skip
        click.echo()
        table("Tensors", ("TENSOR", "SHAPE", "TYPE", "SIZE", "FILE", "NOTE"), rows, colour=colour)


def shape(lengths: Sequence[int]) -> str:
    """`2×3`; a tensor of no dimensions is `scalar`."""
    return "×".join(map(str, lengths)) or "scalar"


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]], *, colour: bool) -> None:
    """Print a table of values."""
    render.show_table(title, headers, [[formats.cell(value) for value in row] for row in rows], colour=colour)
