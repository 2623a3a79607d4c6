"""Measure what shards in SQLite cost that have nothing to do: the CPU of two workers, with 64 shards and with 2."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cpu import cpu_s_of_group
from benchmarks.figure import Figure
from benchmarks.peers.ours import MIGRATE_S
from benchmarks.processes import ROOT
from benchmarks.table import Table
from benchmarks.target import Target

SHARDS, WORKERS = (64, 2), 2
#: Until imports, first probes and first chores are done, and how long the CPU is counted, s: any chore's time at least.
WARM_S, COUNT_S = 40.0, 60.0


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the CPU of all workers' processes per second."""
    return [_idle(shards) for shards in SHARDS]


def _idle(shards: int) -> Figure:
    from pipeline.devcluster import Cluster  # a run without this probe needs none

    with tempfile.TemporaryDirectory(prefix="bench-idle-") as folder:
        cluster = Cluster.up(
            Path(folder) / "cluster", shards=shards, replicas=0, workers=WORKERS, buckets=256, owned=True
        )
        try:
            _migrate(cluster.config)
            groups = {one.name: one.pid for one in cluster.processes}
            time.sleep(WARM_S)
            before, started = {name: cpu_s_of_group(pid) for name, pid in groups.items()}, time.perf_counter()
            time.sleep(COUNT_S)
            for_s = time.perf_counter() - started
            spent = {name: 1000 * (cpu_s_of_group(pid) - before[name]) / for_s for name, pid in groups.items()}
        finally:
            cluster.down()
    workers = sum(ms for name, ms in spent.items() if name.startswith("worker"))
    detail = ", ".join(f"{name} {ms:.1f}" for name, ms in spent.items() if ms >= 0.1)
    return Figure(f"{shards} idle shards", workers, "ms CPU per s", f"{WORKERS} workers; {detail}")


def _migrate(config: Path) -> None:
    """Make a deployment of a cluster: shards without the pipeline's tables keep workers busy with warnings."""
    command = [sys.executable, "-m", "pipeline", "migrate"]
    environment = {**os.environ, "PIPELINE_CONFIG": str(config)}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=MIGRATE_S)
