"""Reads of an attached table through the application's own DAL: they see what the user has written before, if they can.

That is where the DAL stands on the primary, as with a single shard. A read waits for its user's own ops as long as a
page does, then shows what there is. MySQL shows the state of a transaction's first read to its end: where the request
has read other tables before, what is applied after that shows in the next request.

What takes the writes of an attached table, and knows whose they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pipeline.dal.objects import real_name, tables_in
from pipeline.model.op import Addressed
from pipeline.model.receipt import Receipt

READS = ("select", "iterselect", "count")


def wait_in_reads(adapter: Any, sink_of: Callable[[str], Sink | None]) -> None:
    """Let an adapter's reads wait for what is queued.

    Args:
        sink_of: returns the sink of an attached table.
    """
    for name in READS:
        setattr(adapter, name, _waiting(getattr(adapter, name), sink_of))


def _waiting(own: Callable[..., Any], sink_of: Callable[[str], Sink | None]) -> Callable[..., Any]:
    def read(query: Any, *rest: Any, **options: Any) -> Any:
        for name in _names(query, rest):
            sink = sink_of(name)
            if sink is not None:
                sink.catch_up()
        return own(query, *rest, **options)

    return read


def _names(query: Any, rest: tuple[Any, ...]) -> set[str]:
    """Return the tables of a query, of the fields asked for, and of joins."""
    parts = [query, *(part for part in rest if not isinstance(part, dict))]
    for attributes in rest:
        if isinstance(attributes, dict):
            parts += [attributes.get("join"), attributes.get("left")]
    return {real_name(table) for part in parts for table in tables_in(part)}


class Sink(Protocol):
    """A request's own object, or `Everyone`."""

    def enqueue_insert(self, table: Any, values: Mapping[str, Any] | None = None, /) -> Receipt: ...  # noqa: D102
    def enqueue_bulk_insert(self, table: Any, rows: Iterable[Mapping[str, Any]]) -> Any: ...  # noqa: D102
    def enqueue_update(self, target: Any, second: Any = None, /, **options: Any) -> Receipt: ...  # noqa: D102
    def enqueue_delete(self, target: Any, /, **options: Any) -> Receipt: ...  # noqa: D102
    def take_together(self, made: Iterable[Addressed]) -> Receipt: ...  # noqa: D102

    def unsent(self, table: str) -> bool:
        """Whether it holds ops for a table that are not sent yet."""

    def catch_up(self) -> None:
        """Give the primaries the time to get what the user has written before, ahead of a read."""


class Everyone:
    """The client of the process: its writes are nobody's, so there is nothing that a reader must see."""

    def __init__(self, client: Callable[[], Any]):
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client(), name)

    def catch_up(self) -> None:
        """Do nothing."""
