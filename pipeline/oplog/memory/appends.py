"""Take in this process what producers append, as `enqueue.lua` does: epochs, dense sequences, idempotency keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline import clock
from pipeline.errors import LogUnavailable, PipelineFull
from pipeline.model.op import START, Entry, Position
from pipeline.oplog.appends import (
    APPENDED,
    BIG_BYTES,
    EVERYWHERE,
    FULL_SHARE,
    HELD,
    HOLE,
    SEEN,
    Append,
    Appended,
    EpochStale,
    KeyClaimed,
    Placed,
    Scope,
    claimed_id,
    is_receipt,
)
from pipeline.oplog.batches import this_process
from pipeline.oplog.memory.server import GivenOut, MemoryServer, Sent
from pipeline.oplog.ttls import BELL_MS, IDEMPOTENCY_TTL_MS

_UNSENT = Sent(0, Position(0, 0))
_HELD = Placed(HELD, Position(0, 0))


class MemoryAppends(MemoryServer):
    """See `appends.Appends`; and what its lines ask."""

    def line(self, *, patient: bool = False) -> MemoryLine:
        return MemoryLine(self)

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        with self._lock:
            server, given = self._server, self._given(scope)
            return given.epoch, given.lineage == server.lineage, f"{server.lineage} {given.epoch} {given.lineage}"

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        with self._lock:
            if self.epoch(scope)[2] != seen:
                return False
            self._server.epochs[scope] = GivenOut(epoch, self._server.lineage)
            return True

    def deployment(self, scope: str = EVERYWHERE) -> str:
        with self._lock:
            return self._server.deployment

    def note_deployment(self, seen: str, text: str, scope: str = EVERYWHERE) -> bool:
        with self._lock:
            noted = self._server.deployment == seen
            self._server.deployment = text if noted else self._server.deployment
            return noted

    def placement(self) -> str:
        with self._lock:
            return self._server.placement

    def note_placement(self, seen: str, text: str) -> bool:
        with self._lock:
            noted = self._server.placement == seen
            self._server.placement = text if noted else self._server.placement
            return noted

    def audit(self, scope: str, marks: Mapping[int, Position]) -> str:
        with self._lock:
            return self._server.audit(self._given(scope), marks)

    def _given(self, scope: str) -> GivenOut:
        return self._server.epochs.get(scope) or GivenOut()

    def claim_key(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        with self._lock:
            name = f"claim:{bucket}:{idempotency_key}"
            found = self._get(name)
            if found is None:
                self._set(name, str(row_id), IDEMPOTENCY_TTL_MS)
            return claimed_id(found) or row_id if found else row_id

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], key: str, row_id: int
    ) -> Appended:
        """Do what `enqueue.lua` does."""
        with self._lock:
            name, given = f"claim:{appends[0].bucket}:{key}", self._server.epochs.get(scope.name)
            if self.limit_bytes and self._size_bytes() >= self.limit_bytes:
                raise PipelineFull("the memory log is at its limit")
            if given is None or (given.epoch, given.lineage) != (epoch, self._server.lineage):
                raise EpochStale
            if "full" in self._server.keys and (full := self._get("full")) is not None:
                raise PipelineFull(full)
            if self.limit_bytes and (share := self._size_bytes() / self.limit_bytes) > FULL_SHARE:
                raise PipelineFull(f"Redis uses {share:.0%} of its memory")
            if key and (claim := self._get(name)) is not None:
                if is_receipt(claim):
                    return Appended([], [], claim)
                if row_id and claimed_id(claim) != row_id:
                    raise KeyClaimed(claimed_id(claim))
            found = [self._found(epoch, producer, append) for append in appends]
            held = any(place is not None and place.code == HOLE for place in found)
            placed: list[Placed] = []
            for append, known in zip(appends, found, strict=True):
                place = known or (_HELD if held else self._taken(given, producer, append))
                if place is None:
                    break
                placed.append(place)
            wrote = [append for append, place in zip(appends, placed, strict=False) if place.code == APPENDED]
            for bucket, first, _ in wrote if key else ():
                last = self._server.last[bucket]
                self._set(name, f"{last.epoch} {last.seq} {producer} {first} {row_id}", IDEMPOTENCY_TTL_MS)
            if wrote and producer not in self._server.senders:
                self._server.senders[producer] = this_process()
            ring = [shard for shard in scope.shards if wrote and self._wake(shard, [a.bucket for a in wrote])]
            if len(placed) < len(appends):
                raise EpochStale
            return Appended(placed, ring)

    def senders(self, scope: str = EVERYWHERE) -> Iterator[tuple[int, dict[int, tuple[int, int]]]]:
        with self._lock:
            known = {producer: dict(sent) for producer, sent in self._server.producers.items()}
        for producer, buckets in known.items():
            yield producer, {bucket: (sent.seq, sent.position.epoch) for bucket, sent in buckets.items()}

    def sender(self, producer: int) -> str | None:
        with self._lock:
            return self._server.senders.get(producer)

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        with self._lock:
            sent = self._server.producers.setdefault(producer, {})
            if sent.get(bucket, Sent(0, START)).seq != seen:
                return False
            sent[bucket] = Sent(last, Position(0, 0))
            return True

    def _found(self, epoch: int, producer: int, append: Append) -> Placed | None:
        """Return the answer to ops that are not to be taken; None where they are."""
        bucket, first, payloads = append
        last, (last_epoch, last_seq) = self._server.producers.get(producer, {}).get(bucket, _UNSENT)
        if first + len(payloads) - 1 <= last and last_epoch == epoch:
            return Placed(SEEN, Position(last_epoch, last_seq - (last - first)))
        if first > last + 1 or (first <= last and last_epoch == epoch):
            return Placed(HOLE, Position(0, last))
        return None

    def _taken(self, given: GivenOut, producer: int, append: Append) -> Placed | None:
        """Append ops; None where their log has forgotten some, or is ahead: the epoch ends."""
        server, epoch, (bucket, first, payloads) = self._server, given.epoch, append
        sent = server.producers.setdefault(producer, {})
        last_epoch, last_seq = sent.get(bucket, _UNSENT).position
        before = server.last.get(bucket, START)
        start = before.seq + 1 if before.epoch == epoch else 0
        behind = last_seq if last_epoch == epoch else -1
        if (start == 0 or start <= behind) and server.ends(given, bucket, start, behind):
            return None
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
        dirty = self._server.dirty.setdefault(shard, {})
        now = clock.wall_ns() // 1_000_000 + self.ahead_ms  # as `now_ms`, once per op
        for bucket in buckets:
            dirty.setdefault(bucket, now)
        bell = self._server.keys.get(f"bell:{shard}")  # as `_take`, once per op
        if bell is not None and now < bell.until_ms:
            if bell.value.startswith("l "):
                self._set(f"wake:{shard}", "1", BELL_MS)
                self._set(f"bell:{shard}", f"h {bell.value[2:]}", BELL_MS)
            return False
        self._set(f"bell:{shard}", "1", BELL_MS)
        return True


class MemoryLine:
    """A `appends.Line` of a memory log."""

    def __init__(self, log: MemoryAppends):
        self._log = log

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        log = self._log
        for last in (False, True):
            try:
                if log.fault is not None:
                    log.fault("send")
                answer = log.append(scope, epoch, producer, appends, idempotency_key, row_id)
                if log.fault is not None:
                    log.fault("reply")
                return answer
            except ConnectionError as error:
                if last:
                    raise LogUnavailable(f"{type(error).__name__}: {error}", silent=True) from error
        raise AssertionError("the second try returns or raises")

    def append_one(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        try:
            answer = self.append(scope, epoch, producer, [Append(bucket, seq, (payload,))], "", 0)
        except EpochStale:
            return None
        [(code, position)] = answer.placed
        return None if code == HOLE else (position, bool(answer.ring))

    def replicated(self, *, fsync: bool, timeout_s: float) -> bool:
        return self._log.durable

    def connect(self) -> None:
        """See `appends.Line.connect`."""

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        return self._log.pass_hole(producer, bucket, seen, last)

    def close(self) -> None:
        """Do nothing."""
