"""Publish through the spool where Redis does not take an op, or where the caller asks for it.

Invariant: once an op of this host waits in the spool, every later one goes behind it; and an op whose outcome is
unknown goes there under the number that it was sent with, so that it cannot be doubled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.enqueue.breaker import Breaker
from pipeline.enqueue.drain_thread import DrainThread
from pipeline.enqueue.idempotency import Keys, OpPlace
from pipeline.enqueue.producers import Producer
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.schemas import SchemaPublisher
from pipeline.errors import PipelineFull, SpoolUnavailable, Unavailable
from pipeline.oplog.appends import KeyClaimed
from pipeline.spool.store import Number, Spool


class Fallback:
    """A publisher that does not fail with Redis. A spooled op's place has no position.

    Args:
        courier: told whenever something waits.
    """

    def __init__(
        self,
        publisher: Publisher,
        spool: Spool,
        breaker: Breaker,
        drain_thread: DrainThread,
        definitions: SchemaPublisher,
        keys: Keys,
    ):
        self._publisher, self._spool, self._breaker = publisher, spool, breaker
        self._drain_thread, self._definitions = drain_thread, definitions
        self.reserve = keys.reserve

    def publish(
        self,
        bucket: int,
        payload: bytes,
        *,
        key: str = "",
        row_id: int | None = None,
        then: Callable[[Producer], None] | None = None,
        kept: bool = False,
    ) -> OpPlace:
        """Append one op, or spool it; see `Publisher.publish`.

        Args:
            kept: spool it first, and keep it there until every node of its shard has it.

        Raises:
            KeyClaimed: the key stands for another id; it was taken by neither.
            PipelineFull, SpoolUnavailable: Redis did not take it, and neither did the spool.
        """
        if kept or self._breaker.open:
            self._agree(bucket, key, row_id)
            return self._spooled({bucket: (payload,)}, kept)[bucket]
        try:
            return self._publisher.publish(bucket, payload, key=key, row_id=row_id, then=then)
        except Unavailable as error:
            self._breaker.hear(error)
            self._agree(bucket, key, row_id)
            return self._instead({bucket: (payload,)}, error)[bucket]

    def publish_many(
        self,
        payloads: Mapping[int, Sequence[bytes]],
        *,
        key: str = "",
        row_id: int | None = None,
        then: Callable[[Producer], None] | None = None,
        kept: bool = False,
    ) -> dict[int, OpPlace]:
        """Append ops of several buckets, or spool those that Redis does not take; see `publish`."""
        if kept:
            return self._spooled(payloads, kept)
        places: dict[int, OpPlace] = {}
        for share in self._publisher.by_scope(payloads).values():
            if self._breaker.open:
                places |= self._spooled(share)
                continue
            try:
                places |= self._publisher.publish_many(share, key=key, row_id=row_id, then=then)
            except Unavailable as error:
                places |= self._instead(share, error)
        return places

    def _agree(self, bucket: int, key: str, row_id: int | None) -> None:
        """See that an op that goes into the spool has the id that its key stands for: the drain sends no key."""
        if key and row_id is not None and (known := self.reserve(bucket, key, row_id)) != row_id:
            raise KeyClaimed(known)

    def _instead(self, runs: Mapping[int, Sequence[bytes]], error: Unavailable) -> dict[int, OpPlace]:
        self._breaker.hear(error)
        try:
            return self._spooled(runs, numbered=error.numbered)
        except (PipelineFull, SpoolUnavailable) as second:
            if not error.numbered:
                second.numbered = {}
            raise second from error

    def _spooled(
        self, runs: Mapping[int, Sequence[bytes]], kept: bool = False, numbered: Mapping[int, Number] | None = None
    ) -> dict[int, OpPlace]:
        self._definitions.keep_in(self._spool)
        numbers = self._spool.add(runs, kept=kept, numbered=numbered)
        self._drain_thread.wake()
        return {bucket: OpPlace(None, *number) for bucket, number in numbers.items()}
