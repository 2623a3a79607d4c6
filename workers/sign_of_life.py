"""Say once a second, in a local file and to systemd, whether this worker consumes: it judges itself as the check does.

A worker that does not consume says nothing more to systemd, whose watchdog then restarts it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress

from celery.worker import state

from pipeline import clock
from pipeline.admin.health.sign import Beat, Sign, forget_killed, forget_sign, sickness_of, write_sign
from pipeline.config.settings import Settings
from pipeline.events import Event
from pipeline.oplog.doorbell import Bell
from workers.turns import Turns

#: The time between two signs, s.
EVERY_S = 1.0
#: A pool that has taken nothing for so long is idle, and the broker is asked whether doorbells wait, s.
IDLE_S = 5.0
logger = logging.getLogger("pipeline.worker")


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
