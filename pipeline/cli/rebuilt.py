"""`pipeline rebuilt`: an unfit replica was rebuilt, and may serve again."""

from __future__ import annotations

import click

from pipeline.admin import replica_absence as away
from pipeline.cli.options import config_option, opened


@click.command()
@config_option
@click.argument("node")
def rebuilt(config: str | None, node: str) -> None:
    """Say that NODE, which was away for too long, was rebuilt from its primary.

    Waits until it has what its primary has now; then it serves reads, counts, and may be promoted again.
    """
    with opened(config) as pipeline:
        away.rebuilt(pipeline, node)
    click.echo(f"{node} counts again")
