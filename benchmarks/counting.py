"""Measure what counters, notes of batches and the metrics of workers cost, beside the same calls without all that.

python -m benchmarks.counting --rounds 30

Two deployments take turns on one Redis, each with its shard in SQLite, in one process. A figure is the CPU of this
process and of Redis. Last comes what a record takes, which one worker of the deployment makes each second.
"""

from __future__ import annotations

import argparse
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from time import clock_gettime, process_time
from typing import Any
from unittest import mock

from pydal import DAL, Field

from benchmarks.one_redis import OneRedis, one_redis
from benchmarks.turns import in_turn, median
from pipeline.admin.observe.recorder import Recorder
from pipeline.apply import applier
from workers.metrics.tally import Tally

#: How many ops a step of each kind has, and how many a call of a bulk step.
SINGLES, BULK, CALL = 2_000, 40_000, 10_000
#: What is noted is added up after each step, and sent after so many: a process does it five times a second, and every
#: two seconds. Steps take 0.1 to 0.2 s.
STEPS = 10
NAMES = ("counted", "silent")
GOAL = "≤ 1.02 ×"


#: Whether the worker counts now.
counting = [True]


def switched(function: Callable[..., Any], off: Callable[[], object]) -> Callable[..., Any]:
    """Return a function that does its work while the worker counts, and is as quick as can be while it does not."""
    return lambda *given: function(*given) if counting[0] else off()


class Deployment:
    """One deployment whose worker is this process.

    Args:
        redis: has its log.
        name: one of `NAMES`.
        db: defines the table.
    """

    def __init__(self, redis: OneRedis, name: str, db: Any):
        self._steps = 0
        self._counted, self._db, self._page = name == NAMES[0], db, Tally(1).page(0)
        self.client = redis.client(name, db)
        here = self.client
        self._worker = applier.Applier("s0", here.nodes.primary("s0"), here.log, here.settings.apply)

    def singles(self) -> None:
        """Enqueue ops one by one, and add up what was noted, as the bell's thread does."""
        for n in range(SINGLES):
            self.client.enqueue_insert(self._db.purchase, customer=n, qty=3)
        self._publish()

    def bulk(self) -> None:
        """Enqueue many ops at once, and add up what was noted."""
        for n in range(0, BULK, CALL):
            self.client.enqueue_bulk_insert(self._db.purchase, [{"customer": n + one, "qty": 3} for one in range(CALL)])
        self._publish()

    def apply(self) -> None:
        """Apply all that is queued."""
        counting[0] = self._counted
        while (outcome := self._worker.apply()).left:
            if self._counted and self._page is not None:
                self._page.add("s0", outcome.counts)

    def _publish(self) -> None:
        self._steps += 1
        if not self._counted:
            return
        if self._steps % STEPS == 0:
            self.client.bell.flush()
        elif (sends := self.client.dispatch._sends) is not None:
            sends.gather()

    def silence(self) -> None:
        """Count nothing from here on: what a call notes is dropped at once."""
        sends = self.client.dispatch._new_sends()
        sends.single, sends.taken, sends.asked = deque(maxlen=0), deque(maxlen=0), True


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with one_redis() as redis, ExitStack() as stack:
        db = stack.enter_context(closing(DAL("sqlite:memory", bigint_id=True, migrate=False)))
        db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer"))
        both = [Deployment(redis, name, db) for name in NAMES]
        for one in both:
            stack.enter_context(closing(one.client))
        both[1].silence()
        for name, off in (("counts_of", Counter), ("note_of", str)):
            stack.enter_context(mock.patch.object(applier, name, switched(getattr(applier, name), off)))

        def cpu_s() -> float:
            return process_time() + clock_gettime(
                (~redis.pid << 3) | 2
            )  # the server's own clock: clock_getcpuclockid(3)

        print("| what | µs of CPU an op | switched off | ratio | goal |\n|---|---|---|---|---|")
        steps: dict[str, tuple[int, Callable[[Deployment], Callable[[], None]]]] = {
            "enqueue, one by one": (SINGLES, lambda one: one.singles),
            "apply ops that came one by one": (SINGLES, lambda one: one.apply),
            "enqueue in bulk": (BULK, lambda one: one.bulk),
            "apply ops that came in bulk": (BULK, lambda one: one.apply),
        }
        times: dict[str, list[list[float]]] = {what: [[], []] for what in steps}
        for n in range(rounds):
            for what, (_, step) in steps.items():
                turns = both if n % 2 else both[::-1]
                spent = [calls[0] for calls in in_turn(1, *(step(one) for one in turns), clock=cpu_s, warm=0)]
                for kept, one in zip(times[what], spent if n % 2 else spent[::-1], strict=True):
                    kept.append(one)
        for what, (many, _) in steps.items():
            counted, silent = (median(one) / many * 1e6 for one in times[what])
            ratio = median([a / b for a, b in zip(*times[what], strict=True)])
            print(f"| {what} | {counted:.2f} | {silent:.2f} | {ratio:.3f} × | {GOAL} |", flush=True)
        recorder = Recorder(both[0].client.settings)
        recorder.turn()
        [spent] = in_turn(30, recorder.turn, clock=cpu_s)
        recorder.close()
        print(f"\nA record of one shard takes {1000 * median(spent):.1f} ms of CPU, once a second while ops come.")


if __name__ == "__main__":
    main()
