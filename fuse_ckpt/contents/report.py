"""What the pickles of a file would do when they are loaded, collected on the way through them."""

from __future__ import annotations

from collections.abc import Callable

from fuse_ckpt.contents.symbols import Global, Storage

NAMES_MAX = 500  # of a file that are kept; a whole module pickled has a few dozen
NAME_MAX = 300  # characters of one
ODDITIES_MAX = 20
VALUES_MAX = 100


class Report:
    """What the pickles of a file would import and call."""

    def __init__(self) -> None:
        self.names: dict[str, bool] = {}  # module.name → whether it is called, in the order of the file
        self.oddities: dict[str, None] = {}  # an ordered set of what no name tells, each what follows "it"
        self.values: list[bytes] = []  # those that may be pickles themselves
        self.storages: dict[str, Storage] = {}

    def named(self, found: Global, *, called: bool = False) -> None:
        self._note(str(found)[:NAME_MAX], called)  # no name that is allowed is so long

    def _note(self, name: str, called: bool) -> None:
        if name in self.names or len(self.names) < NAMES_MAX:
            self.names[name] = called or self.names.get(name, False)
        else:
            self.odd(f"imports more than {NAMES_MAX} names")

    def called(self, found: object) -> None:
        """A function on the stack is called, or a class on it is made an object of."""
        if isinstance(found, Global):
            self.named(found, called=True)
        else:
            self.odd("calls a value that it makes while it is loaded")

    def odd(self, what: str) -> None:
        if len(self.oddities) < ODDITIES_MAX:
            self.oddities[what] = None

    def keep(self, which: Callable[[str], bool]) -> None:
        """Forget the names that are not `which`."""
        self.names = {name: called for name, called in self.names.items() if which(name)}

    def add(self, other: Report) -> None:
        for name, called in other.names.items():
            self._note(name, called)
        for what in other.oddities:
            self.odd(what)
        self.storages |= other.storages

    def constant(self, value: object) -> None:
        """A string or number of the pickle."""
        if type(value) in (bytes, str) and value[:1] in (b"\x80", "\x80"):  # type: ignore[index]
            data = value if isinstance(value, bytes) else str(value).encode("latin-1", "replace")
            if not _may_be_pickle(data):
                return
            if len(self.values) < VALUES_MAX:
                self.values.append(data)
            else:
                self.odd("carries more pickles in its values than are looked at")


def _may_be_pickle(data: bytes) -> bool:
    return data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and data[-1:] == b"."
