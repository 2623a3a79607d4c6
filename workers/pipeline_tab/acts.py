"""Read what workers publish, for all browsers together; do in a thread what a page asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.admin import dead, dead_op, stops
from pipeline.admin.dead import HEADS, DeadOp, Where
from pipeline.admin.moving import orders
from pipeline.admin.observe.published import NO_HISTORY, History, nothing_known, read_histories, read_record
from pipeline.admin.observe.record import Record
from pipeline.admin.stops import release
from pipeline.apply.replay import Became
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.errors import BadOp, PipelineError
from pipeline.oplog.groups import log_of
from pipeline.oplog.redis.connection import ANSWER_S
from pipeline.per_process import PerProcess
from pipeline.shard.records.replays import Action, last_actions

#: The time between two readings, s; and of more than `MANY` shards: one of 64 takes 5 ms of processor time. Histories
#: have a point every five.
EVERY_S, EVERY_OF_MANY_S, MANY, HISTORY_S = 1.0, 2.0, 16, 5.0
NO_RECORD = "no worker has published a record within the last ten minutes; run: celery -A workers worker"
#: How many ops a page lists of each shard, and how many a trial or an order names.
MOST_LISTED, MOST_NAMED = 100, 200
#: How long one order may take, s: a browser waits for the answer. What is left is ordered again.
ORDER_S = 15.0
#: How many actions a page lists.
MOST_ACTIONS = 50
#: This process's client; threads share it.
client = PerProcess(Client)


class Seen(NamedTuple):
    """What is shown.

    Attributes:
        number: grows with each reading.
        record: the newest.
        age_ms: of the record; None where workers have published none.
        histories: of each shard.
    """

    number: int
    record: Record
    age_ms: int | None
    histories: Mapping[str, History]


class Feed:
    """Reads the record and the histories of the configured deployment."""

    def __init__(self) -> None:
        settings = load()
        self._shards = tuple(settings.shards)
        #: The time between two readings, s.
        self.every_s = EVERY_OF_MANY_S if len(self._shards) > MANY else EVERY_S
        self._log = log_of(settings, read_s=ANSWER_S)
        self._lock = asyncio.Lock()
        self._seen: Seen | None = None
        self._read_s = self._history_s = -HISTORY_S

    async def newest(self) -> Seen:
        """Return what is shown now; whoever comes while it is read waits for that reading."""
        async with self._lock:
            if self._seen is None or clock.mono_s() - self._read_s >= 0.9 * self.every_s:
                self._seen = await asyncio.get_running_loop().run_in_executor(None, self._read)
                self._read_s = clock.mono_s()
            return self._seen

    def _read(self) -> Seen:
        number = self._seen.number + 1 if self._seen is not None else 0
        histories = self._seen.histories if self._seen is not None else {}
        try:
            newest = read_record(self._log, self._shards)
            if clock.mono_s() - self._history_s >= HISTORY_S:
                histories = read_histories(
                    self._log, {shard: histories.get(shard, NO_HISTORY) for shard in self._shards}
                )
                self._history_s = clock.mono_s()
        except PipelineError as error:
            return Seen(number, nothing_known(str(error), clock.wall_ms(), self._shards), None, histories)
        if newest is None:
            return Seen(number, nothing_known(NO_RECORD, clock.wall_ms(), self._shards), None, histories)
        return Seen(number, newest.record, newest.age_ms, histories)


feed = PerProcess(Feed)


class Listed(NamedTuple):
    """Ops that are set aside, and how many match beside those that are listed."""

    ops: tuple[DeadOp, ...]
    more: bool


class Done(NamedTuple):
    """What an order did, or would do.

    Attributes:
        counts: how many ops were replayed, dropped, refused again; how many still wait behind another.
        ops: what became of each, the first `MOST_NAMED`.
        left: why some were not tried.
    """

    counts: Mapping[str, int]
    ops: tuple[tuple[str, Became], ...]
    left: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The counts in words."""
        one = self.counts
        told = f"{one['replayed']:,} replayed, {one['dropped']:,} dropped, {one['refused']:,} refused again"
        return "; ".join((f"{told}, {one['parked']:,} still wait behind others", *self.left))


def listed(where: Where) -> Listed:
    """Return the ops that a page lists.

    Args:
        where: which.
    """
    found = list(dead.dead_ops(client(), where, most=MOST_LISTED + 1))
    each: dict[str, list[DeadOp]] = {}
    for one in found:
        each.setdefault(one.shard, []).append(one)
    kept = tuple(one for ops in each.values() for one in ops[:MOST_LISTED])
    return Listed(kept, len(kept) < len(found))


