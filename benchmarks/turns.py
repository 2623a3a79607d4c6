"""Time calls that are made in turn, and print the table of their times."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, process_time

Call = Callable[[], object]
HEAD = """\
| what | ours p50 / p99 ms | beside p50 / p99 ms | ratio of p50 | p50, p99 more by ms | goal |
|---|---|---|---|---|---|"""


Clock = Callable[[], float]


def in_turn(rounds: int, *calls: Call, clock: Clock = perf_counter, warm: int = 5) -> list[list[float]]:
    """Return the times of each call, one of each in every round, after *warm* calls that do not count."""
    for call in calls:
        for _ in range(warm):
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for spent, call in zip(times, calls, strict=True):
            spent.append(timed(call, clock))
    return times


def cpu_in_turn(rounds: int, *calls: Call) -> list[list[float]]:
    """Return the CPU that each call takes of this process, its threads included."""
    return in_turn(rounds, *calls, clock=process_time)


def timed(call: Call, clock: Clock = perf_counter) -> float:
    started = clock()
    call()
    return clock() - started


def median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def report(what: str, ours: list[float], beside: list[float] | None, goal: str) -> None:
    """Print one line of the table."""
    if beside is None:
        print(f"| {what} | {shown(ours)} | | | | {goal} |", flush=True)
        return
    more = [(at(ours) - at(beside)) * 1000 for at in (median, p99)]
    ratio = f"{median(ours) / median(beside):.2f} ×"
    print(
        f"| {what} | {shown(ours)} | {shown(beside)} | {ratio} | {more[0]:+.3f}, {more[1]:+.3f} | {goal} |", flush=True
    )


def shown(times: list[float]) -> str:
    """Return the median and the 99th percentile, in ms."""
    return f"{median(times) * 1000:.3f} / {p99(times) * 1000:.3f}"


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]
