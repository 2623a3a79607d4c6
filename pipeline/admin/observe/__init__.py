"""Make records: query every node and Redis side by side, or follow what is published; publish one each second.

Make records: query every node and Redis side by side, or follow what the prober has published about the nodes.
What does not answer in time is unknown. Nothing here reads a log from end to end. Positions are dense: a queue is as
long as its last position is away from its watermark.

Publish the record of the deployment once a second, from whichever worker holds the lease.
While nothing happens at any shard, every third second will do.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from pipeline import clock
from pipeline.admin.observe.moves import moves_of
from pipeline.admin.observe.published import News, Point, news_of, point_of, publish, read_record, summary, with_news
from pipeline.admin.observe.readings import (
    OnPrimary,
    Primaries,
    Queue,
    Queues,
    Reached,
    Window,
    ask_all,
    ask_node,
    ask_primary,
    batch_of,
    counters_of,
    highest,
    of_owned,
    owned_by,
    reported,
    tables_of,
    with_reads,
    writing,
)
from pipeline.admin.observe.record import (
    BY_WORKERS,
    MOST_STRANGE,
    MOST_WAITS,
    OWN_LOOK,
    NodeRecord,
    Record,
    RedisRecord,
    ShardRecord,
)
from pipeline.admin.upkeep import every_strange_key
from pipeline.config import Topology
from pipeline.config.settings import Settings
from pipeline.enqueue.buckets import follow_noted
from pipeline.errors import PipelineError, Unavailable
from pipeline.events import Event
from pipeline.model import START, Position
from pipeline.model.fingerprint import Fingerprint
from pipeline.model.wait_reason import WaitReason, reasons_of
from pipeline.oplog.doorbell import Quiet
from pipeline.oplog.groups import log_of
from pipeline.oplog.redis.connection import ANSWER_S
from pipeline.shard.records import moves as move_rows
from pipeline.shard.records.moves import Leg

#: Redis's name among the nodes; no node can have it.
_REDIS = "redis "
#: The time between two questions to a primary for what only it knows, s: counting 100,000 rejects takes it 20 ms.
COUNTS_S = 2.0
#: The time over which rates are taken, s: reports of the prober and looks at the logs do not come at one moment.
RATE_S = 4.0
#: A quiet shard's primary gets its questions every so many times that others do. What people order stirs the shard.
QUIET_COUNTS = 30
#: The time between two records while all shards are quiet, s.
QUIET_RECORD_S = 2.5
#: The time between two searches for keys in Redis that nobody of ours has written, s, and while all shards are quiet:
#: workers delete them.
STRANGE_S, QUIET_STRANGE_S = 10.0, 180.0
logger = logging.getLogger("pipeline.observer")
#: The lease of the worker that publishes, and how long it lasts without a sign of life, ms.
LEASE, LEASE_MS = "observe", 3000
#: The time between two records, s.
EVERY_S = 1.0
#: The time between two points of the last minutes, and of the last hours, s.
RECENT_S, DAY_S = 5.0, 300.0


class Observer:
    """Makes the record of a deployment again and again; rates are known from the second time on."""

    def __init__(self, settings: Settings):
        self._topology = Topology(settings)
        self._log = log_of(settings, read_s=ANSWER_S)
        self._before: dict[str, deque[tuple[Reached, int | None]]] = {}
        self._counts: dict[str, OnPrimary | PipelineError] = {}
        self._counted_s, self._searched_s, self._round = -COUNTS_S, -STRANGE_S, 0
        self._followed_s = -QUIET_RECORD_S
        self._quiet = Quiet(self._log, settings.shards)
        self._strange: tuple[str, ...] = ()
        self._reads = Window()
        self._queues_of, self._primaries = Queues(self._log), Primaries()
        self._uris = {name: shard.addresses for name, shard in settings.shards.items()}

    def newest(self) -> Record:
        """Return the record that workers publish; where that is not fresh, look by oneself."""
        try:
            published = read_record(self._log, tuple(self._uris))
        except PipelineError:
            published = None
        return published.record if published is not None and published.fresh else self.look()

    def look(self) -> Record:
        """Ask every node and Redis at once, and return the record."""
        nodes: dict[str, Callable[[], object]] = {}
        for shard, uris in self._uris.items():
            nodes |= {node: partial(ask_node, node, uri) for node, uri in uris.items()}
            nodes[f"{shard} "] = partial(ask_primary, shard, uris[shard])
        answers = ask_all({**nodes, _REDIS: self._redis})
        redis = answers.pop(_REDIS)
        if not isinstance(redis, RedisRecord):
            redis = RedisRecord(why=str(redis))
        found = {name: one for name, one in answers.items() if isinstance(one, Reached | PipelineError)}
        counts = {shard: _counts_of(answers[f"{shard} "]) for shard in self._uris}
        news = self._news() if not redis.why else None
        return self._record(OWN_LOOK, redis, {shard: shard for shard in self._uris}, found, counts, news)

    def follow(self) -> Record:
        """Return the record by what the prober has published; ask only Redis, and primaries every other second.

        Primaries of quiet shards are asked less often.

        Raises:
            LogUnavailable: Redis does not answer.
        """
        self._quiet.look()
        self._followed_s = clock.mono_s()
        redis, news = self._redis(), news_of(self._log)
        found = {node: reported(node, news) for uris in self._uris.values() for node in uris}
        primaries = {shard: writing(shard, uris, news) for shard, uris in self._uris.items()}
        if clock.mono_s() - self._counted_s >= COUNTS_S:
            self._round += 1
            asked = {
                shard: self._uris[shard][node]
                for number, (shard, node) in enumerate(primaries.items(), self._round)
                if number % QUIET_COUNTS == 0 or not self._rests(shard)
            }
            self._counts |= self._primaries.ask(asked)
            self._counted_s = clock.mono_s()
        return self._record(BY_WORKERS, redis, primaries, found, self._counts, news)

    def will_do(self) -> bool:
        """Return whether the last record still says what is: every shard is quiet, and it is some seconds old at most.

        Whatever happens at a shard is seen at the next call.
        """
        self._quiet.look()
        recent = clock.mono_s() - self._followed_s < QUIET_RECORD_S
        return recent and all(map(self._rests, self._uris))

    def _rests(self, shard: str) -> bool:
        told = self._counts.get(shard)
        still = isinstance(told, OnPrimary) and not any(leg.under_way(shard) for leg in told.legs.values())
        return still and self._quiet.is_quiet(shard)

    def close(self) -> None:
        """Close the connections."""
        self._primaries.close()
        self._log.close()

    def _redis(self) -> RedisRecord:
        follow_noted(self._log, self._topology)
        # a quarter of the time of a record of 64 shards
        every_s = QUIET_STRANGE_S if all(map(self._quiet.is_quiet, self._uris)) else STRANGE_S
        if clock.mono_s() - self._searched_s >= every_s:
            self._searched_s = clock.mono_s()
            self._strange = every_strange_key(self._log, self._topology)[:MOST_STRANGE]
        share, used = self._log.memory()
        return RedisRecord(share, used, self._log.full(), self._strange)

    def _record(
        self,
        source: str,
        redis: RedisRecord,
        primaries: Mapping[str, str],
        nodes: Mapping[str, Reached | PipelineError],
        counts: Mapping[str, OnPrimary | PipelineError],
        news: News | None,
    ) -> Record:
        if news is not None:
            self._reads.add(clock.mono_s(), counters_of(news.reads))
        told = {shard: one.legs for shard, one in counts.items() if isinstance(one, OnPrimary)}
        least = self._least([nodes[p] for p in primaries.values()], owned_by(self._topology, told))
        nodes = {
            node: of_owned(nodes[node], least[s], node == primaries[s]) for s, u in self._uris.items() for node in u
        }
        queues = dict.fromkeys(primaries, Queue(why=redis.why))
        if not redis.why:
            # after the watermarks: an op applied in between counts as queued, and no count is below zero
            queues = self._queues({shard: nodes[primary] for shard, primary in primaries.items()}, least)
        halts = {shard: move_rows.stopped(told, shard) for shard in primaries}
        rows = (self._shard(s, primaries[s], nodes, counts[s], queues[s], news, halts[s]) for s in primaries)
        rows = (replace(row, owned=sum(one < self._topology.buckets for one in least[row.shard])) for row in rows)
        names = {b: str(leg.of) for legs in told.values() for b, leg in legs.items() if leg.of is not None}
        rows = (_named(row, names) for row in rows)
        deployment = Fingerprint.noted(self._log.deployment()) if news is not None else None
        return Record(
            clock.wall_ms(),
            redis,
            tuple(rows),
            news.reads if news is not None else None,
            source,
            deployment.deployment if deployment is not None else "",
            self._topology.buckets,
            news.hosts if news is not None else (),
            moves_of(told, clock.wall_ms()),
        )

    def _shard(
        self,
        shard: str,
        primary: str,
        nodes: Mapping[str, Reached | PipelineError],
        counted: OnPrimary | PipelineError,
        queue: Queue,
        news: News | None,
        stopped: Mapping[int, Leg],
    ) -> ShardRecord:
        at = nodes[primary]
        rate, enqueue_rate = self._rates(shard, at, queue.depth)
        counts = counted.counts if isinstance(counted, OnPrimary) else {}
        whys = [_why(primary, one) for one in (at, counted) if isinstance(one, PipelineError)]
        names = [primary, *(node for node in self._uris[shard] if node != primary)]
        found = with_reads([self._node(node, nodes[node], at) for node in names], self._reads)
        waits = _waits(shard, counted.stops, queue, stopped) if isinstance(counted, OnPrimary) and not whys else ()
        window = self._queues_of.window(shard)
        return ShardRecord(
            shard,
            clock.wall_ms(),
            depth=queue.depth,
            at_most=isinstance(at, PipelineError),
            oldest_ms=queue.oldest_ms,
            dirty=queue.dirty,
            rate=rate,
            enqueue_rate=enqueue_rate,
            rejected=counts.get("rejected"),
            parked=counts.get("parked"),
            lost=counts.get("lost"),
            forged=counts.get("forged"),
            given_up=counts.get("given_up"),
            refused=counted.refused if isinstance(counted, OnPrimary) else "",
            singly=counted.singly if isinstance(counted, OnPrimary) else None,
            buckets=queue.deepest,
            nodes=with_news(found, news),
            waits=waits[:MOST_WAITS],
            batch=batch_of(window) if not queue.why else None,
            tables=tables_of(window, queue.counters, waits),
            poison=queue.poison,
            queue_why=queue.why,
            why=whys[0] if whys else "",
        )

    def _news(self) -> News | None:
        try:
            return news_of(self._log)
        except PipelineError:
            return None

    def _least(
        self, primaries: Iterable[Reached | PipelineError], owned: Mapping[str, set[int]]
    ) -> dict[str, dict[int, Position]]:
        """Return by shard the least watermark of each of its buckets: a shard that had a bucket before has one, too."""
        top = highest(one.marks for one in primaries if isinstance(one, Reached))
        top[self._topology.reference_bucket] = START
        return {shard: {bucket: top.get(bucket, START) for bucket in mine} for shard, mine in owned.items()}

    def _queues(
        self, primaries: Mapping[str, Reached | PipelineError], least: Mapping[str, Mapping[int, Position]]
    ) -> dict[str, Queue]:
        try:
            marks = {shard: self._marks(shard, primary, least[shard]) for shard, primary in primaries.items()}
            quiet = {shard: self._quiet.is_quiet(shard) for shard in marks}
            return {shard: self._queues_of.queue(shard, marks[shard], quiet=quiet[shard]) for shard in marks}
        except PipelineError as error:
            return dict.fromkeys(primaries, Queue(why=str(error)))

    def _marks(
        self, shard: str, primary: Reached | PipelineError, least: Mapping[int, Position]
    ) -> Mapping[int, Position]:
        """Return a primary's watermarks, or those that workers published: never ahead of what was committed."""
        if not isinstance(primary, PipelineError):
            return primary.marks
        published = self._log.marks(shard)
        return {bucket: max(at, published.get(bucket, START)) for bucket, at in least.items()}

    def _node(self, node: str, found: Reached | PipelineError, primary: Reached | PipelineError) -> NodeRecord:
        if found is primary:
            return NodeRecord(node, "primary", why="")
        if isinstance(found, PipelineError):
            return NodeRecord(node, why=_why(node, found))
        if isinstance(primary, PipelineError):
            return NodeRecord(node, why="its primary does not answer, so its lag is unknown")
        try:
            ops = self._between(found.marks, primary.marks)
        except PipelineError as error:
            return NodeRecord(node, why=f"its lag spans a failover of Redis, which does not answer ({error})")
        known = found.newest_ms is not None and primary.newest_ms is not None
        lag_ms = max(0, (primary.newest_ms or 0) - (found.newest_ms or 0)) if known else found.lag_ms
        return NodeRecord(node, lag_ops=ops, lag_ms=lag_ms)

    def _rates(self, shard: str, now: Reached | PipelineError, depth: int | None) -> tuple[float | None, float | None]:
        """Return how many ops were applied and appended a second within the last seconds."""
        if isinstance(now, PipelineError):
            self._before.pop(shard, None)
            return None, None
        kept = self._before.setdefault(shard, deque())
        if not kept or now.at_s > kept[-1][0].at_s:  # else the prober has reported nothing new
            kept.append((now, depth))
        while len(kept) > 2 and now.at_s - kept[1][0].at_s >= RATE_S:
            kept.popleft()
        (first, first_depth), (last, last_depth) = kept[0], kept[-1]
        passed_s = last.at_s - first.at_s
        if not passed_s:
            return None, None
        try:
            # a bucket that has come meanwhile was applied elsewhere before
            applied = self._between(first.marks, {b: at for b, at in last.marks.items() if b in first.marks})
        except PipelineError:
            return None, None
        if first_depth is None or last_depth is None:
            return applied / passed_s, None
        return applied / passed_s, max(0.0, (applied + last_depth - first_depth) / passed_s)

    def _between(self, low: Mapping[int, Position], high: Mapping[int, Position]) -> int:
        """Return how many ops lie between two sets of watermarks."""
        apart = {b: (low.get(b, START), top) for b, top in high.items() if top > low.get(b, START)}
        ops = sum(top.seq - bottom.seq for bottom, top in apart.values() if top.epoch == bottom.epoch)
        across = {b: pair for b, pair in apart.items() if pair[0].epoch != pair[1].epoch}
        if across:
            bottoms, tops = ({bucket: pair[n] for bucket, pair in across.items()} for n in (0, 1))
            ops += sum(self._log.queued(bottoms, tops).values())
        return ops


