"""Run `pipeline demo`: the whole system on this machine with real data, and a checked result."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import click
from rich.console import Console

from pipeline.cli.options import interrupt
from pipeline.errors import PipelineError

#: The fewest flights that surely have a corrected and a cancelled one among them.
FEWEST_ROWS = 1_000


@click.command("demo")
@click.option("--rows", type=click.IntRange(min=FEWEST_ROWS), help="Only the first N flights, for a quick look.")
@click.option(
    "--engine",
    type=click.Choice(["embedded", "mariadb"]),
    default="embedded",
    show_default=True,
    help="embedded: SQLite shards and a bundled Valkey; mariadb: real servers, which must be installed.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the cluster's files go.  [default: a temporary directory]",
)
@click.option("--flower-port", type=click.IntRange(1, 65_535), help="Flower's port.  [default: a free one]")
@click.option("--grow", is_flag=True, help="Add a third shard in the middle of the load, and even out.")
@click.option("--keep", is_flag=True, help="Leave the cluster up, to look at it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; the rest goes to stderr.")
def demo(
    rows: int | None,
    engine: str,
    directory: Path | None,
    flower_port: int | None,
    grow: bool,
    keep: bool,
    as_json: bool,
) -> None:
    """Send a year of flights through the pipeline and check every row.

    Starts two shards with a replica each, Valkey or Redis, two Celery workers and Flower on this machine. Sends
    inserts, updates, upserts and deletes, then compares counts and checksums on each shard with those of the file.
    With --grow the two shards become three in the middle of that. Exits with 0 only if all are equal. Everything is
    stopped and removed at the end, also on Ctrl-C.

    \f

    Args:
        rows: how many flights; None for all.
        engine: `embedded` or `mariadb`.
        directory: the cluster's directory; None for a temporary one.
        flower_port: None for a free port.
        grow: whether a third shard is added.
        keep: whether the cluster stays up.
        as_json: whether to print JSON.
    """
    from pipeline.demo.demo import run
    from pipeline.demo.screen import Screen
    from pipeline.demo.system import DemoOptions

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        summary = run(DemoOptions(engine, rows, directory, flower_port, keep, grow), Screen(Console(stderr=as_json)))
    except PipelineError as error:
        raise click.ClickException(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        click.echo(json.dumps(summary.as_json(), indent=2))
    if summary.faults:
        raise SystemExit(1)
