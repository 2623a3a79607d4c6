"""Run `pipeline status`, `trace` and `why`: print how far each shard is, one op's story, and what ops wait for."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import click
from rich.console import Console

from pipeline import clock
from pipeline.admin.observe.observer import Observer
from pipeline.admin.observe.record import OWN_LOOK
from pipeline.admin.story import INDENT
from pipeline.admin.trace import story
from pipeline.admin.why import why
from pipeline.cli.options import config_option, max_age_option, opened
from pipeline.cli.status_screen import lines, screen
from pipeline.config.settings import load
from pipeline.events import log_to_stderr

#: The time between two looks, s: long enough for a rate, short enough for a waiting person.
APART_S = 1.0


@click.command("status")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs; null is unknown.")
@max_age_option
@click.pass_context
def status_command(context: click.Context, config: str | None, as_json: bool, max_age_s: float) -> None:
    """Show what is wrong, what waits and why, how fast ops are applied, and how far the replicas are.

    Shows the record that workers publish each second. Where none run, it asks all servers itself, and takes a second
    to measure a rate. Exits with 1 if a server does not answer, if ops were refused or lost, if a table is halted, or
    if an op is older than --max-age.

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        as_json: whether to print JSON.
        max_age_s: see `options.max_age_option`.
    """
    console = Console()
    with _observer(config) as observer:
        found = observer.newest()
        if found.source == OWN_LOOK:
            clock.sleep_s(APART_S)
            found = observer.look()
    if as_json:
        click.echo(json.dumps(found.as_json(max_age_s), indent=2))
    elif console.is_terminal:
        console.print(screen(found, console, max_age_s))
    else:
        for line in lines(found, max_age_s):
            click.echo(line)
    if found.unknown or found.faults(max_age_s):
        context.exit(1)


@contextmanager
def _observer(config: str | None) -> Iterator[Observer]:
    settings = load(config)
    log_to_stderr(settings.log.format)
    observer = Observer(settings)
    try:
        yield observer
    finally:
        observer.close()


@click.command("trace")
@config_option
@click.argument("receipt")
@click.option("--json", "as_json", is_flag=True, help="For programs; null is what nobody keeps.")
@click.pass_context
def trace_command(context: click.Context, config: str | None, receipt: str, as_json: bool) -> None:
    """Print the story of one op: enqueued how and when, its place in the log, its commit, which replicas have it.

    Prints no value of the op, but the database's sentence where it was refused. What nobody keeps is said to be so.
    Exits with 1 if the op was refused or lost, or if a primary does not answer.

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        receipt: the text of a receipt.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        told = story(pipeline, receipt)
    click.echo(json.dumps(told.as_json(), indent=2) if as_json else "\n".join(_fitted(told.lines())))
    if told.status in ("rejected", "dropped", "lost", "unknown"):
        context.exit(1)


def _fitted(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines as a terminal shows them, broken between words under their text; to a pipe as they are."""
    console = Console()
    for line in lines:
        if console.is_terminal:
            indent = " " * INDENT
            yield from textwrap.wrap(
                line, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
        else:
            yield line


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
