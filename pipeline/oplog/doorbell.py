"""Ring a shard through Celery: one message says "this shard has work". Know since when nothing has happened there.

Know since when nothing has happened at a shard, so that workers look at it less often.
One round trip a second for all shards of a Redis takes the place of several a shard. Whoever knows nothing of a shard
takes it for one at which something happens.

A ring is a hint: a lost one delays an op by two seconds at most, and loses no op. Ringing takes about as long as three
enqueues, so a thread does it, off the caller's path. A forked process has its own thread and connections.

The web process that rings and the workers that listen share the settings. Each value has its reason; the traps behind
the values are in docs/notes/03-celery-on-redis.md.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Collection, Iterable
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import quote

from pipeline import clock
from pipeline.config.uris import Address, host_of, parse
from pipeline.errors import LogUnavailable
from pipeline.events import Event
from pipeline.oplog.redis.connection import connect, tls_options, to_sentinels
from pipeline.oplog.shared_state import SharedState
from pipeline.per_process import PerProcess

#: A shard is quiet once nothing has happened at it for so long, s: then its last report and its last record are of now.
QUIET_SHARD_S = 10.0
#: The task that drains a shard. Rung by name: the web process never imports the workers.
APPLY_TASK = "pipeline.apply"
#: Rings of one process that come faster than this are one, s. Keeps a busy producer's own latency flat.
REST_S = 0.005
#: With this many messages waiting for a shard, another adds nothing; keeps the queue short while no worker is there.
ENOUGH = 8
#: How long Celery waits for a connection to the broker, s.
_CONNECT_S = 2
#: What is done later is prepared so often, s, and done so long after it was asked for.
PREPARE_S, LATER_S = 0.2, 2.0
#: Where there was no more of it, it is prepared so often, s: ten wake-ups of a thread in two seconds took a tenth of
#: the CPU of a process that enqueues 25 ops a second.
LITTLE, LITTLE_PREPARE_S = 100, 0.6
logger = logging.getLogger("pipeline.bell")


class Quiet:
    """What one thread of a worker has seen of all shards.

    Args:
        log: says what happens.
        shards: their names.
    """

    def __init__(self, log: SharedState, shards: Iterable[str]):
        self._log, self._shards = log, tuple(shards)
        #: By shard at which nothing happens: what the log said, and since when, by this process's steady clock.
        self._since: dict[str, tuple[str, float]] = {}
        self._looked_s = 0.0

    def look(self) -> None:
        """Ask the log; call this once a second."""
        try:
            found = self._log.stirs(self._shards)
        except LogUnavailable:
            found = {}
        self._looked_s, before = clock.mono_s(), self._since
        same = {shard for shard, said in found.items() if shard in before and before[shard][0] == said}
        self._since = {
            shard: before[shard] if shard in same else (said, self._looked_s) for shard, said in found.items() if said
        }

    def is_quiet(self, shard: str) -> bool:
        """Return whether nothing had happened at a shard for a while at the last look.

        Args:
            shard: its name.
        """
        said = self._since.get(shard)
        return said is not None and self._looked_s - said[1] > QUIET_SHARD_S


class Later:
    """What the bell's thread does beside ringing, a while after it was ordered."""

    __slots__ = ()

    def gather(self) -> int:
        """Prepare it, so that it does not become much; return how much there was since the last time."""
        return 0

    def publish(self) -> None:
        """Do it."""


#: What the thread is asked for: to ring shards for so many ops, to do something later, to note that it has, or to end.
_Wish = tuple[Iterable[str], int] | Later | threading.Event | None


