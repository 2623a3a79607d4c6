"""Play the scenes of reading, and of growing: a third shard in the middle of the load.

Read in two scenes: one's own write at once, then mixed reads.
Mixed reads are without a token, with one, and while a replica is held up; they are counted by node and reason.

Grow the demo's system in the middle of its load: a third shard, workers that know it, and moves until all is even.
A thread does what an operator does, while the demo sends its ops. The demo's own process takes the new configuration as
a web process does that is restarted: between two ops, once the workers have it.
"""

from __future__ import annotations

import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from pipeline.admin import shards
from pipeline.admin.moving import Mover, orders
from pipeline.admin.shards import joined_moves, planned
from pipeline.cli.move import steps_of
from pipeline.client import Client
from pipeline.clock import Deadline, mono_s, polls, sleep_s
from pipeline.config.files import replace_file
from pipeline.config.settings import load
from pipeline.demo.data import Correction
from pipeline.demo.system import LOOK_S, Meter, System, Traffic
from pipeline.devcluster import Cluster
from pipeline.errors import PipelineError, StaleRead
from pipeline.reads.routing.moving import OLD_MAP_S
from pipeline.shard import NodeSession

#: Numbers of reads: without a token, with one, while a replica lags, with a token while a replica lags.
PLAIN, OWN, LAGGING, OWN_LAGGING = 300, 10, 60, 5
#: How long an own read may wait, s, far longer than by default: a busy machine is no reason to end the demo.
SHOWN_WAIT_S = 10.0
#: The lag that the scene makes, and how long it waits for the replica to lag so much, s.
LAG_S, LAGS_WITHIN_S = 1.0, 15.0
#: What the age of the prober's report may add to a replica's lag, s: a second, and some for its way.
AGE_S = 1.5
#: How many buckets move together.
TOGETHER = 16
#: How long a shard keeps the rows of buckets that have left, s: longer than any reader acts on an old map.
KEEP_S = round(OLD_MAP_S) + 2
#: The pace of the load while the system grows, ops a second; and for how long what is left of it lasts at least, s.
PACE, LASTS_S = 2_000.0, 75.0
#: How long the demo's own process may take to take the new configuration, s: it does so between two ops.
TAKEN_S = 60.0
#: The time between two samples of the rows of each shard, s.
SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class OwnWrite:
    """A write and the two reads of it.

    Attributes:
        written: the delay that was written, minutes.
        read, got: what `pipeline.read` and `pipeline.get` gave back; None for no row.
        node, role: which node served the first read.
        waited_s: how long the first read waited for its node.
        tailnum: the flight's aircraft.
    """

    written: int
    read: int | None
    got: int | None
    node: str
    role: str
    waited_s: float
    tailnum: str

    @property
    def true(self) -> bool:
        """Whether both reads saw the write."""
        return self.read == self.got == self.written

    def __str__(self) -> str:
        return (
            f"arr_delay of {self.tailnum}: wrote {self.written}, read {self.read} from {self.node} "
            f"({self.role}) in {self.waited_s * 1e3:.0f} ms, got {self.got}"
        )


def read_own_write(traffic: Traffic, flight: Correction) -> OwnWrite:
    """Correct one flight that had no delays yet, and read it with the receipt as token, in both ways.

    Args:
        traffic: sends the correction.
        flight: the correction.
    """
    pipeline, table = traffic.pipeline, traffic.db.flight
    receipt = traffic.update(flight.id, dep_delay=flight.dep_delay, arr_delay=flight.arr_delay)
    with pipeline.read("flight", shard_key=flight.tailnum, after=receipt, wait_s=SHOWN_WAIT_S) as db:
        row = db(db.flight.id == flight.id).select(db.flight.arr_delay).first()
        served = db.read_info
        read = _arr_delay(row)
    got = _arr_delay(pipeline.get(table, flight.id, after=receipt, wait_s=SHOWN_WAIT_S))
    return OwnWrite(flight.arr_delay, read, got, served.node, served.role, served.waited_s, flight.tailnum)


def _arr_delay(row: Any) -> int | None:
    return None if row is None else row["arr_delay"]


