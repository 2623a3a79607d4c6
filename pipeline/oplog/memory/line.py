"""One producer's connection to a log in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import LogUnavailable
from pipeline.model.op import Position
from pipeline.oplog.contract import Append, Appended, Scope, one_by_append

if TYPE_CHECKING:
    from pipeline.oplog.memory.appending import MemoryAppending


class MemoryLine:
    """A `contract.Line` of a memory log."""

    def __init__(self, log: MemoryAppending):
        self._log = log

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        """See `contract.Line.append`."""
        try:
            return self._try(scope, epoch, producer, appends, idempotency_key, row_id)
        except ConnectionError:
            try:
                return self._try(scope, epoch, producer, appends, idempotency_key, row_id)
            except ConnectionError as error:
                raise LogUnavailable(f"{type(error).__name__}: {error}") from error

    def append_one(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        """See `contract.Line.append_one`."""
        return one_by_append(self, scope, epoch, producer, bucket, seq, payload)

    def replicated(self, *, fsync: bool, timeout_s: float) -> bool:
        """See `contract.Line.replicated`."""
        return self._log.durable

    def sequences(self, producer: int) -> dict[int, int]:
        """See `contract.Line.sequences`."""
        return self._log.sequences(producer)

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """See `contract.Line.pass_hole`."""
        return self._log.pass_hole(producer, bucket, seen, last)

    def close(self) -> None:
        """Do nothing."""

    def _try(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], key: str, row_id: int
    ) -> Appended:
        self._log.fault("send")
        answer = self._log.append(scope, epoch, producer, appends, key, row_id)
        self._log.fault("reply")
        return answer
