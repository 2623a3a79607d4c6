"""What a read hands out: a node's DAL, with word of how it was chosen. The DAL itself is shared by all threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.reads.readers import Reader


class ReadInfo(NamedTuple):
    """How a read was routed.

    Attributes:
        node: its name, such as `s0-r1`.
        role: primary or replica.
        lag_s: an upper bound of how old what it shows may be; None where nobody knows. The primary's is 0.
        waited_s: how long the read waited for what it must see.
        stale: True where it may lack what was asked for, and the caller chose to have it all the same.
        reason: of the choice; see `policy`.
    """

    node: str
    role: str
    lag_s: float | None
    waited_s: float
    stale: bool
    reason: str


class NodeDAL:
    """A read-only pyDAL DAL. Tables and queries of the caller's own DAL may be used with it."""

    __slots__ = ("read_info", "reader")

    def __init__(self, reader: Reader, read_info: ReadInfo):
        self.reader, self.read_info = reader, read_info

    def define(self, table: Any) -> Any:
        """Return the node's own table for a table of the caller's DAL."""
        return self.reader.table(table)

    def __call__(self, query: Any = None, *args: Any, **options: Any) -> Any:
        return self.reader.db(self.reader.own(query), *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader.db, name)

    def __getitem__(self, name: str) -> Any:
        return self.reader.db[name]

    def __contains__(self, name: object) -> bool:
        return name in self.reader.db

    def __iter__(self) -> Iterator[Any]:
        return iter(self.reader.db)

    def __repr__(self) -> str:
        return f"<DAL of node {self.read_info.node}, read-only>"
