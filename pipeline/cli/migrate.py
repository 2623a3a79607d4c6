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
    """Create what is missing on every primary: tables with bigint ids, utf8mb4, InnoDB."""
    with opened(config) as pipeline:
        if plan_only:
            steps = list(migrations.plan(pipeline))
            if as_json:
                click.echo(json.dumps([step._asdict() for step in steps]))
            for step in steps if not as_json else ():
                click.echo(f"-- {step.shard}: {step.what}\n{step.sql};\n")
            return
        told = None if as_json else lambda step: click.echo(f"{step.shard}: {step.what}")
        done = migrations.migrate(pipeline, *filter(None, [told]))
    click.echo(json.dumps({"statements": done}) if as_json else f"{done} statements; all primaries are prepared")