def order(where: Where, *, drop: bool, trial: bool, by: str) -> Done:
    """Replay or drop ops, and replay what waits behind them; of many ops those that fit into `ORDER_S`.

    Args:
        where: which.
        drop: give them up instead.
        trial: say what would become of each, and change nothing.
        by: who orders it.

    Raises:
        BadOp: none of them can be replayed or dropped.
    """
    here, deadline = client(), clock.Deadline(ORDER_S)
    found = dead.chosen(here, where, (*HEADS, "parked") if drop and where.ops else HEADS)
    if not found:
        raise BadOp("none of these ops is rejected or waiting: a parked one follows the op that it waits behind")
    counts = dict.fromkeys(("replayed", "dropped", "refused", "parked"), 0)
    became, left = list[tuple[str, Became]](), list[str]()
    for step in dead.replay(here, found, drop=drop, trial=trial, by=by):
        for name in counts:
            counts[name] += getattr(step.done, name)
        became += [(step.shard, one) for one in step.ops][: MOST_NAMED - len(became)]
        left += step.left
        if deadline.passed:
            left.append("the rest was not tried yet: give the same order again")
            break
    return Done(counts, tuple(became), tuple(left))


def look_at(place: str, shard: str | None) -> dead_op.Shown:
    """Return one op beside the row as it is now.

    Args:
        place: of the op, `bucket:epoch-seq`.
        shard: where it is.
    """
    return dead_op.show(client(), dead.place_of(place), shard)


def change(place: str, shard: str | None, texts: Mapping[str, str], member: int, by: str) -> None:
    """Change values of an op that is set aside.

    Args:
        place: of the op.
        shard: where it is.
        texts: by field.
        member: which row write of an atomic group.
        by: who orders it.
    """
    here, at = client(), dead.place_of(place)
    values = dead_op.typed_values(here, at, texts, shard=shard, member=member)
    dead_op.edit(here, at, values, shard=shard, member=member, by=by)


def actions(shards: Iterable[str]) -> list[tuple[str, Action]]:
    """Return the last actions on shards, the newest first.

    Args:
        shards: their names.
    """
    here = client()
    found = [(shard, one) for shard in shards for one in last_actions(here.nodes.primary(shard), MOST_ACTIONS)]
    return sorted(found, key=lambda one: -one[1].at_ms)[:MOST_ACTIONS]


def stop(name: str, *, pause: bool, reason: str, by: str) -> str:
    """Pause or resume a shard or a table; return what was done, in words.

    Args:
        name: `shard:x` or `table:x`.
        pause: whether to pause.
        reason: of a pause.
        by: who orders it.
    """
    here = client()
    target = stops.target_of(here, name)
    if pause:
        stops.pause(here, target, reason, by)
        return f"{target} is paused; its ops wait in order until it is resumed"
    lifted = stops.resume(here, target)
    settled = sum(done for shard in target.shards for done in release(here, shard, by))
    if any(stops.stops_on(here, shard, target) for shard in target.shards):
        return f"{target} stays halted: an op was refused again"
    return (
        f"{target} goes on; {settled:,} ops that were set aside are settled" if lifted else f"{target} was not stopped"
    )


def give_up(buckets: str, by: str) -> str:
    """End the moves that buckets are part of; return what was done, in words.

    Args:
        buckets: as ranges.
        by: who orders it; `pipeline move list` says it.

    Raises:
        PipelineError: none of them moves, or their new shard has begun.
    """
    ended = []
    for mover in orders.of_named(client(), buckets):
        mover.give_up(f"given up by {by}")
        ended.append(f"{mover.leg.source} keeps {mover.what}")
    return f"{'; '.join(ended)}; workers clean up"


def send_back(buckets: str, by: str) -> str:
    """Order that buckets go back to where their last move began; return what was ordered, in words.

    Args:
        buckets: as ranges.
        by: who orders it; `pipeline move list` says it.

    Raises:
        PipelineError: they have no move of all of them, or it is not over.
    """
    mover = orders.order_back(client(), buckets, by)
    return f"{mover.what} go back to {mover.leg.target}; workers carry them"


def done_with() -> None:
    """Close this thread's connections."""
    client().nodes.close()
