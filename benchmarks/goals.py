"""Hold what a run must reach: bounds on ratios and figures of the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figure import CPU, Figures

#: Peers with one Celery task per write; the best of them is the one to beat.
CELERY = ("celery -c 1", "celery -c 2", "celery -c 4", "celery 2 × -c 2")
#: "Flat": caches fill late, but a leak of one small object per op would be tens of MiB over a million ops.
FLAT_GROWTH = 1.10

Value = Callable[[Figures], float]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a value that is computed from the run's figures."""

    label: str
    value: Value
    bound: float
    unit: str
    at_least: bool = False

    def measured(self, figures: Figures) -> float | None:
        """Return the value, or None where the run did not measure what it needs."""
        try:
            return self.value(figures)
        except KeyError:
            return None

    def reached(self, measured: float) -> bool:
        """Return whether the measured value is within the bound."""
        return measured >= self.bound if self.at_least else measured <= self.bound


def best_celery(figures: Figures) -> float:
    """Return the best rate of one task per write.

    Raises:
        KeyError: no such peer was measured.
    """
    rates = [figures[name].value for name in CELERY if name in figures]
    if not rates:
        raise KeyError("celery")
    return max(rates)


def ratio(over: str, under: str) -> Value:
    """Return a function that divides one figure by another."""
    return lambda figures: figures[over].value / figures[under].value


def by_hand(what: str) -> Value:
    """Return a function that divides our CPU per row of a shape by that of streams written by hand."""
    return ratio(CPU.format(f"{what}, pipeline"), CPU.format(f"{what}, streams by hand"))


def longest(beginning: str) -> Value:
    """Return a function that takes the largest of the figures whose names begin so.

    Raises:
        KeyError: none was measured.
    """

    def value(figures: Figures) -> float:
        found = [figure.value for name, figure in figures.items() if name.startswith(beginning)]
        if not found:
            raise KeyError(beginning)
        return max(found)

    return value


def plain(name: str) -> Value:
    """Return a function that looks a figure up."""
    return lambda figures: figures[name].value


GOALS: tuple[Goal, ...] = (
    Goal("CPU of a row in bulk / streams by hand, 2 columns", by_hand("2 columns"), 0.38, "×"),
    Goal("CPU of a row in bulk / streams by hand, 20 columns", by_hand("20 columns"), 0.75, "×"),
    Goal("end to end / best one task per write", lambda f: f["pipeline"].value / best_celery(f), 150, "×", True),
    Goal("end to end / Dramatiq", ratio("pipeline", "dramatiq 2 × 4"), 20, "×", True),
    Goal("end to end / executemany", ratio("pipeline", "executemany"), 0.6, "×", True),
    Goal("bulk enqueue, one process", plain("bulk enqueue"), 250_000, "ops/s", True),
    Goal("enqueue p50 / LPUSH p50", ratio("enqueue p50", "LPUSH p50"), 1.2, "×"),
    Goal("enqueue p99 / LPUSH p99", ratio("enqueue p99", "LPUSH p99"), 2, "×"),
    Goal("enqueue p50, ringing / LPUSH p50", ratio("enqueue, ringing p50", "LPUSH p50"), 1.5, "×"),
    Goal("enqueue p50 / .delay() p50", ratio("enqueue p50", ".delay() p50"), 0.5, "×"),
    Goal("enqueue p50, ringing / .delay() p50", ratio("enqueue, ringing p50", ".delay() p50"), 0.5, "×"),
    Goal("into the spool, 16 threads", plain("spooled, 16 threads"), 5_000, "ops/s", True),
    Goal("into the spool, one caller / bare fsyncs", ratio("spooled, one caller", "bare fsyncs"), 0.5, "×", True),
    Goal("visible on the primary p50, idle", plain("visible p50"), 3, "ms"),
    Goal("visible on the primary p50, 400 ops/s", plain("visible at 400/s p50"), 8, "ms"),
    Goal("CPU of a trickle of 100/s / celery's", plain("CPU at 100/s, pipeline / celery"), 0.4, "×"),
    Goal("CPU of a trickle of 400/s / celery's", plain("CPU at 400/s, pipeline / celery"), 0.4, "×"),
    Goal("CPU per op of a trickle of 1,600/s", plain("pipeline, 1600/s"), 450, "µs"),
    Goal("CPU of workers, 64 idle shards", plain("64 idle shards"), 20, "ms/s"),
    Goal("bucket moves again after SIGKILL", plain("killed worker"), 3, "s"),
    Goal("op applied after a lost bell", plain("lost bell"), 2, "s"),
    Goal("op of another bucket beside a bad op", longest("beside "), 2, "s"),
    Goal("bad op named in `status`", longest("named: "), 5, "s"),
    Goal("10,000 ops refused in a row", plain("10,000 refused in a row"), 60, "s"),
    Goal("replay of refused ops with parked followers", plain("replay with parked followers"), 2_000, "ops/s", True),
    Goal(
        "CPU of a row, none / one in 1,000 refused by a CHECK", plain("one in 1,000 refused by a CHECK"), 0.9, "×", True
    ),
    Goal(
        "CPU of a row, none / one in 1,000 refused by a SIGNAL",
        plain("one in 1,000 refused by a trigger's SIGNAL"),
        0.9,
        "×",
        True,
    ),
    Goal(
        "CPU of a row, none / one in 1,000 refused by a SIGNAL without a number",
        plain("one in 1,000 refused by a SIGNAL without a number"),
        0.9,
        "×",
        True,
    ),
    Goal(
        "CPU of a row, none / one in 1,000 refused by a foreign key",
        plain("one in 1,000 refused by a foreign key"),
        0.9,
        "×",
        True,
    ),
    Goal("processor time of a single insert", plain("cpu, inserts in all"), 100, "µs"),
    Goal("processor time of an update by id, one at a time", plain("cpu, updates in all"), 120, "µs"),
    Goal("processor time of an upsert, one at a time", plain("cpu, upserts in all"), 130, "µs"),
    Goal("processor time of an atomic group of three", plain("cpu, atomic groups in all"), 200, "µs"),
    Goal("rate with foreign keys / without", plain("with / without foreign keys"), 0.6, "×", True),
    Goal("the same, queued in bulk", plain("bulk, with / without foreign keys"), 0.6, "×", True),
    Goal("worker memory, 100 % / 20 % of the ops", plain("worker memory growth"), FLAT_GROWTH, "×"),
    Goal("memory of a worker's process, 64 buckets × 10 MB queued", plain("worker memory, large ops"), 300, "MiB"),
    Goal("read / applied, the same", plain("read / applied, large ops"), 1.2, "×"),
    Goal("Redis per queued row beyond its values", plain("Redis beyond values"), 8, "bytes"),
)


def missed(figures: Figures) -> list[Goal]:
    """Return the goals that were measured and not reached."""
    return [goal for goal in GOALS if (value := goal.measured(figures)) is not None and not goal.reached(value)]
