"""Keep what one worker process needs, anew after a fork; run works in threads; say that this worker consumes.

For crash tests, `PIPELINE_CRASH_AT=commit:0.1` kills the process with SIGKILL before one in ten commits;
`any:0.01` at one in a hundred steps.

Say once a second, in a local file and to systemd, whether this worker consumes: it judges itself as the check does.
A worker that does not consume says nothing more to systemd, whose watchdog then restarts it.
"""

from __future__ import annotations

import gc
import logging
import mmap
import os
import signal
import socket
import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from celery.utils.log import current_process_index
from celery.worker import state

from pipeline import clock
from pipeline.admin.health import Beat, Sign, forget_killed, forget_sign, sickness_of, write_sign
from pipeline.apply.applier import Applier, applier_type
from pipeline.client import Client
from pipeline.config.settings import Settings
from pipeline.enqueue.deployment import verify
from pipeline.events import Event
from pipeline.oplog.doorbell import Bell
from pipeline.per_process import PerProcess, chance

#: How long a stopping worker waits for the current turns of all threads, s.
STOP_S = 3.0
#: The time to the next turn after one that failed, s.
FAILED_S = 1.0
turns_logger = logging.getLogger("pipeline.worker")
#: This process's client.
process_client = PerProcess(Client)
_appliers = PerProcess[dict[str, Applier]](dict)
#: Shared with the pool's processes, which are forked later: 1 once the worker has been asked to stop.
_stopping = mmap.mmap(-1, 1)
#: Shared in the same way: at the place of each process, 1 + the number of the shard that it stays at, else 0.
_stays = memoryview(mmap.mmap(-1, 128)).cast("H")
#: Which step of an applier is a crash, and in which share of all cases.
_at, _, _share = os.environ.get("PIPELINE_CRASH_AT", "").partition(":")
#: The time between two signs, s.
EVERY_S = 1.0
#: A pool that has taken nothing for so long is idle, and the broker is asked whether doorbells wait, s.
IDLE_S = 5.0
logger = logging.getLogger("pipeline.worker")


class Work(Protocol):
    """What a thread does, turn by turn."""

    def turn(self) -> float:
        """Do what is due, and return the seconds to the next turn."""
        ...

    def close(self) -> None:
        """End, and close this thread's connections."""
        ...


class Turns:
    """A thread at its work.

    Args:
        name: of the thread, and in its log.
        work: what it does.

    Attributes:
        turn_s: when the last turn began or ended, by the steady clock.
    """

    def __init__(self, name: str, work: Work):
        self._work, self.turn_s = work, clock.mono_s()
        self._ended, self._due = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pipeline-{name}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Let the next turn begin now."""
        self._due.set()

    def ask_to_stop(self) -> None:
        """Let the current turn be the last."""
        self._ended = True
        self._due.set()

    def stop(self, within_s: float = STOP_S) -> None:
        """Stop the thread after its current turn.

        Args:
            within_s: how long to wait for that.
        """
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join(within_s)

    def _run(self) -> None:
        pause_s = 0.0
        while not self._ended:
            self._due.wait(pause_s)
            self._due.clear()
            if self._ended:
                break
            self.turn_s = clock.mono_s()
            try:
                pause_s = self._work.turn()
            except Exception:  # the outermost loop: the thread goes on after any error
                turns_logger.exception(Event("turn_failed", thread=self._thread.name))
                pause_s = FAILED_S
            self.turn_s = clock.mono_s()
        self._work.close()


def applier(shard: str) -> Applier:
    """Return this process's applier of a shard, on the node that is the shard's primary now.

    Args:
        shard: the shard's name.

    Raises:
        KeyError: the configuration has no such shard.
        ShardUnavailable: two nodes accept writes, and neither is the configured primary.
        WrongDeployment: the configuration does not fit the deployment that the shard belongs to.
    """
    here = process_client()
    if shard not in here.topology.shards:
        raise KeyError(f"no shard {shard!r} in the configuration; there are {', '.join(here.topology.shards)}")
    appliers, primary = _appliers(), here.nodes.primary(shard)
    known = appliers.get(shard)
    if known is None:
        gc.freeze()  # what Celery and the model have made stays: no collection looks at it
    if known is None or known.node != primary.node:
        verify(here.log, here.nodes, here.topology, here.publisher.scopes[shard], asking=True)
        known = appliers[shard] = applier_type()(
            shard, primary, here.log, here.settings.apply, step, here.settings.tables, here.topology
        )
    return known


def ask_to_stop(asked: bool = True) -> None:
    """Have all processes of this worker leave the shards that they are at; called in the main process.

    Args:
        asked: False: they may stay.
    """
    _stopping[0] = asked


def asked_to_stop() -> bool:
    """Return whether this process's worker has been asked to stop."""
    return bool(_stopping[0])


