"""Run `pipeline trace`: print one op's story."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from textwrap import wrap

import click
from rich.console import Console

from pipeline.admin.story import INDENT
from pipeline.admin.trace import story
from pipeline.cli.options import config_option, opened


@click.command("trace")
@config_option
@click.argument("receipt")
@click.option("--json", "as_json", is_flag=True, help="For programs; null is what nobody keeps.")
@click.pass_context
def trace_command(context: click.Context, config: str | None, receipt: str, as_json: bool) -> None:
    """Tell the story of one op: enqueued how and when, its place in the log, its commit, which replicas have it.

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
            yield from wrap(
                line, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
        else:
            yield line
