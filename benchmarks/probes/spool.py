"""Measure how many ops a host can spool while Redis is away: fsynced, one at a time, by threads, and in bulk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figure import Figure
from benchmarks.table import Table
from benchmarks.target import Target
from pipeline.spool import Spool

#: As large as an op of the benchmark's table; the buckets of a deployment by default.
PAYLOAD, BUCKETS = b"x" * 250, 256
#: Shares of the run's rows: 2,000 calls and 40,000 ops of a full run.
CALLS_SHARE, BULK_SHARE = 0.01, 0.2
THREADS, CHUNK = 16, 1000
#: What one op adds to the file's journal at least, bytes: a page.
PAGE = b"x" * 4096


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the rates of bare fsyncs, one caller, threads, and a bulk call; touches neither Redis nor a database."""
    calls, bulk = max(200, round(rows * CALLS_SHARE)), max(CHUNK, round(rows * BULK_SHARE))
    with TemporaryDirectory(prefix="pipeline-spool-", dir=".") as folder:
        spool = Spool(Path(folder) / "bench.spool", 1_000_000_000)
        spool.add({0: [PAYLOAD]})
        bare = _rate(calls, lambda: _bare(Path(folder) / "bare", calls))
        alone = _rate(calls, lambda: _call(spool, calls))
        together = _rate(calls, lambda: _call_in_threads(spool, calls))
        chunks = bulk // CHUNK
        many = _rate(chunks * CHUNK, lambda: _bulk(spool, chunks))
        spool.close()
    return [
        Figure("bare fsyncs", bare, "/ s", "append 4 KiB + fsync, no database: what one caller cannot do without"),
        Figure("spooled, one caller", alone, "ops/s", f"{calls:,} ops, an fsync each"),
        Figure(f"spooled, {THREADS} threads", together, "ops/s", f"{calls:,} ops, threads share an fsync"),
        Figure("spooled, bulk", many, "ops/s", f"{chunks * CHUNK:,} ops, an fsync per {CHUNK:,}"),
    ]


def _rate(ops: int, work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return ops / (time.perf_counter() - started)


def _bare(path: Path, calls: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(calls):
            file.write(PAGE)
            os.fsync(file.fileno())


def _call(spool: Spool, calls: int) -> None:
    for nth in range(calls):
        spool.add({nth % BUCKETS: (PAYLOAD,)})


def _call_in_threads(spool: Spool, calls: int) -> None:
    threads = [threading.Thread(target=_call, args=(spool, calls // THREADS)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _bulk(spool: Spool, chunks: int) -> None:
    runs = {bucket: (PAYLOAD,) * len(range(bucket, CHUNK, BUCKETS)) for bucket in range(BUCKETS)}
    for _ in range(chunks):
        spool.add(runs)