def stay_at(shard: str | None) -> None:
    """Note for the other processes of this worker at which shard this one is; one that has no number notes nothing.

    Args:
        shard: the shard's name; None: at none any more.
    """
    place, names = current_process_index(base=0), process_client().topology.shards
    if place is not None and place < len(_stays):
        _stays[place] = 1 + names.index(shard) if shard in names else 0


def are_stayed_at(shards: Iterable[str]) -> bool:
    """Return whether at each of some shards there is a process of this worker; one that was killed counts for a while.

    Args:
        shards: their names.
    """
    names = process_client().topology.shards
    return {names[number - 1] for number in {*_stays} if number}.issuperset(shards)


def step(name: str) -> None:
    """Kill the process if the environment asks for a crash at the step *name*."""
    if _at in (name, "any") and chance.random() < float(_share or 1):
        os.kill(os.getpid(), signal.SIGKILL)


class PoolWatch:
    """What the worker's pool takes of what it is handed; the event loop's timer calls `beat` once a second.

    Attributes:
        taken: how many doorbells the pool has taken.
        taken_at_s: when it was last seen to have taken one.
    """

    def __init__(self) -> None:
        self.taken, self.taken_at_s = 0, clock.mono_s()
        self._handed_s: dict[str, float] = {}

    @property
    def untaken_s(self) -> float | None:
        """Since when one that was handed over is not taken; None where the pool has taken all."""
        return min(self._handed_s.values(), default=None)

    def beat(self) -> None:
        """Look at Celery's own books, which belong to the event loop; a pool of threads may change them meanwhile."""
        with suppress(RuntimeError):
            self._look()

    def _look(self) -> None:
        now_s, taken = clock.mono_s(), state.all_total_count[0]
        if taken != self.taken:
            self.taken, self.taken_at_s = taken, now_s
        running = {request.id for request in state.active_requests}
        handed = [request.id for request in state.reserved_requests if request.id not in running]
        self._handed_s = {name: self._handed_s.get(name, now_s) for name in handed}


class SignOfLife:
    """The turns that write the sign.

    Args:
        settings: name the broker, and the spool, beside which the sign is written.
        name: the worker's.
        served: the shards whose doorbells this worker hears.
        pool: what the pool takes.
        threads: all others of this worker, by name.
    """

    def __init__(
        self, settings: Settings, name: str, served: Collection[str], pool: PoolWatch, threads: Mapping[str, Turns]
    ):
        self._spool, self._name, self._served = settings.spool.path, name, tuple(served)
        self._pool, self._threads = pool, threads
        self._bell = Bell(settings.redis.broker_url, settings.redis.prefix, self._served)
        self._unheard_s: float | None = None
        self._asked_s = 0.0
        self._written = True
        if self._spool:
            with suppress(OSError):
                forget_killed(self._spool)

    def turn(self) -> float:
        """Write the sign, and let systemd know if this worker consumes; return the seconds to the next turn."""
        self._listen()
        # a turn of chores or of a move may take minutes; each shard has a thread, of which only a dead one counts
        threads = {
            name: Beat(one.alive, None if name.startswith(("chores", "mover")) else one.turn_s)
            for name, one in self._threads.items()
            if not (one.alive and name.startswith("chores-"))
        }
        sign = Sign(
            self._name, os.getpid(), self._served, clock.mono_s(), threads,
            self._pool.taken, self._pool.untaken_s, self._unheard_s,
        )  # fmt: skip
        if not sickness_of(sign, sign.at_s):
            to_systemd(b"WATCHDOG=1")
        try:
            if self._spool:
                write_sign(self._spool, sign)
            self._written = True
        except OSError as error:
            if self._written:
                logger.warning(Event("sign_not_written", path=self._spool, error=error))
            self._written = False
        return EVERY_S

    def close(self) -> None:
        """Take the sign away, and close the connection to the broker."""
        if self._spool:
            forget_sign(self._spool, os.getpid())
        self._bell.close()

    def _listen(self) -> None:
        """While the pool is idle, ask the broker whether doorbells wait that this worker ought to hear."""
        now_s = clock.mono_s()
        if now_s - self._pool.taken_at_s < IDLE_S or self._pool.untaken_s is not None:
            self._unheard_s = None
        elif now_s - self._asked_s >= IDLE_S:
            self._asked_s = now_s
            waiting = self._bell.waiting()
            self._unheard_s = (self._unheard_s or now_s) if waiting else None


def to_systemd(words: bytes) -> None:
    """Send a word to the service manager, where one has started this process and listens (sd_notify(3)).

    Args:
        words: such as WATCHDOG=1.
    """
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as mouth:
        mouth.settimeout(0.5)
        mouth.sendto(words, f"\0{place[1:]}" if place[0] == "@" else place)
