"""Run what an operator does by hand: `pipeline rebuilt`, `outbox relay` and `spool`.

`rebuilt` lets an unfit replica serve again. `outbox relay` sends what an
application's outbox still holds. `spool` shows what this host took in while Redis was away, and sends it.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline import clock
from pipeline.admin import replica_absence
from pipeline.cli.options import config_option, opened
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.enqueue.spooling.drain import DrainResult
from pipeline.errors import ConfigError
from pipeline.spool.store import Counts, Spool
from pipeline.web.outbox import resend_outbox as relay_rows


@click.command("rebuilt")
@config_option
@click.argument("node")
def rebuilt_command(config: str | None, node: str) -> None:
    """Let NODE, which was away for too long or may lack rows, count again after it was rebuilt from its primary.

    Waits until NODE has what its primary has now; then NODE serves reads and may be promoted again.

    \f

    Args:
        config: see `options.config_option`.
        node: the replica's name, such as `s0-r0`.
    """
    with opened(config) as pipeline:
        replica_absence.declare_rebuilt(pipeline, node)
    click.echo(f"{node} counts again")


@click.group()
def outbox() -> None:
    """Send ops that an application's own database keeps in a table (mode outbox)."""


@outbox.command("relay")
@config_option
@click.option("--uri", required=True, help="pyDAL's address of the application's own database.")
@click.option("--old", is_flag=True, help="Also what is older than 20 hours; what was sent before is doubled then.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def outbox_relay(config: str | None, uri: str, old: bool, as_json: bool) -> None:
    """Send and delete the rows that requests have left: their process died, or Redis was away.

    Nothing is doubled: what was sent already is recognised for a day. Exit code 1 if older rows are left.

    \f

    Args:
        config: see `options.config_option`.
        uri: pyDAL's address of the application's own database.
        old: whether to send rows that are older than 20 hours too.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        done = relay_rows(pipeline, uri, old=old)
    if as_json:
        click.echo(json.dumps(done._asdict()))
    else:
        click.echo(f"{done.sent} ops were sent")
        if done.left:
            click.echo(f"{done.left} are too old to be recognised if they were sent before: look at them, then --old")
    raise SystemExit(1 if done.left else 0)


@click.group()
def spool() -> None:
    """Show and drain the local spool, which takes ops while Redis does not."""


@spool.command("status")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def spool_status(config: str | None, as_json: bool) -> None:
    """Show what is in this host's spool. Contacts no server.

    \f

    Args:
        config: see `options.config_option`.
        as_json: whether to print JSON.
    """
    settings = load(config).spool
    if not settings.enabled:
        raise ConfigError(["[spool] is not enabled here: there is nothing to show"])
    found = Spool(Path(settings.path), settings.max_mb * 1_000_000).counts()
    if as_json:
        click.echo(json.dumps(_as_json(settings.path, found)))
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

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        timeout_s: how long to drain.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        if pipeline.spool is None:
            raise ConfigError(["[spool] is not enabled here: there is nothing to drain"])
        console = Console(stderr=as_json)
        columns = (TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("draining", total=pipeline.spool.counts().waiting)
            done = _drain(pipeline, timeout_s, progress, bar)
        left = pipeline.spool.counts()
    if as_json:
        found = _as_json(str(pipeline.spool.path), left)
        click.echo(json.dumps({**found, "sent": done.sent, "forgotten": done.forgotten, "why": done.why or None}))
    else:
        click.echo(f"sent {done.sent} ops, forgot {done.forgotten}; {left.waiting} wait, {left.kept} are kept")
        if done.why:
            click.echo(f"in the way: {done.why}", err=True)
    if left.waiting:
        context.exit(1)


def _drain(pipeline: Client, timeout_s: float, progress: Progress, bar: TaskID) -> DrainResult:
    """Drain until nothing waits, whether this process or another sends it."""
    assert pipeline.drainer is not None
    total = DrainResult()
    for deadline in clock.polls(timeout_s, first_s=0.05, most_s=0.5):
        done = pipeline.drainer.drain(max(deadline.left_s, 1.0), report=lambda sent: progress.advance(bar, sent))
        total.sent, total.why = total.sent + done.sent, done.why
        if done.empty:
            break
    total.forgotten = pipeline.drainer.forget()
    return total


def _as_json(path: str, counts: Counts) -> dict[str, object]:
    return {"path": path, "waiting": counts.waiting, "kept": counts.kept, "bytes": counts.bytes}
