"""Run `pipeline check`: print every fault at once, each with what to do about it."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.text import Text

from pipeline.admin.check import Verdict
from pipeline.admin.check.finding import Finding
from pipeline.cli.options import config_option, max_age_option

#: Columns where there is no terminal.
PLAIN_WIDTH = 100
_STYLES = {"error": "bold red", "warning": "yellow"}


@click.command("check")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@max_age_option
@click.pass_context
def check_command(context: click.Context, config: str | None, as_json: bool, max_age_s: float) -> None:
    """Look for faults in the configuration, in Redis, and on every node; change nothing.

    Prints what is there and what to do: a statement, a setting or a command. An error keeps ops from being applied
    exactly, or has done so: ops that were refused or lost come first. A warning is a risk. Exits with 1 if there is an
    error.

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        as_json: whether to print JSON.
        max_age_s: see `options.max_age_option`.
    """
    from pipeline.admin.check import check as look

    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if as_json or not console.is_terminal:
        verdict = look(config, max_age_s)
    else:
        with console.status("asking every server …"):
            verdict = look(config, max_age_s)
    if as_json:
        click.echo(json.dumps(verdict.as_json(), indent=2))
    else:
        _show(console, verdict)
    if verdict.errors:
        context.exit(1)


def _show(console: Console, verdict: Verdict) -> None:
    console.print()
    for finding in verdict.findings:
        _show_one(console, finding)
    warnings = len(verdict.findings) - verdict.errors
    counts = ", ".join(filter(None, [_count(verdict.errors, "error"), _count(warnings, "warning")]))
    seen = f" in {verdict.looked_at}" if verdict.looked_at else ""
    if verdict.errors:
        console.print(Text.assemble("  ", (counts, "bold red"), (seen, "dim")))
    else:
        console.print(Text.assemble("  ", (counts or "no fault", "yellow" if counts else "bold green"), (seen, "dim")))
    console.print()


def _show_one(console: Console, finding: Finding) -> None:
    style, wide = _STYLES[finding.severity], console.encoding.startswith("utf")
    place = Text.assemble((finding.where, "bold"), " ", finding.what)
    console.print(Text(f"  {finding.severity:<8}", style=style), end="")
    [first, *rest] = place.wrap(console, max(console.width - 11, 20))
    console.print(first)
    for line in rest:
        line.rstrip()
        console.print(Text(" " * 10) + line)
    # never folded: people copy it
    arrow = "→" if wide else "->"
    console.print(Text.assemble(" " * 10, (f"{arrow} ", "dim"), (finding.fix, "cyan")), soft_wrap=True)
    console.print()


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}" if number else ""
