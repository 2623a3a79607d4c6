"""Make the parts of a page that change, by their id, as HTML. A browser replaces a part only where it has changed.

Every text from outside goes through `escape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape

from pipeline.admin.observe.published import FRESH_MS, History, Point
from pipeline.admin.observe.record import NodeRecord, Record, ShardRecord
from pipeline.model.wait_reason import WaitReason
from pipeline.reads.health.report import NodeState
from workers.pipeline_tab.charts import Curve, chart, greatest, sparkline
from workers.pipeline_tab.feed import Seen

#: An op that waits longer, or a replica that lags more, is shown as late, ms.
LATE_MS = 5_000
#: What only passes, by the kind of its reason; all else stops ops until somebody mends it.
PASSING = frozenset(("early", "locked", "testing", "queued", "database"))
#: How many points a small line has: it is no wider than this in the page.
_LINE_POINTS = 60
#: How many faults a page names.
_MOST_FAULTS = 12
#: A replica that gets nothing new or is away: reads go to others.
_GONE = (NodeState.STALLED, NodeState.OUT, NodeState.UNFIT)
_UNKNOWN = '<span class="pl-unknown">unknown</span>'


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
        _cells(
            escape(host.host),
            escape(host.kind),
            _number(host.spooled, bad=bool(host.spooled)),
            _size(host.bytes),
            _age(host.oldest_ms, none="–"),
            escape(host.why) or "–",
        )
        for host in found
    )
    return {"pl-fresh": freshness(seen), "pl-hosts": body or _empty(6, "no host has reported its spool")}


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
    told = {wait.scope for shard in record.shards for wait in shard.waits if wait.kind == "breaker"}
    items += [item for wait, item in _waits(record) if wait.scope not in told]
    gone = [node for shard in record.shards for node in shard.replicas if node.state in _GONE and not node.why]
    items += [(f"{node.node} is {node.state}: reads go elsewhere", node.unfit, "") for node in gone]
    if not items:
        return '<p class="pl-fine"><span aria-hidden="true">✓</span> Nothing is wrong.</p>'
    shown = [_fault(*item) for item in items[:_MOST_FAULTS]]
    if len(items) > _MOST_FAULTS:
        shown.append(_fault(f"{len(items) - _MOST_FAULTS:,} more", "", "run: pipeline status"))
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
        found.append((first, (wait_head(first), more, first.command)))
    return found


def wait_head(wait: WaitReason) -> str:
    """Return what waits, since when and why, without the command.

    Args:
        wait: the reason.
    """
    return wait.sentence().rpartition("; ")[0] or wait.sentence()


def cards(record: Record) -> str:
    """Return the numbers of the whole deployment.

    Args:
        record: the newest.
    """
    shards = record.shards
    oldest = [one.oldest_ms for one in shards if one.oldest_ms is not None]
    dead = _sum(one.rejected for one in shards)
    memory = record.redis.memory_share
    return "".join(
        (
            _card("Queued ops", _number(_sum(one.depth for one in shards)), "active"),
            _card("Oldest op", _age(max(oldest, default=None), none="–"), "active"),
            _card("Applied a second", _rate(_sum_of_rates(one.rate for one in shards)), "success"),
            _card("Enqueued a second", _rate(_sum_of_rates(one.enqueue_rate for one in shards)), "success"),
            _card("Refused ops", _number(dead, bad=bool(dead)), "danger" if dead else ""),
            _card("Memory of Redis", _UNKNOWN if memory is None else f"{memory:.0%}" if memory else "no limit", ""),
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
        "depth": _number(shard.depth, sign="≤ " * shard.at_most),
        "depths": depths,
        "oldest": _age(shard.oldest_ms, none="–" if shard.depth is not None else None),
        "rate": _rate(shard.rate),
        "rates": rates,
        "lag": "no replica" if not lags else _age(lag, none=None),
        "reads": "–" if not shares else f"{sum(shares):.0%}",
        "rejected": _number(shard.rejected, bad=bool(shard.rejected)),
        "lost": _number(shard.lost, bad=bool(shard.lost)),
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
        word = {"breaker": "halted", "no-worker": "no worker"}.get(first.kind, first.kind.replace("-", " "))
        part = first.kind in ("breaker", "paused") and first.scope != shard.shard
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
    return "".join(
        (
            _card("State", f'<span class="pl-state pl-{style}">{escape(word)}</span>', ""),
            _card("Queued ops", _number(shard.depth, sign="≤ " * shard.at_most), "active"),
            _card("Oldest op", _age(shard.oldest_ms, none="–"), "active"),
            _card("Applied a second", _rate(shard.rate), "success", f"enqueued {_rate(shard.enqueue_rate)}"),
            _card("Batch, half of them", took, "success", f"{longest}<br>{sizes}"),
            _card("Refused ops", _number(shard.rejected, bad=bool(shard.rejected)), "danger" if shard.rejected else "",
                  f"behind these {_number(shard.parked)}, lost {_number(shard.lost, bad=bool(shard.lost))}"),
        )
    )  # fmt: skip


def waits(shard: ShardRecord) -> str:
    """Return what of a shard is stopped or waits, and what mends it.

    Args:
        shard: the newest record.
    """
    items = [(one, "", "") for one in (shard.why, shard.queue_why if shard.queue_why != shard.why else "") if one]
    items += [(wait_head(wait), "", wait.command) for wait in shard.waits]
    for one in shard.poison:
        tries = f"bucket {one.bucket} is tried in smaller parts: {one.attempts} attempts with one op alone have failed"
        items.append((tries, "", "workers reject the op after the last try"))
    if not items:
        return '<p class="pl-fine"><span aria-hidden="true">✓</span> Nothing waits.</p>'
    return f"<ul>{''.join(f'<li>{_fault(*item)}</li>' for item in items)}</ul>"


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
    return "".join(_node(node) for node in shard.nodes) or _empty(7, "unknown")


def hot_tables(shard: ShardRecord) -> str:
    """Return the rows of a shard's hottest tables.

    Args:
        shard: the newest record.
    """
    found = (
        _cells(
            escape(one.table),
            _rate(one.rate),
            _number(one.rejected, bad=bool(one.rejected)),
            f'<span class="pl-state pl-bad">stopped</span> {escape(one.halted)}' if one.halted else "–",
        )
        for one in shard.tables
    )
    return "".join(found) or _empty(4, "nothing was applied yet")


def buckets(shard: ShardRecord) -> str:
    """Return a shard's deepest buckets.

    Args:
        shard: the newest record.
    """
    found = "".join(f"<li>{one.bucket} <strong>{one.depth:,}</strong></li>" for one in shard.buckets)
    return f'<ul class="pl-buckets">{found}</ul>' if found else '<p class="pl-none">No bucket waits.</p>'


def span(ms: int) -> str:
    """Return a length of time for people.

    Args:
        ms: milliseconds.
    """
    if ms < 1_000:
        return f"{ms} ms"
    seconds = ms / 1_000
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _node(node: NodeRecord) -> str:
    good = node.state is NodeState.IN
    state = f'<span class="pl-state pl-{"good" if good else "bad"}">{escape(node.state)}</span>'
    primary = node.role == "primary"
    return _cells(
        escape(node.node),
        node.role,
        state,
        "–" if primary else _age(node.lag_ms, none=None),
        "–" if primary else _number(node.lag_ops),
        "–" if node.reads_share is None else f"{node.reads_share:.0%} ({_rate(node.reads_per_s)} a second)",
        escape(node.unfit or node.why) or "–",
    )


def _figure(title: str, lines: Sequence[Curve], at_ms: Sequence[int], *, ms: bool = False) -> str:
    top = greatest(lines)
    words = [span(int(n)) if ms else f"{n:,.0f}" for n in (top, top / 2)] if top else ["", ""]
    drawn = chart(lines, at_ms, title, words)
    keys = "".join(f'<span class="pl-key pl-key{line.style}">{line.name}</span>' for line in lines)
    return f'<figure class="pl-figure"><figcaption>{title} {keys}</figcaption>{drawn}</figure>'


def _fault(head: str, detail: str, fix: str) -> str:
    more = f' <span class="pl-detail">{escape(detail)}</span>' if detail and detail not in head else ""
    command = fix.removeprefix("run: ")
    mend = f' <code class="pl-fix">{escape(command)}</code>' if fix.startswith("run: ") else ""
    said = f' <span class="pl-fix-words">{escape(fix)}</span>' if fix and not mend else ""
    return f"<strong>{escape(head)}</strong>{more}{mend}{said}"


def _card(label: str, value: str, style: str, more: str = "") -> str:
    below = f'<p class="pl-more">{more}</p>' if more else ""
    kind = f" metric-card-{style}" if style else ""
    return (
        f'<article class="metric-card{kind}"><p class="metric-label">{label}</p>'
        f'<p class="metric-value">{value}</p>{below}</article>'
    )


def _row(*cells: str) -> str:
    head, *rest = cells
    return f'<th scope="row">{head}</th>' + "".join(f"<td>{cell}</td>" for cell in rest)


def _cells(*cells: str) -> str:
    return f"<tr>{_row(*cells)}</tr>"


def _empty(columns: int, words: str) -> str:
    return f'<tr><td colspan="{columns}" class="pl-none">{words}</td></tr>'


def _number(number: int | None, sign: str = "", *, bad: bool = False) -> str:
    if number is None:
        return _UNKNOWN
    return f'<span class="pl-alarm">{number:,}</span>' if bad else f"{sign}{number:,}"


def _rate(rate: float | None) -> str:
    if rate is None:
        return _UNKNOWN
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:,.1f}"


def _age(ms: int | None, *, none: str | None) -> str:
    """Return an age; *none* where there is nothing to be old, None: then it is unknown."""
    if ms is None:
        return _UNKNOWN if none is None else none
    return f'<span class="pl-late">{span(ms)}</span>' if ms > LATE_MS else span(ms)


def _size(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number / 1e6:,.1f} MB"


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Return a sum; None where a part is unknown."""
    found = list(numbers)
    return None if None in found else sum(one for one in found if one is not None)


def _sum_of_rates(numbers: Iterable[float | None]) -> float | None:
    found = list(numbers)
    return None if None in found else sum(one for one in found if one is not None)
