"""Run `pipeline cluster` and `pipeline demo`: the whole system on this machine."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import interrupt
from pipeline.devcluster import Cluster
from pipeline.devcluster.processes import log_path
from pipeline.devcluster.state import ClusterFailed
from pipeline.errors import PipelineError

directory_option = click.option(
    "--dir", "directory", required=True, type=click.Path(path_type=Path, file_okay=False), help="The cluster's home."
)


@click.group()
def cluster() -> None:
    """Run servers, workers and Flower on this machine, in the background."""


@cluster.command()
@directory_option
@click.option("--engine", type=click.Choice(["embedded", "mariadb"]), default="embedded", show_default=True)
@click.option("--shards", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--replicas", type=click.IntRange(0, 8), default=1, show_default=True, help="Of each shard.")
@click.option("--workers", type=click.IntRange(0, 64), default=2, show_default=True)
@click.option("--flower-port", type=click.IntRange(0, 65535), help="Default: a free port, when there are workers.")
@click.option("--buckets", type=click.IntRange(1, 1024), default=64, show_default=True)
def up(
    directory: Path, engine: str, shards: int, replicas: int, workers: int, flower_port: int | None, buckets: int
) -> None:
    """Start a cluster in an empty or new directory.

    \f

    Args:
        directory: the cluster's directory.
        engine: `embedded` or `mariadb`.
        shards: how many primaries.
        replicas: how many replicas each primary has.
        workers: how many Celery workers.
        flower_port: None for a free port when there are workers.
        buckets: the number of buckets.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    if flower_port is None and workers:
        flower_port = 0
    err = Console(stderr=True)
    try:
        running = Cluster.up(
            directory,
            engine,
            shards=shards,
            replicas=replicas,
            workers=workers,
            flower_port=flower_port,
            buckets=buckets,
            report=lambda sentence: err.print(sentence, style="dim", markup=False, highlight=False),
        )
    except ClusterFailed as error:
        raise click.ClickException(str(error)) from error
    try:
        out = Console()
        out.print(_table(running))
        out.print(_next_commands(running), markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        # An interrupt before the cluster was printed: nobody would know how to take the cluster down.
        running.down()
        raise


@cluster.command("status")
@directory_option
@click.option("--json", "as_json", is_flag=True, help="For programs; the pid of a dead process is null.")
@click.pass_context
def cluster_status(context: click.Context, directory: Path, as_json: bool) -> None:
    """Show what runs; the exit code is 1 when a process is dead.

    \f

    Args:
        context: Click's context, for the exit code.
        directory: the cluster's directory.
        as_json: whether to print JSON.
    """
    try:
        running = Cluster.at(directory)
    except ClusterFailed as error:
        raise click.ClickException(str(error)) from error
    alive = {process.name: running.is_alive(process.name) for process in running.processes}
    if as_json:
        listed = [
            {"name": process.name, "pid": process.pid if alive[process.name] else None, "port": process.port}
            for process in running.processes
        ]
        click.echo(json.dumps({"config": str(running.config), "processes": listed}))
    else:
        Console().print(_table(running))
    if not all(alive.values()):
        context.exit(1)


@cluster.command()
@directory_option
def down(directory: Path) -> None:
    """End every process and remove every file of a cluster.

    \f

    Args:
        directory: the cluster's directory.
    """
    try:
        stopped = Cluster(directory.resolve()).down()
    except ClusterFailed as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else f"nothing is up in {directory}")


def _table(running: Cluster) -> Table:
    table = Table("process", "pid", "address", "log")
    for process in running.processes:
        alive = running.is_alive(process.name)
        address = f"127.0.0.1:{process.port}" if process.port else ""
        if process.name == "flower":
            address = f"http://{address}"
        log = log_path(running.directory, process.name).relative_to(running.directory)
        table.add_row(process.name, str(process.pid) if alive else "[red]dead[/red]", address, str(log))
    return table


def _next_commands(running: Cluster) -> str:
    return (
        f"export PIPELINE_CONFIG={running.config}\n"
        "pipeline check\n"
        f"pipeline cluster status --dir {running.directory}\n"
        f"pipeline cluster down --dir {running.directory}"
    )


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
    from pipeline.demo import run
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
