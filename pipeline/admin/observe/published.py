"""Publish records through Redis, and read what is published: the newest record, its history, news of the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from pipeline.admin.absence import last_seen_of
from pipeline.admin.observe.record import (
    BY_WORKERS,
    FULLEST,
    HostRecord,
    NodeRecord,
    ReadCount,
    Record,
    RedisRecord,
    ShardRecord,
)
from pipeline.oplog.appends import EVERYWHERE
from pipeline.oplog.redis.log import RedisLog
from pipeline.oplog.shared_state import MOST_OF_DAY, MOST_RECENT, SharedState
from pipeline.reads.health import NodeState, Report, unfit_of
from pipeline.reads.routing import Chosen

#: A record that is older is not what is now: no worker publishes, ms.
FRESH_MS = 5_000
#: How many points are read anew: they are those of half a minute, and of half an hour.
_NEWEST = 6
_record_of = msgspec.json.Decoder(Record)
_shard_of = msgspec.json.Decoder(ShardRecord)
#: A host that said so long ago that its spool is empty is not shown, ms.
SILENT_MS = 600_000
_host_of = msgspec.json.Decoder(HostRecord)


class Point(NamedTuple):
    """What a shard was like at one moment, or within a span: the most that was queued, the mean of the rates.

    Attributes:
        at_ms: ms since 1970.
        depth, oldest_ms, rate, enqueue_rate, rejected: as in `ShardRecord`.
        lag_ms: of the replica that lagged most; None where no lag is known.
    """

    at_ms: int
    depth: int | None
    oldest_ms: int | None
    rate: float | None
    enqueue_rate: float | None
    rejected: int | None
    lag_ms: int | None


class History(NamedTuple):
    """The points of one shard, the oldest first: of 15 minutes at 5 s, and of 24 hours at 5 minutes."""

    recent: tuple[Point, ...] = ()
    day: tuple[Point, ...] = ()


#: Of a shard of which nothing was read yet.
NO_HISTORY = History()


class Newest(NamedTuple):
    """The newest record of each shard, and how old it is.

    Attributes:
        record: what workers published.
        age_ms: of its oldest part, by Redis's clock.
    """

    record: Record
    age_ms: int

    @property
    def fresh(self) -> bool:
        """Whether it says what is now."""
        return self.age_ms <= FRESH_MS


_point_of = msgspec.json.Decoder(Point)


def point_of(shard: ShardRecord) -> Point:
    """Return the point that a shard's record is.

    Args:
        shard: the record.
    """
    lags = [node.lag_ms for node in shard.replicas if node.lag_ms is not None]
    lag_ms = max(lags, default=None)
    rate, appended = (None if one is None else round(one, 1) for one in (shard.rate, shard.enqueue_rate))
    return Point(shard.at_ms, shard.depth, shard.oldest_ms, rate, appended, shard.rejected, lag_ms)


def summary(points: Sequence[Point]) -> Point:
    """Return one point for a span: the newest time, the most that was queued, the mean of the rates.

    Args:
        points: of the span, the oldest first, at least one.
    """
    columns = list(zip(*points, strict=True))
    depth, oldest_ms, rejected, lag_ms = (_most(columns[n]) for n in (1, 2, 5, 6))
    rate, appended = (_mean(columns[n]) for n in (3, 4))
    return Point(points[-1].at_ms, depth, oldest_ms, rate, appended, rejected, lag_ms)


def publish(log: SharedState, record: Record, points: Mapping[str, tuple[Point | None, Point | None]]) -> None:
    """Publish a record, and points of its history.

    Args:
        log: takes them.
        record: the newest.
        points: of each shard, one for the last minutes and one for the last hours; None: none.

    Raises:
        LogUnavailable: Redis does not answer.
    """
    texts = {shard.shard: _text(shard) for shard in record.shards}
    whole = {EVERYWHERE: _text(replace(record, shards=()))}
    words = {shard: ("" if a is None else _text(a), "" if b is None else _text(b)) for shard, (a, b) in points.items()}
    log.publish_records(texts | whole, words)


def read_record(log: SharedState, shards: Sequence[str]) -> Newest | None:
    """Return what workers published last; None where they have published nothing, or something in newer words.

    A shard that nobody has published is in the record, and unknown.

    Args:
        log: has it.
        shards: the names of all shards, in the order in which they are shown.

    Raises:
        LogUnavailable: Redis does not answer.
    """
    now_ms, found = log.records((EVERYWHERE, *shards))
    if EVERYWHERE not in found:
        return None
    try:
        whole = _record_of.decode(found[EVERYWHERE][1])
        known = {shard: _shard_of.decode(found[shard][1]) for shard in shards if shard in found}
    except msgspec.MsgspecError:
        return None
    unknown = "no worker has published it"
    rows = tuple(known.get(shard) or ShardRecord(shard, queue_why=unknown, why=unknown) for shard in shards)
    age_ms = max(now_ms - at_ms for at_ms, _ in found.values())
    return Newest(replace(whole, shards=rows, source=BY_WORKERS), max(0, age_ms))


def read_histories(log: SharedState, known: Mapping[str, History]) -> dict[str, History]:
    """Return the points of shards' histories; what another version wrote in other words is left out.

    Args:
        log: has them.
        known: by shard, what was read before. Where the newest points of the log go on from it, only these are read.

    Raises:
        LogUnavailable: Redis does not answer.
    """
    found = dict[str, History]()
    newest = log.histories([shard for shard, before in known.items() if before.recent], _NEWEST)
    for shard, (recent, day) in newest.items():
        before = known[shard]
        minutes = _gone_on(before.recent, _points(recent), MOST_RECENT)
        hours = _gone_on(before.day, _points(day), MOST_OF_DAY)
        if minutes is not None and hours is not None:
            found[shard] = History(minutes, hours)
    whole = log.histories([shard for shard in known if shard not in found])
    found |= {shard: History(_points(recent), _points(day)) for shard, (recent, day) in whole.items()}
    return {shard: found[shard] for shard in known}


def nothing_known(why: str, at_ms: int, shards: Sequence[str]) -> Record:
    """Return the record of a deployment of which nothing is known: Redis does not answer, or no worker publishes.

    Args:
        why: the reason.
        at_ms: ms since 1970.
        shards: their names.
    """
    rows = tuple(ShardRecord(shard, at_ms, queue_why=why, why=why) for shard in shards)
    return Record(at_ms, RedisRecord(why=why), rows, source=BY_WORKERS)


def _gone_on(known: tuple[Point, ...], newest: tuple[Point, ...], most: int) -> tuple[Point, ...] | None:
    """Return known points and what came behind them; None where the newest of the log do not go on from these."""
    if not known or len(newest) < _NEWEST or known[-1] not in newest:
        return known if known == newest else None
    return (*known, *newest[newest.index(known[-1]) + 1 :])[-most:]


def _points(texts: Sequence[str]) -> tuple[Point, ...]:
    points = []
    for text in texts:
        try:
            points.append(_point_of.decode(text))
        except msgspec.MsgspecError:
            continue
    return tuple(points)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _most(numbers: Sequence[int | None]) -> int | None:
    return max((one for one in numbers if one is not None), default=None)


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [one for one in numbers if one is not None]
    return round(sum(known) / len(known), 1) if known else None


@dataclass(frozen=True, slots=True)
class News:
    """What is published in Redis about nodes and reads.

    Attributes:
        now_ms: Redis's clock.
        nodes: by node: when the last report was published, and the report.
        unfit: each unfit node, and why.
        reads: counts of all processes.
        hosts: those whose spools are known, the fullest first.
        caught_up_ms: of each node that readers avoid, when it had last caught up, ms since 1970.
    """

    now_ms: int
    nodes: Mapping[str, tuple[int, Report]]
    unfit: Mapping[str, str]
    reads: tuple[ReadCount, ...]
    hosts: tuple[HostRecord, ...] = ()
    caught_up_ms: Mapping[str, int] = field(default_factory=dict)

    def age_ms(self, node: str) -> int | None:
        """Return how old a node's report is; None where there is none.

        Args:
            node: its name.
        """
        return max(0, self.now_ms - self.nodes[node][0]) if node in self.nodes else None


def news_of(log: RedisLog) -> News:
    """Read what is published about nodes and reads.

    Args:
        log: a log over Redis.

    Raises:
        LogUnavailable: Redis does not answer.
    """
    now_ms, published, _ = log.health()
    nodes = {node: (at_ms, Report.from_json(text)) for node, (at_ms, text) in published.items()}
    unfit = {node: why for text in log.unfit().values() for node, why in unfit_of(text).items()}
    counted = {Chosen.parse(text): reads for text, reads in log.reads().items()}
    reads = tuple(ReadCount(*choice, reads) for choice, reads in sorted(counted.items()))
    avoided = [node for node, (_, report) in nodes.items() if node in unfit or report.state is not NodeState.IN]
    noted = {node: last_seen_of(log, node) for node in avoided}
    caught_up = {node: seen.with_primary_ms for node, seen in noted.items() if seen is not None}
    return News(now_ms, nodes, unfit, reads, hosts_of(log.hosts(), now_ms), caught_up)


def hosts_of(told: Mapping[str, tuple[int, str]], now_ms: int) -> tuple[HostRecord, ...]:
    """Return what hosts say of their spools, the fullest first.

    What waits has grown older since. A silent host is left out after ten minutes, unless ops may wait in its spool.

    Args:
        told: of each host, when it was published, ms since 1970, and the text.
        now_ms: the time by the same clock.
    """
    hosts: dict[tuple[str, str], HostRecord] = {}
    for at_ms, text in sorted(told.values()):
        try:
            host = _host_of.decode(text)
        except msgspec.MsgspecError:
            continue
        silent_ms = max(0, now_ms - at_ms)
        if host.spooled == 0 and silent_ms > SILENT_MS:
            continue
        oldest_ms = None if host.oldest_ms is None else host.oldest_ms + silent_ms
        before = hosts.get((host.host, host.path))
        # workers and a web server of one machine share its spool, which counts once
        kind = before.kind if before is not None and before.kind == "web" else host.kind
        hosts[host.host, host.path] = replace(host, kind=kind, at_ms=at_ms, oldest_ms=oldest_ms)
    fullest = sorted(hosts.values(), key=lambda host: (host.spooled is not None, -(host.spooled or 0), host.host))
    return tuple(fullest[:FULLEST])


def with_news(nodes: Iterable[NodeRecord], news: News | None) -> tuple[NodeRecord, ...]:
    """Return nodes with what is published about each.

    Args:
        nodes: what the nodes themselves answered.
        news: what is published; None where Redis does not answer.
    """
    return tuple(nodes if news is None else (_with(node, news) for node in nodes))


def _with(node: NodeRecord, news: News) -> NodeRecord:
    if node.node not in news.nodes:
        node = replace(node, state=NodeState.NO_PROBER)
    else:
        report = news.nodes[node.node][1]
        node = replace(
            node, state=report.state, reading_ms=report.lag_ms, age_ms=news.age_ms(node.node),
            behind_since_ms=news.caught_up_ms.get(node.node),
        )  # fmt: skip
    if node.node in news.unfit:
        return replace(node, state=NodeState.UNFIT, unfit=news.unfit[node.node])
    return node
