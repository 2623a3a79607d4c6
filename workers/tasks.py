"""Define the tasks, whose names Flower shows; one stays at a shard while ops come, and applies many batches.

Stay at a shard while ops come: one task applies many batches, and waits beside the log for the next op. While a worker
stays it holds the shard's bell, so that no op costs a message through Celery. A worker leaves after five seconds, as
another shard waits, or as the worker is to stop. Giving up the bell and a last look are one step. An op that was
appended before is seen, and one that comes later rings (docs/notes/27-trickle.md).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import closing, suppress
from typing import Any
from uuid import uuid4

from kombu.exceptions import OperationalError

from pipeline import clock
from pipeline.admin import upkeep
from pipeline.apply.applier import Applier, ops_of
from pipeline.apply.transaction import Outcome
from pipeline.errors import LogUnavailable, PipelineError, Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.oplog import SLICE_S
from pipeline.oplog.doorbell import APPLY_TASK, Bell, SilentBell, queue_of
from pipeline.per_process import PerProcess
from workers import app, process
from workers.metrics import count_batch
from workers.process import process_client

#: The longest stay, s; far below the task's soft limit, which a last batch may still need.
STAY_S = 5.0
#: From the start of a batch to the next, s, so that ops share a transaction: as long as some ops need to come, with
#: these bounds. Where the longest time brings no two together, each op is applied at once.
GATHER_S, LEAST_GATHER_S = 0.12, 0.02
#: So many ops are waited for, in the mean; more if more time than this passes between two, s: a batch costs them most.
TOGETHER, MORE_TOGETHER, SELDOM_OPS_S = 3.5, 6, 0.01
#: How much the last batch counts in the time between two ops; one that comes after so long a rest, s, does not.
NEW, REST_S = 0.1, 0.25
#: A batch of so many ops gathers for none more.
MANY = 200
#: Ops are gathered once so many batches have had several ops, or one that came during the batch before. That ends when
#: so many pauses in a row bring no two together: who sends the next op once the last is visible would wait for nothing.
#: Each time it ends so, twice as many batches are needed until it begins again, up to the most.
BEGIN, IN_VAIN, MOST = 3, 6, 200
#: The time between two looks at whether others wait, s, while ops come; and where processes of this worker are at all
#: other shards, for which it leaves only if these are gone or hang.
LOOK_S, SELDOM_S = 0.05, 0.5
#: How long one wait for an op lasts, s. Then the dirty set is looked at, for buckets that have rested.
LISTEN_S = 0.1
logger = logging.getLogger("pipeline.worker")


class Gathering:
    """When the next batch at a shard begins: at once, or a while after the last, if several ops come meanwhile."""

    def __init__(self) -> None:
        self._began_s, self._paused = 0.0, False
        #: The mean time from one batch to the next of late, and the ops that came in it.
        self._spent_s, self._came = 0.0, 0.0
        #: How many batches had ops that came close together, and how many are needed; how many pauses were in vain.
        self._close, self._needed, self._in_vain = 0, BEGIN, 0

    def learn(self, did: int, began_s: float, *, waited: bool) -> None:
        """Learn from a look at what is due.

        Args:
            did: how many ops were applied.
            began_s: when the look began.
            waited: whether the look followed a wait for an op, and not the last batch.
        """
        paused, self._paused = self._paused, False
        if paused and did > 1:
            self._in_vain, self._needed = 0, BEGIN
        elif paused:
            self._in_vain += 1
            if self._in_vain == IN_VAIN:
                self._close, self._needed, self._in_vain = 0, min(2 * self._needed, MOST), 0
        elif did < MANY:
            self._close += did > 1 or (did == 1 and not waited)
        if did:
            if (spent_s := began_s - self._began_s) < REST_S:
                new = NEW if self._came else 1.0
                self._spent_s += new * (spent_s - self._spent_s)
                self._came += new * (did - self._came)
            self._began_s = began_s

    def pause_s(self) -> float:
        """Return how long to wait until the next batch, s."""
        if self._close < self._needed or not self._came:
            return 0.0
        pause_s = max(0.0, self._began_s + gather_s(self._spent_s / self._came) - clock.mono_s())
        self._paused = pause_s > 0
        return pause_s


_gatherings = PerProcess[dict[str, Gathering]](dict)


class Stay:
    """One stay.

    Args:
        shard: the shard's name.
        bell: rings the shard.
        others: other shards whose bells this worker hears.
    """

    def __init__(self, shard: str, bell: Bell | SilentBell, others: Collection[str] = ()):
        self._shard, self._bell, self._others = shard, bell, others
        self._name, self._deadline, self._looked_s = uuid4().hex, clock.Deadline(STAY_S), 0.0
        self._all, self._batches, self._waited = Outcome(), 0, True
        self._gathering = _gatherings().setdefault(shard, Gathering())

    def run(self) -> dict[str, int | str]:
        """Apply until it is time to leave; return what all batches did, for Flower."""
        process.stay_at(self._shard)
        try:
            self._apply()
        finally:
            process.stay_at(None)
        return {**self._all.summary(), "batches": self._batches}

    def _apply(self) -> None:
        while True:
            began_s, applier = clock.mono_s(), process.applier(self._shard)
            applier.holder = self._name
            try:
                outcome = applier.apply(self._bell)
                self._count(outcome)
                goes_on = self._goes_on(applier, outcome, began_s)
            except BaseException:
                with suppress(PipelineError):
                    applier.leave(self._bell)
                raise
            if not goes_on:
                break
        with suppress(LogUnavailable):  # nobody holds the bell soon
            applier.leave(self._bell)

    def _count(self, outcome: Outcome) -> None:
        count_batch(self._shard, outcome)
        self._all.add(outcome)
        self._all.ms += outcome.ms
        self._batches += outcome.buckets > 0

    def _goes_on(self, applier: Applier, outcome: Outcome, began_s: float) -> bool:
        """Wait for the next batch; return whether there is to be one."""
        did = ops_of(outcome)
        if not (outcome.ring or did or not outcome.waiting):
            return False
        self._gathering.learn(did, began_s, waited=self._waited)
        self._waited = not did and not outcome.ring
        if self._waited and (self._is_over(self._idle_look_s, idle=True) or not self._listen(applier)):
            return False
        if did < MANY:
            clock.sleep_s(min(self._gathering.pause_s(), self._deadline.left_s))
        return not self._is_over(SELDOM_S if process.are_stayed_at(self._others) else LOOK_S)

    def _listen(self, applier: Applier) -> bool:
        """Wait for an op; return whether the next batch is to begin."""
        try:
            with closing(applier.listen(min(LISTEN_S, self._deadline.left_s))) as waiting:
                for looked in waiting:
                    if looked is not False:
                        return bool(looked)
                    if self._is_over(self._idle_look_s, idle=True):
                        return False
        except LogUnavailable:
            return False
        return True

    @property
    def _idle_look_s(self) -> float:
        """How old a look at others may be while nothing is due here: a shard that somebody is at rings for help."""
        return LISTEN_S if process.are_stayed_at(self._others) else SLICE_S

    def _is_over(self, look_s: float, *, idle: bool = False) -> bool:
        """Return whether to leave: asked to, for long enough here, or as others wait or may wait.

        A shard at which somebody is has only rung for help: who has work to do here leaves for none such. Else two
        workers at two busy shards would change places after each batch, each with a message.

        Args:
            look_s: how old the last look at others may be.
            idle: whether nothing is due here.
        """
        if process.asked_to_stop() or self._deadline.passed:
            return True
        if clock.mono_s() - self._looked_s < look_s:
            return False
        self._looked_s = clock.mono_s()
        waiting = self._bell.waits(self._others)
        try:
            return bool(waiting) and (idle or not all(map(process.process_client().log.is_held, waiting)))
        except LogUnavailable:
            return True


def gather_s(between_s: float) -> float:
    """Return the time from the start of one batch to the next, s.

    Args:
        between_s: the time between two ops of late.
    """
    if 2 * between_s > GATHER_S:
        return 0.0
    ops = TOGETHER if between_s <= SELDOM_OPS_S else MORE_TOGETHER
    return min(max(LEAST_GATHER_S, ops * between_s), GATHER_S)


def leave_to_others(control: Any, worker: str, shard: str, error: Exception) -> None:
    """Have a worker hear a shard's bells no more, as it may not apply there: each would be lost to those that may.

    Args:
        control: of the Celery app.
        worker: its name in Celery.
        shard: the shard's name.
        error: why it may not.
    """
    logger.critical(Event("shard_not_served", shard=shard, error=error))
    try:
        control.cancel_consumer(queue_of(shard), destination=[worker])
    except OperationalError as failure:  # the next bell tries again
        logger.warning(Event("shard_not_left", shard=shard, error=failure))


@app.task(name=APPLY_TASK)
def apply(shard: str, ops: int = 1) -> dict[str, Any]:
    """Apply a shard's ops in batches, for as long as ops come and nobody else waits; ring for what is left.

    Args:
        shard: the shard's name.
        ops: how many were waiting when the doorbell was rung; Flower shows the number.

    Returns:
        What the batches did, for Flower.
    """
    heard = app.amqp.queues.consume_from
    others = [other for other in process_client().topology.shards if other != shard and queue_of(other) in heard]
    bell = process_client().bell
    try:
        return Stay(shard, bell, others).run()
    except WrongDeployment as error:
        leave_to_others(app.control, str(apply.request.hostname), shard, error)
        bell.ring_now(shard, ops)
        raise


# a dead primary is noticed by one failure; the next try finds the primary of that moment
@app.task(name="pipeline.reconcile", autoretry_for=(Unavailable,), max_retries=3, default_retry_delay=1)
def reconcile_task(shard: str) -> dict[str, int]:
    """Compare each watermark with its log's tail, and mark dirty what the dirty set has lost.

    Args:
        shard: the shard's name.
    """
    return {"found": upkeep.reconcile(process_client(), shard)}


@app.task(name="pipeline.trim")
def trim_task(shard: str) -> dict[str, int]:
    """Delete from the logs what every node of the shard has, and forget old producers.

    Args:
        shard: the shard's name.
    """
    return {"trimmed": upkeep.trim(process_client(), shard)}


@app.task(name="pipeline.raise_epoch", autoretry_for=(Unavailable,), max_retries=3, default_retry_delay=1)
def raise_epoch_task(scope: str) -> dict[str, int]:
    """Raise the epoch of a scope whose server has changed, so that no request has to wait for it.

    Args:
        scope: the scope's name.
    """
    publisher = process_client().publisher
    return {"epoch": publisher.epoch_of(publisher.scopes[scope])}
