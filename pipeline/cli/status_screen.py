"""Show a status: what is wrong, then tables on a terminal, a line per shard and per replica anywhere else.

The table of reads by node and reason is the demo's too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.admin.observe.record import NodeRecord, Record, ShardRecord
from pipeline.reads.health.report import NodeState

UNKNOWN = "unknown"
#: The age of an op, or the lag of a replica, from which on it is highlighted, ms.
LATE_MS = 5_000
_OF_SHARDS = ("shard", "queued", "oldest", "applied/s", "dirty", "rejected", "lost")
_OF_REPLICAS = ("replica", "behind", "lag", "reading")
#: States that are too long for the table.
_SHORT = {NodeState.UNKNOWN: "?", NodeState.NO_PROBER: "?", NodeState.NO_READING: "none"}
#: Any answer but a plain success is highlighted.
_STYLES = {"replica": "green", "primary": "", "stale": "yellow", "error": "bold red"}
#: By kind of answer, its words.
_WORDS = {"replica": "replica", "primary": "primary", "stale": "stale, marked", "error": "refused"}


def screen(status: Record, console: Console, max_age_s: float, *, live: bool = False) -> RenderableType:
    """Return what is wrong, then the tables: one where it fits, else one of shards and one of replicas.

    Args:
        status: what to show.
        console: where it is shown; without UTF-8 signs are ASCII.
        max_age_s: the age from which on an op is too old, seconds.
        live: whether to say how to end.
    """
    utf8 = console.encoding.startswith("utf")
    parts: list[RenderableType] = [Text(), _head(status), Text(), _notices(status, max_age_s, utf8=utf8), Text()]
    for table in _tables(status, console, sign="≤ " if utf8 else "<= "):
        parts += [table, Text()]
    if (reads := _reads(status)) is not None:
        parts += [reads, Text()]
    if live:
        parts.append(Text("  q ends", style="dim"))
    return Group(*parts)


def _notices(status: Record, max_age_s: float, *, utf8: bool) -> Table:
    """Return a line on each thing that is wrong, or that waits; the worst first."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=3, justify="right", no_wrap=True)
    grid.add_column()
    bad, good = ("✗", "✓") if utf8 else ("x", "ok")
    for name, why in status.unknown:
        grid.add_row(Text("?", style="bold red"), Text.assemble((f"{name} is unknown: ", "bold"), why))
    for fault in status.faults(max_age_s):
        what = Text.assemble((str(fault), "bold"), f"; {fault.fix}")
        grid.add_row(Text(bad, style="bold red"), what)
    if status.redis.full is not None:
        grid.add_row(Text(bad, style="bold red"), Text(f"nothing is let in: {status.redis.full}", style="bold"))
    for name, why in _unfit(status):
        grid.add_row(Text(bad, style="bold red"), Text.assemble((f"{name} is unfit: ", "bold"), why))
    for sentence in _waits(status):
        grid.add_row(Text("!", style="bold yellow"), Text(sentence, style="yellow"))
    if not grid.row_count:
        grid.add_row(Text(good, style="bold green"), Text("nothing is wrong", style="green"))
    return grid


def lines(status: Record, max_age_s: float) -> Iterator[str]:
    """Yield what is wrong, then the status as plain lines of key=value.

    Args:
        status: what to show.
        max_age_s: the age from which on an op is too old, seconds.
    """
    for fault in status.faults(max_age_s):
        yield f"fault: {fault}; {fault.fix}"
    for sentence in _waits(status):
        yield f"waiting: {sentence}"
    redis = status.redis
    share = redis.memory_share
    memory = UNKNOWN if share is None else f"{share:.0%}" if share else "unlimited"
    full = UNKNOWN if redis.why else "no" if redis.full is None else f"yes ({redis.full})"
    yield f"at={_clock(status.at_ms)} redis_memory={memory} full={full}"
    for shard in status.shards:
        yield (
            f"shard={shard.shard} queued={_count(shard.depth, '<=' * shard.at_most)} oldest={_age(shard)}"
            f" rate={_rate(shard)} dirty={_count(shard.dirty)} rejected={_count(shard.rejected)}"
            f" lost={_count(shard.lost)} forged={_count(shard.forged)}"
        )
        for replica in shard.replicas:
            yield (
                f"replica={replica.node} lag_ops={_count(replica.lag_ops)} lag={_ms(replica.lag_ms)}"
                f" state={replica.state.replace(' ', '-')} reading={_ms(replica.reading_ms)} age={_ms(replica.age_ms)}"
            )
    for count in status.reads or ():
        yield f"reads node={count.node} kind={count.kind} reason={count.reason} count={count.reads}"
    for name, why in status.unknown:
        yield f"{UNKNOWN}: {name}: {why}"
    for name, why in _unfit(status):
        yield f"unfit: {name}: {why}"


