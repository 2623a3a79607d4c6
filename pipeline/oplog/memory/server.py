"""Hold the state of a log server in this process: a replica is a copy of the state, a fail-over takes another one."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from pipeline import clock
from pipeline.model.op import START, Entry, Position
from pipeline.oplog.waits import Note


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
        return {bucket: self.logs[bucket][-1].position for bucket in buckets if self.logs.get(bucket)}

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
