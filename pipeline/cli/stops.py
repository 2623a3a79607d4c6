"""Run `pipeline pause`, `resume`, `drain` and `why`: stop a shard or a table, let it go on, say what ops wait for."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.admin import stops
from pipeline.admin.release import release
from pipeline.admin.why import why
from pipeline.cli.options import config_option, opened
from pipeline.client import Client

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


@click.command("why")
@config_option
@click.argument("name", metavar="[RECEIPT|SHARD|TABLE|BUCKET]", default="")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def why_command(context: click.Context, config: str | None, name: str, as_json: bool) -> None:
    """Say what waits, since when, because of what, and the command that mends it. Exits with 1 if something waits.

    Without a name it says what waits anywhere.

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        name: a receipt's text, the name of a shard or a table, or a bucket's number; empty for all shards.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        answer = why(pipeline, name)
    if as_json:
        reasons = [asdict(reason) for reason in answer.reasons]
        found = {"what": answer.what, "state": answer.state, "sentences": answer.sentences, "reasons": reasons}
        click.echo(json.dumps(found, indent=2))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        click.echo("\n".join(folded(answer.sentences, width)))
    if answer.reasons:
        context.exit(1)


def folded(sentences: Iterable[str], width: int) -> Iterator[str]:
    """Yield a line of each sentence; on a terminal lines that fit, so that each sentence is seen to begin.

    Args:
        sentences: what to print.
        width: of the terminal, columns; 0: there is none.
    """
    for sentence in sentences:
        yield from (
            textwrap.wrap(sentence, width, subsequent_indent="  ", break_on_hyphens=False) if width else [sentence]
        )


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
