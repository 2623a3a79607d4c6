"""Run the threads of a worker's main process, which runs no tasks: prober, sweeper, recorder, and chores by scope.

A thread waits for no task, no event loop and no broker. So what has to happen now and then does happen while tasks
crowd their queue, and while Celery tries to reach the broker.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.signals import worker_shutting_down

from pipeline import clock
from pipeline.admin.check.surroundings import foreign_modules
from pipeline.admin.observe.recorder import Recorder
from pipeline.client import Client
from pipeline.config.settings import Settings, load
from pipeline.config.topology import Topology
from pipeline.enqueue.deployment import compare_all
from pipeline.errors import Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.oplog.appends import Scope, scopes_of
from pipeline.oplog.doorbell import queue_of
from pipeline.oplog.groups import log_of
from pipeline.reads.health.prober import Duty, Prober
from pipeline.shard.nodes import Nodes
from workers.chores import Alarm, Chores, Overview, hasten
from workers.metrics import tally
from workers.metrics.tally import Tally
from workers.moves import Moves
from workers.process import ask_to_stop, process_client
from workers.sign_of_life import PoolWatch, SignOfLife
from workers.sweeper import Pulse, Sweep
from workers.turns import STOP_S, Turns, Work

if TYPE_CHECKING:
    from workers.metrics.port import Port

#: How long Redis may take to answer the prober, s: less than the prober's lease.
READ_S = 0.5
#: How many pool processes beyond the worker's concurrency are counted: a pool may grow.
SPARE_PAGES = 8
logger = logging.getLogger("pipeline.worker")


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
    tally.tally = Tally(most + SPARE_PAGES)
    return Port(settings, tally.tally, parent.hostname)


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
