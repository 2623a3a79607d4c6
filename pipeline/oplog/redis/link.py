"""A connection to Redis as one call uses it: no longer than the caller's patience lasts, however it hangs."""

from __future__ import annotations

from typing import Any, NamedTuple

import redis

from pipeline import clock
from pipeline.oplog.redis.wire import Wire
from pipeline.wait_budget import Patience

#: A command of more bytes may have to wait for the server to read it: an empty socket takes this much at once.
FITS_BYTES = 16_384


class _Answer(NamedTuple):
    """What a wire answered, and the wire, which goes on."""

    wire: Wire
    reply: Any
    refusal: redis.exceptions.ResponseError | None


class Link:
    """At most one wire, made when it is first needed; one thread at a time.

    Args:
        reply_s: how long the pool's connections wait for a reply.
        patience: None: nobody leaves earlier than the connection's own time-outs.
    """

    __slots__ = ("_patience", "_pool", "_reply_s", "_wire")

    def __init__(self, pool: Any, reply_s: float, patience: Patience | None):
        self._pool, self._reply_s, self._patience = pool, reply_s, patience
        self._wire: Wire | None = None

    def ask(self, packed: bytes) -> Any:
        """Send a packed command and return its reply; see `Wire.ask`.

        Raises:
            ResponseError: the server refused it.
            OSError, ConnectionError: no answer in time; it is unknown whether the command was done. Then `drop`.
        """
        patience, wire = self._patience, self._wire
        budget = patience.here.budget if patience is not None else None
        if patience is None or budget is None:
            return self.ask_at_leisure(packed)
        if wire is None or budget.left_s < self._reply_s or len(packed) > FITS_BYTES:
            return self._asked_aside(patience, packed)
        began = clock.mono_s()  # as `Patience.spending`, at a tenth of its cost
        try:
            return wire.ask(packed)
        finally:
            took_s = clock.mono_s() - began
            if took_s > patience.hardly_s:
                budget.left_s -= took_s

    def ask_at_leisure(self, packed: bytes) -> Any:
        """Ask for what takes its time; the caller has said how long he waits, and only the reply's time-out counts."""
        if self._wire is None:
            self._wire = Wire(self._pool)
        return self._wire.ask(packed)

    def close(self) -> None:
        """Give the connection back to the pool."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def drop(self) -> None:
        """Close the connection: what is on it is unknown."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.drop()

    def _asked_aside(self, patience: Patience, packed: bytes) -> Any:
        """Let a thread ask; the wire is ours again if it has answered in time."""
        patience.lasts()
        wire, self._wire = self._wire, None
        # much at once takes its time
        from_s = patience.hardly_s * (1 + len(packed) // FITS_BYTES) if wire is not None else 0.0
        answer = patience.aside(lambda: self._answer(wire, packed), late=lambda late: late.wire.drop(), from_s=from_s)
        self._wire = answer.wire
        if answer.refusal is not None:
            raise answer.refusal
        return answer.reply

    def _answer(self, wire: Wire | None, packed: bytes) -> _Answer:
        wire = wire or Wire(self._pool)
        try:
            return _Answer(wire, wire.ask(packed), None)
        except redis.exceptions.ResponseError as refusal:
            return _Answer(wire, None, refusal)
        except BaseException:
            wire.drop()
            raise
