"""Tables, documents, and the bar of long work. Plain text everywhere but on a terminal, where rich draws."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Table

SEPARATOR = " │ "
_STRONG = "bold"
_FOLDED = 12  # columns that a long word keeps when there is too little room
_PLAIN = re.compile(r"[A-Za-z0-9_/](?:[\w ./@+=-]*[\w./@+=-])?", re.ASCII)
_NUMBER_LIKE = re.compile(r"[0-9][0-9A-Fa-fxXoO_.e+]*|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def show_table(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    colour: bool,
    stream: TextIO | None = None,
) -> None:
    """Print a table whose first column is never cut or folded. Cells are expected to be visible text already."""
    stream = stream or sys.stdout
    if stream.isatty():
        _draw(title, headers, rows, colour, stream)
    else:
        stream.write(plain_table(title, headers, rows))


def plain_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table for pipes and files: the title, the header, one line per row, columns joined by ` │ `."""
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(headers))]
    drawn = (SEPARATOR.join(_padded(text, width) for text, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join([title, *(line.rstrip() for line in drawn)]) + "\n"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Columns that a terminal gives to `text`."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(line: str, room: int) -> str:
    """The line in at most `room` columns; what is left out is an ellipsis."""
    if _width(line) <= room:
        return line
    kept = ""
    for char in line:
        if _width(kept + char) > room - 1:
            break
        kept += char
    return f"{kept}…"


def _draw(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], colour: bool, stream: TextIO) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, no_color=not colour, highlight=False, markup=False, emoji=False)
    widths = _fitted([headers, *rows], console.width)
    console.print(Text(title, style=_STRONG if colour else ""))
    if widths is None:
        for line in _blocks(headers, rows, console.width):
            console.print(Text(line), crop=False, soft_wrap=True)
    else:
        console.print(_grid(headers, rows, widths, _STRONG if colour else ""))


def _grid(headers: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], style: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.MINIMAL, show_edge=False, pad_edge=False, header_style=style)
    for header, width in zip(headers, widths, strict=True):
        grid.add_column(Text(header), width=width, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(text) for text in row))
    return grid


def _fitted(lines: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The columns' widths in a terminal of `room` columns; None where not even folded cells fit.

    The first column keeps its width; the others give way, the one with the most to give first.
    """
    columns = list(zip(*lines, strict=True))
    widths = [max(map(_width, column)) for column in columns]
    least = [widths[0], *(_least(column) for column in columns[1:])]
    room -= len(SEPARATOR) * (len(columns) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        spare = [width - low for width, low in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    return widths


def _least(column: Sequence[str]) -> int:
    """A folded column's width: its longest word, but a long name may be folded anywhere."""
    heading = max(map(_width, column[0].split()))
    words = [_width(word) for cell in column[1:] for word in cell.split()]
    return max(heading, min(max(words, default=0), _FOLDED))


def _blocks(headers: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> Iterator[str]:
    """For narrow terminals: each row's first cell on a line of its own, then what the others say."""
    if not rows:
        yield SEPARATOR.join(headers)
    for first, *others in rows:
        yield first or "-"
        line = ""
        for header, text in zip(headers[1:], others, strict=True):
            pair = f"  {header} {text}" if text else ""
            if line and _width(line) + _width(pair) > room:
                yield line
                line = ""
            line += pair
        yield line


def to_json(document: object) -> str:
    """ASCII alone: neither an undecodable byte of a name nor a control character passes unescaped."""
    import msgspec

    try:  # json.dumps itself indents in Python, four times as slow
        return msgspec.json.format(json.dumps(document, ensure_ascii=True, allow_nan=False), indent=2)
    except msgspec.DecodeError:  # a byte of a name that is no UTF-8, as a lone surrogate
        return json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False)


def to_json_line(document: object) -> str:
    """The same in one line."""
    return json.dumps(document, ensure_ascii=True, allow_nan=False)


def to_yaml(document: object) -> str:
    """YAML of dicts, lists, strings, numbers, booleans and None, in the order given."""
    return "\n".join(_yaml_lines(document))


def _yaml_lines(value: object) -> list[str]:
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _yaml_item(f"{_scalar(str(key))}:", item)]
    if isinstance(value, list) and value:
        return [line for item in value for line in _yaml_element(item)]
    return [_scalar(value)]


def _yaml_item(key: str, value: object) -> list[str]:
    lines = _yaml_lines(value)
    if isinstance(value, dict | list) and value:
        return [key, *(f"  {line}" for line in lines)]
    return [f"{key} {lines[0]}"]


def _yaml_element(value: object) -> list[str]:
    first, *others = _yaml_lines(value)
    return [f"- {first}", *(f"  {line}" for line in others)]


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if _is_plain(value) else _quoted(value)
    if isinstance(value, float):
        # YAML 1.1 takes 1e-05 for a string: a float needs its point.
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    return str(value) if isinstance(value, int) else "{}" if isinstance(value, dict) else "[]"


def _is_plain(text: str) -> bool:
    """True: no YAML reader takes the bare text for anything but this string."""
    return bool(_PLAIN.fullmatch(text)) and not _NUMBER_LIKE.fullmatch(text) and text.lower() not in _WORDS


def _quoted(text: str) -> str:
    return '"' + "".join(_quoted_char(char) for char in text) + '"'


def _quoted_char(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@contextlib.contextmanager
def progress_bar(label: str, *, colour: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error where that is a terminal, else None. It is told the bytes done and the bytes in all."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True, no_color=not colour), transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