def reads_table(counts: Iterable[tuple[str, str, str, int]]) -> Table:
    """Return a table of reads.

    Args:
        counts: (node, kind, reason, reads).
    """
    rows = sorted(counts)
    total = sum(reads for *_, reads in rows)
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for name in ("reads on", "answer", "reason"):
        table.add_column(name, no_wrap=True)
    table.add_column("reads", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for node, kind, reason, reads in rows:
        style = _STYLES.get(kind, "")
        answer = Text(_WORDS.get(kind, kind), style=style)
        table.add_row(Text(node), answer, Text(reason), Text(f"{reads:,}"), Text(f"{reads / total:.1%}", style="dim"))
    return table


def _waits(status: Record) -> list[str]:
    """Return a sentence on each thing that waits, once where it waits on several shards."""
    return list(dict.fromkeys(reason.sentence() for shard in status.shards for reason in shard.waits))


def _unfit(status: Record) -> list[tuple[str, str]]:
    replicas = (replica for shard in status.shards for replica in shard.replicas)
    return [(replica.node, replica.unfit) for replica in replicas if replica.unfit]


def _head(status: Record) -> Text:
    redis = status.redis
    if redis.memory_share is None:
        memory = (UNKNOWN, "bold red")
    else:
        memory = (f"{redis.memory_share:.0%} of its limit" if redis.memory_share else "has no limit", "")
    return Text.assemble(("  pipeline ", "bold"), _clock(status.at_ms), ("   Redis' memory ", "dim"), memory)


def _tables(status: Record, console: Console, sign: str) -> list[Table]:
    """Return the shards with their replicas beside them, or below them where that is too wide."""
    whole = _table((*_OF_SHARDS, *_OF_REPLICAS))
    shards, replicas = _table(_OF_SHARDS), _table(_OF_REPLICAS)
    for shard in status.shards:
        own = _shard_cells(shard, sign)
        shards.add_row(*own)
        for i, replica in enumerate([*shard.replicas] or [None]):
            whole.add_row(*(own if i == 0 else [Text()] * len(own)), *_replica_cells(replica))
            if replica is not None:
                replicas.add_row(*_replica_cells(replica))
    unlimited = console.options.update(max_width=10 * console.width)
    if console.measure(whole, options=unlimited).maximum <= console.width:
        return [whole]
    return [shards, replicas] if replicas.row_count else [shards]


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in ("shard", "replica", "reading") else "right", no_wrap=True)
    return table


def _shard_cells(shard: ShardRecord, sign: str) -> list[Text]:
    late = shard.oldest_ms is not None and shard.oldest_ms > LATE_MS
    return [
        Text(shard.shard, style="bold red" if shard.why else "bold"),
        _cell(_count(shard.depth, sign * shard.at_most)),
        _cell(_age(shard), "yellow" if late else ""),
        _cell(_rate(shard), "cyan"),
        _cell(_count(shard.dirty)),
        *(
            _cell(_count(number), style if number else "dim")
            for number, style in ((shard.rejected, "yellow"), (shard.lost, "bold red"))
        ),
    ]


def _replica_cells(replica: NodeRecord | None) -> list[Text]:
    if replica is None:
        return [Text("none", style="dim"), Text(), Text(), Text()]
    late = "yellow" if (replica.lag_ms or 0) > LATE_MS else ""
    return [
        Text(replica.node, style="bold red" if replica.why else ""),
        _cell(_count(replica.lag_ops)),
        _cell(_ms(replica.lag_ms), late),
        _reading_cell(replica),
    ]


def _reading_cell(replica: NodeRecord) -> Text:
    """Return what readers go by: the upper bound of the lag, or why there is none."""
    if replica.state is NodeState.IN and replica.reading_ms is not None and replica.age_ms is not None:
        bound_ms = replica.reading_ms + replica.age_ms
        return Text(f"< {_ms(bound_ms)}", style="yellow" if bound_ms > LATE_MS else "green")
    return Text(_SHORT.get(replica.state, replica.state), style="bold red")


def _reads(status: Record) -> RenderableType | None:
    """Return the reads of all processes by node and reason."""
    if not status.reads:
        return None
    return reads_table([(one.node, one.kind, one.reason, one.reads) for one in status.reads])


def _cell(text: str, style: str = "") -> Text:
    return Text("?", style="bold red") if text == UNKNOWN else Text(text, style=style)


def _count(number: int | None, sign: str = "") -> str:
    return UNKNOWN if number is None else f"{sign}{number:,}"


def _age(shard: ShardRecord) -> str:
    if shard.depth is None:
        return UNKNOWN
    return "-" if shard.oldest_ms is None else _ms(shard.oldest_ms)


def _rate(shard: ShardRecord) -> str:
    if shard.why:
        return UNKNOWN
    return "-" if shard.rate is None else f"{shard.rate:,.0f}"


def _ms(ms: int | None) -> str:
    if ms is None:
        return UNKNOWN
    if ms < 1_000:
        return f"{ms} ms"
    seconds = ms / 1_000
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _clock(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000):%H:%M:%S}"
