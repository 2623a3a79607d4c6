"""Publish through the spool where Redis does not answer or the caller chooses it; drain it in a thread.

Drain this process's spooled ops in a thread, as soon as Redis takes them again.
Workers and `pipeline spool drain` do the same for the whole host, whoever comes first.

Invariant: once an op of this host waits in the spool, every later one goes behind it. An op whose outcome is unknown
goes there under the number that it was sent with, so it cannot be doubled.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline import clock
from pipeline.bounds import WaitBudgets, more_s
from pipeline.enqueue.shipment import HostNews, OpPlace, Shipment, queued
from pipeline.errors import (
    LogUnavailable,
    PipelineError,
    PipelineFull,
    SpoolUnavailable,
    Unavailable,
    WaitTimeout,
    WrongDeployment,
)
from pipeline.events import Event
from pipeline.oplog.appends import KeyClaimed
from pipeline.oplog.shared_state import SharedState
from pipeline.per_process import PerProcess
from pipeline.spool import NullSpool, Number, Spool

if TYPE_CHECKING:
    from pipeline.enqueue.final_values import SchemaPublisher
    from pipeline.enqueue.publisher import Publisher
    from pipeline.enqueue.spool_drain import Drainer


#: While Redis is silent the next try is made so much later, s.
OPEN_S = 0.25
#: While ops wait in the spool, a Redis that did not answer is asked for an idempotency key so much later, s.
AWAY_S = 10.0
#: Pause between two passes while something waits, s; after failures it grows.
PAUSE_S, MOST_S = 0.05, 0.25
#: How long one pass may take, and how long a process that has just begun gets ready before its first, s.
PASS_S, COLD_S = 10.0, 2.0
#: Kept ops are looked after at this interval, s: whether Redis has lost them, whether every node has them.
TEND_S = 2.0
logger = logging.getLogger("pipeline.spool")


class RedisAway:
    """Knows whether Redis failed a caller a moment ago; then no caller of this process waits for Redis.

    Shared by the threads of a process. Without a spool an op has nowhere else to go, so every call tries Redis.

    Args:
        spool: takes what Redis does not take.
        wait_budgets: how long a caller waits for Redis.
    """

    __slots__ = ("_claims_until_s", "_until_s", "spool", "wait_budgets")

    def __init__(self, spool: Spool | None = None, wait_budgets: WaitBudgets | None = None):
        self.spool: Spool | NullSpool = spool or NullSpool()
        self.wait_budgets = wait_budgets or WaitBudgets(math.inf)
        self._until_s = self._claims_until_s = 0.0

    @property
    def open(self) -> bool:
        """Whether a caller should go to the spool and not to Redis: also while ops of this host wait there."""
        return self.spool.waiting() or (self._until_s > 0 and self.tripped)

    @property
    def tripped(self) -> bool:
        """Whether Redis failed a moment ago."""
        return clock.mono_s() < self._until_s

    def hear(self, error: Unavailable) -> None:
        """Note why an op was not taken. Only Redis's own silence opens the breaker, never a step that took its time.

        Raises:
            Unavailable: *error* itself, where there is no spool to go to.
        """
        self.wait_budgets.cold = False
        if isinstance(self.spool, NullSpool):
            raise error
        if isinstance(error, LogUnavailable) and error.silent:
            self._until_s = clock.mono_s() + OPEN_S

    def close(self) -> None:
        """Note that Redis answers."""
        self._until_s = 0.0

    @property
    def claims_fail(self) -> bool:
        """Whether Redis is not to be asked for an idempotency key now. Ops may wait by wish, while Redis is there."""
        return self.tripped or (clock.mono_s() < self._claims_until_s and self.open)

    def claim_failed(self, error: LogUnavailable) -> None:
        """Note that Redis did not answer when it was asked for an idempotency key."""
        if not isinstance(self.spool, NullSpool):
            self.hear(error)
            self._claims_until_s = clock.mono_s() + AWAY_S


class DrainThread:
    """Drains for this process, in a thread that starts when it is first needed. A fork makes its own.

    Args:
        spool: of this host.
        drainer: sends what is in it.
        away: is closed once Redis takes ops again.
        log: is told what waits.
    """

    def __init__(self, spool: Spool, drainer: Drainer, away: RedisAway, log: SharedState):
        self.drainer, self._spool, self._away, self._ended = drainer, spool, away, False
        self._log, self._news = log, HostNews(spool, "web")
        self._called, self._starting = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Note that something waits; never raises."""
        self._start()
        self._called.set()

    def wait_empty(self, timeout_s: float) -> None:
        """Wait until nothing waits in the spool.

        Raises:
            WaitTimeout: something still does.
        """
        for _ in clock.polls(timeout_s):
            if not self._spool.waiting():
                return
            self.wake()
        raise WaitTimeout(f"the spool {self._spool.path}", timeout_s, "spooled")

    def close(self) -> None:
        """Let the thread end."""
        self._ended = True
        self._called.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="pipeline-spool", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        called, failures, tended_s = self._called, 0, 0.0
        self._warm_up().join(COLD_S)  # a cold process would keep others from draining meanwhile
        while not self._ended:
            called.clear()
            quiet = self._pass()
            self._news.publish(self._log)
            if not quiet and not self._warming.is_alive():
                self._warm_up()
            failures = 0 if quiet else failures + 1
            if quiet and not self._tended(tended_s):
                called.wait()
            elif quiet:
                tended_s = clock.mono_s()
                called.wait(TEND_S)
            else:
                clock.sleep_s(clock.backoff_s(failures, first_s=PAUSE_S, most_s=MOST_S))

    def _pass(self) -> bool:
        """Drain once; whether nothing waits any more."""
        try:
            done = self.drainer.drain(PASS_S, patient=True)
        except PipelineError as error:
            logger.warning(Event("spool_not_drained", error=error))
            return False
        if done.sent:
            self._away.close()
            logger.info(Event("spool_drained", ops=done.sent, pause_ms=round(1000 * done.pause_s)))
        return done.empty or (not done.mine and not self._spool.waiting())

    def _warm_up(self) -> threading.Thread:
        """Let this process be ready for the direct way, though it is cold or Redis is another server; a thread does."""
        self._warming = threading.Thread(target=self._warm, name="pipeline-warm", daemon=True)
        self._warming.start()
        return self._warming

    def _warm(self) -> None:
        try:
            self.drainer.warm()
        except PipelineError as error:
            logger.info(Event("direct_way_not_ready", error=error))

    def _tended(self, before_s: float) -> bool:
        """Forget what every node has; whether something is still kept."""
        try:
            if clock.mono_s() - before_s >= TEND_S:
                self.drainer.forget()
            return bool(self._spool.pairs())
        except PipelineError as error:
            logger.warning(Event("spool_not_kept", error=error))
            return True


