"""The definitions of tables: ops carry only their hashes."""

from __future__ import annotations

from typing import Protocol


class Definitions(Protocol):
    """All that were ever published, and the newest of each table."""

    def publish_schema(self, name: str, hash: str, text: str) -> None:
        """Make a table definition known to workers, and the table's newest one known to migrate."""
        ...

    def schema(self, hash: str) -> str | None:
        """Return the definition with that hash."""
        ...

    def tables(self) -> dict[str, str]:
        """Return the newest definition of every table, by name."""
        ...
