"""Read what is published in Redis about the nodes and the reads, and add it to what is known of each node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from pipeline.admin.observe.record import FULLEST, HostRecord, NodeRecord, ReadCount
from pipeline.admin.replica_absence import last_seen_of
from pipeline.oplog.redis.log import RedisLog
from pipeline.reads.health.report import NodeState, Report, unfit_of
from pipeline.reads.routing.accounting import Chosen

#: A host that said so long ago that its spool is empty is not shown, ms.
SILENT_MS = 600_000
_host_of = msgspec.json.Decoder(HostRecord)


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
