"""What readers know, for people: the prober's word on each node, and how often each choice was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.admin.replica_absence import why_unfit
from pipeline.admin.status import ReadCount, ReplicaStatus
from pipeline.oplog.redis import RedisLog
from pipeline.reads.health.report import Report, decode
from pipeline.reads.routing.accounting import chosen


@dataclass(frozen=True, slots=True)
class News:
    """What Redis says of reads.

    Attributes:
        now_ms: its clock.
        nodes: when each node was told of, and what.
        unfit: the unfit nodes, and since when, by the wall clock, ms.
    """

    now_ms: int
    nodes: Mapping[str, tuple[int, Report]]
    unfit: Mapping[str, int]
    reads: tuple[ReadCount, ...]


def news_of(log: RedisLog) -> News:
    """Fetch it.

    Raises:
        LogUnavailable: Redis does not answer.
    """
    now_ms, told = log.health()
    nodes = {node: (at_ms, decode(text)) for node, (at_ms, text) in told.items()}
    unfit = {node: since_ms for text in log.unfit().values() for node, since_ms in json.loads(text).items()}
    counted = {chosen(text): reads for text, reads in log.reads().items()}
    reads = tuple(ReadCount(*choice, reads) for choice, reads in sorted(counted.items()))
    return News(now_ms, nodes, unfit, reads)


def with_news(replica: ReplicaStatus, news: News | None) -> ReplicaStatus:
    """Return what is known of a replica, and what readers make of it."""
    if news is None:
        return replica
    at_ms, report = news.nodes.get(replica.node, (0, None))
    if report is not None:
        age_ms = max(0, news.now_ms - at_ms)
        replica = replace(replica, state=_state(report), reading_ms=report.lag_ms, age_ms=age_ms)
    else:
        replica = replace(replica, state="no prober")
    if replica.node in news.unfit:
        return replace(replica, state="unfit", unfit=why_unfit(replica.node, news.unfit[replica.node]))
    return replica


def _state(report: Report) -> str:
    if report.out:
        return "out"
    return "no reading" if report.lag_ms is None or report.why else "in"
