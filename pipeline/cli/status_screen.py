"""Show a status: what is wrong, then tables on a terminal, a line per shard and per replica anywhere else.

The table of reads by node and reason is the demo's too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.admin.observe.moves import NOT_KNOWN, MoveRecord, in_brief
from pipeline.admin.observe.record import LATE_MS, NodeRecord, Record, ShardRecord
from pipeline.model.wait_reason import sentences_of
from pipeline.reads.health import NodeState

UNKNOWN = "unknown"
_OF_SHARDS = ("shard", "state", "queued", "oldest", "applied/s", "dirty", "rejected", "lost")
_OF_REPLICAS = ("replica", "behind", "lag", "reading")
_LEFT = ("shard", "replica", "reading", "node", "role", "state", "moves", "from", "to")
#: How many moves the table lists.
MOST_SHOWN = 6
#: States that are too long for the table.
_SHORT = {NodeState.UNKNOWN: "?", NodeState.NO_PROBER: "?", NodeState.NO_READING: "none"}
#: Any answer but a plain success is highlighted.
_STYLES = {"replica": "green", "primary": "", "stale": "yellow", "error": "bold red"}
_BADNESS = {"good": "green", "warn": "yellow", "bad": "bold red"}
#: By kind of answer, its words.
_WORDS = {"replica": "replica", "primary": "primary", "stale": "stale, marked", "error": "refused"}


def screen(status: Record, console: Console, max_age_s: float) -> RenderableType:
    """Return what is wrong, then the tables: one where it fits, else one of shards and one of replicas.

    Args:
        status: what to show.
        console: where it is shown; without UTF-8 signs are ASCII.
        max_age_s: the age from which on an op is too old, seconds.
    """
    utf8 = utf8_of(console)
    parts: list[RenderableType] = [Text(), head(status), Text(), notices(status, max_age_s, utf8=utf8), Text()]
    if status.moves:
        parts += [moves_table(status.moves), Text()]
    for table in _tables(status, console):
        parts += [table, Text()]
    if (reads := _reads(status)) is not None:
        parts += [reads, Text()]
    return Group(*parts)


def utf8_of(console: Console) -> bool:
    """Return whether a console shows signs that are not ASCII."""
    return console.encoding.startswith("utf")


def notices(status: Record, max_age_s: float, *, utf8: bool) -> Table:
    """Return a line on each thing that is wrong, or that waits; the worst first.

    Args:
        status: of which.
        max_age_s: the age from which on an op is too old, seconds.
        utf8: whether signs may be other than ASCII.
    """
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=3, justify="right", no_wrap=True)
    grid.add_column()
    bad, good = ("✗", "✓") if utf8 else ("x", "ok")
    away = {one.node for one in status.away}
    for name, why in status.unknown:
        if name in away:
            continue
        grid.add_row(Text("?", style="bold red"), Text.assemble((f"{name} is unknown: ", "bold"), why))
    for fault in status.faults(max_age_s):
        what = Text.assemble((str(fault), "bold"), f"; {fault.mend}")
        grid.add_row(Text(bad, style="bold red"), what)
    if status.redis.full is not None:
        grid.add_row(Text(bad, style="bold red"), Text(f"nothing is let in: {status.redis.full}", style="bold"))
    for one in status.away:
        more = "".join(f"; {words}" for words in (one.why, one.fix) if words)
        grid.add_row(Text(bad, style="bold red"), Text.assemble((one.what, "bold"), more))
    for sentence in (*_waits(status), *_slow(status)):
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
        yield f"fault: {fault}; {fault.mend}"
    for sentence in _waits(status):
        yield f"waiting: {sentence}"
    for sentence in _slow(status):
        yield f"slow: {sentence}"
    redis = status.redis
    share = redis.memory_share
    memory = UNKNOWN if share is None else f"{share:.0%}" if share else "unlimited"
    full = UNKNOWN if redis.why else "no" if redis.full is None else f"yes ({redis.full})"
    yield f"at={_clock(status.at_ms)} redis_memory={memory} full={full}"
    for shard in status.shards:
        yield (
            f"shard={shard.shard} state={shard.state.word.replace(' ', '-')}"
            f" queued={_count(shard.depth, '<=' * shard.at_most)} oldest={_age(shard)}"
            f" rate={_rate(shard)} dirty={_count(shard.dirty)} rejected={_count(shard.rejected)}"
            f" lost={_count(shard.lost)} forged={_count(shard.forged)} owns={_count(shard.owned)}"
        )
        for replica in shard.replicas:
            yield (
                f"replica={replica.node} lag_ops={_count(replica.lag_ops)} lag={_ms(replica.lag_ms)}"
                f" state={replica.state.replace(' ', '-')} reading={_ms(replica.reading_ms)} age={_ms(replica.age_ms)}"
            )
    for move in status.moves:
        rate = UNKNOWN if move.rate is None else f"{move.rate:.0f}"
        yield (
            f"move={move.buckets} from={move.source} to={move.target} state={move.state.replace(' ', '-')}"
            f" rows={_count(move.rows)} of={_count(move.total)} rate={rate}"
            f" left={_left(move)}{f' text={move.text!r}' * bool(move.text)}"
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
    return sentences_of(reason for shard in status.shards for reason in shard.waits)


def _slow(status: Record) -> list[str]:
    what = "its primary gets one statement at a time, and batches take longer: see pipeline check"
    return [f"{shard.shard}: {what}" for shard in status.shards if shard.singly]


def _unfit(status: Record) -> list[tuple[str, str]]:
    replicas = (replica for shard in status.shards for replica in shard.replicas)
    return [(replica.node, replica.unfit) for replica in replicas if replica.unfit]


def head(status: Record) -> Text:
    """Return the first line: the time, and how full Redis is."""
    redis = status.redis
    if redis.memory_share is None:
        memory = (UNKNOWN, "bold red")
    else:
        memory = (f"{redis.memory_share:.0%} of its limit" if redis.memory_share else "has no limit", "")
    return Text.assemble(("  pipeline ", "bold"), _clock(status.at_ms), ("   Redis' memory ", "dim"), memory)


def shards_table(shards: Iterable[ShardRecord], console: Console, selected: int) -> Table:
    """Return a table of shards, one of which is marked.

    Args:
        shards: in order.
        console: where it is shown.
        selected: which row is marked; -1 for none.
    """
    utf8 = utf8_of(console)
    table = _table(("shard", "state", "queued", "oldest", "applied/s", "rejected", "lost", "lag"))
    for n, shard in enumerate(shards):
        name, state, queued, oldest, rate, _, rejected, lost = _shard_cells(shard, _sign(console))
        mark = Text(("▸ " if utf8 else "> ") if n == selected else "  ", style="bold")
        lags = [replica.lag_ms for replica in shard.replicas]
        worst = None if None in lags else max((lag for lag in lags if lag is not None), default=-1)
        lag = _cell("-" if worst == -1 else _ms(worst), "yellow" if (worst or 0) > LATE_MS else "")
        table.add_row(mark + name, state, queued, oldest, rate, rejected, lost, lag)
    return table


def replicas_table(shards: Iterable[ShardRecord]) -> Table:
    """Return a table of the shards' replicas.

    Args:
        shards: in order.
    """
    table = _table(_OF_REPLICAS)
    for shard in shards:
        for replica in shard.replicas:
            table.add_row(*_replica_cells(replica))
    return table


def moves_table(moves: Sequence[MoveRecord]) -> RenderableType:
    """Return a table of moves that are under way, and below it what each waits for.

    Args:
        moves: those that stand still first.
    """
    table, lines = _table(("moves", "from", "to", "state", "rows", "of", "rows/s", "left")), list[Text]()
    for move in moves[:MOST_SHOWN]:
        state = Text(move.state, style="bold red" if move.still or move.state == NOT_KNOWN else "cyan")
        buckets, rate = in_brief(move.buckets), "-" if move.rate is None else f"{move.rate:,.0f}"
        total = "-" if move.total is None else f"{move.total:,}"
        left = "-" if move.left_s is None else _left(move)
        cells = (Text(buckets, style="bold"), Text(move.source), Text(move.target), state)
        table.add_row(*cells, Text(f"{move.rows:,}"), Text(total), Text(rate), Text(left))
        if move.text:
            lines.append(Text(f"    {buckets}: {move.text}", style="dim"))
    if len(moves) > MOST_SHOWN:
        lines.append(Text(f"    and {len(moves) - MOST_SHOWN} more: pipeline move list", style="dim"))
    return Group(table, *lines)


def nodes_table(shard: ShardRecord) -> Table:
    """Return a table of a shard's nodes, the primary first: how readers treat each, and how far it is.

    Args:
        shard: the shard.
    """
    table = _table(("node", "role", "state", "behind", "lag", "reading", "reads/s"))
    for node in shard.nodes:
        bad = node.state not in (NodeState.IN, NodeState.UNKNOWN)
        name, behind, lag, reading = _replica_cells(node)
        far = (Text(), Text(), Text()) if node.role == "primary" else (behind, lag, reading)
        reads = "-" if node.reads_per_s is None else f"{node.reads_per_s:,.0f}"
        table.add_row(name, Text(node.role), Text(node.state, "bold red" if bad else ""), *far, Text(reads))
    return table


def _sign(console: Console) -> str:
    """Return the sign of an upper bound."""
    return "≤ " if utf8_of(console) else "<= "


def _tables(status: Record, console: Console) -> list[Table]:
    """Return the shards with their replicas beside them, or below them where that is too wide."""
    sign = _sign(console)
    whole = _table((*_OF_SHARDS, *_OF_REPLICAS))
    shards, replicas = _table(_OF_SHARDS), replicas_table(status.shards)
    for shard in status.shards:
        own = _shard_cells(shard, sign)
        shards.add_row(*own)
        for i, replica in enumerate([*shard.replicas] or [None]):
            whole.add_row(*(own if i == 0 else [Text()] * len(own)), *_replica_cells(replica))
    unlimited = console.options.update(max_width=10 * console.width)
    if console.measure(whole, options=unlimited).maximum <= console.width:
        return [whole]
    return [shards, replicas] if replicas.row_count else [shards]


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    return table


def _shard_cells(shard: ShardRecord, sign: str) -> list[Text]:
    late = shard.oldest_ms is not None and shard.oldest_ms > LATE_MS
    return [
        Text(shard.shard, style="bold red" if shard.why else "bold"),
        Text(shard.state.word, style=_BADNESS[shard.state.badness]),
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


def _left(move: MoveRecord) -> str:
    return UNKNOWN if move.left_s is None else _ms(move.left_s * 1000)


def _ms(ms: int | None) -> str:
    if ms is None:
        return UNKNOWN
    if ms < 1_000:
        return f"{ms} ms"
    seconds = ms / 1_000
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _clock(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000):%H:%M:%S}"
