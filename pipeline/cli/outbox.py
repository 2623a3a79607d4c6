"""`pipeline outbox relay`: send what an application's outbox still holds."""

from __future__ import annotations

import json

import click

from pipeline.cli.options import config_option, opened
from pipeline.web import relaying


@click.group()
def outbox() -> None:
    """The table in an application's own database that keeps its ops until they are sent (mode outbox)."""


@outbox.command()
@config_option
@click.option("--uri", required=True, help="pyDAL's address of the application's own database.")
@click.option("--old", is_flag=True, help="Also what is older than 20 hours; what was sent before is doubled then.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def relay(config: str | None, uri: str, old: bool, as_json: bool) -> None:
    """Send and delete the rows that requests have left: their process died, or Redis was away.

    Nothing is doubled: what was sent already is recognised for a day. Exit code 1 if older rows are left.
    """
    with opened(config) as pipeline:
        done = relaying.relay(pipeline, uri, old=old)
    if as_json:
        click.echo(json.dumps(done._asdict()))
    else:
        click.echo(f"{done.sent} ops were sent")
        if done.left:
            click.echo(f"{done.left} are too old to be recognised if they were sent before: look at them, then --old")
    raise SystemExit(1 if done.left else 0)