def _named(row: ShardRecord, names: Mapping[int, str]) -> ShardRecord:
    """Return a shard's record in which keys that have a shard of their own have their names."""
    if not names:
        return row
    buckets = tuple(replace(one, key=names.get(one.bucket, "")) for one in row.buckets)
    poison = tuple(replace(one, key=names.get(one.bucket, "")) for one in row.poison)
    return replace(row, buckets=buckets, poison=poison)


def _counts_of(answer: object) -> OnPrimary | PipelineError:
    return answer if isinstance(answer, OnPrimary | PipelineError) else Unavailable(f"{answer!r} is no answer")


def _waits(shard: str, stops: Iterable[WaitReason], queue: Queue, stopped: Mapping[int, Leg]) -> tuple[WaitReason, ...]:
    """Return why ops of a shard wait; for a bucket that is stopped for its move, that is the reason."""
    moving = move_rows.moving_reasons({bucket: leg for bucket, leg in stopped.items() if bucket in queue.behind})
    behind = {bucket: mark for bucket, mark in queue.behind.items() if bucket not in stopped}
    found = reasons_of(shard, behind, [*stops, *moving], queue.noted.notes, queue.noted.alive)
    if queue.oldest_ms is None:
        return found
    # nobody notes that no worker runs; the oldest op has waited since
    since_ms = clock.wall_ms() - queue.oldest_ms
    return tuple(replace(one, since_ms=since_ms) if one.kind == "no-worker" else one for one in found)


