"""Run the threads of a worker's main process, which runs no tasks: sweeper, prober, recorder, and chores by scope.

Sweep twice a second: ring for dirty shards, drain this host's spool, do without a broker that fails.
A dirty shard is rung for if its doorbell was lost. Of all workers one sweeps; where that cannot be known, all do. Where
no bell can be rung, or this worker hears none, a process of its own applies what is due. A Redis that is full or a
broker that is down stops no op (docs/operations.md).

A worker drains its host's spool, as all web processes of the host may be gone. Both are processes of their own:
databases and files burden neither the worker's threads nor its forks.

A thread waits for no task, no event loop and no broker. So what has to happen now and then does happen while tasks
crowd their queue, and while Celery tries to reach the broker.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.signals import worker_shutting_down

from pipeline import clock
from pipeline.admin.check.surroundings import foreign_modules
from pipeline.admin.observe import Recorder
from pipeline.client import Client
from pipeline.config import Topology
from pipeline.config.settings import Settings, load
from pipeline.enqueue.deployment import compare_all
from pipeline.enqueue.shipment import HostNews
from pipeline.errors import LogUnavailable, Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.oplog.appends import Scope, scopes_of
from pipeline.oplog.doorbell import Bell, queue_of
from pipeline.oplog.groups import log_of
from pipeline.oplog.shared_state import ALIVE, ALIVE_MS, ALIVE_TOKEN
from pipeline.reads.health.prober import Duty, Prober
from pipeline.shard.nodes import Nodes
from pipeline.spool import Spool
from workers import HOME, metrics
from workers.chores import Alarm, Chores, Moves, Overview, hasten
from workers.metrics import Tally
from workers.process import STOP_S, PoolWatch, SignOfLife, Turns, Work, ask_to_stop, process_client

if TYPE_CHECKING:
    from workers.metrics.port import Port


sweeper_logger = logging.getLogger("pipeline.sweeper")

#: The time between two turns, s.
SWEEP_S = 0.5
#: A bucket that has been due for so long lost its doorbell, ms.
DUE_MS = 700
#: A worker whose event loop has stood still for so long hears no bell: it has no connection to the broker, s.
STILL_S = 4.0
#: The time between two signs of life, s: shorter than one lasts, `ALIVE_MS`.
ALIVE_EVERY_S = 3.0
#: The lease of the worker that sweeps the shards of one Redis, by the first of them, and how long it lasts, ms: another
#: worker sweeps within two seconds of its end.
LEASE, LEASE_MS = "sweep:{}", 1_200
#: The time between two drains, s: while ops wait, and while sent ops are only kept.
WAITING_S, KEPT_S = 2.0, 30.0
#: How long one drain may take, s; the next one goes on.
DRAIN_S = 60
#: How long Redis may take to answer the prober, s: less than the prober's lease.
READ_S = 0.5
#: How many pool processes beyond the worker's concurrency are counted: a pool may grow.
SPARE_PAGES = 8
logger = logging.getLogger("pipeline.worker")


class Pulse:
    """Whether the worker's event loop runs: it beats once a second."""

    def __init__(self) -> None:
        self._at_s = clock.mono_s()

    def beat(self) -> None:
        """Note that the loop runs; the loop's timer calls this."""
        self._at_s = clock.mono_s()

    @property
    def still(self) -> bool:
        """Whether the loop has stood still for longer than a busy machine explains."""
        return clock.mono_s() - self._at_s > STILL_S


