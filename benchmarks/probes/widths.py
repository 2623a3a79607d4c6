"""Measure the CPU of a bulk insert's row by who uses it, of 2 and of 20 columns, beside what is written by hand.

Peers and this pipeline take turns on the same servers. Ratios of CPU within one run hold on a machine that others use.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median

from benchmarks.figure import CPU, Figure, cpu_figure
from benchmarks.peer import Enqueue, Peer, Sample, measure_rate
from benchmarks.peers import direct, ours, streams
from benchmarks.rows import NARROW, WIDE, Shape
from benchmarks.table import Table, open_table
from benchmarks.target import Target

#: Shapes, by what is said of them, and the part of the run's rows that each has.
SHAPES = {"2 columns": (NARROW, 0.5), "20 columns": (WIDE, 0.125)}
ROUNDS = 3
Opened = Callable[[Target], AbstractContextManager[Enqueue]]


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the CPU per row of each peer and shape; the figure's detail has the rows per second."""
    figures = list[Figure]()
    for what, (shape, share) in SHAPES.items():
        with open_table(target, shape) as mine:
            found = _sampled(target, mine, shape, max(2_000, round(rows * share)))
            mine.empty()
        for name, samples in found.items():
            detail = f"{median(one.rate for one in samples):,.0f} rows/s"
            figures.append(cpu_figure(CPU.format(f"{what}, {name}"), [one.cpu for one in samples], detail))
    return figures


def _sampled(target: Target, table: Table, shape: Shape, many: int) -> dict[str, list[Sample]]:
    sent, found = shape.take(many), dict[str, list[Sample]]()
    for _ in range(ROUNDS):
        for name, opened in _peers(shape).items():
            peer = Peer(name, name, 1, opened, typed=True)
            found.setdefault(name, []).append(measure_rate(peer, target, table, sent))
    return found


def _peers(shape: Shape) -> dict[str, Opened]:
    return {
        "pipeline": ours.bulk_of(shape),
        "streams by hand": streams.consumers(packed=False, shape=shape),
        "streams by hand, packed": streams.consumers(packed=True, shape=shape),
        "executemany": direct.executemany(shape),
        "LOAD DATA": direct.load_data(shape),
    }
