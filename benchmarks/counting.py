"""Measure what counters, notes of batches and the metrics of workers cost, beside the same calls without all that.

python -m benchmarks.counting --rounds 12

Two deployments take turns on one Redis, each with its shard in SQLite, in one process. A figure is the CPU of this
process and of Redis. Pieces of turns alternate, 10 to 40 ms each, since what others do on the machine changes what an
op takes by a tenth. Python's collector has just run when a piece begins, and leaves alone what was there before the
round: else its full runs, 2 to 50 ms each, fall on one of the two only, as the rhythm of pieces has it.
A round takes the median of ten turns, and the share of what the bell's thread does in two seconds. Beside the mean of
the rounds' ratios is its standard error. Last comes what a record takes, which one worker of the deployment makes each
second.
"""

from __future__ import annotations

import argparse
import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from statistics import fmean, stdev
from time import clock_gettime, process_time
from typing import Any
from unittest import mock

from pydal import DAL, Field

from benchmarks.one_redis import OneRedis, one_redis
from benchmarks.turns import Clock, in_turn, median, timed
from pipeline.admin.observe import Recorder
from pipeline.apply import applier
from workers.metrics import Tally

#: How many ops a turn of each kind has, and how many a piece of it: of a bulk turn, a call.
SINGLES, PIECE, BULK, CALL = 2_000, 250, 20_000, 10_000
#: What is noted is added up after each turn, and sent after so many: a process does it five times a second, and every
#: two seconds. Turns take 0.1 s.
TURNS = 10
NAMES = ("counted", "silent")
GOAL = "≤ 1.02 ×"


#: Whether the worker counts now.
counting = [True]


def switched(function: Callable[..., Any], off: Callable[[], object]) -> Callable[..., Any]:
    """Return a function that does its work while the worker counts, and is as quick as can be while it does not."""
    return lambda *given: function(*given) if counting[0] else off()


class Deployment:
    """One deployment whose worker is this process. Its turns are made piece by piece.

    Args:
        redis: has its log.
        name: one of `NAMES`.
        db: defines the table.
    """

    def __init__(self, redis: OneRedis, name: str, db: Any):
        self._turns = 0
        self._counted, self._db, self._page = name == NAMES[0], db, Tally(1).page(0)
        self.client = redis.client(name, db)
        here = self.client
        self._worker = applier.Applier("s0", here.nodes.primary("s0"), here.log, here.settings.apply)

    def singles(self) -> Iterator[None]:
        """Enqueue ops one by one."""
        for n in range(SINGLES):
            self.client.enqueue_insert(self._db.purchase, customer=n, qty=3)
            if n % PIECE == PIECE - 1:
                yield

    def bulk(self) -> Iterator[None]:
        """Enqueue many ops at once."""
        for n in range(0, BULK, CALL):
            self.client.enqueue_bulk_insert(self._db.purchase, [{"customer": n + one, "qty": 3} for one in range(CALL)])
            yield

    def apply(self) -> Iterator[None]:
        """Apply all that is queued, batch by batch."""
        while True:
            counting[0] = self._counted
            outcome = self._worker.apply()
            if not outcome.left:
                return
            if self._counted and self._page is not None:
                self._page.add("s0", outcome.counts)
            yield

    def publish(self) -> None:
        """Do what the bell's thread does with what is noted."""
        self._turns += 1
        if not self._counted:
            return
        if self._turns % TURNS == 0:
            self.client.bell.flush()
        elif (sends := self.client.dispatch._sends) is not None:
            sends.gather()

    def silence(self) -> None:
        """Count nothing from here on: what a call notes is dropped at once."""
        sends = self.client.dispatch._new_sends()
        sends.single, sends.taken, sends.asked = deque(maxlen=0), deque(maxlen=0), True


def in_pieces(turns: Sequence[Iterator[None]], clock: Clock, first: int) -> list[float]:
    """Return what each of two turns took, s, of which pieces were done in turn; the order changes.

    Args:
        turns: the two.
        clock: of the CPU.
        first: which begins, 0 or 1: it finds caches that have cooled down, a tenth of what a call takes.
    """
    sums, left = [0.0, 0.0], [0, 1]
    while left:
        for which in left[:: -1 if first else 1]:
            gc.collect()
            began, ended = clock(), object()
            more = next(turns[which], ended)
            sums[which] += clock() - began
            if more is ended:
                left.remove(which)
        first = 1 - first
    return sums


def one_round(
    both: Sequence[Deployment], kinds: Mapping[str, tuple[int, Callable[[Deployment], Iterator[None]]]], clock: Clock
) -> dict[str, list[float]]:
    """Return of each kind what an op takes in both deployments, µs: the median turn, and its share of what follows."""
    turns: dict[str, list[list[float]]] = {what: [] for what in kinds}
    after: dict[str, list[float]] = {what: [0.0, 0.0] for what in kinds}
    for n in range(TURNS):
        for what, (_, turn) in kinds.items():
            turns[what].append(in_pieces([turn(one) for one in both], clock, first=n % 2))
            if turn is not Deployment.apply:
                for which, one in enumerate(both):
                    after[what][which] += timed(one.publish, clock)
    return {
        what: [
            (median([took[which] for took in turns[what]]) + after[what][which] / TURNS) / many * 1e6
            for which in (0, 1)
        ]
        for what, (many, _) in kinds.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
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
            # the server's own clock: clock_getcpuclockid(3)
            return process_time() + clock_gettime((~redis.pid << 3) | 2)

        kinds: dict[str, tuple[int, Callable[[Deployment], Iterator[None]]]] = {
            "enqueue, one by one": (SINGLES, Deployment.singles),
            "apply ops that came one by one": (SINGLES, Deployment.apply),
            "enqueue in bulk": (BULK, Deployment.bulk),
            "apply ops that came in bulk": (BULK, Deployment.apply),
        }
        found: dict[str, list[list[float]]] = {what: [] for what in kinds}
        for n in range(-1, rounds):  # the first only warms
            gc.freeze()
            for what, costs in one_round(both, kinds, cpu_s).items():
                found[what] += [costs] if n >= 0 else []
        print("| what | µs of CPU an op | switched off | ratio | standard error | goal |\n|---|---|---|---|---|---|")
        for what, costs_of in found.items():
            counted, silent = (median([one[which] for one in costs_of]) for which in (0, 1))
            ratios = [a / b for a, b in costs_of]
            mean, error = fmean(ratios), stdev(ratios) / rounds**0.5
            print(f"| {what} | {counted:.2f} | {silent:.2f} | {mean:.3f} × | {error:.3f} | {GOAL} |", flush=True)
        recorder = Recorder(both[0].client.settings)
        recorder.turn()
        [records] = in_turn(30, recorder.turn, clock=cpu_s)
        recorder.close()
        print(f"\nA record of one shard takes {1000 * median(records):.1f} ms of CPU, once a second while ops come.")


if __name__ == "__main__":
    main()