@dataclass(frozen=True, slots=True)
class Mixed:
    """What the mixed reads gave.

    Attributes:
        counts: (node, kind, reason, reads), as the routing counted them.
        wrong: own reads that did not show their write.
    """

    counts: tuple[tuple[str, str, str, int], ...]
    wrong: int

    @property
    def reads(self) -> int:
        """How many reads there were, refused ones included."""
        return sum(reads for *_, reads in self.counts)


def read_mixed(system: System, traffic: Traffic, flight: Correction) -> Mixed:
    """Read one flight again and again, as a site would; its row stays what the file says.

    Args:
        system: the running system.
        traffic: sends the writes between the reads.
        flight: the flight's correction.
    """
    before = dict(system.reads())
    table, read = traffic.db.flight, traffic.pipeline.get
    wrong = 0
    for _ in range(PLAIN):
        read(table, flight.id)
    for number in range(OWN):
        wrong += not _own_read(traffic, flight, number, wait_s=SHOWN_WAIT_S)
    shard = system.place("flight", flight.tailnum)
    with system.held_up(shard):
        traffic.update(flight.id, arr_delay=flight.arr_delay)
        if any(system.lags(shard, LAG_S + AGE_S) for _ in polls(LAGS_WITHIN_S)):
            for number in range(LAGGING):
                read(table, flight.id, max_lag_s=LAG_S, on_stale=("primary", "stale")[number % 2])
            for number in range(OWN_LAGGING):
                # refused while the write is queued: an answer without the write would be wrong
                with suppress(StaleRead):
                    wrong += not _own_read(traffic, flight, number, wait_s=0.05, max_lag_s=LAG_S)
    traffic.update(flight.id, arr_delay=flight.arr_delay).wait(SHOWN_WAIT_S)
    found = {choice: reads - before.get(choice, 0) for choice, reads in system.reads().items()}
    return Mixed(tuple((*choice, reads) for choice, reads in sorted(found.items()) if reads), wrong)


def _own_read(traffic: Traffic, flight: Correction, number: int, **bounds: Any) -> bool:
    """Write another delay, and return whether a read with the receipt shows it."""
    receipt = traffic.update(flight.id, arr_delay=number)
    row = traffic.pipeline.get(traffic.db.flight, flight.id, after=receipt, **bounds)
    return row is not None and row["arr_delay"] == number


@dataclass(frozen=True, slots=True)
class GrowthPoint:
    """What was seen at one moment.

    Attributes:
        at_s: since the first op.
        enqueued, applied: ops so far.
        flights: of each shard, how many flights its primary has.
        stage: what the growth was at; empty: nothing.
    """

    at_s: float
    enqueued: int
    applied: int
    flights: dict[str, int]
    stage: str


@dataclass(slots=True)
class Finished:
    """One thing that was done: its name, a sentence, and how long it took, s."""

    name: str
    words: str
    seconds: float


