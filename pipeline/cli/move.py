"""Run `pipeline move`: buckets to another shard while ops arrive; list moves, give one up, send buckets back."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import click
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline import clock
from pipeline.admin.moving import HEARD_S, Mover, orders
from pipeline.admin.moving.buckets_rows import Size
from pipeline.admin.moving.sides import on_nodes
from pipeline.admin.stops import who
from pipeline.cli.options import config_option, opened
from pipeline.client import Client
from pipeline.config.buckets import named_buckets
from pipeline.errors import PipelineError, Unavailable
from pipeline.shard.records.moves import MAX_LAG_S, MAX_LOAD, MoveNote

#: The time between two looks at a move that a worker goes on with, or at a server that did not answer, s.
LOOK_S = 1.0
_buckets = click.argument("buckets", metavar="BUCKETS")
keep_option = click.option(
    "--keep", "keep_s", type=click.IntRange(min=0), default=orders.KEEP_S, show_default=True, help="Seconds."
)
_max_lag = click.option(
    "--max-lag",
    "max_lag_s",
    type=click.FloatRange(min=1.0),
    default=MAX_LAG_S,
    show_default=True,
    help="Wait while a replica of either shard is further behind, seconds.",
)
_max_load = click.option(
    "--max-load",
    type=click.IntRange(min=1),
    default=MAX_LOAD,
    show_default=True,
    help="Wait while a primary of either shard runs more threads (Threads_running).",
)


class _MoveGroup(click.Group):
    """A group whose arguments are those of `begin` where they name no other command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the command in front."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args.insert(0, "begin")
        return super().parse_args(ctx, args)


@click.group("move", cls=_MoveGroup)
def move_group() -> None:
    """Move buckets to another shard while ops arrive: pipeline move 0-15,40 --to s2.

    The rows are copied and compared before the move counts. The ops of these buckets wait for a moment at its end; no
    others do. A worker goes on with a move whose command was killed.
    """


@move_group.command("begin")
@config_option
@click.argument("buckets", metavar="BUCKETS", default="")
@click.option("--key", metavar="TABLE=VALUE", help="One shard key, in place of BUCKETS.")
@click.option("--to", "target", required=True, metavar="SHARD", help="Where they go.")
@keep_option
@_max_lag
@_max_load
@click.option("--dry-run", is_flag=True, help="Only say what would move, for how long, and what refuses.")
def begin_command(
    config: str | None,
    buckets: str,
    key: str | None,
    target: str,
    keep_s: int,
    max_lag_s: float,
    max_load: int,
    dry_run: bool,
) -> None:
    """Move buckets to a shard. The rows that they leave are deleted after --keep.

    With --key purchase=4711 one shard key moves, with its rows in all tables that are spread by it; its bucket stays.

    \f

    Args:
        config: see `options.config_option`.
        buckets: ranges of buckets; empty where a key is given.
        key: a table and a shard key of it.
        target: the name of the shard.
        keep_s: how long the source keeps its rows once the target goes on, s.
        max_lag_s: how far a replica may be behind while rows are copied or deleted, s.
        max_load: how many threads a primary may run meanwhile.
        dry_run: whether to move nothing.
    """
    if (key is None) == (buckets == ""):
        raise PipelineError("say what is to move: either BUCKETS, such as 0-15,40, or --key TABLE=VALUE")
    with opened(config) as client:
        limits = MoveNote(max_lag_s=max_lag_s, max_load=max_load)
        if key is not None:
            found = orders.key_sizes(client, key, target) if dry_run else []
            if not dry_run:
                _carry_out(orders.order_key(client, key, target, who(), keep_s, limits), None)
        elif dry_run:
            found = orders.sizes(client, named_buckets(buckets), target)
        else:
            wanted = named_buckets(buckets)
            rows = _counted(client, wanted, target)
            _carry_out(orders.order_move(client, wanted, target, who(), keep_s, replace(limits, total=rows or 0)), rows)
        if dry_run:
            _print_sizes(found, target)


@move_group.command("back")
@config_option
@_buckets
@keep_option
@_max_lag
@_max_load
def back_command(config: str | None, buckets: str, keep_s: int, max_lag_s: float, max_load: int) -> None:
    """Send buckets back to where their last move began. Rows that still stand there are compared, not copied.

    A key, as in pipeline move back purchase=4711, goes back into its bucket.

    \f

    Args:
        config: see `options.config_option`.
        buckets: ranges of buckets, or a key.
        keep_s: as for a move.
        max_lag_s: as for a move.
        max_load: as for a move.
    """
    limits = MoveNote(max_lag_s=max_lag_s, max_load=max_load)
    with opened(config) as client:
        rows = None
        if "=" not in buckets:
            wanted = named_buckets(buckets)
            rows = _counted(client, wanted, orders.came_from(client, wanted))
        _carry_out(orders.order_back(client, buckets, who(), keep_s, replace(limits, total=rows or 0)), rows)


@move_group.command("give-up")
@config_option
@_buckets
def give_up_command(config: str | None, buckets: str) -> None:
    """End the moves that buckets are part of; their shard goes on as before. Possible until the other has begun.

    \f

    Args:
        config: see `options.config_option`.
        buckets: ranges of buckets.
    """
    with opened(config) as client:
        for mover in orders.of_named(client, buckets):
            mover.give_up(f"given up by {who()}")
            click.echo(f"{mover.leg.source} keeps {mover.what}; {mover.leg.target} is being cleaned")


