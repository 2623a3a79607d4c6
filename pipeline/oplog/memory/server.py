"""Hold the state of a log server in this process, and take in what producers append, as `enqueue.lua` does."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from pipeline import clock
from pipeline.config.buckets import log_number
from pipeline.errors import LogUnavailable, PipelineFull
from pipeline.model import START, Entry, Position
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
from pipeline.oplog.shared_state import BELL_MS, IDEMPOTENCY_TTL_MS, Note, this_process

_HELD = Placed(HELD, Position(0, 0))


class Timed(NamedTuple):
    """A value that expires at a time, in ms."""

    value: str
    until_ms: int


class Sent(NamedTuple):
    """A producer's last sequence number in a bucket, and the position of its op."""

    seq: int
    position: Position


@dataclass(slots=True)
class GivenOut:
    """An epoch that was given out, as `enqueue.lua` keeps it.

    Attributes:
        epoch: the number.
        lineage: of the server that it was given out on; once it has ended, why.
        begun: the buckets with entries of the epoch.
    """

    epoch: int = 0
    lineage: str = ""
    begun: set[int] = field(default_factory=set)


@dataclass(slots=True)
class ServerState:
    """The state of a server; `lineage` is its identity, as `master_replid` is Redis's."""

    lineage: str = field(default_factory=lambda: uuid4().hex)
    logs: dict[int, list[Entry]] = field(default_factory=dict)
    last: dict[int, Position] = field(default_factory=dict)  # given out, trimmed or not
    trimmed: set[int] = field(default_factory=set)
    big: dict[int, int] = field(default_factory=dict)
    producers: dict[int, dict[int, Sent]] = field(default_factory=dict)
    epochs: dict[str, GivenOut] = field(default_factory=dict)
    deployment: str = ""
    placement: str = ""
    dirty: dict[str, dict[int, int]] = field(default_factory=dict)
    marks: dict[str, dict[int, Position]] = field(default_factory=dict)
    notes: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    waits: dict[str, dict[int, tuple[int, str, Note]]] = field(default_factory=dict)  # bucket -> ends at, cause, note
    attempts: dict[str, dict[int, str]] = field(default_factory=dict)
    schemas: dict[str, str] = field(default_factory=dict)
    newest_schemas: dict[str, str] = field(default_factory=dict)
    spans: dict[str, tuple[int, str]] = field(default_factory=dict)  # shard -> span of ids, and where it was given
    ids: dict[int, int] = field(default_factory=dict)  # bucket -> the next counter of its ids
    health: dict[str, Timed] = field(default_factory=dict)  # node -> report, and when it was published
    health_until_ms: int = 0
    senders: dict[int, str] = field(default_factory=dict)  # producer -> host and process
    batches: dict[str, list[str]] = field(default_factory=dict)  # shard -> notes, the newest first
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # shard -> counter -> n
    hosts: dict[str, tuple[int, str]] = field(default_factory=dict)  # kind and host -> when, what
    reads: dict[str, int] = field(default_factory=dict)
    history: dict[str, tuple[deque[str], deque[str]]] = field(default_factory=dict)  # name -> minutes, hours
    seen: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    keys: dict[str, Timed] = field(default_factory=dict)  # bells, claims, leases, full

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        """Return the last position of each log that has entries.

        Args:
            buckets: the logs.
        """
        logs = {bucket: self.logs.get(log_number(bucket)) for bucket in buckets}
        return {bucket: entries[-1].position for bucket, entries in logs.items() if entries}

    def ends(self, given: GivenOut, bucket: int, start: int, behind: int) -> bool:
        """Return whether a log that goes on at *start* ends the epoch; note a log that begins.

        Args:
            given: the epoch.
            bucket: the log.
            start: the seq of its next entry.
            behind: the seq of an entry that it had under this epoch.
        """
        before = self.last.get(bucket, START)
        if before.epoch > given.epoch:
            given.epoch, given.lineage = before.epoch, f"ahead:{bucket}"
        elif start <= behind or bucket in given.begun:
            given.lineage = f"forgot:{bucket}"
        else:
            given.begun.add(bucket)
            return False
        return True

    def audit(self, given: GivenOut, marks: Mapping[int, Position]) -> str:
        """Do what `audit.lua` does.

        Args:
            given: the epoch of the scope.
            marks: of each bucket, its watermark.
        """
        for bucket, mark in marks.items() if given.lineage == self.lineage else ():
            last = self.last.get(bucket, START)
            ahead = max(last.epoch, mark.epoch)
            begun = bucket in given.begun or mark.epoch == given.epoch
            if ahead > given.epoch:
                given.epoch, given.lineage = ahead, f"ahead:{bucket}"
                return given.lineage
            if begun and (last.epoch < given.epoch or last < mark):
                given.lineage = f"forgot:{bucket}"
                return given.lineage
        return ""


