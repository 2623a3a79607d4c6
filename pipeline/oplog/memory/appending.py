"""Producers, as `enqueue.lua` serves them; epochs and idempotency keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.errors import PipelineFull
from pipeline.model.op import START, Entry, Position
from pipeline.oplog.contract import APPENDED, HOLE, SEEN, Append, Appended, EpochStale, IdReserved, Placed, Scope
from pipeline.oplog.memory.line import MemoryLine
from pipeline.oplog.memory.server import Sent, Server
from pipeline.oplog.same import is_receipt, row_id_in
from pipeline.oplog.ttls import BELL_MS, IDEMPOTENCY_TTL_MS

#: As in `line`, for the reason told there.
BIG_BYTES = 16_384


class MemoryAppending(Server):
    """See `contract.Appending` and `contract.Epochs`; and what its lines ask."""

    def line(self, *, patient: bool = False) -> MemoryLine:
        return MemoryLine(self)

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        with self._lock:
            server = self._server
            epoch, given_on = server.epochs.get(scope, (0, ""))
            return epoch, given_on == server.lineage, f"{server.lineage} {epoch}"

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        with self._lock:
            if self.epoch(scope)[2] != seen:
                return False
            self._server.epochs[scope] = epoch, self._server.lineage
            return True

    def reserve(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        with self._lock:
            name = f"same:{bucket}:{idempotency_key}"
            found = self._get(name)
            if found is None:
                self._set(name, str(row_id), IDEMPOTENCY_TTL_MS)
            return row_id_in(found) or row_id if found else row_id

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], key: str, row_id: int
    ) -> Appended:
        """Do what `enqueue.lua` does."""
        with self._lock:
            server, same = self._server, f"same:{appends[0].bucket}:{key}"
            if self.limit_bytes and self._size_bytes() >= self.limit_bytes:
                raise PipelineFull("the memory log is at its limit")
            if server.epochs.get(scope.name) != (epoch, server.lineage):
                raise EpochStale
            full = self._get("full")
            if full is not None:
                raise PipelineFull(full)
            if key and (seen := self._get(same)) is not None:
                if is_receipt(seen):
                    return Appended([], [], seen)
                if row_id and row_id_in(seen) != row_id:
                    raise IdReserved(row_id_in(seen))
            placed = [self._place(epoch, producer, append) for append in appends]
            wrote = [append for append, place in zip(appends, placed, strict=True) if place.code == APPENDED]
            for bucket, first, _ in wrote if key else ():
                last = server.last[bucket]
                self._set(same, f"{last.epoch} {last.seq} {producer} {first} {row_id}", IDEMPOTENCY_TTL_MS)
            return Appended(placed, [s for s in scope.shards if wrote and self._wake(s, [a.bucket for a in wrote])])

    def sequences(self, producer: int) -> dict[int, int]:
        """See `contract.Line.sequences`."""
        with self._lock:
            return {bucket: sent.seq for bucket, sent in self._server.producers.get(producer, {}).items()}

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """See `contract.Line.pass_hole`."""
        with self._lock:
            sent = self._server.producers.setdefault(producer, {})
            if sent.get(bucket, Sent(0, START)).seq != seen:
                return False
            sent[bucket] = Sent(last, Position(0, 0))
            return True

    def _place(self, epoch: int, producer: int, append: Append) -> Placed:
        server, (bucket, first, payloads) = self._server, append
        sent = server.producers.setdefault(producer, {})
        last, (last_epoch, last_seq) = sent.get(bucket, Sent(0, Position(0, 0)))
        if first + len(payloads) - 1 <= last:
            return Placed(SEEN, Position(last_epoch, last_seq - (last - first)))
        if first != last + 1:
            return Placed(HOLE, Position(0, last))
        before = server.last.get(bucket, START)
        start = before.seq + 1 if before.epoch == epoch else 0
        entries = server.logs.setdefault(bucket, [])
        for nth, payload in enumerate(payloads):
            entries.append(Entry(bucket, Position(epoch, start + nth), producer, first + nth, payload))
        server.last[bucket] = entries[-1].position
        sent[bucket] = Sent(first + len(payloads) - 1, entries[-1].position)
        largest = max(map(len, payloads))
        if largest >= BIG_BYTES:
            server.big[bucket] = max(largest, server.big.get(bucket, 0))
        return Placed(APPENDED, Position(epoch, start))

    def _wake(self, shard: str, buckets: Iterable[int]) -> bool:
        dirty, now = self._server.dirty.setdefault(shard, {}), self.now_ms()
        for bucket in buckets:
            dirty.setdefault(bucket, now)
        return self._take(f"bell:{shard}", BELL_MS)
