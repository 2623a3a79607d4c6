"""Run `pipeline rebalance`: move buckets until each shard has its share, or only print which ones."""

from __future__ import annotations

import json

import click

from pipeline.admin.moving import orders
from pipeline.admin.moving.mover import Mover
from pipeline.admin.rebalance import KINDS, SAMPLE_S, Transfer, Weights, joined_moves, planned
from pipeline.admin.stops import who
from pipeline.cli.move import keep_option, watch
from pipeline.cli.options import config_option, opened
from pipeline.client import Client
from pipeline.config.bucket_ranges import format_ranges

#: How many buckets move together where nobody says.
TOGETHER = 16


@click.command("rebalance")
@config_option
@click.option("--plan", "only_plan", is_flag=True, help="Print what would move; move nothing.")
@click.option("--max", "most", type=click.IntRange(min=1), default=TOGETHER, show_default=True, help="At a time.")
@keep_option
@click.option("--by", "kinds", type=click.Choice(KINDS), multiple=True, help="What is evened out.  [default: all]")
@click.option(
    "--sample", "sample_s", type=click.FloatRange(min=0), default=SAMPLE_S, show_default=True, help="Seconds."
)
@click.option("--json", "as_json", is_flag=True, help="For programs; with --plan.")
def rebalance_command(
    config: str | None, only_plan: bool, most: int, keep_s: int, kinds: tuple[str, ...], sample_s: float, as_json: bool
) -> None:
    """Move buckets until each shard has its share of rows, bytes and load, at most --max of them at a time.

    The key of every row is read, and what is applied is counted for --sample. Each counts alike, unless --by names what
    counts. A shard within 5 % of its share stays as it is. The rows that buckets leave are deleted after --keep. A
    command that was killed is given again once its last move is over: pipeline move list.

    \f

    Args:
        config: see `options.config_option`.
        only_plan: whether to move nothing.
        most: how many buckets move together at most.
        keep_s: how long a shard keeps the rows of buckets that have left, s.
        kinds: what is evened out; none: all.
        sample_s: for how long applied ops are counted, s.
        as_json: whether to print JSON.
    """
    if as_json and not only_plan:
        raise click.UsageError("--json goes with --plan")
    with opened(config) as client:
        steps, weights = planned(client, sample_s, kinds or KINDS)
        moves = list(joined_moves(steps, most))
        if as_json:
            click.echo(json.dumps([step._asdict() | _named([step.bucket], weights) for step in steps]))
            return
        for line in _lines(steps, weights, sample_s):
            click.echo(line)
        begun = [] if only_plan else [_begin(client, one, weights, keep_s) for one in moves]
        for mover in begun:
            watch(mover, None)


def _begin(client: Client, move: tuple[str, str, list[int]], weights: Weights, keep_s: int) -> Mover:
    """Move some buckets until their new shard goes on; what the old one keeps of them holds up no other move."""
    source, target, buckets = move
    mover = orders.order_move(client, buckets, target, who(), keep_s)
    watch(mover, _named(buckets, weights)["rows"], begun=True)
    click.echo(f"{target} has {format_ranges(buckets)}, which {source} deletes after {keep_s} s")
    return mover


def _named(buckets: list[int], weights: Weights) -> dict[str, int]:
    return {kind: sum(getattr(weights, kind)[bucket] for bucket in buckets) for kind in KINDS}


def _lines(steps: list[Transfer], weights: Weights, sample_s: float) -> list[str]:
    few = [] if weights.sampled else [f"few ops in {sample_s:g} s, so load does not count; give a longer --sample"]
    if not steps:
        return [*few, "each shard has its share; nothing moves"]
    return few + [
        f"{format_ranges(buckets)} from {source} to {target}: " + _words(_named(buckets, weights), sample_s)
        for source, target, buckets in joined_moves(steps, len(steps))
    ]


def _words(named: dict[str, int], sample_s: float) -> str:
    size = f", {named['bytes'] / 1e6:,.1f} MB" if named["bytes"] else ""
    return f"{named['rows']:,} rows{size}, {named['load']:,} ops in {sample_s:g} s"
