"""Measure what ops cost that four web processes send at a fixed rate: CPU of all processes, beside a Celery task each.

CPU and not the wall: ratios of CPU within one run hold on a machine that others use, too.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from statistics import median
from typing import NamedTuple

import pipeline
from benchmarks.arrivals import plan_of
from benchmarks.cpu import cpu_s_of_group, cpu_s_of_server, servers_of
from benchmarks.figure import Figure, percentile_figures
from benchmarks.peer import DRAIN_S, WARM_ROWS, WARM_S
from benchmarks.peers import celery_tasks, ours
from benchmarks.probes.visible import seen_at
from benchmarks.processes import paused, running
from benchmarks.rows import plain, take
from benchmarks.table import Table
from benchmarks.target import CELERY_DATABASE, Target

#: Ops per second of all senders together.
RATES = (100, 400, 1600)
SENDERS = 4
#: How long one rate lasts in a full run, s, and how often each way has its turn; a shorter run has shorter turns.
TURN_S, TURNS, FULL_ROWS = 6.0, 2, 200_000
#: From the order to the first op, s.
LEAD_S = 0.2
#: From the moment that the other way's workers are stopped, and these go on, to the order, s.
SETTLE_S = 1.0
#: Ops that are watched until they are visible, while the rate goes on, and the time between two.
LOOKS, LOOK_EVERY_S = 60, 0.05
WAYS = ("pipeline", "celery")


class Cost(NamedTuple):
    """CPU per op, µs, by who used it."""

    senders: float
    redis: float
    workers: float
    databases: float

    @property
    def whole(self) -> float:
        """The sum."""
        return sum(self)


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the CPU per op of each way and rate, the ratios, and how soon an op is visible at 400 ops/s."""
    purchase, turn_s = ours.prepare(target), max(1.0, TURN_S * rows / FULL_ROWS)
    found: dict[tuple[str, int], list[Cost]] = {}
    with _ways(target) as workers, _senders() as senders:
        for way in WAYS:
            _warm(senders, way, table)
        for rate in RATES:
            for way in WAYS * TURNS:
                with paused([process for other, process in workers.items() if other != way]):
                    time.sleep(SETTLE_S)
                    cost = _cost(target, table, senders, way, rate, turn_s, workers[way].pid)
                found.setdefault((way, rate), []).append(cost)
        shown = _visible_beside(purchase, table, senders, rate=400)
    table.empty()
    detail = f"{SENDERS} processes, {TURNS} × {turn_s:.0f} s"
    return [*_figures(found, detail), *percentile_figures("visible at 400/s", shown, f"{len(shown)} ops, {detail}")]


def _figures(found: dict[tuple[str, int], list[Cost]], detail: str) -> Iterator[Figure]:
    for (way, rate), costs in found.items():
        middle = Cost(*map(median, zip(*costs, strict=True)))
        parts = ", ".join(f"{name} {value:,.0f}" for name, value in middle._asdict().items())
        samples = tuple(cost.whole for cost in costs)
        yield Figure(f"{way}, {rate}/s", median(samples), "µs CPU per op", f"{parts}; {detail}", samples)
    for rate in RATES:
        ours_, theirs = (median(cost.whole for cost in found[way, rate]) for way in WAYS)
        yield Figure(f"CPU at {rate}/s, pipeline / celery", ours_ / theirs, "×", detail)


@contextmanager
def _ways(target: Target) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Yield the workers of both ways."""
    target.redis(CELERY_DATABASE).flushdb()
    with running(target, ours.worker_command(), celery_tasks.command(2, 0)) as started:
        yield dict(zip(WAYS, started, strict=True))


def _cost(
    target: Target, table: Table, senders: list[Connection], way: str, rate: int, turn_s: float, group: int
) -> Cost:
    """Send at a rate, and return what that cost from the first op until the last is committed."""
    table.empty()
    servers = servers_of(target)
    for sender in senders:
        sender.send((way, rate / SENDERS, turn_s))
    before = [cpu_s_of_server(servers, "redis"), cpu_s_of_group(group), cpu_s_of_server(servers, "database")]
    answers = [sender.recv() for sender in senders]
    ops = sum(sent for sent, _ in answers)
    time.sleep(LEAD_S)  # what was sent last is applied by then; counting the rows costs the databases' CPU
    after = [cpu_s_of_server(servers, "redis"), cpu_s_of_group(group), cpu_s_of_server(servers, "database")]
    table.drained_at(ops, DRAIN_S)
    spent = [sum(cpu_s for _, cpu_s in answers), *(b - a for a, b in zip(before, after, strict=True))]
    return Cost(*(1e6 * cpu_s / ops for cpu_s in spent))


def _visible_beside(purchase: object, table: Table, senders: list[Connection], rate: int) -> list[float]:
    for sender in senders:
        sender.send((WAYS[0], rate / SENDERS, LEAD_S + LOOKS * (LOOK_EVERY_S + 0.02)))
    time.sleep(2 * LEAD_S)
    times = []
    for row in take(LOOKS):
        started = time.perf_counter()
        receipt = pipeline.enqueue_insert(purchase, **row)
        times.append(seen_at(table, receipt.id) - started)
        time.sleep(LOOK_EVERY_S)
    for sender in senders:
        sender.recv()
    return times


def _warm(senders: list[Connection], way: str, table: Table) -> None:
    table.empty()
    for sender in senders:
        sender.send((way, WARM_ROWS / SENDERS, 1.0))
    table.drained_at(sum(sender.recv()[0] for sender in senders), WARM_S)


@contextmanager
def _senders() -> Iterator[list[Connection]]:
    """Yield connections to the processes that send; each takes (way, ops/s, s) and returns (ops, CPU seconds)."""
    spawn, ends, processes = multiprocessing.get_context("spawn"), list[Connection](), []
    try:
        for number in range(SENDERS):
            mine, theirs = spawn.Pipe()
            process = spawn.Process(target=_send_by_orders, args=(theirs, number), daemon=True)
            process.start()
            processes.append(process)
            ends.append(mine)
        yield ends
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _send_by_orders(orders: Connection, number: int) -> None:
    """Do in a process of its own what the orders say."""
    from benchmarks.peers.purchases import target  # the module reads PIPELINE_CONFIG

    purchase = ours.prepare(target)
    ways: dict[str, Callable[[dict[str, object]], object]] = {
        "pipeline": lambda row: pipeline.enqueue_insert(purchase, **row),
        "celery": _delay(),
    }
    rows = {"pipeline": list(take(10_000)), "celery": plain(take(10_000))}
    while True:
        way, rate, for_s = orders.recv()
        moments = plan_of(rate, for_s, seed=number)
        cpu_s, start_s = time.process_time(), time.perf_counter() + LEAD_S
        for moment, row in zip(moments, rows[way], strict=False):
            time.sleep(max(0.0, start_s + moment - time.perf_counter()))
            ways[way](row)
        time.sleep(0.05)  # the bell's thread
        orders.send((len(moments), time.process_time() - cpu_s))


def _delay() -> Callable[[dict[str, object]], object]:
    from benchmarks.peers.celery_app import insert_purchase

    return insert_purchase.delay
