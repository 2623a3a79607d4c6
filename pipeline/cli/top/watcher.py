"""Observe and act in threads of their own: a server that is slow or away holds up neither a key nor the screen."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue

from pipeline import clock
from pipeline.admin import stops
from pipeline.admin.dead import HEADS, AsideCount, Where, chosen, replay, tally, waiting_behind
from pipeline.admin.observe.observer import Observer
from pipeline.admin.observe.record import Record
from pipeline.admin.release import release
from pipeline.cli.top.board import Order, Question, Sight
from pipeline.client import Client
from pipeline.errors import PipelineError

#: The time between two counts of what is set aside, s: it is a query of the shard's primary.
ASIDE_S = 3.0


class Watcher:
    """Finds the newest record, and what is set aside on the shard whose page is open.

    Args:
        pipeline: the deployment.
        every_s: seconds between two looks.

    Attributes:
        shard: whose page is open; the screen sets it.
    """

    def __init__(self, pipeline: Client, every_s: float):
        self._pipeline, self._every_s = pipeline, every_s
        self.shard: str | None = None
        self._record: tuple[Record, float] | None = None
        self._aside: tuple[str, tuple[AsideCount, ...] | str] = ("", ())
        self._over = False
        for work in (self._look, self._count):
            threading.Thread(target=work, name="pipeline-top", daemon=True).start()

    def found(self) -> Sight:
        """Return what is known now; never waits."""
        of, aside = self._aside
        if self._record is None:
            return Sight()
        record, at_s = self._record
        return Sight(record, clock.mono_s() - at_s, aside if of == self.shard else ())

    def close(self) -> None:
        """Stop at the next look."""
        self._over = True

    def _look(self) -> None:
        observer = Observer(self._pipeline.settings)
        while not self._over:
            with suppress(PipelineError):
                self._record = (observer.newest(), clock.mono_s())
            clock.sleep_s(self._every_s)

    def _count(self) -> None:
        while not self._over:
            shard, looked = self.shard, clock.Deadline(ASIDE_S)
            if shard is not None:
                try:
                    self._aside = (shard, tuple(tally(self._pipeline, Where(shard=shard))))
                except PipelineError as error:
                    self._aside = (shard, str(error))
            for _ in clock.polls(looked.left_s, first_s=0.1, most_s=0.1):
                if self.shard != shard or self._over:
                    break


class Hands:
    """Carries out orders, one after the other.

    Args:
        pipeline: the deployment.
    """

    def __init__(self, pipeline: Client):
        self._pipeline = pipeline
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._news: SimpleQueue[Question | str] = SimpleQueue()
        threading.Thread(target=self._run, name="pipeline-top-acts", daemon=True).start()

    def order(self, order: Order) -> None:
        """Have something done; never waits.

        Args:
            order: what.
        """
        self._orders.put(order)

    def news(self) -> list[Question | str]:
        """Return what was asked or said since the last call."""
        found: list[Question | str] = []
        with suppress(Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def _run(self) -> None:
        while True:
            order = self._orders.get()
            try:
                self._news.put(getattr(self, f"_{order.verb}")(order))
            except PipelineError as error:
                self._news.put(f"not done: {error}")
            except Exception as error:  # the outermost loop: the screen says it, and takes the next order
                self._news.put(f"not done: {type(error).__name__}: {error}")

    def _pause(self, order: Order) -> str:
        target = self._target(order)
        stops.pause(self._pipeline, target, "by pipeline top")
        return f"{target} is paused; r lets it go on"

    def _resume(self, order: Order) -> str:
        target, done = self._target(order), 0
        lifted = stops.resume(self._pipeline, target)
        for shard in target.shards:
            for settled in release(self._pipeline, shard, stops.who()):
                done += settled
                self._news.put(f"releasing ops of {target}: {done:,} so far…")
        stays = [one for shard in target.shards for one in stops.stops_on(self._pipeline, shard, target)]
        if stays:
            return f"{target} stays halted on {len(stays)} of {len(target.shards)} shards: an op was refused again"
        return f"{target} {'goes on' if lifted else 'was not stopped'}; {done:,} ops that were set aside are settled"

    def _count(self, order: Order) -> Question | str:
        found = chosen(self._pipeline, Where(shard=order.shard, table=order.table), HEADS)
        ops = sum(len(own) for buckets in found.values() for own in buckets.values())
        of = f"{order.table} on {order.shard}" if order.table else order.shard
        if not ops:
            return f"nothing of {of} is set aside that could be replayed"
        behind = sum(waiting_behind(self._pipeline, shard, buckets) for shard, buckets in found.items())
        then = f", and {behind:,} that wait behind" if behind else ""
        text = f"replay {ops:,} op{'s' * (ops != 1)} of {of}{then}? in order; refused ones stay set aside"
        return Question(text, order._replace(verb="replay", ops=found))

    def _replay(self, order: Order) -> str:
        done = dict.fromkeys(("replayed", "refused", "parked"), 0)
        left: list[str] = []
        for step in replay(self._pipeline, order.ops or {}):
            done = {name: count + getattr(step.done, name) for name, count in done.items()}
            left += step.left
            self._news.put(f"replaying: {done['replayed']:,} applied, {done['refused']:,} refused again…")
        told = f"{done['replayed']:,} replayed, {done['refused']:,} refused again, {done['parked']:,} still wait"
        return "; ".join((told, *(f"not tried: {why}" for why in left)))

    def _target(self, order: Order) -> stops.Target:
        name = f"table:{order.table}" if order.table else f"shard:{order.shard}"
        return stops.target_of(self._pipeline, name)
