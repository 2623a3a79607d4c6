"""`pipeline spool`: what this host took in while Redis was away, and getting it into the logs by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import clock
from pipeline.cli.options import config_option, opened
from pipeline.client import Pipeline
from pipeline.config.settings import load
from pipeline.enqueue.drain import Drained
from pipeline.errors import ConfigError
from pipeline.spool.store import Counts, Spool


@click.group()
def spool() -> None:
    """Show and drain the local spool, which takes ops while Redis does not."""


@spool.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(config: str | None, as_json: bool) -> None:
    """Show what is in this host's spool. Asks no server."""
    settings = load(config).spool
    if not settings.enabled:
        raise ConfigError(["[spool] is not enabled here: there is nothing to show"])
    found = Spool(Path(settings.path), settings.max_mb * 1_000_000).counts()
    if as_json:
        click.echo(json.dumps(_told(settings.path, found)))
        return
    click.echo(f"spool    {settings.path}")
    click.echo(f"waiting  {found.waiting} ops to be sent to Redis")
    click.echo(f"kept     {found.kept} ops that Redis has, until every node has them")
    click.echo(f"size     {found.bytes / 1e6:.1f} of {settings.max_mb} MB")


@spool.command()
@config_option
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=30, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def drain(context: click.Context, config: str | None, timeout_s: float, as_json: bool) -> None:
    """Send what waits in this host's spool to Redis, and forget what every node has.

    Safe at any time and beside others that drain: nothing is doubled, the order is kept. Exits with 1 if something
    still waits.
    """
    with opened(config) as pipeline:
        if pipeline.spool is None:
            raise ConfigError(["[spool] is not enabled here: there is nothing to drain"])
        console = Console(stderr=as_json)
        columns = (TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("draining", total=pipeline.spool.counts().waiting)
            done = _drain(pipeline, timeout_s, lambda sent: progress.advance(bar, sent))
        left = pipeline.spool.counts()
    if as_json:
        told = _told(str(pipeline.spool.path), left)
        click.echo(json.dumps({**told, "sent": done.sent, "forgotten": done.forgotten, "why": done.why or None}))
    else:
        click.echo(f"sent {done.sent} ops, forgot {done.forgotten}; {left.waiting} wait, {left.kept} are kept")
        if done.why:
            click.echo(f"in the way: {done.why}", err=True)
    if left.waiting:
        context.exit(1)


def _drain(pipeline: Pipeline, timeout_s: float, report: Callable[[int], None]) -> Drained:
    """Drain until nothing waits, whoever does it."""
    assert pipeline.drainer is not None
    total = Drained()
    for deadline in clock.polls(timeout_s, first_s=0.05, most_s=0.5):
        done = pipeline.drainer.drain(max(deadline.left_s, 1.0), report=report)
        total.sent, total.why = total.sent + done.sent, done.why
        if done.empty:
            break
    total.forgotten = pipeline.drainer.forget()
    return total


def _told(path: str, found: Counts) -> dict[str, object]:
    return {"path": path, "waiting": found.waiting, "kept": found.kept, "bytes": found.bytes}
