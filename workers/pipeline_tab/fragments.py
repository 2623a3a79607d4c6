"""Make the parts of a page that change, by their id, as HTML. A browser replaces a part only where it has changed.

Every text from outside goes through `escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape

from pipeline.admin.observe.published import FRESH_MS, History, Point
from pipeline.admin.observe.record import NodeRecord, Record, ShardRecord
from pipeline.model.wait_reason import WaitReason
from pipeline.reads.health.report import NodeState
from pipeline.shard.records.stops import BREAKER, PAUSED
from workers.pipeline_tab.cells import (
    LATE_MS,
    UNKNOWN,
    age_text,
    empty_row,
    fault_item,
    number_card,
    number_text,
    rate_text,
    size_text,
    span,
    sum_known,
    table_row,
)
from workers.pipeline_tab.charts import Curve, chart, greatest, sparkline
from workers.pipeline_tab.feed import Seen

#: What only passes, by the kind of its reason; all else stops ops until somebody mends it.
PASSING = frozenset(("early", "locked", "testing", "queued", "database"))
#: How many points a small line has: it is no wider than this in the page.
_LINE_POINTS = 60
#: How many faults a page names.
_MOST_FAULTS = 12
#: A replica that gets nothing new or is away: reads go to others.
_GONE = (NodeState.STALLED, NodeState.OUT, NodeState.UNFIT)


def overview(seen: Seen) -> dict[str, str]:
    """Return the parts of the overview.

    Args:
        seen: what is shown.
    """
    record = seen.record
    parts = {"pl-faults": whats_wrong(seen), "pl-cards": cards(record), "pl-fresh": freshness(seen)}
    for n, shard in enumerate(record.shards):
        cells = row(shard, seen.histories.get(shard.shard, History()))
        parts |= {f"pl-{n}-{name}": html for name, html in cells.items()}
    return parts


def shard_page(seen: Seen, name: str) -> dict[str, str]:
    """Return the parts of a shard's page.

    Args:
        seen: what is shown.
        name: the shard's.
    """
    shard = next(one for one in seen.record.shards if one.shard == name)
    history = seen.histories.get(name, History())
    return {
        "pl-fresh": freshness(seen),
        "pl-cards": shard_cards(shard),
        "pl-waits": waits(shard),
        "pl-charts-recent": charts(history.recent),
        "pl-charts-day": charts(history.day),
        "pl-nodes": nodes(shard),
        "pl-tables": hot_tables(shard),
        "pl-buckets": buckets(shard),
    }


def hosts(seen: Seen) -> dict[str, str]:
    """Return the parts of the page of hosts.

    Args:
        seen: what is shown.
    """
    found = sorted(seen.record.hosts, key=lambda host: (-(host.spooled or 0), host.host))
    body = "".join(
        table_row(
            escape(host.host),
            escape(host.kind),
            number_text(host.spooled, bad=bool(host.spooled)),
            size_text(host.bytes),
            age_text(host.oldest_ms, none="–"),
            escape(host.why) or "–",
        )
        for host in found
    )
    return {"pl-fresh": freshness(seen), "pl-hosts": body or empty_row(6, "no host has reported its spool")}


def freshness(seen: Seen) -> str:
    """Return whether what is shown is of now.

    Args:
        seen: what is shown.
    """
    if seen.age_ms is None:
        return '<span class="status-dot status-dot-error" aria-hidden="true"></span> nothing is known'
    if seen.age_ms > FRESH_MS:
        return (
            '<span class="status-dot status-dot-error" aria-hidden="true"></span>'
            f" {span(seen.age_ms)} old: no worker publishes"
        )
    return '<span class="status-dot status-dot-live" aria-hidden="true"></span> live'


def whats_wrong(seen: Seen) -> str:
    """Return what is wrong, the worst first, each with what mends it.

    Args:
        seen: what is shown.
    """
    record = seen.record
    items = [(f"{name} is unknown", why, "") for name, why in dict.fromkeys(record.unknown)]
    if len({why for _, why, _ in items}) == 1 and all(shard.why for shard in record.shards):
        items = [("Nothing is known", items[0][1], "")]
    items += [(str(fault), "", fault.fix) for fault in record.faults()]
    if record.redis.full is not None:
        items.append(("Redis takes no new ops", record.redis.full, "start workers, or raise maxmemory"))
    told = {wait.scope for shard in record.shards for wait in shard.waits if wait.kind == BREAKER}
    items += [item for wait, item in _waits(record) if wait.scope not in told]
    gone = [node for shard in record.shards for node in shard.replicas if node.state in _GONE and not node.why]
    items += [(f"{node.node} is {node.state}: reads go elsewhere", node.unfit, "") for node in gone]
    if not items:
        return '<p class="pl-fine"><span aria-hidden="true">✓</span> Nothing is wrong.</p>'
    shown = [fault_item(*item) for item in items[:_MOST_FAULTS]]
    if len(items) > _MOST_FAULTS:
        shown.append(fault_item(f"{len(items) - _MOST_FAULTS:,} more", "", "run: pipeline status"))
    return f"<ul>{''.join(f'<li>{one}</li>' for one in shown)}</ul>"


def _waits(record: Record) -> list[tuple[WaitReason, tuple[str, str, str]]]:
    """Return what waits, once where the same waits on several shards for the same reason."""
    same: dict[tuple[str, str, str], list[WaitReason]] = {}
    for shard in record.shards:
        for wait in shard.waits:
            same.setdefault((wait.kind, wait.scope, wait.detail), []).append(wait)
    found = []
    for waits in same.values():
        first = min(waits, key=lambda wait: wait.since_ms)
        others = sorted({wait.shard for wait in waits} - {first.shard})
        names = ", ".join(others[:5]) + ", …" * (len(others) > 5)
        more = f"The same on {len(others):,} other shard{'s' * (len(others) > 1)}: {names}" if others else first.detail
        found.append((first, (first.head, more, first.command)))
    return found


def cards(record: Record) -> str:
    """Return the numbers of the whole deployment.

    Args:
        record: the newest.
    """
    shards = record.shards
    oldest = [one.oldest_ms for one in shards if one.oldest_ms is not None]
    dead = sum_known(one.rejected for one in shards)
    memory = record.redis.memory_share
    used = UNKNOWN if memory is None else f"{memory:.0%}" if memory else "no limit"
    return "".join(
        (
            number_card("Queued ops", number_text(sum_known(one.depth for one in shards)), "active"),
            number_card("Oldest op", age_text(max(oldest, default=None), none="–"), "active"),
            number_card("Applied a second", rate_text(sum_known(one.rate for one in shards)), "success"),
            number_card("Enqueued a second", rate_text(sum_known(one.enqueue_rate for one in shards)), "success"),
            number_card("Refused ops", number_text(dead, bad=bool(dead)), "danger" if dead else ""),
            number_card("Memory of Redis", used, ""),
        )
    )


def row(shard: ShardRecord, history: History) -> dict[str, str]:
    """Return a shard's cells of the overview, each by its name: a cell is sent again only if it has changed.

    Args:
        shard: the newest record.
        history: of the shard.
    """
    word, style = state_of(shard)
    lags = [node.lag_ms for node in shard.replicas]
    lag = None if not lags or None in lags else max(one for one in lags if one is not None)
    shares = [node.reads_share for node in shard.replicas if node.reads_share is not None]
    depths, rates = _lines(history.recent, shard.shard)
    return {
        "state": f'<span class="pl-state pl-{style}">{escape(word)}</span>',
        "depth": number_text(shard.depth, sign="≤ " * shard.at_most),
        "depths": depths,
        "oldest": age_text(shard.oldest_ms, none="–" if shard.depth is not None else None),
        "rate": rate_text(shard.rate),
        "rates": rates,
        "lag": "no replica" if not lags else age_text(lag, none=None),
        "reads": "–" if not shares else f"{sum(shares):.0%}",
        "rejected": number_text(shard.rejected, bad=bool(shard.rejected)),
        "lost": number_text(shard.lost, bad=bool(shard.lost)),
    }


@lru_cache(maxsize=200)
def _lines(points: tuple[Point, ...], shard: str) -> tuple[str, str]:
    """Return the lines of what was queued and of what was applied; points come every 5 s, the page asks each second."""
    every = points[:: -len(points) // _LINE_POINTS or -1][::-1]
    return (
        sparkline([point.depth for point in every], f"queued on {shard}, 15 minutes"),
        sparkline([point.rate for point in every], f"applied a second on {shard}, 15 minutes"),
    )


def state_of(shard: ShardRecord) -> tuple[str, str]:
    """Return a shard's state in a word, and its style.

    Args:
        shard: the newest record.
    """
    if shard.why or shard.queue_why:
        return "unknown", "bad"
    stopping = [wait for wait in shard.waits if wait.kind not in PASSING]
    if stopping:
        first = stopping[0]
        word = {BREAKER: "halted", "no-worker": "no worker"}.get(first.kind, first.kind.replace("-", " "))
        part = first.kind in (PAUSED, BREAKER) and first.scope != shard.shard
        return f"{'a table is ' * part}{word}", "bad"
    if shard.oldest_ms is not None and shard.oldest_ms > LATE_MS:
        return "late", "warn"
    if shard.rejected or shard.lost:
        return "refused ops", "warn"
    return "fine", "good"


def shard_cards(shard: ShardRecord) -> str:
    """Return the numbers of one shard.

    Args:
        shard: the newest record.
    """
    word, style = state_of(shard)
    batch = shard.batch
    took = "–" if batch is None or batch.ms_p50 is None else f"≤ {span(int(batch.ms_p50))}"
    longest = "–" if batch is None or batch.ms_p95 is None else f"95 % ≤ {span(int(batch.ms_p95))}"
    sizes = "" if batch is None else f"{batch.per_s:,.1f} a second, {batch.ops_mean:,.1f} ops each"
    enqueued = f"enqueued {rate_text(shard.enqueue_rate)}"
    refused = number_text(shard.rejected, bad=bool(shard.rejected))
    behind = f"behind these {number_text(shard.parked)}, lost {number_text(shard.lost, bad=bool(shard.lost))}"
    return "".join(
        (
            number_card("State", f'<span class="pl-state pl-{style}">{escape(word)}</span>', ""),
            number_card("Queued ops", number_text(shard.depth, sign="≤ " * shard.at_most), "active"),
            number_card("Oldest op", age_text(shard.oldest_ms, none="–"), "active"),
            number_card("Applied a second", rate_text(shard.rate), "success", enqueued),
            number_card("Batch, half of them", took, "success", f"{longest}<br>{sizes}"),
            number_card("Refused ops", refused, "danger" if shard.rejected else "", behind),
        )
    )


def waits(shard: ShardRecord) -> str:
    """Return what of a shard is stopped or waits, and what mends it.

    Args:
        shard: the newest record.
    """
    items = [(one, "", "") for one in (shard.why, shard.queue_why if shard.queue_why != shard.why else "") if one]
    items += [(wait.head, "", wait.command) for wait in shard.waits]
    for one in shard.poison:
        tries = f"bucket {one.bucket} is tried in smaller parts: {one.attempts} attempts with one op alone have failed"
        items.append((tries, "", "workers reject the op after the last try"))
    if not items:
        return '<p class="pl-fine"><span aria-hidden="true">✓</span> Nothing waits.</p>'
    return f"<ul>{''.join(f'<li>{fault_item(*item)}</li>' for item in items)}</ul>"


@lru_cache(maxsize=64)
def charts(points: tuple[Point, ...]) -> str:
    """Return the charts of a history.

    Args:
        points: the oldest first.
    """
    at_ms = [point.at_ms for point in points]
    rates = [Curve("applied", 1, [p.rate for p in points]), Curve("enqueued", 2, [p.enqueue_rate for p in points])]
    return "".join(
        (
            _figure("Queued ops", [Curve("queued", 1, [p.depth for p in points])], at_ms),
            _figure("Age of the oldest op", [Curve("oldest", 2, [p.oldest_ms for p in points])], at_ms, ms=True),
            _figure("Ops a second", rates, at_ms),
            _figure("Lag of the slowest replica", [Curve("lag", 3, [p.lag_ms for p in points])], at_ms, ms=True),
        )
    )


def nodes(shard: ShardRecord) -> str:
    """Return the rows of a shard's nodes.

    Args:
        shard: the newest record.
    """
    return "".join(_node(node) for node in shard.nodes) or empty_row(7, "unknown")


def hot_tables(shard: ShardRecord) -> str:
    """Return the rows of a shard's hottest tables.

    Args:
        shard: the newest record.
    """
    found = (
        table_row(
            escape(one.table),
            rate_text(one.rate),
            number_text(one.rejected, bad=bool(one.rejected)),
            f'<span class="pl-state pl-bad">stopped</span> {escape(one.halted)}' if one.halted else "–",
        )
        for one in shard.tables
    )
    return "".join(found) or empty_row(4, "nothing was applied yet")


def buckets(shard: ShardRecord) -> str:
    """Return a shard's deepest buckets.

    Args:
        shard: the newest record.
    """
    found = "".join(f"<li>{one.bucket} <strong>{one.depth:,}</strong></li>" for one in shard.buckets)
    return f'<ul class="pl-buckets">{found}</ul>' if found else '<p class="pl-none">No bucket waits.</p>'


def _node(node: NodeRecord) -> str:
    good = node.state is NodeState.IN
    state = f'<span class="pl-state pl-{"good" if good else "bad"}">{escape(node.state)}</span>'
    primary = node.role == "primary"
    return table_row(
        escape(node.node),
        node.role,
        state,
        "–" if primary else age_text(node.lag_ms, none=None),
        "–" if primary else number_text(node.lag_ops),
        "–" if node.reads_share is None else f"{node.reads_share:.0%} ({rate_text(node.reads_per_s)} a second)",
        escape(node.unfit or node.why) or "–",
    )


def _figure(title: str, lines: Sequence[Curve], at_ms: Sequence[int], *, ms: bool = False) -> str:
    top = greatest(lines)
    words = [span(int(n)) if ms else f"{n:,.0f}" for n in (top, top / 2)] if top else ["", ""]
    drawn = chart(lines, at_ms, title, words)
    keys = "".join(f'<span class="pl-key pl-key{line.style}">{line.name}</span>' for line in lines)
    return f'<figure class="pl-figure"><figcaption>{title} {keys}</figcaption>{drawn}</figure>'
