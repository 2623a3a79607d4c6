"""Look without changing: `pipeline status`, `trace`, `why`, `check`, `adopt` and `healthcheck`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from pipeline import clock
from pipeline.admin import health
from pipeline.admin.adopt import Advice
from pipeline.admin.check import Verdict
from pipeline.admin.check.evidence import ERROR, Finding
from pipeline.admin.observe import Observer
from pipeline.admin.observe.record import OWN_LOOK
from pipeline.admin.trace import INDENT, story
from pipeline.admin.why import why
from pipeline.cli.options import config_option, max_age_option, opened
from pipeline.cli.status_screen import lines, screen
from pipeline.config.settings import TableSettings, load
from pipeline.config.uris import with_all_characters
from pipeline.errors import ConfigError, did_you_mean
from pipeline.events import log_to_stderr

#: The time between two looks, s: long enough for a rate, short enough for a waiting person.
APART_S = 1.0
#: Columns where there is no terminal.
PLAIN_WIDTH = 100
_STYLES = {"error": "bold red", "warning": "yellow"}
_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command("status")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs; null is unknown.")
@max_age_option
@click.pass_context
def status_command(context: click.Context, config: str | None, as_json: bool, max_age_s: float) -> None:
    """Show what is wrong, what waits and why, how fast ops are applied, and how far the replicas are.

    Shows the record that workers publish each second. Where none run, it asks all servers itself, and takes a second
    to measure a rate. Exits with 1 if a server does not answer, ops were refused or lost, a table is halted, or an op
    is older than --max-age.

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


@click.command("adopt")
@click.argument("database", required=False)
@config_option
@click.option("--shards", type=click.IntRange(1, 64), help="How many there shall be; default: as configured, else 2.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--sql", "sql_only", is_flag=True, help="Print the SQL alone, to be read and then piped to mariadb.")
@click.pass_context
def adopt_command(
    context: click.Context, database: str | None, config: str | None, shards: int | None, as_json: bool, sql_only: bool
) -> None:
    """Say what must change in an existing MySQL or MariaDB database before the pipeline can take its tables.

    DATABASE is an address such as 'mysql:pymysql://app:${DB_PASSWORD}@db0/shop', or a shard of the configuration; by
    default its first shard. Reads in a session that refuses every write, and prints the SQL for you to run. Exits with
    1 if something must change.

    \f

    Args:
        context: Click's context, for the exit code.
        database: an address or a shard's name; None for the first shard.
        config: see `options.config_option`.
        shards: how many there shall be; None for the configured number.
        as_json: whether to print JSON.
        sql_only: whether to print the SQL alone.
    """
    from pipeline.admin.adopt import adopt as look

    uri, count, tables = _adopted(database, config)
    advice = look(uri, shards or count, tables)
    if as_json:
        click.echo(json.dumps(advice.as_json(), indent=2))
    elif sql_only:
        click.echo("".join(f"{sql};\n" for sql in advice.sql), nl=False)
    else:
        _show_advice(advice)
    if not advice.ready:
        context.exit(1)


def _adopted(database: str | None, config: str | None) -> tuple[str, int, Mapping[str, TableSettings]]:
    """Return the address, the number of shards, and the tables that the configuration names."""
    if database and "://" in database:
        # read like a configuration's address: ${NAME} is filled in, and an error does not repeat a bad address
        alone = {
            "redis": {"url": "redis://unused.invalid"},
            "shards": {"database": {"primary": with_all_characters(database)}},
        }
        uri = load(alone).shards["database"].primary
        if config is None:
            return uri, 2, {}
        settings = load(config)
        return uri, len(settings.shards), settings.tables
    settings = load(config)
    name = database or next(iter(settings.shards))
    if name not in settings.shards:
        raise ConfigError([f"there is no shard {name!r}{did_you_mean(name, settings.shards)}"])
    return settings.shards[name].primary, len(settings.shards), settings.tables


