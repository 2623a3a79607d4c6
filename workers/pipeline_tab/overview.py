"""Make the parts of the lists of shards and hosts, and of a shard's page, that change.

Every text from outside goes through `escape`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from html import escape
from urllib.parse import quote

from pipeline.admin.observe.moves import COUNTED, MoveRecord, in_brief
from pipeline.admin.observe.published import FRESH_MS, History, Point
from pipeline.admin.observe.record import DEAD_LIST, NodeRecord, OpFault, Record, ShardRecord, away_on, stop_word
from pipeline.model.wait_reason import WaitReason, utc_text
from pipeline.reads.health import NodeState
from pipeline.shard.records.stops import BREAKER, PAUSED
from workers.pipeline_tab.acts import Seen
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
    size_text,
    span,
    sparkline,
    sum_known,
    table_row,
)

#: How many points a small line has, and the time between two of them, ms: it is no wider than this in the page.
_LINE_POINTS, _STEP_MS = 60, 15_000
#: How many ops a fault is about.
_COUNT = re.compile(r"^[\d,]+ op\b|^[\d,]+ ops\b|^[\d,]+ entr(y|ies)\b")
#: By shard, the step whose lines were drawn last, and these.
_drawn: dict[str, tuple[tuple[int, int], tuple[str, str]]] = {}
#: How many faults a page names.
_MOST_FAULTS = 12
#: How many moves a page lists.
_MOST_MOVES = 20


def overview(seen: Seen) -> dict[str, str]:
    """Return the parts of the overview.

    Args:
        seen: what is shown.
    """
    record = seen.record
    parts = {"pl-faults": _whats_wrong(seen), "pl-cards": _cards(record), "pl-fresh": freshness(seen)}
    parts["pl-moves"] = move_rows(record.moves)
    for n, shard in enumerate(record.shards):
        cells = _row(shard, seen.histories.get(shard.shard, History()))
        parts |= {f"pl-{n}-{name}": html for name, html in cells.items()}
    return parts


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


def move_rows(moves: Sequence[MoveRecord]) -> str:
    """Return the rows of a table of moves.

    Args:
        moves: those that stand still first.
    """
    found = [_move(move) for move in moves[:_MOST_MOVES]]
    if len(moves) > _MOST_MOVES:
        found.append(empty_row(6, f"and {len(moves) - _MOST_MOVES:,} more: pipeline move list"))
    return "".join(found) or empty_row(6, "no bucket moves")


def _move(move: MoveRecord) -> str:
    style = "bad" if move.still else "good" if move.ends or move.state in ("waiting", "cleaning") else "warn"
    done = f"{move.rows:,}" if move.total is None else f"{move.rows:,} of {move.total:,}"
    if move.state in COUNTED and move.total:
        share = min(100, round(100 * move.rows / move.total))
        label = f"Rows of {in_brief(move.buckets)}, {move.state}"
        done = (
            f'<progress class="pl-progress" max="100" value="{share}" aria-label="{escape(label)}"></progress> {done}'
        )
    rate = "" if move.rate is None else f", {rate_text(move.rate)} a second"
    return table_row(
        f'<span title="{escape(move.buckets)}">{escape(in_brief(move.buckets))}</span>',
        f'<span class="pl-when">{escape(move.source)} → {escape(move.target)}</span>',
        f'<span class="pl-state pl-{style}">{escape(move.state)}</span>',
        f"{done}{rate}",
        "–" if move.left_s is None else span(1000 * move.left_s),
        f'<div class="pl-words">{escape(move.still or move.text) or "–"}</div>',
    )


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


def stale(seen: Seen) -> list[Trouble]:
    """Return that what is shown is of before, where it is.

    Args:
        seen: what is shown.
    """
    if seen.age_ms is None or seen.age_ms <= FRESH_MS:
        return []
    head = f"No worker has said anything since {utc_text(seen.record.at_ms)}: all below is of then"
    return [Trouble(head, "", "run: celery -A workers worker")]


def silent(shard: str, why: str) -> Trouble:
    """Return that a shard's primary cannot be asked, and what mends it.

    Args:
        shard: its name.
        why: the error; perhaps with the command that mends it.
    """
    why, _, command = why.partition("; run: ")
    fix = f"run: {command}" if command else "start its server, or promote a replica; then run: pipeline check"
    return Trouble(f"The primary of {shard} cannot be asked: its ops wait, and none is lost", why, fix)


def _whats_wrong(seen: Seen) -> str:
    """Return what is wrong, the worst first, each with what mends it."""
    record = seen.record
    shards = {shard.shard: shard for shard in record.shards if shard.why}
    known = {one.node for one in record.away} | {node.node for shard in shards.values() for node in shard.replicas}
    unknown = [(name, why) for name, why in dict.fromkeys(record.unknown) if name not in known]
    if len({why for _, why in unknown}) == 1 and all(shard.why for shard in record.shards):
        why, _, command = unknown[0][1].partition("; run: ")
        items = [Trouble("Nothing is known", why, f"run: {command or 'pipeline check'}")]
    else:
        items = [
            silent(name, why) if name in shards else Trouble(f"{name} is unknown", why, "run: pipeline check")
            for name, why in unknown
        ]
    items = [*stale(seen), *items, *_faults(record)]
    if record.redis.full is not None:
        items.append(Trouble("Redis takes no new ops", record.redis.full, "start workers, or raise maxmemory"))
    told = {wait.scope for shard in record.shards for wait in shard.waits if wait.kind == BREAKER}
    items += [item for wait, item in _waits(record) if wait.scope not in told]
    items += [Trouble(one.what, one.why, one.fix) for one in record.away]
    if len(items) > _MOST_FAULTS:
        items[_MOST_FAULTS:] = [Trouble(f"{len(items) - _MOST_FAULTS:,} more", "", "run: pipeline status")]
    return fault_list(items, "Nothing is wrong.")


def _faults(record: Record) -> list[Trouble]:
    """Return the faults, one of a kind where several shards have it: 64 lines of one would hide all others."""
    shards = {one.shard for one in record.shards}
    same: dict[tuple[str, str], list[OpFault]] = {}
    for fault in record.faults():
        whose = fault.shard if fault.shard not in shards else ""
        kind = _COUNT.sub("", fault.subject), whose + fault.fix.replace(fault.shard, "")
        same.setdefault(kind, []).append(fault)
    return [
        Trouble(str(one), _elsewhere([other.shard for other in others]), one.fix, *_buttons(one, shards))
        for one, *others in same.values()
    ]


def _buttons(fault: OpFault, shards: Collection[str]) -> tuple[str, str]:
    """Return the address of the page that has the buttons for a fault, and what the link to it says."""
    if fault.fix == f"run: {DEAD_LIST}":
        return f"pipeline/dead?shard={quote(fault.shard)}", "See, replay or drop them"
    return _shard_page(fault.shard) if fault.shard in shards else ("", "")


def _shard_page(shard: str) -> tuple[str, str]:
    return f"pipeline/shard/{quote(shard, safe='')}", f"Open {shard}"


def _waits(record: Record) -> list[tuple[WaitReason, Trouble]]:
    """Return what waits, once where the same waits on several shards for the same reason."""
    same: dict[tuple[str, str, str], list[WaitReason]] = {}
    for shard in record.shards:
        for wait in shard.waits:
            same.setdefault((wait.kind, wait.scope, wait.detail), []).append(wait)
    found = []
    for waits in same.values():
        first = min(waits, key=lambda wait: wait.since_ms)
        more = _elsewhere(sorted({wait.shard for wait in waits} - {first.shard})) or first.detail
        page, words = _shard_page(first.shard)
        words = f"Resume it on the page of {first.shard}" if first.kind in (PAUSED, BREAKER) else words
        found.append((first, Trouble(first.head, more, first.command, page, words)))
    return found


def _elsewhere(others: Sequence[str]) -> str:
    """Return on which other shards the same is so."""
    names = ", ".join(others[:5]) + ", …" * (len(others) > 5)
    return f"The same on {len(others):,} other shard{'s' * (len(others) > 1)}: {names}" if others else ""


def _cards(record: Record) -> str:
    """Return the numbers of the whole deployment."""
    shards = record.shards
    oldest = [one.oldest_ms for one in shards if one.oldest_ms is not None]
    dead = sum_known(one.rejected for one in shards)
    share, used = record.redis.memory_share, size_text(record.redis.memory_bytes)
    limit = "" if share is None else f"{share:.0%} of its limit" if share else "it has no limit"
    parked = f"{number_text(sum_known(one.parked for one in shards))} parked"
    return "".join(
        (
            number_card("Queued ops", number_text(sum_known(one.depth for one in shards)), "active"),
            number_card("Oldest op", age_text(max(oldest, default=None), none="–"), "active"),
            number_card("Applied a second", rate_text(sum_known(one.rate for one in shards)), "success"),
            number_card("Enqueued a second", rate_text(sum_known(one.enqueue_rate for one in shards)), "success"),
            number_card("Rejected ops", number_text(dead, bad=bool(dead)), "danger" if dead else "", parked),
            number_card("Memory of Redis", used, "", limit),
        )
    )


def _row(shard: ShardRecord, history: History) -> dict[str, str]:
    """Return a shard's cells of the overview, each by its name: a cell is sent again only if it has changed."""
    word, style = shard.state
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


