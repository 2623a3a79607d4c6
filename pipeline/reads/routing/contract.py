"""What routing wants of its collaborators, and what it hands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from pipeline.reads.connections import Reader
from pipeline.reads.node_dal import ReadInfo
from pipeline.reads.routing.view import View
from pipeline.reads.token import Need

#: What a read must see, by bucket.
Needs = Mapping[int, Need]


class Readings(Protocol):
    """Tells of nodes: see `readings.Readings`."""

    def views(self) -> Mapping[str, View]: ...  # noqa: D102


class Budget(Protocol):
    """See `budget.Budget`."""

    def take(self, shard: str) -> bool: ...  # noqa: D102
    def note(self, shard: str) -> None: ...  # noqa: D102


class Nodes(Protocol):
    """Knows who is who: see `shard.nodes.Nodes`."""

    def primary_name(self, shard: str) -> str: ...  # noqa: D102
    def replica_names(self, shard: str) -> tuple[str, ...]: ...  # noqa: D102
    def suspect(self, shard: str) -> None: ...  # noqa: D102


class Source(Protocol):
    """Gives the reader of a node: see `readers.Readers`."""

    def __getitem__(self, node: str) -> Reader: ...


class Opened(NamedTuple):
    """A reader that may serve, and why."""

    reader: Reader
    info: ReadInfo
