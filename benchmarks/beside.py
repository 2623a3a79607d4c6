"""Time the calls of this version beside those of another: processor time of the calling process, in turn on one Redis.

python -m benchmarks.beside ../other --runs 200 --calls 100

The other is a checkout whose `.venv` is not used: both run on this Python. A process of each is told in turn what to
call, so that what others do on the machine meets both alike. The figure is the median of the runs' ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from subprocess import PIPE, Popen

KINDS = ("insert", "update", "update by id", "counter", "delete", "with a key", "row in bulk")
#: A bulk call has so many times the rows.
BULK = 10
CONFIGURATION = """
[redis]
url = "{url}"
prefix = "{name}"
[shards.s0]
primary = "sqlite://{folder}/s0.sqlite"
[shards.s1]
primary = "sqlite://{folder}/s1.sqlite"
[spool]
path = "{folder}/spool.sqlite"
[tables.purchase]
shard_key = "customer"
"""


def serve() -> None:
    """Do what the standard input says, a kind and a number a line, and print the µs of each call; in the child."""
    from pydal import DAL, Field

    import pipeline

    db = DAL("sqlite:memory", migrate=False, bigint_id=True)
    table = db.define_table(
        "purchase", Field("customer", "integer"), Field("item", length=200), Field("qty", "integer")
    )
    pipeline.define_tables(db)
    nth = iter(range(1, 10**9))

    def one_by_one(call: object) -> object:
        return lambda n: [call(next(nth)) for _ in range(n)]  # type: ignore[operator]

    def row(n: int) -> dict[str, object]:
        return {"customer": n % 97, "item": "a kettle", "qty": 3}

    def at(n: int) -> object:
        return (table.id == n) & (table.customer == n % 97)

    calls = [
        one_by_one(lambda n: pipeline.enqueue_insert(table, **row(n))),
        one_by_one(lambda n: pipeline.enqueue_update(at(n), qty=n)),
        one_by_one(lambda n: pipeline.enqueue_update(table, n, shard_key=n % 97, qty=n)),
        one_by_one(lambda n: pipeline.enqueue_update(at(n), qty=table.qty + 1)),
        one_by_one(lambda n: pipeline.enqueue_delete(at(n))),
        one_by_one(lambda n: pipeline.enqueue_insert(table, **row(n), idempotency_key=f"{os.getpid()} {n}")),
        lambda n: pipeline.enqueue_bulk_insert(table, map(row, range(n))),
    ]
    print("ready", flush=True)
    for line in sys.stdin:
        kind, n = map(int, line.split())
        began = time.process_time()
        calls[kind](n)  # type: ignore[operator]
        print((time.process_time() - began) / n * 1e6, flush=True)


@contextmanager
def caller(tree: Path, folder: Path, url: str) -> Iterator[Popen[str]]:
    """Start a process that calls the version in a folder."""
    folder.mkdir()
    configuration = folder / "pipeline.toml"
    configuration.write_text(CONFIGURATION.format(url=url, name=folder.name, folder=folder))
    settings = {**os.environ, "PYTHONPATH": str(tree), "PIPELINE_CONFIG": str(configuration)}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--serve"]
    with Popen(command, env=settings, cwd=folder, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{tree} does not run on this Python")
        subprocess.run(
            [sys.executable, "-m", "pipeline", "migrate"],
            env=settings,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()


def asked(process: Popen[str], kind: int, n: int) -> float:
    """Let a process make so many calls, and return what each took, µs."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{kind} {n}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    """Print the table."""
    from benchmarks.one_redis import one_redis

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout of the other version")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--calls", type=int, default=100)
    given = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder, one_redis() as redis, ExitStack() as stack:
        trees = {"other": given.other.resolve(), "here": here}
        both = [stack.enter_context(caller(tree, Path(folder) / name, redis.url)) for name, tree in trees.items()]
        print("| | other, µs | here, µs | here / other | half of the runs |\n|---|---|---|---|---|")
        for kind, name in enumerate(KINDS):
            calls = given.calls * (BULK if name == KINDS[-1] else 1)
            took: list[list[float]] = [[], []]
            for run in range(-5, given.runs):
                for which in (0, 1) if run % 2 else (1, 0):
                    spent = asked(both[which], kind, calls)
                    took[which] += [spent] if run >= 0 else []  # the first ones only warm
            ratios = [b / a for a, b in zip(*took, strict=True)]
            other, ours = map(median, took)
            low, middle, high = quantiles(ratios)
            print(f"| {name} | {other:.1f} | {ours:.1f} | {middle:.3f} × | {low:.2f} to {high:.2f} |", flush=True)


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
