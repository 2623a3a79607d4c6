"""Make the parts of a shard's page that change: its numbers, what stops it, its charts, nodes, tables and buckets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape

from pipeline.admin.observe.faults import away_on
from pipeline.admin.observe.moves import MoveRecord
from pipeline.admin.observe.published import History, Point
from pipeline.admin.observe.record import NodeRecord, ShardRecord, stop_word
from pipeline.model.wait_reason import WaitReason
from pipeline.reads.health.report import NodeState
from pipeline.shard.records.stops import BREAKER, PAUSED
from workers.pipeline_tab.cells import (
    Curve,
    Trouble,
    age_text,
    chart,
    empty_row,
    fault_list,
    greatest,
    number_card,
    number_text,
    rate_text,
    span,
    table_row,
)
from workers.pipeline_tab.feed import Seen
from workers.pipeline_tab.overview import freshness, move_rows, silent, stale


def shard_page(seen: Seen, name: str, *, read_only: bool = False) -> dict[str, str]:
    """Return the parts of a shard's page.

    Args:
        seen: what is shown.
        name: the shard's.
        read_only: whether the page has no button.
    """
    shard = next(one for one in seen.record.shards if one.shard == name)
    history = seen.histories.get(name, History())
    moves = [move for move in seen.record.moves if name in (move.source, move.target)]
    return {
        "pl-fresh": freshness(seen),
        "pl-cards": _cards(shard),
        "pl-waits": _waits(seen, shard, moves, read_only),
        "pl-moves": move_rows(moves),
        "pl-charts-recent": _charts(history.recent),
        "pl-charts-day": _charts(history.day),
        "pl-nodes": _nodes(shard),
        "pl-tables": _tables(shard),
        "pl-buckets": _buckets(shard),
    }


def _cards(shard: ShardRecord) -> str:
    """Return the numbers of one shard."""
    word, style = shard.state
    batch = shard.batch
    took = "–" if batch is None or batch.ms_p50 is None else f"≤ {span(int(batch.ms_p50))}"
    longest = "–" if batch is None or batch.ms_p95 is None else f"95 % ≤ {span(int(batch.ms_p95))}"
    sizes = "" if batch is None else f"{batch.per_s:,.1f} a second, {batch.ops_mean:,.1f} ops each"
    enqueued = f"enqueued {rate_text(shard.enqueue_rate)}"
    refused = number_text(shard.rejected, bad=bool(shard.rejected))
    behind = f"{number_text(shard.parked)} parked, {number_text(shard.lost, bad=bool(shard.lost))} lost"
    owned = f"in {number_text(shard.owned)} buckets"
    return "".join(
        (
            number_card("State", f'<span class="pl-state pl-{style}">{escape(word)}</span>', ""),
            number_card("Queued ops", number_text(shard.depth, sign="≤ " * shard.at_most), "active", owned),
            number_card("Oldest op", age_text(shard.oldest_ms, none="–"), "active"),
            number_card("Applied a second", rate_text(shard.rate), "success", enqueued),
            number_card("Batch, median", took, "success", f"{longest}<br>{sizes}"),
            number_card("Rejected ops", refused, "danger" if shard.rejected else "", behind),
        )
    )


def _waits(seen: Seen, shard: ShardRecord, moves: Sequence[MoveRecord], read_only: bool) -> str:
    """Return what of a shard is stopped or waits, and what mends it."""
    items = stale(seen)
    items += [silent(shard.shard, shard.why)] if shard.why else []
    if shard.queue_why not in ("", shard.why):
        items.append(Trouble(f"{shard.shard}'s queue is unknown", shard.queue_why, "run: pipeline check"))
    items += [Trouble(f"{move} stands still: {move.still}", "", move.mend) for move in moves if move.still]
    items += [Trouble(one.head, "", one.command, resume="" if read_only else _resumed(one)) for one in shard.waits]
    for one in shard.poison:
        tries = f"bucket {one.bucket} is tried in smaller parts: {one.attempts} attempts with one op alone have failed"
        items.append(Trouble(tries, "", "workers reject the op after the last try"))
    items += [Trouble(one.what, one.why, one.fix) for one in away_on(shard)]
    return fault_list(items, "Nothing waits.")


def _resumed(reason: WaitReason) -> str:
    if reason.kind not in (PAUSED, BREAKER):
        return ""
    return f"{'shard' if reason.scope == reason.shard else 'table'}:{reason.scope}"


@lru_cache(maxsize=64)
def _charts(points: tuple[Point, ...]) -> str:
    """Return the charts of a history."""
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


def _nodes(shard: ShardRecord) -> str:
    """Return the rows of a shard's nodes."""
    return "".join(_node(node) for node in shard.nodes) or empty_row(7, "unknown")


def _tables(shard: ShardRecord) -> str:
    """Return the rows of a shard's hottest tables."""
    stopped = shard.stopped
    found = (
        table_row(
            escape(one.table),
            f'{rate_text(one.rate)}<span class="pl-unit"> a second</span>',
            f'{number_text(one.rejected, bad=bool(one.rejected))}<span class="pl-unit"> rejected</span>',
            _stop(stopped[one.table]) if one.table in stopped else '<span class="pl-state pl-good">fine</span>',
        )
        for one in shard.tables
    )
    return "".join(found) or empty_row(4, "nothing was applied yet")


def _stop(reason: WaitReason) -> str:
    return f'<span class="pl-state pl-bad">{stop_word(reason)}</span> {escape(reason.sentence())}'


def _buckets(shard: ShardRecord) -> str:
    """Return a shard's deepest buckets."""
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