class Fallback:
    """A publisher that does not fail with Redis. A spooled op's place has no position.

    Args:
        publisher: sends what Redis takes.
        away: knows whether Redis answers, and has the spool.
        drain_thread: woken whenever something waits.
        schemas: kept in the spool before the ops that need them.
    """

    def __init__(
        self, publisher: Publisher, away: RedisAway, drain_thread: PerProcess[DrainThread], schemas: SchemaPublisher
    ):
        self._publisher, self._away, self._drain_thread, self._schemas = publisher, away, drain_thread, schemas
        self._noted = False  # whether this host knows that the configuration fits the deployment

    def ship(self, shipment: Shipment) -> dict[int, OpPlace]:
        """Append ops, or spool those that Redis does not take; see `Publisher.ship`.

        With the durability `spooled` they are spooled first, and stay there until every node of their shard has them.

        Raises:
            KeyClaimed: the key has claimed another id; neither Redis nor the spool took the op.
            PipelineFull, SpoolUnavailable: Redis did not take them, and neither did the spool; `numbered` says which
                may be queued nevertheless.
        """
        if shipment.durability == "spooled":
            return self._spooled(shipment, shipment.numbered)
        if len(shipment.runs) == 1:
            return self._ship(shipment)
        places: dict[int, OpPlace] = {}
        for share in self._publisher.by_scope(shipment.runs).values():
            try:
                places |= self._ship(shipment.part(share))
            except Unavailable as error:
                error.numbered = queued(places, error)
                raise
        return places

    def ship_one(self, bucket: int, payload: bytes) -> OpPlace:
        """Append or spool one op that has neither key nor wish; see `ship`."""
        if self._away.open or not self._noted:
            return self._ship(Shipment({bucket: (payload,)}))[bucket]
        try:
            return self._publisher.ship_one(bucket, payload)
        except Unavailable as error:
            return self._instead(Shipment({bucket: (payload,)}), error)[bucket]

    def claim(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that an idempotency key has claimed; a Redis that is away costs an answer, never a wait."""
        return row_id if self._away.claims_fail else self._publisher.claim(bucket, key, row_id)

    def _ship(self, shipment: Shipment) -> dict[int, OpPlace]:
        away = self._away
        if (
            away.open
            and not self._drained_before(shipment)
            and (places := self._spooled(shipment, shipment.numbered, behind=True))
        ):
            return places
        try:
            places = self._publisher.ship(shipment)
            if not self._noted:
                self._note()
            return places
        except Unavailable as error:
            return self._instead(shipment, error)

    def _drained_before(self, shipment: Shipment) -> bool:
        """Let a large op wait until what is in the spool has been sent, if it drains; whether nothing waits there.

        Else large ops come into the spool several times as fast as Redis takes them, and all others wait behind them.
        The wait is a part of what a large op may take.
        """
        spool, size_bytes = self._away.spool, sum(len(op) for ops in shipment.runs.values() for op in ops)
        if not (longer_s := more_s(size_bytes)) or not spool.drains():
            return False
        with self._away.wait_budgets.spending():
            return any(not spool.waiting() for _ in clock.polls(longer_s))

    def _instead(self, shipment: Shipment, error: Unavailable) -> dict[int, OpPlace]:
        """Spool what Redis did not take."""
        self._away.hear(error)
        try:
            return self._spooled(shipment, error.numbered)
        except (PipelineFull, SpoolUnavailable) as second:
            second.numbered = {**error.numbered, **second.numbered}
            raise second from error

    def _spooled(
        self, shipment: Shipment, numbered: Mapping[int, Number] | None = None, *, behind: bool = False
    ) -> dict[int, OpPlace]:
        """Spool ops; *behind*: nothing is done, and nothing returned, where no others wait any more."""
        if not (self._noted or self._away.tripped):
            self._compare(shipment)
        self._agree(shipment)
        self._schemas.keep()
        kept = shipment.durability == "spooled"
        numbers = self._away.spool.add(shipment.runs, kept=kept, numbered=numbered, behind=behind)
        self._drain_thread().wake()
        # what is to be on a second machine is in the spool of this one only
        durable = shipment.durability != "replica"
        return {bucket: OpPlace(None, *number, durable=durable) for bucket, number in numbers.items()}

    def _compare(self, shipment: Shipment) -> None:
        """Have the configuration compared with the deployment, unless Redis is away.

        Raises:
            WrongDeployment: it does not fit; nothing was sent or spooled.
        """
        try:
            for scope in self._publisher.by_scope(shipment.runs):
                self._publisher.epoch_of(scope)
        except Unavailable as error:
            self._away.hear(error)
        else:
            self._note()

    def _note(self) -> None:
        """Note for this host that the configuration fits, for processes that start while Redis is away."""
        self._noted = True
        try:
            self._away.spool.agree(self._publisher.deployment)
        except (Unavailable, WrongDeployment) as error:
            logger.warning(Event("configuration_not_noted", error=error))

    def _agree(self, shipment: Shipment) -> None:
        """See that an op for the spool has the id that its key has claimed: the drain sends no key."""
        key, row_id = shipment.key, shipment.row_id
        if key and row_id is not None:
            [bucket] = shipment.runs
            if (claimed := self.claim(bucket, key, row_id)) != row_id:
                raise KeyClaimed(claimed)
