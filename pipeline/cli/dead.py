"""Run `pipeline dead`: list, show, edit, replay and drop ops that were set aside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from pipeline.admin import dead_op
from pipeline.admin.dead import HEADS, DeadOp, Where, chosen, dead_ops, place_of, replay
from pipeline.apply.replay import Became
from pipeline.cli.options import config_option, opened
from pipeline.errors import BadOp
from pipeline.shard.records.set_aside import ASIDE

_STYLES = {"rejected": "bold red", "waiting": "yellow", "parked": "yellow", "replayed": "green", "dropped": "dim"}
#: The least room for reasons beside their ops, columns; what is narrower has them below. How they are indented there.
ROOM, _BELOW = 30, (0, 0, 0, 4)
#: How many ops of a trial the screen shows.
MOST_SHOWN = 100
_where_option = click.option(
    "--where",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="table, shard, bucket, reason (words in it), code, state, since (2h); each narrows.",
)
_shard_option = click.option("--shard", help="Where the op is; needed for a reference table only.")
_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group("dead")
def dead_group() -> None:
    """Repair ops that the database refused, and those that wait behind them."""


@dead_group.command("list")
@config_option
@_where_option
@click.option("--limit", "most", type=click.IntRange(min=1), default=100, show_default=True, help="Ops per shard.")
@_json_option
def dead_list(config: str | None, pairs: tuple[str, ...], most: int, as_json: bool) -> None:
    """List the ops that are set aside, with the database's reasons. Exits with 1 if there are any.

    \f

    Args:
        config: see `options.config_option`.
        pairs: which ops.
        most: the most ops of one shard.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        found = list(dead_ops(pipeline, Where.parse(pairs), most=most))
    if as_json:
        click.echo(json.dumps([_plain(one) for one in found], indent=2))
    elif found:
        console = Console()
        console.print(_listed(found, console))
        console.print(_mends(found), highlight=False)
    else:
        click.echo("no op is set aside")
    raise SystemExit(1 if any(one.op.state in ASIDE for one in found) else 0)