class Sweep:
    """One worker's turns.

    Args:
        settings: name the shards, Redis and the spool.
        pulse: of this worker.
        served: the shards whose bells this worker hears.
    """

    def __init__(self, settings: Settings, pulse: Pulse, served: Collection[str] = ()):
        redis = settings.redis
        topology = Topology(settings)
        self._shards, self._pulse, self._served = topology.shards, pulse, served
        self._groups: dict[str, list[str]] = {}
        for shard in self._shards:
            self._groups.setdefault(topology.group_of(shard), []).append(shard)
        self._token = secrets.token_hex(8)
        self._log = log_of(settings, read_s=1.0)
        self._bell = Bell(redis.broker_url, redis.prefix, self._shards)
        self._alone = Child(settings.source)
        self._spool = HostDrain(settings)
        self._alive_s = 0.0

    def turn(self) -> float:
        """Ring for what was lost, or have it applied here; return the seconds to the next turn. Never raises."""
        try:
            unheard = self._unheard()
            if unheard and self._alone.start("workers", *unheard):
                sweeper_logger.warning(
                    Event("applying_without_broker", shards=unheard, why="no bell can be rung or heard")
                )
            self._spool.start_if_due()
            self._spool.news.publish(self._log)
        except Exception as error:  # the outermost loop: sweeping goes on after a failed turn
            sweeper_logger.warning(Event("sweep_failed", error=error))
        return SWEEP_S

    def close(self) -> None:
        """Let another worker sweep, end what was started, and close the connections."""
        with suppress(LogUnavailable):
            for shards in self._groups.values():
                self._log.release_lease(LEASE.format(shards[0]), self._token)
        self._log.close()
        self._bell.close()
        self._alone.close()
        self._spool.close()

    def _unheard(self) -> list[str]:
        """Ring for what was lost; return the shards for which no bell can be rung or heard.

        Raises:
            LogUnavailable: every Redis that was asked is away; one that is delays no shard of another.
        """
        unheard, away, sign = list[str](), dict[str, LogUnavailable](), self._sign_is_due()
        for group, shards in self._groups.items():
            try:
                swept = self._swept(shards, sign=sign)
            except LogUnavailable as error:
                away[group] = error
                continue
            for shard, (ring, dirty) in swept.items():
                # a broker that does not answer is asked once per turn, not once per shard
                if ring and (unheard or not self._bell.ring_now(shard, dirty) or self._pulse.still):
                    unheard.append(shard)
        for group, why in away.items():
            if len(away) == len(self._groups):
                raise why
            sweeper_logger.warning(Event("sweep_failed", redis=group or "[redis]", error=why))
        return unheard

    def _swept(self, shards: Sequence[str], *, sign: bool) -> dict[str, tuple[bool, int]]:
        """Sweep the shards of one Redis, unless another worker does."""
        if sign and (served := [shard for shard in shards if shard in self._served]):
            self._log.hold_leases(map(ALIVE.format, served), ALIVE_TOKEN, ALIVE_MS)
        try:
            if not self._log.hold_lease(LEASE.format(shards[0]), self._token, LEASE_MS):
                return {}
        except LogUnavailable as error:
            if error.silent:
                raise  # else somebody has put something else under the lease's name
        return self._log.sweep_all(shards, due_ms=DUE_MS)

    def _sign_is_due(self) -> bool:
        """Return, every third second, True: others know then which shards have a worker, as `pipeline why` says."""
        due = clock.mono_s() >= self._alive_s
        if due:
            self._alive_s = clock.mono_s() + ALIVE_EVERY_S
        return due


class HostDrain:
    """Runs `pipeline spool drain` when there is something to drain on this host.

    Attributes:
        news: says what waits in the spool.
    """

    def __init__(self, settings: Settings):
        spool = settings.spool
        self._spool = Spool(Path(spool.path), spool.max_mb * 1_000_000) if spool.enabled else None
        self.news = HostNews(self._spool, "worker")
        self._child = Child(settings.source)
        self._next_s = 0.0
        self._next_kept_s = 0.0

    def start_if_due(self) -> None:
        """Start a drain if one is due. Call this while Redis answers."""
        if self._spool is None or clock.mono_s() < self._next_s:
            return
        self._next_s = clock.mono_s() + WAITING_S
        if self._child.runs:
            return
        if self._spool.waiting() or self._keeps_ops(self._spool):
            sweeper_logger.info(Event("spool_draining", path=self._spool.path))
            self._child.start("pipeline", "spool", "drain", "--timeout", str(DRAIN_S))

    def close(self) -> None:
        """End the drain, wherever it is; the next one goes on."""
        self._child.close()

    def _keeps_ops(self, spool: Spool) -> bool:
        """Return whether sent ops are kept; checked every `KEPT_S`."""
        if clock.mono_s() < self._next_kept_s:
            return False
        self._next_kept_s = clock.mono_s() + KEPT_S
        return spool.file.there and bool(spool.pairs())


class Child:
    """At most one process of Python at a time.

    Args:
        source: the path of the configuration.
    """

    def __init__(self, source: str):
        self._environment = {"PIPELINE_CONFIG": source}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether the last one has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, module: str, *arguments: str) -> bool:
        """Run a module unless the last one still runs; return whether it was started.

        Args:
            module: its name, as after `python -m`.
            arguments: what follows it.
        """
        if self.runs:
            return False
        # without -P Python looks into the working directory first, and a `pipeline.py` there is not ours
        safe = () if Path.cwd() == HOME else ("-P",)
        command = [sys.executable, *safe, "-m", module, *arguments]
        self._process = subprocess.Popen(command, env={**os.environ, **self._environment}, stdin=subprocess.DEVNULL)
        return True

    def close(self) -> None:
        """Kill it, wherever it is."""
        if self._process is not None and self.runs:
            self._process.kill()
            self._process.wait(5)


