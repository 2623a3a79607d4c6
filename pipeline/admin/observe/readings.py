"""Read how far each node is, and a shard's queue: how long, how old. What does not answer is unknown.

Learn how far each node is: query the node itself, or take the prober's report. What does not answer is unknown. Servers
are queried side by side; a dead one costs the time-out once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import nlargest
from typing import TypeVar

from pipeline import clock
from pipeline.admin.observe.published import News
from pipeline.admin.observe.record import (
    DEEPEST,
    HOTTEST,
    BatchRecord,
    BucketRecord,
    NodeRecord,
    PoisonRecord,
    ReadCount,
    TableRecord,
    stopped_in,
)
from pipeline.apply.judge import Attempt
from pipeline.clock import Deadline
from pipeline.config import Topology
from pipeline.errors import PipelineError, Unavailable
from pipeline.model import START, Position, enqueued_ms
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Work
from pipeline.oplog.shared_state import APPLIED, BATCH_MS, BATCHES, REJECTED, Noted, quantile
from pipeline.shard import BRIEF_CONNECT_S, BRIEF_STATEMENT_S, NodeSession, brief
from pipeline.shard.records import OWNED, ledger_queries, moves
from pipeline.shard.records.moves import Leg
from pipeline.shard.records.stops import stop_reasons

#: A prober's report that is older says nothing of how far its node is now, ms.
REPORTED_MS = 5_000
#: How long a server may take for its whole answer, s.
ASK_S = 3.0
_T = TypeVar("_T")
#: Rates are taken over so many seconds: readers send their counts once a second, and batches come in bursts.
SPAN_S = 10.0
#: A quiet shard's queue is looked at anew after so long, s.
LOOK_S = 180.0
#: The ends of all logs of a shard are read so often, s; between, those of buckets that are dirty or had a queue. At 100
#: ops/s and 256 buckets that took a fifth of what a worker's main process did.
ENDS_S = 10.0
#: Where Redis does not answer, no worker is said to be missing.
_NOTHING = Noted(True, {})


@dataclass(frozen=True, slots=True)
class OnPrimary:
    """What only a shard's primary knows: how many ops are set aside or lost, what is stopped, and what has moved.

    `refused` names the op that was refused last; `singly`: the primary gets one statement at a time.
    """

    counts: Mapping[str, int]
    stops: Sequence[WaitReason]
    legs: Mapping[int, Leg] = field(default_factory=dict)
    refused: str = ""
    singly: bool = False


@dataclass(frozen=True, slots=True)
class Reached:
    """How far one node is.

    Attributes:
        at_s: when it was so, by this process's steady clock.
        marks: its watermarks; a bucket that has moved, or is on its way, has one too.
        newest_ms: the time of its newest op; None: not known.
        lag_ms: by its report; None: not known.
    """

    at_s: float
    marks: Mapping[int, Position]
    newest_ms: int | None = None
    lag_ms: int | None = None


def ask_node(node: str, uri: str) -> Reached:
    """Return how far a node is by its own word.

    Args:
        node: its name.
        uri: its address.

    Raises:
        ShardUnavailable: it does not answer in time.
    """
    with brief(node, uri) as session:
        standing = ledger_queries.standing(session)
        at_s = clock.mono_s()
    return Reached(at_s, {bucket: mark.position for bucket, mark in standing.marks.items()}, standing.newest_ms)


def ask_primary(shard: str, uri: str) -> OnPrimary:
    """Return what only a primary knows.

    Args:
        shard: its name.
        uri: the address of the node that takes its writes.

    Raises:
        ShardUnavailable: it does not answer in time.
    """
    with brief(shard, uri) as session:
        return told_by(session, shard)


def told_by(session: NodeSession, shard: str) -> OnPrimary:
    """Return what only a primary knows; see `ask_primary`.

    Args:
        session: of the primary.
        shard: the shard's name.
    """
    counts = ledger_queries.counts(session)
    refused = ledger_queries.newest_refused(session) if counts["rejected"] else ""
    stops, legs = stop_reasons(session, shard), moves.legs(session)
    return OnPrimary(counts, stops, legs, refused, not session.takes_several())


class Primaries:
    """Asks primaries again and again, each in a thread and over a connection that stay, and never twice at once.

    A new session of each question takes 2 ms of the process and 1 ms of the server.
    """

    def __init__(self) -> None:
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._running: dict[str, Future[OnPrimary | PipelineError]] = {}
        #: By shard, the address of its primary of late, and the session; each is its thread's.
        self._sessions: dict[str, tuple[str, NodeSession]] = {}

    def ask(self, uris: Mapping[str, str], timeout_s: float = ASK_S) -> dict[str, OnPrimary | PipelineError]:
        """Return what each shard's primary says, or the error in its place.

        Args:
            uris: the address of each shard's primary.
            timeout_s: how long all answers together may take.
        """
        asked, deadline = dict[str, Future[OnPrimary | PipelineError]](), Deadline(timeout_s)
        for shard, uri in uris.items():
            if shard not in self._threads:
                self._threads[shard] = ThreadPoolExecutor(1, thread_name_prefix=f"pipeline-ask-{shard}")
            elif not self._running[shard].done():
                continue
            question = partial(self._ask, shard, uri)
            asked[shard] = self._running[shard] = self._threads[shard].submit(_answer_to, question)
        wait(asked.values(), deadline.left_s)
        return {
            shard: asked[shard].result() if shard in asked and asked[shard].done() else _silence(timeout_s)
            for shard in uris
        }

    def close(self) -> None:
        """Close the connections as soon as they are free; does not wait."""
        for shard, thread in self._threads.items():
            thread.submit(self._discard, shard)
            thread.shutdown(wait=False)

    def _ask(self, shard: str, uri: str) -> OnPrimary:
        before, session = self._sessions.get(shard, ("", None))
        if session is None or before != uri:
            self._discard(shard)
            session = NodeSession(
                shard,
                uri,
                read_only=True,
                autocommit=True,  # else each query would be followed by the end of its transaction
                connect_s=BRIEF_CONNECT_S,
                statement_s=BRIEF_STATEMENT_S,
            )
            self._sessions[shard] = uri, session
        return told_by(session, shard)

    def _discard(self, shard: str) -> None:
        if shard in self._sessions:
            self._sessions.pop(shard)[1].discard()


def reported(node: str, news: News) -> Reached | PipelineError:
    """Return how far a node is by its report, or why nothing is known.

    Args:
        node: its name.
        news: what is published.
    """
    age_ms = news.age_ms(node)
    if age_ms is None or age_ms > REPORTED_MS:
        return Unavailable("no prober has reported it within the last seconds")
    report = news.nodes[node][1]
    if report.why:
        return Unavailable(report.why)
    return Reached(clock.mono_s() - age_ms / 1000, report.marks, lag_ms=report.lag_ms)


def writing(shard: str, nodes: Mapping[str, str], news: News) -> str:
    """Return the node that takes writes by the prober's reports; if they name not one, the configured one.

    Args:
        shard: its name, which is the configured primary's.
        nodes: the addresses of its nodes by name.
        news: what is published.
    """
    taking = [node for node in nodes if node in news.nodes and news.nodes[node][1].takes_writes]
    return taking[0] if len(taking) == 1 else shard


def owned_by(topology: Topology, told: Mapping[str, Mapping[int, Leg]]) -> dict[str, set[int]]:
    """Return the buckets and pieces of each shard, the reference bucket too: as shards say it, else as the map does.

    Args:
        topology: follows the map.
        told: by shard that has answered, the last move of each bucket that has moved.
    """
    owners = {bucket: shard for shard in topology.shards for bucket in topology.buckets_of(shard)}
    owners |= {piece.number: shard for shard in topology.shards for piece in topology.pieces_on(shard)}
    here = [(b, shard, leg) for shard, legs in told.items() for b, leg in legs.items() if leg.state in OWNED]
    owners |= {bucket: shard for bucket, shard, _ in here}
    for piece in {bucket for bucket, _, leg in here if not leg.apart}:  # it is in its bucket
        owners.pop(piece, None)
    found = {shard: {topology.reference_bucket} for shard in topology.shards}
    for bucket, shard in owners.items():
        found[shard].add(bucket)
    return found


def of_owned(
    found: Reached | PipelineError, least: Mapping[int, Position], is_primary: bool
) -> Reached | PipelineError:
    """Return how far a node is in the buckets of its shard: one that has left is another's.

    Args:
        found: how far it is in all, or why that is not known.
        least: of each bucket of its shard, the least watermark that its primary can have.
        is_primary: whether it is that.
    """
    if isinstance(found, PipelineError):
        return found
    marks = {bucket: found.marks.get(bucket, START) for bucket in least}
    return replace(found, marks={b: max(at, least[b]) for b, at in marks.items()} if is_primary else marks)


def highest(marks: Iterable[Mapping[int, Position]]) -> dict[int, Position]:
    """Return the highest watermark of each bucket. Where it has moved, its owner's may be of a moment before.

    Args:
        marks: of each shard.
    """
    found = dict[int, Position]()
    for each in marks:
        found |= {bucket: position for bucket, position in each.items() if position > found.get(bucket, START)}
    return found


def ask_all(questions: Mapping[str, Callable[[], _T]], timeout_s: float = ASK_S) -> dict[str, _T | PipelineError]:
    """Return each question's answer, or the error in its place, in the order of the questions.

    A question that is not answered in time is abandoned: its thread ends with its own time-outs, or with the process.

    Args:
        questions: by name, what to run; each in a thread of its own.
        timeout_s: how long all questions together may take.
    """
    answers: dict[str, _T | PipelineError] = {}

    def answer(name: str) -> None:
        answers[name] = _answer_to(questions[name])

    threads = [
        threading.Thread(target=answer, args=(name,), name=f"pipeline-ask-{name}", daemon=True) for name in questions
    ]
    for thread in threads:
        thread.start()
    deadline = Deadline(timeout_s)
    for thread in threads:
        thread.join(deadline.left_s)
    return {name: answers.get(name, _silence(timeout_s)) for name in questions}


def _answer_to(question: Callable[[], _T]) -> _T | PipelineError:
    try:
        return question()
    except PipelineError as error:
        return error
    except Exception as error:  # a driver's unexpected error concerns one server, and must not hide the others
        return Unavailable(f"{type(error).__name__}: {error}")


def _silence(timeout_s: float) -> PipelineError:
    return Unavailable(f"nothing came within {timeout_s:g} s")


class Window:
    """Counters of the last seconds; a counter that has shrunk was forgotten by Redis, and begins anew."""

    def __init__(self) -> None:
        self._taken: deque[tuple[float, Mapping[str, int]]] = deque()

    def add(self, at_s: float, counts: Mapping[str, int]) -> None:
        """Take a reading.

        Args:
            at_s: when it was read, by this process's steady clock.
            counts: each counter's value.
        """
        self._taken.append((at_s, counts))
        while len(self._taken) > 2 and at_s - self._taken[1][0] >= SPAN_S:
            self._taken.popleft()

    @property
    def span_s(self) -> float:
        """How long the readings reach back; 0.0 before the second."""
        return self._taken[-1][0] - self._taken[0][0] if self._taken else 0.0

    def grown(self) -> dict[str, int]:
        """Return by how much each counter has grown over the span, without those that have not."""
        (_, first), (_, last) = self._taken[0], self._taken[-1]
        steps = {name: n - first.get(name, 0) for name, n in last.items()}
        return {name: last[name] if step < 0 else step for name, step in steps.items() if step}


def batch_of(window: Window) -> BatchRecord | None:
    """Return the transactions of the span; None before the second reading.

    Args:
        window: of a shard's counters.
    """
    if not window.span_s:
        return None
    grown = window.grown()
    batches = grown.get(BATCHES, 0)
    ops = sum(n for name, n in grown.items() if name.startswith(f"{APPLIED} "))
    took = {name.partition(" ")[2]: n for name, n in grown.items() if name.startswith(f"{BATCH_MS} ")}
    bounds = (quantile(took, 0.5), quantile(took, 0.95))
    # behind the last bound nothing is known
    p50, p95 = (None if bound is None or bound == float("inf") else bound for bound in bounds)
    return BatchRecord(round(batches / window.span_s, 2), round(ops / batches, 1) if batches else 0.0, p50, p95)


def tables_of(window: Window, counts: Mapping[str, int], waits: Iterable[WaitReason]) -> tuple[TableRecord, ...]:
    """Return the hottest tables, and before them those that are stopped.

    Args:
        window: of a shard's counters.
        counts: the newest of these.
        waits: what is stopped on the shard, or waits.
    """
    rates: dict[str, float] = {}
    for name, n in window.grown().items() if window.span_s else ():
        what, _, labels = name.partition(" ")
        if what == APPLIED:
            table = labels.partition(" ")[2]
            rates[table] = rates.get(table, 0.0) + n / window.span_s
    refused = {name.partition(" ")[2]: n for name, n in counts.items() if name.startswith(f"{REJECTED} ")}
    known = {name.split(" ", 2)[2] for name in counts if name.startswith(f"{APPLIED} ")} | refused.keys()
    stopped = {scope: reason.sentence() for scope, reason in stopped_in(waits).items()}
    order = sorted(known, key=lambda table: (table not in stopped, -rates.get(table, 0.0), table))
    measured = window.span_s > 0
    return tuple(
        TableRecord(
            table, round(rates.get(table, 0.0), 1) if measured else None, refused.get(table, 0), stopped.get(table)
        )
        for table in order[:HOTTEST]
    )


def counters_of(reads: Iterable[ReadCount]) -> dict[str, int]:
    """Return how many reads each node has served, since the count began.

    Args:
        reads: of all processes.
    """
    served: dict[str, int] = {}
    for one in reads:
        if one.kind != "error":
            served[one.node] = served.get(one.node, 0) + one.reads
    return served


def with_reads(nodes: Sequence[NodeRecord], window: Window) -> list[NodeRecord]:
    """Return nodes with their reads a second, and their shares of the reads of them all; None for what is not known.

    Args:
        nodes: of one shard.
        window: of the reads by node.
    """
    if not window.span_s:
        return list(nodes)
    grown = window.grown()
    total = sum(grown.get(node.node, 0) for node in nodes)
    found = []
    for node in nodes:
        reads = grown.get(node.node, 0)
        share = round(reads / total, 3) if total else None
        found.append(replace(node, reads_per_s=round(reads / window.span_s, 1), reads_share=share))
    return found


@dataclass(frozen=True, slots=True)
class Queue:
    """A shard's queue, the watermark of each bucket that has ops behind it, and the workers' notes on them."""

    depth: int | None = None
    oldest_ms: int | None = None
    dirty: int | None = None
    deepest: tuple[BucketRecord, ...] = ()
    behind: Mapping[int, Position] = field(default_factory=dict)
    noted: Noted = _NOTHING
    counters: Mapping[str, int] = field(default_factory=dict)
    poison: tuple[PoisonRecord, ...] = ()
    why: str = ""


#: Of a shard that was not looked at yet.
_UNKNOWN = Queue()


class Queues:
    """The queues of all shards, read again and again.

    Args:
        log: has them.
    """

    def __init__(self, log: Work):
        self._log = log
        self._windows: dict[str, Window] = {}
        #: The last look at each shard: when, the watermarks, and its queue.
        self._looks: dict[str, tuple[float, Mapping[int, Position], Queue]] = {}
        #: By shard, when the ends of all its logs are read again, s.
        self._ends_due_s: dict[str, float] = {}
        #: By shard and bucket: the watermark, and when the op behind it was enqueued.
        self._heads: dict[tuple[str, int], tuple[Position, float | None]] = {}

    def window(self, shard: str) -> Window:
        """Return the counters of a shard's last seconds.

        Args:
            shard: the shard's name.
        """
        return self._windows.setdefault(shard, Window())

    def queue(self, shard: str, marks: Mapping[int, Position], *, quiet: bool = False) -> Queue:
        """Return a shard's queue.

        Args:
            shard: the shard's name.
            marks: the watermark of each of its buckets.
            quiet: whether nothing has happened at it of late: if it was empty, it is so still.

        Raises:
            LogUnavailable: Redis does not answer.
        """
        now_s = clock.mono_s()
        at_s, before, empty = self._looks.get(shard, (0.0, {}, _UNKNOWN))
        if quiet and empty.depth == 0 and not empty.dirty and before == marks and now_s - at_s < LOOK_S:
            self.window(shard).add(now_s, empty.counters)
            return empty
        found = self._look(shard, marks, empty.behind)
        self._looks[shard] = now_s, marks, found
        return found

    def _look(self, shard: str, marks: Mapping[int, Position], before: Collection[int]) -> Queue:
        now_s, dirty = clock.mono_s(), self._log.dirty_buckets(shard)
        every = now_s >= self._ends_due_s.get(shard, 0.0)
        queued = self._log.queued(
            {bucket: mark for bucket, mark in marks.items() if every or bucket in dirty or bucket in before}
        )
        if every:
            self._ends_due_s[shard] = now_s + ENDS_S
        behind = {bucket: marks[bucket] for bucket, ops in queued.items() if ops}
        oldest_ms = self._oldest_ms(shard, behind)
        deepest = nlargest(DEEPEST, ((ops, -bucket) for bucket, ops in queued.items() if ops))
        buckets = tuple(BucketRecord(-bucket, ops) for ops, bucket in deepest)
        noted, counters = self._log.waits(shard), self._log.counts(shard)
        self.window(shard).add(clock.mono_s(), counters)
        poison = _poison_of(self._log.attempts(shard), behind)
        return Queue(sum(queued.values()), oldest_ms, len(dirty), buckets, behind, noted, counters, poison)

    def _oldest_ms(self, shard: str, behind: Mapping[int, Position]) -> int | None:
        """Return the age of the oldest op behind some watermarks. An op is read again only once its watermark moved."""
        known = {bucket: self._heads.get((shard, bucket)) for bucket in behind}
        new = {bucket: mark for bucket, mark in behind.items() if (known[bucket] or (None,))[0] != mark}
        heads = self._log.heads(new) if new else {}
        for bucket in new:
            sent_ms = enqueued_ms(heads[bucket].payload) if bucket in heads else None
            known[bucket] = self._heads[shard, bucket] = behind[bucket], sent_ms
        sent = [one[1] for one in known.values() if one is not None and one[1] is not None]
        return max(0, clock.wall_ms() - int(min(sent))) if sent else None


def _poison_of(notes: Mapping[int, str], behind: Mapping[int, Position]) -> tuple[PoisonRecord, ...]:
    """Return the buckets of which a part is tried alone: at the watermark of now, an attempt with them has failed."""
    tried = {bucket: Attempt.parse(note) for bucket, note in notes.items() if bucket in behind}
    narrowed = {b: one for b, one in tried.items() if one is not None and one.entries and one.after == behind[b]}
    return tuple(PoisonRecord(bucket, one.deaths) for bucket, one in sorted(narrowed.items())[:DEEPEST])