@dead_group.command("show")
@config_option
@click.argument("op")
@_shard_option
@_json_option
def dead_show(config: str | None, op: str, shard: str | None, as_json: bool) -> None:
    """Show OP, such as 17:1795859554-3, beside the row as it is in the database now.

    \f

    Args:
        config: see `options.config_option`.
        op: its place.
        shard: where it is.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        shown = dead_op.show(pipeline, place_of(op), shard)
    if as_json:
        plain = {**_plain(shown.found), "behind": shown.behind, "writes": [asdict(write) for write in shown.writes]}
        click.echo(json.dumps(plain, indent=2, default=str))
        return
    console = Console()
    for line in _head(shown):
        console.print(line, highlight=False)
    for write in shown.writes:
        console.print(Text(f"\n{write.kind} {write.table} {write.row}{_THERE[write.there]}", "italic"))
        console.print(_sides(write))


@dead_group.command("edit")
@config_option
@click.argument("op")
@click.argument("values", nargs=-1, required=True, metavar="FIELD=VALUE…")
@click.option("--member", type=click.IntRange(min=0), default=0, help="Which row write of an atomic group, from 0.")
@_shard_option
def dead_edit(config: str | None, op: str, values: tuple[str, ...], member: int, shard: str | None) -> None:
    """Change values of OP; `pipeline dead replay OP` then applies it. The op as it was is kept.

    A value is a text, a number or a list as in JSON, or null.

    \f

    Args:
        config: see `options.config_option`.
        op: its place.
        values: the fields to change.
        member: which row write of an atomic group.
        shard: where it is.
    """
    given = {field: text for field, equals, text in (one.partition("=") for one in values) if equals}
    if len(given) < len(values):
        raise click.UsageError("give each value as FIELD=VALUE, each field once")
    with opened(config) as pipeline:
        typed = dead_op.typed_values(pipeline, place_of(op), given, shard=shard, member=member)
        found = dead_op.edit(pipeline, place_of(op), typed, shard=shard, member=member)
    click.echo(
        f"{op} is changed; to apply it: pipeline dead replay {op}" + (f" --shard {found.shard}" if shard else "")
    )


def _bulk(name: str, sentence: str, *, drop: bool) -> click.Command:
    @dead_group.command(name, help=sentence)
    @config_option
    @click.argument("ops", nargs=-1)
    @_where_option
    @click.option("--all", "every", is_flag=True, help="All ops that are set aside.")
    @click.option("--dry-run", is_flag=True, help="Try it, roll it back, and say what would become of each op.")
    @_json_option
    def command(
        config: str | None, ops: tuple[str, ...], pairs: tuple[str, ...], every: bool, dry_run: bool, as_json: bool
    ) -> None:
        if not (ops or pairs or every):
            raise click.UsageError("name ops, or say which with --where, or --all")
        where = Where.parse(pairs, ops)
        with opened(config) as pipeline:
            # a parked op may be dropped by name
            found = chosen(pipeline, where, ASIDE if drop and ops else HEADS)
            heads = sum(len(own) for buckets in found.values() for own in buckets.values())
            if ops and heads < len(ops):
                raise BadOp(_not_there(ops, found, drop=drop))
            done, tried, left = _run(pipeline, found, heads, drop=drop, trial=dry_run)
        told: dict[str, Any] = {**done, **({"left": left} if left else {})}
        if dry_run and as_json:
            told["ops"] = [_tried(shard, one) for shard, one in tried]
        elif dry_run:
            Console().print(_trial_table(tried[:MOST_SHOWN]))
            if len(tried) > MOST_SHOWN:
                click.echo(f"and {len(tried) - MOST_SHOWN:,} more: --json has all")
        counts = f"{done['replayed']:,} replayed, {done['dropped']:,} dropped, {done['refused']:,} refused again"
        sentence = f"{counts}, {done['parked']:,} still wait behind others"
        _say(told, as_json, f"{'nothing is changed; it would be: ' if dry_run else ''}{sentence}")
        for why in left:
            click.echo(f"not tried: {why}", err=as_json)
        raise SystemExit(1 if done["refused"] or left else 0)

    return command


dead_replay = _bulk(
    "replay",
    "Apply OPS that are set aside, and what waits behind them, in order. Exits with 1 if any is refused.",
    drop=False,
)
dead_drop = _bulk("drop", "Give OPS up, and apply what waits behind them, in order.", drop=True)


def _run(
    pipeline: Any, found: Mapping[str, Any], heads: int, *, drop: bool, trial: bool
) -> tuple[dict[str, int], list[tuple[str, Became]], list[str]]:
    """Return the counts; of a trial what would become of each op; and why ops were left as they are."""
    done = dict.fromkeys(("replayed", "dropped", "refused", "parked"), 0)
    tried, left = list[tuple[str, Became]](), list[str]()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("dropping" if drop else "replaying", total=heads)
        for step in replay(pipeline, found, drop=drop, trial=trial):
            for name in done:
                done[name] += getattr(step.done, name)
            tried += [(step.shard, one) for one in step.ops if trial]
            left += step.left
            progress.update(bar, advance=step.done.heads)
    return done, tried, left


def _tried(shard: str, one: Became) -> dict[str, Any]:
    op = f"{one.place[0]}:{one.place[1]}"
    return {"op": op, "shard": shard, "table": one.table, "state": one.state, "reason": one.reason}


def _trial_table(tried: Iterable[tuple[str, Became]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("op", "shard", "table", "would be"):
        table.add_column(name, no_wrap=True)
    table.add_column("because", overflow="fold")
    for shard, one in tried:
        state = Text(one.state, style=_STYLES[one.state])
        why = one.reason.partition(", which holds")[0]
        table.add_row(f"{one.place[0]}:{one.place[1]}", shard, one.table, state, Text(why))
    return table


def _not_there(ops: Iterable[str], found: Mapping[str, Any], *, drop: bool) -> str:
    there = {(bucket, position) for buckets in found.values() for bucket, own in buckets.items() for position in own}
    missing = next(op for op in ops if place_of(op) not in there)
    which = "is set aside" if drop else "is rejected or waiting (a parked one follows the op that it waits behind)"
    return f"no op at {missing} {which}: see pipeline dead list"


def _say(counts: Mapping[str, Any], as_json: bool, sentence: str) -> None:
    click.echo(json.dumps(counts) if as_json else sentence)


def _plain(one: DeadOp) -> dict[str, Any]:
    op = one.op
    return {
        "op": _place(one), "shard": one.shard, "table": op.table, "row": op.row_key, "state": op.state, "code": op.code,
        "reason": op.reason, "since_ms": op.rejected_ms,
    }  # fmt: skip


def _listed(found: Sequence[DeadOp], console: Console) -> RenderableType:
    """Return a line for each op, and its reason behind it, or below it where the terminal is too narrow for that."""
    whys = [Text(_why(one)) for one in found]
    table = _table(found)
    if console.width - console.measure(table).maximum >= min(ROOM, max(map(len, whys))):
        return _table(found, whys)
    head, *lines = [Segments([*line, Segment.line()]) for line in console.render_lines(table, pad=False)]
    below = [Padding(why, _BELOW) for why in whys]
    return Group(head, *(part for pair in zip(lines, below, strict=True) for part in pair))


def _table(found: Iterable[DeadOp], whys: Sequence[Text] = ()) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("op", "shard", "state", "table", "row"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=20 if name == "row" else None)
    if whys:
        table.add_column("reason", overflow="fold")
    for n, one in enumerate(found):
        op = one.op
        state, row = Text(op.state, style=_STYLES[op.state]), op.row_key.removeprefix(f"{op.table} ")
        table.add_row(_place(one), one.shard, state, op.table, row, *whys[n : n + 1])
    return table


def _why(one: DeadOp) -> str:
    code = f"({one.op.code}) " if one.op.code is not None else ""
    return f"{code}{one.op.reason.partition(', which holds')[0]}"


def _mends(found: Iterable[DeadOp]) -> str:
    first = next((_place(one) for one in found if one.op.state in HEADS), None)
    return f"look at one: pipeline dead show {first}" if first else ""


def _head(shown: dead_op.Shown) -> Iterable[Text]:
    op, place = shown.found.op, _place(shown.found)
    since = datetime.fromtimestamp(op.rejected_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield Text.assemble((place, "bold"), f" on {shown.found.shard}: ", (op.state, _STYLES[op.state]), f" since {since}")
    yield Text(f"{f'({op.code}) ' if op.code is not None else ''}{op.reason}")
    if not shown.writes:
        yield Text("this version cannot decode the op; it can only be dropped", style="yellow")
    if op.state in ASIDE:
        yield Text(f"ops that wait behind it: {shown.behind:,}")
        yield Text(
            f"mend the cause, or: pipeline dead edit {place} FIELD=VALUE; then: pipeline dead replay {place}", "dim"
        )


_THERE = {True: "", False: ", which is not there", None: ": only the database knows its rows"}


def _sides(write: dead_op.RowWrite) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("column", "now", "new"):
        table.add_column(name, overflow="fold", header_style="dim")
    for cell in write.cells:
        now = "" if not write.there else dead_op.in_words(cell.now)
        changed = cell.new is not None and cell.new != now
        table.add_row(cell.column, now, Text(cell.new or "", style="bold" if changed else ""))
    return table


def _place(one: DeadOp) -> str:
    return f"{one.op.entry.bucket}:{one.op.entry.position}"