class MemoryServer:
    """The server that every role of the log keeps its state in.

    Attributes:
        fault: called with `send` before and `reply` after each try of an append; raise ConnectionError in it, and the
            connection breaks there.
        limit_bytes: the size of all ops at which appends are refused, as Redis does at `maxmemory`; 0: none.
        most_bulk_bytes: the size of the largest op that it takes, as `proto-max-bulk-len` says it; 0: hidden.
        published: called with each new schema.
        durable: the result of a wait for Redis's replica or disk.
        ahead_ms: how far the server's clock is ahead of this process's.
    """

    def __init__(self) -> None:
        self.ahead_ms = 0
        self.fault: Callable[[str], None] | None = None
        self.published: Callable[[str], None] = lambda schema: None
        self.limit_bytes = self.most_bulk_bytes = 0
        self.durable = True
        self._server = ServerState()
        self._lock = threading.RLock()

    def now_ms(self) -> int:
        """Return the server's time, ms since 1970."""
        return clock.wall_ns() // 1_000_000 + self.ahead_ms

    def restart(self) -> None:
        """Restart the server: it keeps its state, under a new lineage."""
        self.fail_over(self.replica())

    def replica(self) -> object:
        """Return a copy of the server as it is now, to be promoted later."""
        with self._lock:
            return copy.deepcopy(self._server)

    def fail_over(self, replica: object = None) -> None:
        """Promote a replica.

        Args:
            replica: from `replica`; None: an empty server.
        """
        promoted = copy.deepcopy(replica) if isinstance(replica, ServerState) else ServerState()
        promoted.lineage = uuid4().hex
        with self._lock:
            self._server = promoted

    def forget(self, bucket: int, keep: int = 0) -> None:
        """Forget the end of one log; nothing else changes.

        Args:
            bucket: the log.
            keep: how many entries stay; 0: the log is gone.
        """
        with self._lock:
            kept = self._server.logs.pop(bucket, [])[:keep]
            self._server.last.pop(bucket, None)
            self._server.trimmed.discard(bucket)
            if kept:
                self._server.logs[bucket], self._server.last[bucket] = kept, kept[-1].position

    def close(self) -> None:
        """Do nothing."""

    def _get(self, key: str) -> str | None:
        found = self._server.keys.get(key)
        return found.value if found is not None and self.now_ms() < found.until_ms else None

    def _left_ms(self, key: str) -> int:
        found = self._server.keys.get(key)
        return found.until_ms - self.now_ms() if found is not None else 0

    def _set(self, key: str, value: str, for_ms: int) -> None:
        self._server.keys[key] = Timed(value, self.now_ms() + for_ms)

    def _take(self, key: str, for_ms: int) -> bool:
        """Set a key that is not there; return whether it was not."""
        if self._get(key) is not None:
            return False
        self._set(key, "1", for_ms)
        return True

    def _size_bytes(self) -> int:
        return sum(len(entry.payload) for entries in self._server.logs.values() for entry in entries)


_UNSENT = Sent(0, Position(0, 0))


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
