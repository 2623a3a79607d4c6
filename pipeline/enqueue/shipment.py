"""What travels from a call to the log or the spool; how much of it there is, for the bell's thread to publish.

Count what this process enqueues, by table, kind and way, and how long that takes; the bell's thread publishes it.
An enqueue only notes what it did. The thread adds up a moment later, and sends counters to the log every two seconds.
"""

from __future__ import annotations

import logging
import os
import socket
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from pipeline import clock
from pipeline.bounds import WaitBudgets, WaitBudgetSpent
from pipeline.config import Topology
from pipeline.errors import BadOp, PipelineError, Unavailable
from pipeline.events import Event
from pipeline.model import Op, Position, encode, enqueued_ms, id_of_new
from pipeline.oplog import Log
from pipeline.oplog.doorbell import Bell, Later, SilentBell
from pipeline.oplog.shared_state import (
    DIRECT,
    ENQUEUE_BOUNDS_MS,
    ENQUEUE_MS,
    ENQUEUE_SUM_US,
    ENQUEUED,
    MOST_COUNTERS,
    SPOOLED,
    SharedState,
)
from pipeline.shard.statements import MOST_STATEMENT_BYTES
from pipeline.spool import NullSpool, Spool

#: Every server takes ops of this size: the smallest default of `max_allowed_packet` was 1 MB.
UNCHECKED_BYTES = 250_000
#: The least `proto-max-bulk-len` that Redis can be given.
_EVERY_REDIS_BYTES = 1_048_576
#: What a statement has beside the values of its op: names of columns, most of them twice.
_NAMES_BYTES = 32_768
#: A bucket, and a producer that sent ops to it.
Sender = tuple[int, int]
#: The last sequence that was acknowledged to a sender, and the epoch under which it stands.
Acked = tuple[int, int]
logger = logging.getLogger("pipeline.door")
#: The time between two publications by one process, s.
EVERY_S = 5.0
host_logger = logging.getLogger("pipeline.spool")
#: So many calls are noted at most until they are added up; 0.6 s of a process that becomes busy have less.
MOST_TAKEN = 10_000
#: How many ops there are of each bucket, kind and table.
What = Mapping[tuple[int, str, str], int]
#: Kind and table of each member of an atomic group.
Members = tuple[tuple[str, str], ...]
#: The bucket, kind and table of one op that was sent alone, whether it went to the spool, and how long that took, s; of
#: a group, its members in the kind's place. It refers to no container but tuples, so Python's collector passes it over:
#: kept dicts cost a caller 4 µs an op, this 0.3.
Single = tuple[int, str | Members, str, bool, float]
#: The shards of an op, and whether it went to the spool.
Way = tuple[tuple[str, ...], bool]
_WAYS = {False: DIRECT, True: SPOOLED}
_BOUNDS_S = [ms / 1000 for ms in ENQUEUE_BOUNDS_MS]
_NAMES = [*(f"{ms:g}" for ms in ENQUEUE_BOUNDS_MS), "inf"]
counts_logger = logging.getLogger("pipeline.enqueue")


class Shipment(msgspec.Struct, frozen=True):
    """Encoded ops, and what their caller wants.

    Attributes:
        runs: of each bucket its ops, in order.
        key: an idempotency key, of a shipment of one op; the empty text: none.
        row_id: the id of the row that the op with the key makes: others with that key get to know the id.
        durability: how safe the ops must be before the caller goes on; see the package's `enqueue_insert`.
        numbered: the producer and the first sequence of each bucket's ops, where they may have been sent before.
    """

    runs: Mapping[int, Sequence[bytes]]
    key: str = ""
    row_id: int | None = None
    durability: str = "redis"
    numbered: Mapping[int, tuple[int, int]] = {}

    @property
    def size(self) -> int:
        """How many ops there are."""
        return sum(map(len, self.runs.values()))

    def part(self, runs: Mapping[int, Sequence[bytes]]) -> Shipment:
        """Return a shipment of some of the ops."""
        return Shipment(runs, self.key, self.row_id, self.durability, self.numbered)


def shipment_of(bucket: int, op: Op, durability: str) -> Shipment:
    """Return a shipment of one op, with its idempotency key.

    Args:
        bucket: the op's.
        op: the op.
        durability: see `Shipment`.
    """
    return Shipment({bucket: (encode(op),)}, op.scoped_key, id_of_new(op), durability)


class OpPlace(msgspec.Struct, frozen=True):
    """The position of the first op of a bucket's run, and its producer's sequence; the others follow densely.

    Attributes:
        position: None: the op is in the spool.
        row_id: of an earlier op with the same idempotency key.
        durable: whether the run has reached what its durability asks of Redis.
    """

    position: Position | None
    producer: int
    seq: int
    row_id: int | None = None
    durable: bool = True


def queued(places: Mapping[int, OpPlace], error: Unavailable) -> dict[int, tuple[int, int]]:
    """Return under which numbers ops are queued, or may be, where some of a call's were not taken.

    Args:
        places: of those that were taken.
        error: why the others were not.
    """
    return {**{bucket: (place.producer, place.seq) for bucket, place in places.items()}, **error.numbered}


