"""Run `pipeline rebalance`: move buckets until each shard has its share of the rows, or only print which ones."""

from __future__ import annotations

import json
from collections import Counter

import click

from pipeline.admin.moving import orders
from pipeline.admin.rebalance import Transfer, joined_moves, planned
from pipeline.cli.move import carry_out
from pipeline.cli.options import config_option, opened
from pipeline.config.bucket_ranges import format_ranges

#: How many buckets move together where nobody says.
TOGETHER = 16


@click.command("rebalance")
@config_option
@click.option("--plan", "only_plan", is_flag=True, help="Print what would move; move nothing.")
@click.option("--max", "most", type=click.IntRange(min=1), default=TOGETHER, show_default=True, help="At a time.")
@click.option("--json", "as_json", is_flag=True, help="For programs; with --plan.")
def rebalance_command(config: str | None, only_plan: bool, most: int, as_json: bool) -> None:
    """Move buckets until each shard has its share of the rows, at most --max of them at a time.

    The key of every row is read for it. A shard within 5 % of its share stays as it is. A command that was killed is
    given again once its last move is over: pipeline move list.

    \f

    Args:
        config: see `options.config_option`.
        only_plan: whether to move nothing.
        most: how many buckets move together at most.
        as_json: whether to print JSON.
    """
    if as_json and not only_plan:
        raise click.UsageError("--json goes with --plan")
    with opened(config) as client:
        steps, rows = planned(client)
        moves = list(joined_moves(steps, most))
        if as_json:
            click.echo(json.dumps([step._asdict() | {"rows": rows[step.bucket]} for step in steps]))
            return
        for line in _lines(steps, rows):
            click.echo(line)
        for _, target, buckets in [] if only_plan else moves:
            carry_out(client, buckets, target, sum(rows[bucket] for bucket in buckets), orders.KEEP_S)


def _lines(steps: list[Transfer], rows: Counter[int]) -> list[str]:
    if not steps:
        return ["each shard has its share; nothing moves"]
    return [
        f"{format_ranges(buckets)} from {source} to {target}: {sum(rows[bucket] for bucket in buckets):,} rows"
        for source, target, buckets in joined_moves(steps, len(steps))
    ]