class Growth:
    """Adds a shard once half of the flights are sent.

    Args:
        cluster: the running one.
        meter: counts what is sent.
        after: with how many enqueued ops it begins.

    Attributes:
        stage: what is being done, a word or two; empty before and after.
        rows, total: of the move, rows that are copied or compared, and how many it has.
        done: what was done so far; the demo shows and takes them.
        moved: buckets that are on the new shard.
        ops: how many were enqueued while it grew.
        samples: rows of the shards over time.
    """

    def __init__(self, cluster: Cluster, meter: Meter, after: int):
        self._cluster, self._meter, self._after = cluster, meter, after
        self.stage, self.rows, self.total, self.moved, self.ops = "", 0, 0, 0, 0
        self.done: list[Finished] = []
        self.samples: list[GrowthPoint] = []
        self._began_s, self._at_first, self._rate = 0.0, 0, PACE
        self._file_is_new, self._taken, self._over = threading.Event(), threading.Event(), threading.Event()
        self._failed: Exception | None = None
        self._nodes = {name: shard.primary for name, shard in load(cluster.config).shards.items()}
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    # what the demo's own thread calls -------------------------------------------------------------------------

    def turn(self, total: int) -> bool:
        """Begin once half is sent; return whether this process is to take the new configuration now.

        Args:
            total: how many ops there will be.
        """
        if not self._began_s and self._meter.enqueued >= self._after:
            self._began_s, self._at_first = mono_s(), self._meter.enqueued
            self._rate = min(PACE, max(1.0, (total - self._at_first) / LASTS_S))
            threading.Thread(target=self._grow, daemon=True).start()
        return self._file_is_new.is_set() and not self._taken.is_set()

    def taken(self) -> None:
        """Say that this process has the new configuration."""
        self._taken.set()

    @property
    def ahead(self) -> bool:
        """Whether more is sent than the pace allows while the system grows."""
        grown_s = mono_s() - self._began_s
        return self.under_way and self._meter.enqueued - self._at_first > self._rate * grown_s

    @property
    def under_way(self) -> bool:
        """Whether it has begun and is not over."""
        return bool(self._began_s) and not self._over.is_set()

    def end(self) -> None:
        """Take no more samples, and raise what has ended the growth, if anything has."""
        self._ended.set()
        if self._failed:
            raise PipelineError(f"the third shard did not get its share: {self._failed}") from self._failed

    # threads --------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        try:
            self._take_shard()
            self._restart_workers()
            self._even_out()
        except Exception as error:
            self._failed = error
        finally:
            self.ops = self._meter.enqueued - self._at_first
            self.stage = ""
            self._over.set()

    def _take_shard(self) -> None:
        started_s, self.stage = mono_s(), "adding"
        shard = self._cluster.add_shard()
        made = shards.grown(load(self._cluster.config), shard.name, shard.primary, shard.replicas)
        shards.take_shard(made)
        replace_file(made.path, made.text)
        self._nodes[shard.name] = shard.primary
        self._tell("Third shard", f"{shard.name}: its servers run, its section is in {made.path.name}", started_s)

    def _restart_workers(self) -> None:
        started_s, self.stage = mono_s(), "workers"
        workers = [one.name for one in self._cluster.processes if one.name.startswith("worker-")]
        for name in workers:
            self._cluster.stop(name)
            self._cluster.start(name)
        self._file_is_new.set()
        if not self._taken.wait(TAKEN_S):
            raise PipelineError(f"this process did not take the new configuration within {TAKEN_S:.0f} s")
        self._tell("Restarted", f"{', '.join(workers)}, then this process, with the new file", started_s)

    def _even_out(self) -> None:
        client = Client(self._cluster.config)
        try:
            self.stage = "counting"
            # the load of a moment, an hour's weather of one airport, is not that of the minutes to come
            steps, weights = planned(client, 0.0, ["rows"])
            movers = []
            for source, target, buckets in joined_moves(steps, TOGETHER):
                started_s, self.rows, self.total = mono_s(), 0, sum(weights.rows[bucket] for bucket in buckets)
                mover = orders.order_move(client, buckets, target, "demo", KEEP_S)
                self._follow(mover, begun=True)
                self.moved += len(buckets)
                words = f"{len(buckets)} buckets of {source}, {self.rows:,} rows copied and compared"
                self._tell(f"To {target}", words, started_s)
                movers.append(mover)
            started_s, self.rows, self.total = mono_s(), 0, 0
            for mover in movers:
                self._follow(mover)
            self._tell("Cleaned", "the rows that were left behind are deleted", started_s)
        finally:
            client.close()

    def _follow(self, mover: Mover, *, begun: bool = False) -> None:
        """Go on with a move until it is over, or until its target goes on; a worker then deletes what is left."""
        with closing(steps_of(mover, begun=begun)) as steps:
            for description, rows in steps:
                # a worker that is at it deletes what was left behind
                self.stage = description.split()[0] if description[:8] != "a worker" else "cleaning"
                self.rows = self.rows if rows is None else rows

    def _tell(self, name: str, words: str, started_s: float) -> None:
        self.done.append(Finished(name, words, mono_s() - started_s))

    def _look(self) -> None:
        """Sample the rows of each shard."""
        sessions: dict[str, NodeSession] = {}
        while not self._ended.is_set():
            at = Deadline(SAMPLE_S)
            flights = {}
            for name, uri in list(self._nodes.items()):
                session = sessions.setdefault(name, NodeSession(name, uri))
                try:
                    [(flights[name],)] = session.query("SELECT COUNT(*) FROM flight")
                except PipelineError:  # it is busy: the next sample has it
                    continue
            meter = self._meter
            seconds = mono_s() - meter.started_s
            self.samples.append(GrowthPoint(seconds, meter.enqueued, meter.applied, flights, self.stage))
            sleep_s(max(at.left_s, LOOK_S))
        for session in sessions.values():
            session.discard()
