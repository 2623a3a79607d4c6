"""Run `python -m benchmarks`: start servers, measure, print, and leave no process behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from benchmarks.conditions import conditions, not_durable
from benchmarks.goals import missed
from benchmarks.peer import Peer
from benchmarks.peers import PEERS
from benchmarks.picture import picture
from benchmarks.probes import PROBES, Probe
from benchmarks.report import as_json, as_markdown, print_run
from benchmarks.run import Run, run_all
from benchmarks.table import open_table
from benchmarks.target import Target

#: What a run is added to, and what the last whole run looks like.
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
PICTURE = DOCUMENT.parent / "img" / "benchmarks.svg"
#: A full run: the pipeline's rows; every slower peer gets a fixed share of them.
ROWS = 200_000
#: The number of buckets, as in a new installation.
BUCKETS = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and how much of it."""

    peers: tuple[Peer, ...]
    probes: tuple[Probe, ...]
    rows: int
    rounds: int


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Where the servers live; default: temporary.")
@click.option("--config", type=click.Path(exists=True, path_type=Path), help="Use the servers of this pipeline.toml.")
@click.option("--rows", default=ROWS, show_default=True, help="Rows of the pipeline; slower peers get fewer.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of the pipeline and of the best of its peers.")
@click.option("--only", default="", help="Comma-separated beginnings of names of peers and probes.")
@click.option("--list", "names_only", is_flag=True, help="Print the names and stop.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures to this file.")
@click.option("--picture", "picture_path", type=click.Path(path_type=Path), help="Draw the run into this file, as SVG.")
@click.option("--strict", is_flag=True, help="Exit with 1 also where a goal was missed.")
@click.option("--markdown", is_flag=True, help=f"Append a dated section to docs/{DOCUMENT.name}, and draw it.")
def main(
    directory: Path | None,
    config: Path | None,
    rows: int,
    rounds: int,
    only: str,
    names_only: bool,
    json_path: Path | None,
    picture_path: Path | None,
    strict: bool,
    markdown: bool,
) -> None:
    """Measure this pipeline and its peers on the same servers; print rates, ratios, figures and targets.

    The servers must be on loopback: their tables of the run and the Redis databases 11 to 15 are emptied. Exit code 1:
    something could not be measured; with --strict, or a goal was missed.
    """
    console = Console()
    if names_only:
        names = [peer.name for peer in PEERS] + [probe.name for probe in PROBES]
        console.print("\n".join(names), highlight=False)
        return
    plan = _plan(only, rows, rounds)
    signal.signal(signal.SIGTERM, _interrupt)
    when = datetime.now(UTC)
    with ExitStack() as stack:
        where = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        where.mkdir(parents=True, exist_ok=True)
        target = Target.load(config or stack.enter_context(_cluster(where, console)))
        run, facts = _measure(target, where, plan, console)
    print_run(run, facts, console)
    if json_path:
        json_path.write_text(json.dumps(as_json(run, facts, when), indent=1, ensure_ascii=False))
    if markdown and not only:
        picture_path = picture_path or PICTURE
    if picture_path:
        picture_path.write_text(picture(run.figures, when))
    if markdown:
        with DOCUMENT.open("a") as document:
            document.write("\n" + as_markdown(run, facts, when))
    sys.exit(int(bool(run.failures or (strict and missed(run.figures)))))


def _plan(only: str, rows: int, rounds: int) -> Plan:
    wanted = tuple(name.strip() for name in only.split(",")) if only else ("",)
    peers = tuple(peer for peer in PEERS if peer.name.startswith(wanted))
    probes = tuple(probe for probe in PROBES if probe.name.startswith(wanted))
    if not peers and not probes:
        raise click.UsageError(f"no peer or probe begins with {only!r}; see --list")
    return Plan(peers, probes, rows, rounds)


def _measure(target: Target, where: Path, plan: Plan, console: Console) -> tuple[Run, dict[str, str]]:
    # The peers' task modules find the servers in this process as they do in their workers.
    os.environ["PIPELINE_CONFIG"] = str(target.config)
    for fault in not_durable(target):
        console.print(f"[red]not durable:[/] {fault}")
    with open_table(target) as table:
        run = run_all(target, table, plan.peers, plan.probes, plan.rows, plan.rounds, console.log)
    return run, conditions(target, where)


@contextmanager
def _cluster(directory: Path, console: Console) -> Iterator[Path]:
    from pipeline.devcluster import Cluster  # a run on given servers needs none

    console.log("starting two durable MariaDB primaries and Redis")
    cluster = Cluster.up(
        directory / "cluster", engine="mariadb", shards=2, replicas=0, workers=0, buckets=256, owned=True
    )
    try:
        yield Path(cluster.config)
    finally:
        cluster.down()


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM into Ctrl-C, so that every block stops what it has started."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