def _why(node: str, error: PipelineError) -> str:
    return str(error).removeprefix(f"node {node!r}: ")


class Spans:
    """What a history's next points are made of: the records since the last ones.

    Args:
        now_s: the time, by this process's steady clock.
    """

    def __init__(self, now_s: float):
        self._recent_s, self._day_s = now_s, now_s
        self._recent: dict[str, list[Point]] = {}
        self._day: dict[str, list[Point]] = {}

    def add(self, record: Record, now_s: float) -> dict[str, tuple[Point | None, Point | None]]:
        """Take a record; return the points of each shard whose span has ended.

        Args:
            record: the newest.
            now_s: the time, by this process's steady clock.
        """
        ended, day = now_s - self._recent_s >= RECENT_S, now_s - self._day_s >= DAY_S
        self._recent_s, self._day_s = now_s if ended else self._recent_s, now_s if day else self._day_s
        points: dict[str, tuple[Point | None, Point | None]] = {}
        for shard in record.shards:
            recent = self._recent.setdefault(shard.shard, [])
            recent.append(point_of(shard))
            if ended:
                hours = self._day.setdefault(shard.shard, [])
                hours.append(summary(recent))
                points[shard.shard] = hours[-1], summary(hours) if day else None
                recent.clear()
                if day:
                    hours.clear()
        return points


