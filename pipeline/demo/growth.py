"""Grow the demo's system in the middle of its load: a third shard, workers that know it, and moves until all is even.

A thread does what an operator does, while the demo sends its ops. The demo's own process takes the new configuration as
a web process does that is restarted: between two ops, once the workers have it.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass

from pipeline.admin import new_shard
from pipeline.admin.moving import orders
from pipeline.admin.moving.mover import Mover
from pipeline.admin.rebalance import joined_moves, planned
from pipeline.cli.move import steps_of
from pipeline.client import Client
from pipeline.clock import Deadline, mono_s, sleep_s
from pipeline.config.settings import load
from pipeline.config.shard_section import replace_file
from pipeline.demo.traffic import LOOK_S, Meter
from pipeline.devcluster.cluster import Cluster
from pipeline.errors import PipelineError
from pipeline.reads.routing.moving import OLD_MAP_S
from pipeline.shard.session import NodeSession

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
        made = new_shard.grown(load(self._cluster.config), shard.name, shard.primary, shard.replicas)
        new_shard.take_shard(made)
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