@move_group.command("list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_moves_command(config: str | None, as_json: bool) -> None:
    """List the moves under way, and the last one of each bucket that has moved.

    \f

    Args:
        config: see `options.config_option`.
        as_json: whether to print JSON.
    """
    with opened(config) as client:
        found = orders.known(client)
    if as_json:
        click.echo(json.dumps([one._asdict() for one in found], indent=2))
        return
    if not found:
        click.echo("no bucket has moved")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("buckets", "from", "to", "state", "rows", "by"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for one in found:
        table.add_row(one.buckets, one.source, one.target, one.state, _rows_of(one), one.who)
        for more in filter(None, (one.trouble, one.waits and f"waits: {one.waits}")):
            table.add_row("", "", "", more)
    Console().print(table)


def _print_sizes(found: list[Size], target: str) -> None:
    rows, size, copy_s = (sum(getattr(one, name) for one in found) for name in ("rows", "bytes", "copy_s"))
    for one in (*found, Size("all", rows, size, any(one.about for one in found), copy_s)):
        count = f"{'about ' if one.about else ''}{one.rows:,}"
        click.echo(f"{count:>20} rows, {one.bytes / 1e6:,.1f} MB {'in' if one.table == 'all' else 'of'} {one.table}")
    takes = timedelta(seconds=round(HEARD_S + copy_s))
    click.echo(f"nothing refuses to move; {target} goes on after about {takes}, by how long the source took to read.")
    click.echo(f"{HEARD_S:.0f} s of that are for readers to hear of the move; limits that are passed add to it")


def _rows_of(one: orders.KnownMove) -> str:
    """Return how many rows were copied, of how many, and how long the rest takes."""
    of = f" of {one.total:,}" if one.total > one.rows else ""
    left = "" if one.left_s is None else f", about {timedelta(seconds=one.left_s)} left"
    return f"{one.rows:,}{of}{left}"


@move_group.command("show")
@config_option
@_buckets
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show_move_command(config: str | None, buckets: str, as_json: bool) -> None:
    """Show the last move of buckets: how far it is, its limits, and what each node of both shards says.

    \f

    Args:
        config: see `options.config_option`.
        buckets: ranges of buckets.
        as_json: whether to print JSON.
    """
    with opened(config) as client:
        found = orders.known_of(client, buckets)
        if not found:
            none = f"none of the buckets {buckets} has moved" if "=" not in buckets else f"{buckets} has not moved"
            raise PipelineError(f"{none}: see pipeline move list")
        told = {one.move: on_nodes(client, (one.source, one.target), one.numbers) for one in found}
    if as_json:
        shown = [one._asdict() | {"nodes": [node._asdict() for node in told[one.move]]} for one in found]
        click.echo(json.dumps(shown, indent=2))
        return
    for one in found:
        began = datetime.fromtimestamp(one.began_ms / 1000, UTC)
        click.echo(f"{one.buckets} from {one.source} to {one.target}: {one.state}, {_rows_of(one)} rows copied")
        click.echo(f"ordered by {one.who} at {began:%Y-%m-%d %H:%M:%S} UTC; {one.limits}")
        for more in filter(None, (one.trouble, one.waits and f"waits: {one.waits}")):
            click.echo(more)
        for node in told[one.move]:
            name = one.buckets if "=" in one.buckets else f"bucket {node.bucket:<5}"
            click.echo(f"  {name} {node.node:<10} {node.state:<16} {node.watermark}")
        if one.state in ("beginning", "copying", "catching up", "comparing"):
            click.echo(f"to end it: pipeline move give-up {one.buckets}")
        elif one.state in ("waiting", "cleaning", "done"):
            click.echo(f"to send them back: pipeline move back {one.buckets}")


def _counted(client: Client, buckets: Collection[int], target: str) -> int | None:
    """Return how many rows are to move; None where counting takes too long, which keeps none from moving."""
    try:
        return sum(orders.rows_to_move(client, buckets, target).values())
    except Unavailable:
        return None


def _carry_out(mover: Mover, rows: int | None) -> None:
    """Show how far a move is until it is over, and say who has what moved."""
    watch(mover, rows)
    click.echo(f"{mover.leg.target} has {mover.what}")


def watch(mover: Mover, rows: int | None, *, begun: bool = False) -> None:
    """Go on with a move, or look at who does, and show how far it is until it is over.

    Args:
        mover: of the move.
        rows: how many there are to copy; None: not known.
        begun: see `steps_of`.
    """
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    with (
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        closing(steps_of(mover, begun=begun)) as steps,
    ):
        bar = progress.add_task("begins", total=rows)
        for description, done in steps:
            progress.update(bar, description=description[:60], completed=done)


def steps_of(mover: Mover, *, begun: bool = False) -> Generator[tuple[str, int | None], None, None]:
    """Go on with a move, or look at who does, until it is over; yield words and the rows of that stage so far.

    A server that does not answer is waited for.

    Args:
        mover: of the move.
        begun: whether to end as soon as the target goes on; a worker then deletes what the source keeps.

    Raises:
        MoveEnded: as `Mover.steps`.
    """
    while True:
        try:
            with closing(_uninterrupted(mover)) as steps:
                for step in steps:
                    yield step
                    if begun and mover.begun:
                        return
            return
        except Unavailable as error:
            yield f"waiting {error}", None
            clock.sleep_s(LOOK_S)


def _uninterrupted(mover: Mover) -> Generator[tuple[str, int | None], None, None]:
    while not mover.hold():
        yield "a worker is at it", None
        clock.sleep_s(LOOK_S)
    try:
        for step in mover.steps():
            counted = step.rows if step.stage in ("copying", "comparing") else None
            yield f"{step.stage} {step.text}".strip(), counted
    finally:
        mover.release()
