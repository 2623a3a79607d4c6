"""Run the `pipeline` command. Exit codes: 0 done, 1 found a fault or failed, 2 wrong usage."""

from __future__ import annotations

import sys

import click

from pipeline.cli.cluster import cluster, demo
from pipeline.cli.dead import dead_group
from pipeline.cli.deployment import (
    adopt_rows_command,
    migrate_command,
    rebalance_command,
    restore_command,
    shard_group,
    tables,
)
from pipeline.cli.inspect import adopt_command, check_command, healthcheck, status_command, trace_command, why_command
from pipeline.cli.maintenance import drain_command, outbox, pause_command, rebuilt_command, resume_command, spool
from pipeline.cli.move import move_group
from pipeline.cli.top import top_command
from pipeline.errors import PipelineError
from pipeline.owners import unsafe_import


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pydal-write-pipeline")
def pipeline() -> None:
    """Queued writes for pyDAL: applied to MariaDB shards exactly once and in order."""


for command in (
    adopt_command,
    adopt_rows_command,
    check_command,
    cluster,
    dead_group,
    demo,
    drain_command,
    healthcheck,
    migrate_command,
    move_group,
    outbox,
    pause_command,
    rebalance_command,
    rebuilt_command,
    restore_command,
    resume_command,
    shard_group,
    spool,
    status_command,
    tables,
    top_command,
    trace_command,
    why_command,
):
    pipeline.add_command(command)


def main() -> None:
    """Run the command; print an error of ours as a sentence on stderr, without a traceback."""
    if unsafe := unsafe_import():
        sys.exit(f"not run: {unsafe}")
    try:
        pipeline()
    except PipelineError as error:
        click.echo(f"{error}", err=True)
        sys.exit(1)
