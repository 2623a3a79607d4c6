"""Measure what one enqueue costs its caller, beside a bare LPUSH, Celery's `.delay()` and a pyDAL insert + commit.

All calls run in turn within one loop, so that other load on the machine meets all of them alike. The order changes with
each turn: a call is faster right after one that has just woken the same server.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pipeline
from benchmarks.bell import bell_keys
from benchmarks.figure import Figure, percentile_figures
from benchmarks.log_memory import payload_bytes
from benchmarks.peers import direct, ours
from benchmarks.rows import Row, plain, take
from benchmarks.table import Table
from benchmarks.target import CELERY_DATABASE, LPUSH_DATABASE, Target

#: Part of the run's rows that is the number of turns: 2,000 in a full run. The first turns only warm.
SHARE, WARM_TURNS = 0.01, 50

Call = Callable[[Row], object]


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return p50 and p99 of each way to hand a row over."""
    purchase, turns = ours.prepare(target), max(100, round(rows * SHARE)) + WARM_TURNS
    sent = list(take(turns))
    pipeline.enqueue_bulk_insert(purchase, sent[:WARM_TURNS])
    silencer = _Silencer(target)
    with direct.insert_and_commit(target) as insert:
        calls: dict[str, Call] = {
            "enqueue": lambda row: pipeline.enqueue_insert(purchase, **row),
            "LPUSH": _lpush(target),
            ".delay()": _delay(),
            "enqueue, ringing": lambda row: pipeline.enqueue_insert(purchase, **row),
            "insert + commit": lambda row: insert([row]),
        }
        times = _take_turns(calls, sent, silencer)
    _clean(target, table)
    detail = f"{turns - WARM_TURNS:,} turns, no worker"
    details = {"enqueue, ringing": f"{detail}; {silencer.rung:,} of {turns:,} rang"}
    return [figure for name in calls for figure in percentile_figures(name, times[name], details.get(name, detail))]


def _take_turns(calls: dict[str, Call], sent: Sequence[Row], silencer: _Silencer) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    texts, luck = plain(list(sent)), random.Random(1)
    for turn, row in enumerate(sent):
        for name, call in luck.sample(list(calls.items()), len(calls)):
            argument = texts[turn] if name == ".delay()" else row
            if name == "enqueue, ringing":
                silencer.silence()
            started = time.perf_counter()
            call(argument)
            times[name].append(time.perf_counter() - started)
            if name == "enqueue, ringing":
                silencer.restore()
    return {name: samples[WARM_TURNS:] for name, samples in times.items()}


class _Silencer:
    """Takes the bells away before an enqueue, so that it must ring, and puts them back, so that the next need not."""

    def __init__(self, target: Target):
        self._log = target.redis()
        self._bells = {key: self._log.dump(key) or b"" for key in bell_keys(self._log)}
        if not self._bells:
            raise ValueError("no bell key was found after an enqueue; see benchmarks/bell.py")
        self.rung = 0

    def silence(self) -> None:
        self._log.delete(*self._bells)

    def restore(self) -> None:
        """Count whether a bell is rung again, and ring the others without a message."""
        self.rung += bool(self._log.exists(*self._bells))
        for key, bell in self._bells.items():
            self._log.restore(key, 0, bell, replace=True)


def _lpush(target: Target) -> Call:
    log, peer = target.redis(), target.redis(LPUSH_DATABASE)
    payload = b"x" * round(payload_bytes(log))
    return lambda _: peer.lpush("bare", payload)


def _delay() -> Call:
    from benchmarks.peers.celery_app import insert_purchase  # the module reads PIPELINE_CONFIG

    delay: Any = insert_purchase.delay
    return lambda row: delay(row)


def _clean(target: Target, table: Table) -> None:
    ours.drain(target)
    table.empty()
    target.redis(LPUSH_DATABASE).flushdb()
    target.redis(CELERY_DATABASE).flushdb()
