"""What takes the writes of an attached table, and knows whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pipeline.model.addressed import Addressed
from pipeline.model.receipt import Receipt


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
