"""The half of the store that knows the ways to object stores. Their credentials are never in it."""

from __future__ import annotations

from fuse_ckpt.errors import UnknownConnection, UsageError
from fuse_ckpt.model import Connection

from .index import Index
from .named import Named
from .records import Records
from .tables import Table


class Connections:
    """Storage connections by name; see `Store` for what all methods have in common."""

    _index: Index

    def add_connection(self, connection: Connection) -> None:
        """Errors: UsageError (there is one of that name)."""

        def work(records: Records) -> None:
            known = _table(records)
            if known.has(connection.name):
                raise UsageError(
                    f"There is a storage connection {connection.name} already: storage delete it first, or take "
                    "another name."
                )
            known.put(connection.name, connection)

        self._index.write(work)

    def replace_connection(self, connection: Connection) -> None:
        """Put what is known of a connection anew. Errors: UnknownConnection (it was deleted meanwhile)."""

        def work(records: Records) -> None:
            known = _table(records)
            if not known.has(connection.name):
                raise UnknownConnection(connection.name)
            known.put(connection.name, connection)

        self._index.write(work)

    def connection(self, name: str) -> Connection:
        """Errors: UnknownConnection."""
        found = self._index.read(lambda records: _table(records).get(name) if name else None)
        if found is None:
            raise UnknownConnection(name)
        return found

    def connections(self) -> list[Connection]:
        """All of them, by name."""
        return self._index.read(lambda records: list(_table(records).all()))

    def drop_connection(self, name: str) -> None:
        """Forget a connection; what lies in the object store stays there. Errors: UnknownConnection."""
        if not name or not self._index.write(lambda records: _table(records).drop(name)):
            raise UnknownConnection(name)


def _table(records: Records) -> Named[Connection]:
    return records.named(Table.CONNECTIONS, Connection)