def parse_claim(text: str) -> OpPlace:
    """Read what Redis keeps under an idempotency key: the receipt of the first op."""
    try:
        epoch, seq, producer, producer_seq, row_id = map(int, text.split(" "))
    except ValueError as error:
        raise PipelineError("Redis keeps a receipt that this version cannot read") from error
    return OpPlace(Position(epoch, seq), producer, producer_seq, row_id or None)


class _Takes(msgspec.Struct):
    """The field of a node's report that says how large a statement it takes; 0: not known."""

    statement_bytes: int = 0


def check_size(payload: bytes, table: str, log: SharedState, wait_budgets: WaitBudgets) -> None:
    """Refuse a large op that no worker could apply. Reads from Redis, so only for ops above `UNCHECKED_BYTES`.

    Args:
        payload: the encoded op.
        table: the op's table, for the message.
        log: has the reports.
        wait_budgets: how long the caller waits for them.

    Raises:
        BadOp: the op is too large.
    """
    needs = len(payload) + payload.count(b"'") + _NAMES_BYTES  # a quote is doubled in SQL
    worker = (MOST_STATEMENT_BYTES, "the largest statement of a worker")
    limit, why = min([worker, *_nodes(log, wait_budgets), *_redis(needs, log, wait_budgets)])
    if needs > limit:
        raise BadOp(
            f"this op on {table!r} makes a statement of up to {needs:,} bytes, and {why} is {limit:,}: split the op, "
            "or keep the file elsewhere and store its name"
        )


def _nodes(log: SharedState, wait_budgets: WaitBudgets) -> Iterator[tuple[int, str]]:
    """Yield what each node takes, with the setting that says so."""
    try:
        reports = wait_budgets.aside(log.health, share=0.5)[1]
    except (Unavailable, WaitBudgetSpent) as error:
        logger.warning(Event("statement_limit_unknown", error=error))
        return
    for node, (_, text) in reports.items():
        if takes := msgspec.json.decode(text, type=_Takes).statement_bytes:
            yield takes, f"max_allowed_packet of node {node!r}"


def _redis(needs: int, log: SharedState, wait_budgets: WaitBudgets) -> Iterator[tuple[int, str]]:
    """Yield what Redis takes; an op that every Redis takes costs no question."""
    if needs <= _EVERY_REDIS_BYTES:
        return
    try:
        if takes := wait_budgets.aside(log.largest_bytes, share=0.5):
            yield takes, "proto-max-bulk-len of Redis"
    except (Unavailable, WaitBudgetSpent) as error:
        logger.warning(Event("op_limit_unknown", error=error))


class HostNews:
    """What one process says of its host's spool.

    Args:
        spool: of this host; without one nothing is said.
        kind: of the host: `web` or `worker`.
    """

    def __init__(self, spool: Spool | NullSpool | None, kind: str):
        self._spool, self._kind = spool, kind
        self._next_s = 0.0

    def publish(self, log: SharedState) -> None:
        """Publish it, every few seconds at most; a Redis that does not answer is noted, not raised.

        Args:
            log: takes it.
        """
        if not isinstance(self._spool, Spool) or clock.mono_s() < self._next_s:
            return
        self._next_s = clock.mono_s() + EVERY_S
        try:
            log.note_host(f"{self._kind} {socket.gethostname()}", self._told(self._spool))
        except PipelineError as error:
            host_logger.info(Event("host_not_published", error=error))

    def _told(self, spool: Spool) -> str:
        """Return the spool's state as JSON: a `HostRecord` of `pipeline status`."""
        told = {"host": socket.gethostname(), "kind": self._kind, "path": str(spool.path)}
        try:
            waiting, _, size_bytes = spool.counts()
            first = spool.head(most=1) if waiting else []
        except PipelineError as error:
            return msgspec.json.encode(told | {"why": str(error)}).decode()
        sent_ms = enqueued_ms(first[0].payload) if first else None
        oldest_ms = max(0, clock.wall_ms() - int(sent_ms)) if sent_ms is not None else None
        numbers = {"spooled": waiting, "bytes": size_bytes, "oldest_ms": oldest_ms}
        return msgspec.json.encode(told | numbers).decode()


#: What one call enqueued, where, and how long that took, s. A tuple without names is made in a fifth of the time.
Sent = tuple[What, Mapping[int, OpPlace], float]


