"""Measure how long ops wait while a bucket with many rows moves there and back under load.

    python -m benchmarks.moving [--rows 100000] [--rate 200] [--beside 2000] [--moves 2]

Two MariaDB primaries with a replica each, two workers. One producer writes to the bucket that moves, another one beside
to all others. An op waits from its receipt until the owner's watermark is seen to have passed it, looked at each 10 ms.
The run exits 1 where a producer has an error, or a row is missing or doubled. It exits 1 also where an op of the bucket
waits more than a second longer at a cut than ops did before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.servers.rig import Rig, rig_of

from pipeline.admin.moving import orders
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import PipelineError, Unavailable
from pipeline.shard.records import ledger_queries

#: The owner whose bucket moves, and those who write beside.
OWNER, OTHERS = 7, range(8, 80)
BUCKETS = 32
#: Ops of a call: one a call at the bucket that moves, and so many beside.
EACH = 20
#: How long nothing moves before and behind, s; what a cut is charged with, s before and behind it.
QUIET_S, BEFORE_S, BEHIND_S = 6.0, 1.0, 3.0
LONGEST_S = 1.0


class Op(NamedTuple):
    """An op, and when its receipt came, s."""

    bucket: int
    position: tuple[int, int]
    at_s: float


def produce(config: str, rate: int, each: int, owners: Sequence[int]) -> None:
    """Enqueue at a rate until the input ends, and print each call's ops, or its error."""
    from support.tables import define

    client, db, over = Client(config), define(), threading.Event()
    client.define_tables(db)
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    due_s, keys = time.monotonic(), cycle(owners)
    while not over.wait(max(0.0, due_s - time.monotonic())):
        due_s += each / rate
        rows = [{"owner": owner, "body": "x" * 100} for owner in islice(keys, each)]
        try:
            receipts = list(client.enqueue_bulk_insert(db.event, rows))
        except PipelineError as error:
            print(json.dumps(repr(error)), flush=True)
            continue
        at_s = time.monotonic()
        print(json.dumps([[one.bucket, [one.position.epoch, one.position.seq], at_s] for one in receipts]), flush=True)
    client.close()


class Watch:
    """Looks at the watermarks of both shards: by bucket, when its owner was first seen at each position."""

    def __init__(self, config: Path):
        self.seen: dict[int, list[tuple[tuple[int, int], float]]] = {}
        self._config, self._over = config, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def wait_of(self, op: Op) -> float | None:
        """Return how long an op has waited, s; None: it was not seen."""
        marks = self.seen.get(op.bucket, [])
        at = bisect_left(marks, (op.position, 0.0))
        return marks[at][1] - op.at_s if at < len(marks) else None

    def _look(self) -> None:
        client = Client(self._config)
        while not self._over.wait(0.01):
            for shard in client.topology.shards:
                for bucket, mark in ledger_queries.marks_of(client.nodes.primary(shard), range(BUCKETS)).items():
                    marks, position = self.seen.setdefault(bucket, []), (mark.position.epoch, mark.position.seq)
                    if mark.owned and (not marks or position > marks[-1][0]):
                        marks.append((position, time.monotonic()))
        client.close()


def moved(rig: Rig, bucket: int) -> float:
    """Move a bucket to the other shard; return when its source stopped, s."""
    client, began_s, cut_s = rig.client, time.monotonic(), 0.0
    source = client.topology.shard_of(bucket)
    [target] = {*client.topology.shards} - {source}
    mover, stages = orders.order_move(client, [bucket], target, "benchmark", keep_s=1), dict[str, float]()
    while True:
        with suppress(Unavailable):
            for step in mover.steps():
                stages.setdefault(step.stage, time.monotonic() - began_s)
                cut_s = cut_s or (time.monotonic() if step.stage == "stopping" else 0.0)
            break
    print(f"{source} to {target}:", ", ".join(f"{stage} {at_s:.1f} s" for stage, at_s in stages.items()), flush=True)
    return cut_s


