"""List everything that is measured besides the end-to-end rates, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.figure import Figure
from benchmarks.probes import (
    containment,
    families,
    idle,
    kinds,
    latency,
    producer,
    recovery,
    refused,
    scaling,
    spool,
    trickle,
    versions,
    visible,
    widths,
    worker_memory,
)
from benchmarks.probes.bad_things import CASES
from benchmarks.table import Table
from benchmarks.target import Target


@dataclass(frozen=True, slots=True)
class Probe:
    """A measurement of this pipeline; `measure` takes the run's number of rows and leaves nothing queued."""

    name: str
    measure: Callable[[Target, Table, int], list[Figure]]


PROBES: tuple[Probe, ...] = (
    Probe("widths", widths.measure),
    Probe("producer", producer.measure),
    Probe("latency", latency.measure),
    Probe("spool", spool.measure),
    Probe("visible", visible.measure),
    Probe("trickle", trickle.measure),
    Probe("idle shards", idle.measure),
    Probe("versions", versions.measure),
    Probe("kinds", kinds.measure),
    Probe("families", families.measure),
    Probe("worker memory", worker_memory.measure),
    Probe("large ops", worker_memory.measure_large),
    Probe("killed worker", recovery.measure_killed_worker),
    Probe("lost bell", recovery.measure_lost_bell),
    *(Probe(f"containment: {name}", partial(containment.measure, name)) for name in CASES),
    Probe("scaling", scaling.measure),
    Probe("refused ops", refused.measure),
    Probe("many refused", refused.measure_many),
)