class Sends(Later):
    """What one process has enqueued, until the log has counted it. Threads may share it; a fork makes its own.

    Args:
        log: counts.
        topology: which shards apply a bucket.
        spool: of this host, whose state is published, too.

    Attributes:
        pid: of the process.
        single, taken: notes of calls with one op, and of others.
        noted: other ops to count, with the first words of their counters' names; see `oplog/shared_state`.
        asked: whether the bell's thread is to add them up.
    """

    __slots__ = (
        "_calls",
        "_counts",
        "_log",
        "_news",
        "_ops",
        "_shards",
        "_took_s",
        "asked",
        "noted",
        "pid",
        "single",
        "taken",
    )

    def __init__(self, log: Log, topology: Topology, spool: Spool | NullSpool):
        self.pid, self.asked = os.getpid(), False
        self.single: deque[Single] = deque(maxlen=MOST_TAKEN)
        self.taken: deque[Sent] = deque(maxlen=MOST_TAKEN)
        self.noted: deque[tuple[str, What]] = deque(maxlen=MOST_TAKEN)
        self._log, self._news = log, HostNews(spool, "web")
        self._shards = topology.shards_of
        self._ops: dict[tuple[Way, str, str], int] = {}
        self._calls: dict[tuple[Way, int], int] = {}
        self._took_s: dict[Way, float] = {}
        self._counts: dict[str, Counter[str]] = {}

    def ask(self, bell: Bell | SilentBell) -> None:
        """Have the bell's thread add up and publish what calls note from here on.

        Args:
            bell: of this process.
        """
        self.asked = True
        bell.later(self)

    def gather(self) -> int:
        """Add up what calls have noted, at a tenth of the time that names of counters would take; return how many."""
        found = len(self.single) + len(self.taken) + len(self.noted)
        self._gather_single()
        ops, calls, took = self._ops, self._calls, self._took_s
        ways: dict[tuple[int, bool], Way] = {}  # asking the map for each op takes a third of the time
        while self.taken:
            what, places, took_s = self.taken.popleft()
            bound = bisect_left(_BOUNDS_S, took_s)
            seen: Way | None = None
            for (bucket, kind, table), n in what.items():
                place = places[bucket]
                if place.row_id is not None:
                    continue  # an earlier op with its key is there
                at = bucket, place.position is None
                way = ways.get(at) or ways.setdefault(at, (self._shards(bucket), at[1]))
                key = way, kind, table
                ops[key] = ops.get(key, 0) + n
                if way != seen:  # of a bulk call, once for each run of ops of one shard
                    seen = way
                    calls[way, bound] = calls.get((way, bound), 0) + 1
                    took[way] = took.get(way, 0.0) + took_s
        while self.noted:
            words, what = self.noted.popleft()
            for (bucket, kind, table), n in what.items():
                self._add(self._shards(bucket), f"{words} {kind} {table}", n)
        return found

    def _gather_single(self) -> None:
        """Sort the calls with one op by what they are first: 0.14 µs for each, where adding each up takes 0.5."""
        like: dict[tuple[int, str | Members, str, bool], list[float]] = {}
        single, ops, calls, took = self.single, self._ops, self._calls, self._took_s
        while single:
            bucket, kind, table, spooled, took_s = single.popleft()
            try:
                like[bucket, kind, table, spooled].append(took_s)
            except KeyError:
                like[bucket, kind, table, spooled] = [took_s]
        times: dict[Way, list[float]] = {}
        for (bucket, kind, table, spooled), some in like.items():
            way = self._shards(bucket), spooled
            for member in ((kind, table),) if isinstance(kind, str) else kind:
                key = way, *member
                ops[key] = ops.get(key, 0) + len(some)
            times.setdefault(way, []).extend(some)
        for way, of_way in times.items():
            took[way] = took.get(way, 0.0) + sum(of_way)
            of_way.sort()
            begin = 0
            for bound, end in enumerate((*(bisect_right(of_way, most) for most in _BOUNDS_S), len(of_way))):
                if end > begin:
                    calls[way, bound] = calls.get((way, bound), 0) + end - begin
                begin = end

    def publish(self) -> None:
        """Send the counters; what a Redis that is away does not take is sent later."""
        self.asked = False  # first: whoever notes a call from here on asks anew
        self.gather()
        self._name()
        try:
            for shard in [*self._counts]:
                # no bucket is finished, and the delay keeps the bell silent
                self._log.finish(shard, {}, delay_ms=1, counts=self._counts[shard])
                del self._counts[shard]
        except PipelineError as error:
            counts_logger.info(Event("enqueued_counted_later", error=error))
            return
        self._news.publish(self._log)

    def _name(self) -> None:
        """Give what was added up the names of counters, shard by shard."""
        for ((shards, spooled), kind, table), n in self._ops.items():
            self._add(shards, f"{ENQUEUED} {_WAYS[spooled]} {kind} {table}", n)
        for ((shards, spooled), bound), n in self._calls.items():
            self._add(shards, f"{ENQUEUE_MS} {_WAYS[spooled]} {_NAMES[bound]}", n)
        for (shards, spooled), took_s in self._took_s.items():
            self._add(shards, f"{ENQUEUE_SUM_US} {_WAYS[spooled]}", round(took_s * 1_000_000))
        for added in (self._ops, self._calls, self._took_s):
            added.clear()

    def _add(self, shards: tuple[str, ...], name: str, n: int) -> None:
        for shard in shards:
            counts = self._counts.setdefault(shard, Counter())
            if name in counts or len(counts) < MOST_COUNTERS:  # as the log does
                counts[name] += n


def what_of(bucket: int, op: Op) -> What:
    """Return what one op counts as; of a group, each member.

    Args:
        bucket: the op's.
        op: the op.
    """
    return Counter((bucket, member.kind, member.table) for member in op.members)