def fill(rig: Rig, rows: int) -> None:
    """Give the bucket rows, as a table has them that was there before."""
    session = rig.client.nodes.primary(rig.client.topology.shard_of(rig.client.topology.bucket_of("event", OWNER)))
    for first in range(1, rows + 1, 1_000):
        values = ", ".join(f"({id}, {OWNER}, '{'y' * 100}')" for id in range(first, min(first + 1_000, rows + 1)))
        with session.transaction():
            session.execute(f"INSERT INTO event (id, owner, body) VALUES {values}")


def longest(watch: Watch, ops: Sequence[Op], begin_s: float, end_s: float) -> float:
    """Return the longest wait of the ops of a time, s."""
    return max((watch.wait_of(op) or 0.0 for op in ops if begin_s < op.at_s < end_s), default=0.0)


def measure(rig: Rig, given: Any) -> bool:
    """Move the bucket, print what ops waited, and return whether all is as it must be."""
    fill(rig, given.rows)
    bucket = rig.client.topology.bucket_of("event", OWNER)
    others = [owner for owner in OTHERS if rig.client.topology.bucket_of("event", owner) != bucket]
    command = [sys.executable, "-m", "benchmarks.moving", "--produce", str(rig.config)]
    loads = [[given.rate, 1, [OWNER]], [given.beside, EACH, others]]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(n) for n in range(2)]
        running = [
            subprocess.Popen([*command, json.dumps(load)], stdin=subprocess.PIPE, stdout=file.open("w"))
            for load, file in zip(loads, files, strict=True)
        ]
        watch = Watch(rig.config)
        for _ in polls(60):
            if all(file.stat().st_size for file in files):
                break
        time.sleep(QUIET_S)
        cuts, first_s = [], time.monotonic()
        for _ in range(given.moves):
            cuts.append(moved(rig, bucket))
            time.sleep(BEHIND_S)
        for one in running:
            one.communicate()
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    ops = [Op(b, tuple(position), at_s) for line in lines if isinstance(line, list) for b, position, at_s in line]
    errors = [line for line in lines if isinstance(line, str)]
    rig.client.barrier("event", timeout_s=120)
    time.sleep(1)
    watch.end()
    own, beside = [op for op in ops if op.bucket == bucket], [op for op in ops if op.bucket != bucket]
    before_s = longest(watch, ops, 0, first_s)
    print(f"longest wait of an op before any move: {before_s * 1000:.0f} ms")
    worst_s = 0.0
    for cut_s in cuts:
        here, there = (longest(watch, some, cut_s - BEFORE_S, cut_s + BEHIND_S) for some in (own, beside))
        print(f"at a cut: an op of the bucket {here * 1000:.0f} ms, of another one {there * 1000:.0f} ms")
        worst_s = max(worst_s, here)
    found = [rig.client.nodes.primary(shard).query("SELECT id FROM event") for shard in rig.client.topology.shards]
    ids = [id for rows in found for (id,) in rows]
    print(f"{len(ops):,} ops, {len(own):,} of the bucket; {len(errors)} errors {errors[:2]}; {len(ids):,} rows", end="")
    print(f", {len(ids) - len({*ids})} doubled, {given.rows + len(ops) - len({*ids})} missing", flush=True)
    whole = len(ids) == len({*ids}) == given.rows + len(ops)
    return whole and not errors and worst_s <= before_s + LONGEST_S


def main() -> None:
    """Start servers and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rows": 100_000, "rate": 200, "beside": 2_000, "moves": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--produce", nargs=2, metavar=("CONFIG", "LOAD"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.produce:
        config, load = given.produce
        produce(config, *json.loads(load))
        return
    with (
        tempfile.TemporaryDirectory(prefix="moving-") as folder,
        rig_of(Path(folder) / "c", "mariadb", replicas=1, buckets=BUCKETS) as rig,
    ):
        good = measure(rig, given)
    sys.exit(not good)


if __name__ == "__main__":
    main()