class Bell:
    """Rings shards through Celery.

    Args:
        broker_url: the broker's address, as Celery takes it.
        prefix: of every key.
        shards: the names of all shards.
    """

    def __init__(self, broker_url: str, prefix: str, shards: Iterable[str]):
        self._broker_url, self._prefix, self._shards = broker_url, prefix, tuple(shards)
        self._mine = PerProcess(_Ringer)

    def ring(self, shards: Iterable[str], ops: int = 1) -> None:
        """Ring soon; never raises, never waits.

        Args:
            shards: the shards to ring.
            ops: for how many ops.
        """
        mine = self._mine()
        if mine.thread is None:
            self._start(mine)
        mine.wishes.put((shards, ops))

    def later(self, work: Later) -> None:
        """Have something done within seconds, or as the bell is flushed; never raises, never waits.

        Args:
            work: is to be done; of one process there is one at a time.
        """
        mine = self._mine()
        if mine.thread is None:
            self._start(mine)
        mine.wishes.put(work)

    def ring_now(self, shard: str, ops: int) -> bool:
        """Send the message; return whether it was sent.

        Args:
            shard: the shard to ring.
            ops: for how many ops; Flower shows it.
        """
        try:
            if self._broker().llen(f"{self._prefix}:celery:{queue_of(shard)}") >= ENOUGH:
                return True
            self._celery().send_task(
                APPLY_TASK,
                kwargs={"shard": shard, "ops": ops},
                kwargsrepr=repr({"shard": shard, "ops": ops}),
                argsrepr="()",
                queue=queue_of(shard),
            )
        except Exception as error:  # the broker may fail in many ways, and none may reach a web request
            logger.warning(Event("ring_failed", shard=shard, error=error))
            return False
        return True

    def waiting(self) -> int | None:
        """Return for how many of the shards messages wait in the broker; None if it does not answer."""
        queues = [f"{self._prefix}:celery:{queue_of(one)}" for one in self._shards]
        try:
            return int(self._broker().exists(*queues)) if queues else 0
        except Exception as error:  # the broker may fail in many ways
            logger.debug(Event("broker_silent", error=error))
            return None

    def waits(self, shards: Collection[str]) -> Collection[str]:
        """Return for which of some shards a message waits in the broker; all of them if it does not answer.

        Args:
            shards: their names.
        """
        queues = [f"{self._prefix}:celery:{queue_of(one)}" for one in shards]
        try:
            if not queues or not self._broker().exists(*queues):
                return ()
            asked = self._broker().pipeline(transaction=False)
            for queue in queues:
                asked.exists(queue)
            return [one for one, there in zip(shards, asked.execute(), strict=True) if there]
        except Exception as error:  # the broker may fail in many ways
            logger.debug(Event("broker_silent", error=error))
            return shards

    def prepare(self) -> None:
        """Import what the first ring needs: 0.1 s of work that no request has to wait for then."""
        self._celery()

    def listened(self, timeout_s: float = 1.0) -> set[str] | None:
        """Return the shards that some worker listens for; None if the broker does not answer.

        Args:
            timeout_s: how long workers may take to answer.
        """
        try:
            replies = self._celery().control.inspect(timeout=timeout_s).active_queues() or {}
        except Exception as error:  # the broker may fail in many ways
            logger.debug(Event("broker_silent", error=error))
            return None
        queues = {queue["name"] for listening in replies.values() for queue in listening or ()}
        return {shard for shard in self._shards if queue_of(shard) in queues}

    def flush(self, timeout_s: float = 0.5) -> None:
        """Wait until what was asked for has been rung; a script calls this by itself as it ends.

        Args:
            timeout_s: the longest wait.
        """
        mine = self._mine.made()
        if mine is not None and mine.thread is not None:
            rung = threading.Event()
            mine.wishes.put(rung)
            rung.wait(timeout_s)

    def close(self) -> None:
        """Flush, and stop the thread."""
        self.flush()
        atexit.unregister(self.flush)
        mine, self._mine = self._mine.made(), PerProcess(_Ringer)
        if mine is not None:
            mine.close()

    def _start(self, mine: _Ringer) -> None:
        with mine.starting:
            if mine.thread is None:
                mine.thread = threading.Thread(target=self._run, args=(mine.wishes,), name="pipeline-bell", daemon=True)
                mine.thread.start()
                atexit.register(self.flush)

    def _run(self, asked: SimpleQueue[_Wish]) -> None:
        ended, later, due_s, within_s = False, None, 0.0, 0.0
        while not ended:
            wishes = _wishes(asked, None if later is None else max(0.0, min(within_s, due_s - clock.mono_s())))
            wanted: dict[str, int] = {}
            for shards, ops in (wish for wish in wishes if isinstance(wish, tuple)):
                for shard in shards:
                    wanted[shard] = wanted.get(shard, 0) + ops
            for shard, ops in wanted.items():
                self.ring_now(shard, ops)
            for work in (wish for wish in wishes if later is None and isinstance(wish, Later)):
                later, due_s = work, clock.mono_s() + LATER_S
            flushed, ended = [wish for wish in wishes if isinstance(wish, threading.Event)], None in wishes
            if later is not None:
                within_s = _done(later, at_once=bool(flushed) or ended or clock.mono_s() >= due_s)
                later = later if within_s else None
            for wish in flushed:
                wish.set()
            clock.sleep_s(REST_S)

    def _celery(self) -> Any:
        mine = self._mine()
        if mine.app is None:
            from celery import Celery  # imported on the first ring: 0.1 s that only producers pay

            app = Celery("pipeline-bell", set_as_current=False)
            app.conf.update(broker_settings(self._broker_url, self._prefix, self._shards))
            mine.app = app
        return mine.app

    def _broker(self) -> Any:
        mine = self._mine()
        if mine.client is None:
            mine.client = connect(self._broker_url, read_s=2.0, connect_s=1.0)
        return mine.client


