"""Run what an operator does by hand: `pause`, `resume`, `drain`, `rebuilt`, `outbox relay` and `spool`.

`pause` stops a shard or a table, `resume` lets it go on, `drain` empties it first. `rebuilt` lets an unfit replica
serve again. `outbox relay` sends what an application's outbox still holds. `spool` shows what this host took in while
Redis was away, and sends it.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline import clock
from pipeline.admin import absence, stops
from pipeline.admin.stops import release
from pipeline.cli.options import config_option, opened
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.enqueue.spool_drain import DrainResult
from pipeline.errors import ConfigError
from pipeline.spool import Counts, Spool
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
        absence.declare_rebuilt(pipeline, node)
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


_reason_option = click.option("--reason", default="", help="Shown wherever the ops are seen to wait.")


@click.command("pause")
@config_option
@click.argument("name", metavar="SHARD|TABLE")
@_reason_option
def pause_command(config: str | None, name: str, reason: str) -> None:
    """Apply no ops of a shard, or of a table on all shards, until `pipeline resume`. Nothing is lost.

    Ops are accepted and wait in order; everything else goes on. Workers obey within a second, after their current
    batch; a restart of anything changes nothing.

    \f

    Args:
        config: see `options.config_option`.
        name: of a shard or a table; `shard:x` or `table:x` where both have it.
        reason: why.
    """
    with opened(config) as pipeline:
        target = stops.target_of(pipeline, name)
        stops.pause(pipeline, target, reason)
    click.echo(_paused(target))


@click.command("resume")
@config_option
@click.argument("name", metavar="SHARD|TABLE")
@click.pass_context
def resume_command(context: click.Context, config: str | None, name: str) -> None:
    """Let the ops of a shard, or of a table on all shards, go on in order.

    Of a table that was halted after too many refusals, one op is tried first. If it is refused again the table stays
    halted, and the exit code is 1.

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        name: of a shard or a table; `shard:x` or `table:x` where both have it.
    """
    with opened(config) as pipeline:
        target = stops.target_of(pipeline, name)
        lifted = stops.resume(pipeline, target)
        done = _released(pipeline, target)
        stays = [stop for shard in target.shards for stop in stops.stops_on(pipeline, shard, target)]
    settled = "1 op that was set aside is" if done == 1 else f"{done:,} ops that were set aside are"
    released = f"; {settled} settled" if done else ""
    if stays:
        click.echo(f"{target} stays halted on {len(stays)} of {len(target.shards)} shards: an op was refused again")
        context.exit(1)
    click.echo(f"{target} goes on{released}" if lifted else f"{target} was not stopped{released}")


@click.command("drain")
@config_option
@click.argument("name", metavar="SHARD|TABLE")
@_reason_option
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=300, show_default=True, help="Seconds.")
@click.pass_context
def drain_command(context: click.Context, config: str | None, name: str, reason: str, timeout_s: float) -> None:
    """Wait until all that is queued now is applied, then pause.

    Of a table, all ops in its buckets are waited for. Exits with 1, and pauses nothing, if ops are left after the
    time-out.

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        name: of a shard or a table; `shard:x` or `table:x` where both have it.
        reason: why.
        timeout_s: how long to wait, seconds.
    """
    console, left = Console(), 0
    columns = (TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with opened(config) as pipeline, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        target = stops.target_of(pipeline, name)
        bar, total = progress.add_task("draining", total=None), 0
        for left in stops.drain_and_pause(pipeline, target, timeout_s, reason):
            total = max(total, left)
            progress.update(bar, total=total, completed=total - left)
    if left:
        click.echo(f"{left:,} ops are left after {timeout_s:g} s; {target} is not paused")
        context.exit(1)
    click.echo(f"{total:,} ops were waited for; {_paused(target)}")


def _released(pipeline: Client, target: stops.Target) -> int:
    """Let go on what was set aside, with a progress bar; return how many ops."""
    console, done = Console(), 0
    columns = (TextColumn("releasing"), BarColumn(), TextColumn("{task.completed:,} ops"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("releasing", total=None)
        for shard in target.shards:
            for settled in release(pipeline, shard, stops.who()):
                done += settled
                progress.update(bar, completed=done)
    return done


def _paused(target: stops.Target) -> str:
    return f"{target} is paused; its ops wait until: pipeline resume {target.name}"