class Threads(bootsteps.StartStopStep):
    """A bootstep of the worker. The pool forks before; a child that is forked later has none of the connections."""

    requires = ("celery.worker.components:Pool", "celery.worker.components:Timer")

    def __init__(self, parent: Any, **options: Any):
        super().__init__(parent, **options)
        # workers that hear each other's events only to know each other: nothing here asks for that
        parent.options["without_gossip"] = True
        self._threads: list[Turns] = []
        self._beats: list[Any] = []
        self._port = metrics_port(parent)

    def start(self, parent: Any) -> None:
        """Start all threads, before the worker meets its broker.

        Args:
            parent: Celery's worker.
        """
        ask_to_stop(False)
        say_what_is_used(Path.cwd())
        settings, pulse = load(), Pulse()
        shards, queues = Topology(settings).shards, parent.app.amqp.queues.consume_from
        served = [shard for shard in shards if queue_of(shard) in queues]
        client = process_client()
        compare_configuration(client)
        works: dict[str, Work] = {"prober": Watch(settings), "sweeper": Sweep(settings, pulse, served)}
        works["observer"] = Recorder(settings)
        works["mover"] = Moves(client)
        threads = {name: Turns(name, work) for name, work in works.items()}
        by_group: dict[str, list[Scope]] = {}
        for scope in scopes_of(shards).values():
            by_group.setdefault(client.topology.group_of(scope.name), []).append(scope)
        for group, scopes in by_group.items():  # a Redis that hangs keeps the look at no other waiting
            overview = Overview(client.log, [scope.name for scope in scopes])
            chores = {f"chores-{one.name}": Chores(client, one, overview, sleeps=True) for one in scopes}
            sleepers = {name: Turns(name, work) for name, work in chores.items()}
            alarm = Alarm(overview, {sleepers[name]: work for name, work in chores.items()})
            threads |= sleepers | {f"chores of {group}": Turns(f"chores of {group}", alarm)}
        pool = PoolWatch()
        self._beats = [parent.timer.call_repeatedly(1.0, lambda: [one.beat() for one in (pulse, pool)])]
        sign = Turns("sign", SignOfLife(settings, parent.hostname, served, pool, threads))
        self._threads = [*threads.values(), sign]
        for thread in self._threads:
            thread.start()
        if self._port is not None:
            self._port.start()

    def stop(self, parent: Any) -> None:
        """Stop all threads, so that another worker takes their leases.

        Args:
            parent: Celery's worker.
        """
        ask_to_stop()
        for beats in self._beats:
            beats.cancel()
        if self._port is not None:
            self._port.close()
        for thread in self._threads:
            thread.ask_to_stop()
        deadline = clock.Deadline(STOP_S)
        for thread in self._threads:
            thread.stop(deadline.left_s)

    terminate = stop


class Watch:
    """The turns of one worker's prober. It has connections of its own.

    Args:
        settings: name the nodes, and Redis.
    """

    def __init__(self, settings: Settings):
        self._settings, self._nodes = settings, Nodes(settings)
        self._log = log_of(settings, read_s=READ_S)
        self._duty = Duty(self._log, self._engage)

    def turn(self) -> float:
        """Probe if the lease is ours or free; return the seconds to the next turn."""
        return self._duty.turn()

    def close(self) -> None:
        """Let another worker take the lease."""
        self._duty.end()
        self._log.close()

    def _engage(self, out: Collection[str]) -> Prober:
        return Prober(self._nodes, self._settings.shards, self._log, out, self._reconcile)

    def _reconcile(self, shard: str) -> None:
        """Have the new primary's watermarks compared with the logs at once: it may lack what the old one had."""
        hasten(self._log, "reconcile", shard)


@worker_shutting_down.connect
def leave_shards(**_: Any) -> None:
    """Have no shard stayed at, as the worker gets the signal to stop: it waits for its tasks to end."""
    ask_to_stop()


def metrics_port(parent: Any) -> Port | None:
    """Return the server of the worker's metrics, where the configuration has a port; the pool is not forked yet.

    Args:
        parent: Celery's worker.
    """
    settings = load().metrics
    if not settings.port:
        return None
    from workers.metrics.port import Port  # 0.3 s that a worker without a port does without

    most = max(parent.concurrency, getattr(parent, "max_concurrency", 0) or 0)
    metrics.tally = Tally(most + SPARE_PAGES)
    return Port(settings, metrics.tally, parent.hostname)


def say_what_is_used(folder: Path) -> None:
    """Log where Celery's settings come from, and which modules of somebody else are not used.

    Args:
        folder: the working directory.
    """
    logger.info(Event("settings_of_celery", path=sys.modules["celeryconfig"].__file__))
    for file in foreign_modules(folder).values():
        logger.warning(Event("module_not_used", path=file, text="the names of our modules are taken"))


def compare_configuration(client: Client) -> None:
    """End the worker if its configuration does not fit the deployment; servers that are away end no worker.

    Args:
        client: the deployment.
    """
    try:
        compare_all(client.log, client.nodes, client.topology)
    except WrongDeployment as error:
        logger.critical(Event("worker_not_started", error=error))
        sys.exit(1)
    except Unavailable as error:
        logger.warning(Event("configuration_not_compared", error=error))
    finally:
        client.nodes.close()