class _Ringer:
    """One process's thread, and its connections to the broker."""

    def __init__(self) -> None:
        self.wishes: SimpleQueue[_Wish] = SimpleQueue()  # whose put costs a caller next to nothing
        self.starting = threading.Lock()
        self.thread: threading.Thread | None = None
        self.app: Any = None
        self.client: Any = None

    def close(self) -> None:
        """Stop the thread, and close the connections."""
        self.wishes.put(None)
        if self.app is not None:
            self.app.close()
        if self.client is not None:
            self.client.close()


def _wishes(asked: SimpleQueue[_Wish], within_s: float | None) -> list[_Wish]:
    """Return what the thread is asked for: nothing, if that takes too long."""
    try:
        wishes = [asked.get(timeout=within_s)]
        while not asked.empty():
            wishes.append(asked.get())
    except Empty:
        return []
    return wishes


def _done(work: Later, *, at_once: bool) -> float:
    """Do something now, or prepare it; return when to prepare it again, s: 0 if it is done. Rings go on if it fails."""
    try:
        if at_once:
            work.publish()
        elif work.gather() <= LITTLE:
            return LITTLE_PREPARE_S
    except Exception as error:  # the outermost loop of a thread
        logger.warning(Event("not_counted", error=error))
    return 0.0 if at_once else PREPARE_S


class SilentBell:
    """A bell that only notes which shards were rung, for tests and for draining in this process."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self._later: list[Later] = []

    def ring(self, shards: Iterable[str], ops: int = 1) -> None:
        """Note the shards."""
        self.rung.extend(shards)

    def ring_now(self, shard: str, ops: int) -> bool:
        """Note the shard."""
        self.rung.append(shard)
        return True

    def waits(self, shards: Collection[str]) -> Collection[str]:
        """Return none: here nobody waits."""
        return ()

    def later(self, work: Later) -> None:
        """Note what is to be done."""
        self._later.append(work)

    def prepare(self) -> None:
        """Do nothing."""

    def flush(self, timeout_s: float = 0.5) -> None:
        """Do what is to be done."""
        while self._later:
            self._later.pop().publish()

    def close(self) -> None:
        """Do nothing."""


def queue_of(shard: str) -> str:
    """Return the Celery queue of a shard, for `celery -A workers worker -Q shard.s0`.

    Args:
        shard: the shard's name.
    """
    return f"shard.{shard}"


def broker_settings(url: str, prefix: str, shards: Iterable[str]) -> dict[str, Any]:
    """Return the Celery settings that concern the broker.

    Args:
        url: the broker's address, as Celery takes it.
        prefix: of every key.
        shards: the names of all shards.
    """
    from kombu import Queue

    address = parse(url)
    secure = tls_options(address.tls)
    return {
        "broker_url": _broker_url(address),
        # beside the address: for a bare rediss:// kombu verifies nothing
        **({"broker_use_ssl": secure} if secure else {}),
        "broker_transport_options": {
            **(_of_sentinels(address) if address.scheme == "sentinel" else {}),
            "global_keyprefix": f"{prefix}:celery:",
            # a killed worker's doorbell comes back after this; the sweeper has rung long before
            "visibility_timeout": 300,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # one list per queue: no priorities, a quarter of the keys in every BRPOP
            "priority_steps": [0],
            # without it a publish on a dead connection hangs the web request for ever
            "socket_timeout": 10,
            "socket_connect_timeout": _CONNECT_S,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "client_name": "pipeline-celery",
        },
        "task_queues": [Queue(queue_of(shard), routing_key=queue_of(shard)) for shard in shards],
        # a mistyped shard queue fails loudly instead of collecting messages that no worker reads
        "task_create_missing_queues": False,
        # a web process must not wait: a failed ring costs at most a second, until the sweeper
        "task_publish_retry": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
    }


def _broker_url(address: Address) -> str:
    """Return an address as kombu takes it; of several Sentinels each is an address of its own."""
    if address.on_socket:
        return f"redis+socket://{address.login}{quote(address.path)}?virtual_host={address.number}"
    hosts = (host_of(host, address.default_port) for host in address.hosts)
    return ";".join(f"{address.scheme}://{address.login}{host}/{address.number}" for host in hosts)


def _of_sentinels(address: Address) -> dict[str, Any]:
    return {"master_name": address.master, "sentinel_kwargs": to_sentinels(address.tls, _CONNECT_S)}