def _lines(points: tuple[Point, ...], shard: str) -> tuple[str, str]:
    """Return the lines of what was queued and of what was applied, drawn anew once they have a further point."""
    kept = _drawn.get(shard)
    step = len(points) // 3, points[-1].at_ms // _STEP_MS if points else 0
    if kept is None or kept[0] != step:  # drawing them takes longer than all else of the page
        _drawn[shard] = kept = step, _draw(points, shard)
    return kept[1]


def _draw(points: tuple[Point, ...], shard: str) -> tuple[str, str]:
    every = points[:: -len(points) // _LINE_POINTS or -1][::-1]
    return (
        sparkline([point.depth for point in every], f"queued on {shard}, 15 minutes"),
        sparkline([point.rate for point in every], f"applied a second on {shard}, 15 minutes"),
    )


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
        "pl-cards": _shard_cards(shard),
        "pl-waits": _shard_waits(seen, shard, moves, read_only),
        "pl-moves": move_rows(moves),
        "pl-charts-recent": _charts(history.recent),
        "pl-charts-day": _charts(history.day),
        "pl-nodes": _nodes(shard),
        "pl-tables": _tables(shard),
        "pl-buckets": _buckets(shard),
    }


def _shard_cards(shard: ShardRecord) -> str:
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


def _shard_waits(seen: Seen, shard: ShardRecord, moves: Sequence[MoveRecord], read_only: bool) -> str:
    """Return what of a shard is stopped or waits, and what mends it."""
    items = stale(seen)
    items += [silent(shard.shard, shard.why)] if shard.why else []
    if shard.queue_why not in ("", shard.why):
        items.append(Trouble(f"{shard.shard}'s queue is unknown", shard.queue_why, "run: pipeline check"))
    items += [Trouble(f"{move} stands still: {move.still}", "", move.mend) for move in moves if move.still]
    items += [Trouble(one.head, "", one.command, resume="" if read_only else _resumed(one)) for one in shard.waits]
    for one in shard.poison:
        tries = f"{one} is tried in smaller parts: {one.attempts} attempts with one op alone have failed"
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
    found = "".join(f"<li>{escape(str(one))} <strong>{one.depth:,}</strong></li>" for one in shard.buckets)
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
