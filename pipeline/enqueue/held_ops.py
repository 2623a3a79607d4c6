"""Ops that are made now and sent later: once the request's own transaction has been committed, or never."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from pipeline.model.op import Op
from pipeline.model.receipt import Receipt


class Waiting(NamedTuple):
    """One entry of a log to be: an op or a sealed group, and the receipts that wait for its position."""

    bucket: int
    op: Op
    durability: str
    receipts: list[Receipt]

    @property
    def plain(self) -> bool:
        """Whether it may share a round trip with others."""
        return self.durability == "redis" and self.op.idempotency_key is None


class Holder(Protocol):
    """Keeps entries until a commit: `Held`, or an outbox in the request's database."""

    def __len__(self) -> int: ...
    def add(self, entry: Waiting) -> None: ...  # noqa: D102
    def holds(self, table: str) -> bool: ...  # noqa: D102
    def send(self) -> list[Receipt]: ...  # noqa: D102
    def drop(self) -> None: ...  # noqa: D102


class Held:
    """The ops of one request, in the order of its calls. Used by one thread at a time.

    Args:
        send_all: sends entries that may share a round trip, in order per bucket.
        send_one: sends one entry by itself.
    """

    def __init__(self, send_all: Callable[[list[Waiting]], None], send_one: Callable[[Waiting], None]):
        self._send_all, self._send_one = send_all, send_one
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting)

    @property
    def receipts(self) -> list[Receipt]:
        """The receipts of all, in order."""
        return [receipt for entry in self._waiting for receipt in entry.receipts]

    def add(self, entry: Waiting) -> None:
        """Take an entry in."""
        self._waiting.append(entry)

    def holds(self, table: str) -> bool:
        """Return whether an op for a table is among them."""
        return any(op.table == table for entry in self._waiting for op in entry.op.members)

    def drop(self) -> None:
        """Forget all: the request failed."""
        self._waiting.clear()

    def send(self) -> list[Receipt]:
        """Send all in order, and return their receipts. What has been sent is not held any more, also after an error.

        Raises:
            as the call that made the op would have: `PipelineFull`, `LogUnavailable`, `NotDurable`.
        """
        sent: list[Receipt] = []
        while self._waiting:
            run = self._run()
            try:
                if run[0].plain:
                    self._send_all(run)
                else:
                    self._send_one(run[0])
            finally:
                # sent, or its outcome is unknown: never send it again
                del self._waiting[: len(run)]
            sent += [receipt for entry in run for receipt in entry.receipts]
        return sent

    def _run(self) -> list[Waiting]:
        """Return the first entries that may go together."""
        if not self._waiting[0].plain:
            return self._waiting[:1]
        end = next((i for i, entry in enumerate(self._waiting) if not entry.plain), len(self._waiting))
        return self._waiting[:end]