def _show_advice(advice: Advice) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print()
    if advice.findings:
        console.print(_advice_table(advice))
    if advice.sql:
        console.print(Text("\n  The SQL, in order. With the application stopped, and after a backup:\n", style="bold"))
        # never folded: people copy it
        console.print(
            Syntax("\n".join(f"{sql};" for sql in advice.sql), "sql", background_color="default"), soft_wrap=True
        )
    if advice.tables:
        console.print(Text("\n  For pipeline.toml:\n", style="bold"))
        console.print(Syntax(advice.tables, "toml", background_color="default"), soft_wrap=True)
    must = sum(finding.severity == ERROR for finding in advice.findings)
    verdict = (f"{must} things must change", "bold red") if must else ("nothing must change", "bold green")
    console.print(Text.assemble("\n  ", verdict, (f" in {advice.looked_at}", "dim")))
    console.print()


def _advice_table(advice: Advice) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("where", style="bold", overflow="fold")
    table.add_column("what is there", ratio=1, overflow="fold")
    for finding in advice.findings:
        word = Text("must", style="bold red") if finding.severity == ERROR else Text("note", style="yellow")
        what = Text(finding.what)
        if finding.severity != ERROR:
            what.append(f"\n→ {finding.fix}", style="cyan")
        table.add_row(word, finding.place, what)
    return table


@click.group("healthcheck")
def healthcheck() -> None:
    """Prove that a worker, a web host or Flower of this machine does its work. Exits with 0, or with 1 if it does not.

    Nothing fails because Redis or a database is away: a restart would mend neither.
    """


@healthcheck.command("worker")
@config_option
@click.option("--shard", help="Only workers that hear this shard's doorbells.")
@click.option(
    "--within", "within_s", type=click.FloatRange(2, 3600), default=health.WITHIN_S, show_default=True,
    help="Seconds for which a worker may do nothing although there is something to do.",
)  # fmt: skip
@_json_option
def worker_command(config: str | None, shard: str | None, within_s: float, as_json: bool) -> None:
    """Say whether this host's workers consume, or have nothing to do. Asks no server.

    \f

    Args:
        config: see `options.config_option`.
        shard: of which workers.
        within_s: how long a worker may do nothing, seconds.
        as_json: whether to print JSON.
    """
    spool = load(config).spool.path
    found = [one for one in health.signs(spool) if shard is None or shard in one.shards]
    now_s = clock.mono_s()
    faults = [health.sickness_of(one, now_s, within_s) for one in found]
    names = {f"{one.name} ({one.pid})": why for one, why in zip(found, faults, strict=True)}
    workers = [_sign_as_json(one, now_s, why) for one, why in zip(found, faults, strict=True)]
    _say(health.judge_workers(names, shard, spool), as_json, workers=workers)


@healthcheck.command("web")
@config_option
@_json_option
def web_command(config: str | None, as_json: bool) -> None:
    """Say whether what this host enqueues leaves it: to Redis, or into the spool and out again. Run it as its web user.

    \f

    Args:
        config: see `options.config_option`.
        as_json: whether to print JSON.
    """
    _say(health.judge_web(load(config)), as_json)


@healthcheck.command("flower")
@config_option
@click.option("--url", default="http://127.0.0.1:5555", show_default=True, help="With Flower's prefix, if it has one.")
@_json_option
def flower_command(config: str | None, url: str, as_json: bool) -> None:
    """Say whether Flower answers, and hears the workers that run.

    \f

    Args:
        config: see `options.config_option`.
        url: where it listens.
        as_json: whether to print JSON.
    """
    _say(health.judge_flower(load(config), url), as_json)


def _sign_as_json(one: health.Sign, now_s: float, why: str) -> dict[str, Any]:
    told = {"name": one.name, "pid": one.pid, "shards": one.shards, "taken": one.taken}
    return {**told, "age_s": round(now_s - one.at_s, 1), "ok": not why, "why": why}


def _say(answer: tuple[bool, str], as_json: bool, **more: Any) -> None:
    well, sentence = answer
    click.echo(json.dumps({"ok": well, "sentence": sentence, **more}) if as_json else sentence)
    raise SystemExit(0 if well else 1)
