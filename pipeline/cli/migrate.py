"""`pipeline migrate`: create the published tables and our own on every primary."""

from __future__ import annotations

import json

import click

from pipeline.admin import migrate as migrations
from pipeline.cli.options import config_option, opened


@click.command()
@config_option
@click.option("--plan", "plan_only", is_flag=True, help="Print the SQL and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def migrate(config: str | None, plan_only: bool, as_json: bool) -> None:
    """Create what is missing on every primary: tables with bigint ids, utf8mb4, InnoDB; their indexes; buckets.

    Only what applications have published is created: pipeline.define_tables(db) publishes. Running it twice changes
    nothing, and after a failure or a kill it goes on where it stopped.
    """
    with opened(config) as pipeline:
        if plan_only:
            steps = list(migrations.plan(pipeline))
            if as_json:
                click.echo(json.dumps([step._asdict() for step in steps]))
                return
            for step in steps:
                click.echo(f"-- {step.shard}: {step.what}\n{step.sql};\n")
            if not steps:
                click.echo("-- nothing is missing")
            return
        told = None if as_json else lambda step: click.echo(f"{step.shard}: {step.what}")
        done = migrations.migrate(pipeline, *filter(None, [told]))
    if as_json:
        click.echo(json.dumps({"statements": done}))
    elif done:
        click.echo(f"{done} statements; all primaries are prepared")
    else:
        click.echo("nothing was missing; all primaries are prepared")
