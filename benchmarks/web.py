"""Compare a POST that writes through the pipeline with one that does a pyDAL insert and commit: web2py over HTTP.

    python -m benchmarks.web [--commit-ms 5] [--rates 10 50 100] [--seconds 60]

The primaries take 5 ms for each commit, like one that waits for a disk or for a semi-synchronous replica. MariaDB
itself holds a commit back so that others may join it (`binlog_commit_wait_usec`). Workers wait alike.

Two applications have the same tables and the same action but for its one line, each in a server process of its own.
They take turns of a few seconds. In each turn requests arrive by the same plan, and a time begins at the planned moment
(see `benchmarks.arrivals`). First one user posts, again after each answer. What the workers have to apply belongs to
the pipeline's own turn: the other turn begins when the workers are done.

Exit code 1: the pipeline was slower, or rows are missing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

from benchmarks.arrivals import plan_of, times_of
from benchmarks.figure import percentile_figures
from benchmarks.web_shop import WRITES, Shop, Users, median_commit_ms, rows_there, running, slow_commits

RATES = (10.0, 50.0, 100.0)
#: The length of a turn: requests one after the other, or s of a plan.
ALONE, TURN_S = 100, 5.0
#: Requests before the first counted one: connections are opened, modules imported, caches filled.
WARM_UP = 300
USERS = 200
APPLIED_S = 120
Times = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit-ms", type=float, default=5.0, help="how long a primary takes for a commit")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="requests per second, one row for each")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each application, for each row")
    parser.add_argument("--together", type=int, default=0, help="also so many users who ask without a pause")
    parser.add_argument("--alone", type=int, default=2000, help="POSTs of the single user to each application")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as folder, running(Path(folder)) as (shop, users):
        alone_ms = median_commit_ms(shop)
        with slow_commits(shop, given.commit_ms):
            print(f"a commit on a primary takes {median_commit_ms(shop):.1f} ms, {alone_ms:.1f} ms without the wait\n")
            sent, well = measured(shop, users, given)
        shop.rig.client.barrier("sale", APPLIED_S)
        there = rows_there(shop)
    print(f"\n{there} of {sent} rows are there")
    sys.exit(0 if well and there == sent else 1)


def measured(shop: Shop, users: dict[str, Users], given: argparse.Namespace) -> tuple[int, bool]:
    """Print all rows; return how many POSTs there were, and whether the pipeline was always faster."""
    in_turns(shop, users, 1, lambda of, turn: one_after_the_other(of, WARM_UP))
    sent, well = len(WRITES) * WARM_UP, True
    print("| load | requests | through the pipeline p50 / p99 ms | insert + commit p50 / p99 ms | p50, p99 | goal |")
    print("|---|---|---|---|---|---|")
    rows: list[tuple[str, int, Callable[[Users, int], list[float]]]] = [
        ("one user", given.alone // ALONE, lambda of, turn: one_after_the_other(of, ALONE))
    ]
    if given.together:
        rows.append((f"{given.together} users, no pause", given.alone // ALONE, at_once(given.together)))
    for rate in given.rates:
        rows.append((f"{rate:g} / s", round(given.seconds / TURN_S), by_plan(rate)))
    for load, turns, ask in rows:
        times = in_turns(shop, users, turns, ask)
        sent += sum(map(len, times.values()))
        well = report(load, times) and well
    return sent, well


def in_turns(shop: Shop, users: dict[str, Users], turns: int, ask: Callable[[Users, int], list[float]]) -> Times:
    """Let the applications take turns, each of them first in turn, and return the times of each."""
    times: Times = {name: [] for name in WRITES}
    for turn in range(turns):
        for name in sorted(WRITES, reverse=turn % 2 == 1):
            times[name] += ask(users[name], turn)
            shop.rig.client.barrier("sale", APPLIED_S)
    return times


def at_once(users: int) -> Callable[[Users, int], list[float]]:
    """Return a function that lets so many users post, each again after its answer: as much as the server can take."""

    def ask(of: Users, turn: int) -> list[float]:
        with ThreadPoolExecutor(users) as pool:
            shares = pool.map(lambda user: one_after_the_other(of, ALONE // users, user), range(users))
            return [spent for share in shares for spent in share]

    return ask


def one_after_the_other(of: Users, count: int, user: int = 0) -> list[float]:
    """Return how long each POST of one user takes."""
    times = []
    for _ in range(count):
        started = perf_counter()
        of.post(user)
        times.append(perf_counter() - started)
    return times


def by_plan(rate: float) -> Callable[[Users, int], list[float]]:
    """Return a function that lets users post at this rate, in each turn by another plan, the same for both."""
    return lambda of, turn: times_of(plan_of(rate, TURN_S, seed=turn), lambda number: of.post(number % USERS))


def report(load: str, times: Times) -> bool:
    """Print a row; return whether the pipeline was faster at p50 and at p99."""
    ours, beside = ([figure.value for figure in percentile_figures(name, times[name], "")] for name in WRITES)
    ratios = [mine / other for mine, other in zip(ours, beside, strict=True)]
    shown = (f"{ours[0]:.1f} / {ours[1]:.1f}", f"{beside[0]:.1f} / {beside[1]:.1f}")
    count = len(times["queued"])
    print(
        f"| {load} | {count:,} | {shown[0]} | {shown[1]} | {ratios[0]:.2f} ×, {ratios[1]:.2f} × | < 1 × both |",
        flush=True,
    )
    return max(ratios) < 1


if __name__ == "__main__":
    main()