class Recorder:
    """The turns of one worker. It has connections of its own.

    Args:
        settings: name the nodes, and Redis.
    """

    def __init__(self, settings: Settings):
        self._settings, self._token = settings, secrets.token_hex(8)
        self._log = log_of(settings, read_s=ANSWER_S)
        self._observer: Observer | None = None
        self._spans = Spans(clock.mono_s())

    def turn(self) -> float:
        """Publish a record if the lease is ours or free; return the seconds to the next turn."""
        started_s = clock.mono_s()
        try:
            if not self._log.hold_lease(LEASE, self._token, LEASE_MS):
                self._stand_down()
                return EVERY_S
            if self._observer is None:
                self._observer, self._spans = Observer(self._settings), Spans(started_s)
            if self._observer.will_do():
                return EVERY_S
            record = self._observer.follow()
            publish(self._log, record, self._spans.add(record, started_s))
        except PipelineError as error:
            logger.warning(Event("record_not_published", error=error))
        return max(0.1, started_s + EVERY_S - clock.mono_s())

    def close(self) -> None:
        """Let another worker publish, and close the connections."""
        held = self._observer is not None
        self._stand_down()
        try:
            if held:
                self._log.release_lease(LEASE, self._token)
        except PipelineError as error:
            logger.info(Event("lease_not_released", lease=LEASE, error=error))
        self._log.close()

    def _stand_down(self) -> None:
        if self._observer is not None:
            self._observer.close()
            self._observer = None
