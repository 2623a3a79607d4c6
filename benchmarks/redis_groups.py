"""Measure what single enqueues cost one Redis, and two of which each has a shard's logs.

One Redis is full when its core is. So what a deployment can take is the number of ops by the CPU of its busiest Redis,
on however few cores this machine has. What a Redis takes while nothing is enqueued is measured beside, and left out:
with two, each waits twice as long for as many ops.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

from pydal import DAL, Field

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config.settings import load
from pipeline.devcluster.processes import free_ports
from pipeline.devcluster.servers import address, answers, installed, keep_password, service
from pipeline.oplog.doorbell import SilentBell

#: Single enqueues of one round, after so many that make connections and blocks of ids.
OPS, WARM = 20_000, 500
#: Ops of one turn.
STEP = 1_000
ROUNDS = 3
PASSWORD = "bench"
#: How long it is looked at a Redis that has nothing to do, s.
IDLE_S = 5.0


def main() -> None:
    """Print the rates and their ratio, round by round."""
    ratios = []
    for nth in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            one, two = (Measured(Path(folder) / str(groups), groups, stack) for groups in (1, 2))
            for _ in range(OPS // STEP):  # by turns: what else the machine does meets both
                one.enqueue(STEP)
                two.enqueue(STEP)
            time.sleep(IDLE_S)
            ratios.append(two.rate() / one.rate())
            print(f"round {nth + 1}: one Redis {one.rate():,.0f} ops/s of its core, two {two.rate():,.0f}", end="")
            print(f": {ratios[-1]:.2f} ×", flush=True)
    print(f"median {sorted(ratios)[ROUNDS // 2]:.2f} ×")


class Measured:
    """A deployment of two shards, and the CPU time of its Redis.

    Args:
        folder: of its files.
        groups: how many Redis it has: 1 or 2.
        stack: ends what it starts.
    """

    def __init__(self, folder: Path, groups: int, stack: ExitStack):
        folder.mkdir()
        servers = [stack.enter_context(running(folder / f"server{n}")) for n in range(groups)]
        self._client = client_of(folder, [url for _, url in servers])
        stack.callback(self._client.close)
        self._db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        self._db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer"))
        self._client.define_tables(self._db)
        migrate(self._client)
        self._customers, self._pids, self._done = count(), [pid for pid, _ in servers], 0
        self.enqueue(WARM)
        self._done, self._before = 0, self._read()
        self._behind = self._before

    def enqueue(self, ops: int) -> None:
        """Enqueue one op a call, first all of one shard: a Redis that waits between ops takes more time for each."""
        for customer in sorted(islice(self._customers, ops), key=lambda one: one % 2):
            self._client.enqueue_insert(self._db.purchase, customer=customer, qty=1)
        self._done += ops
        self._behind = self._read()

    def rate(self) -> float:
        """Return how many single enqueues a second the busiest Redis takes at one full core; idle since the last."""
        now, (begun_s, began), (ended_s, end) = self._read(), self._before, self._behind
        idle = [(one - was) / (now[0] - ended_s) for one, was in zip(now[1], end, strict=True)]
        spent = [one - was for one, was in zip(end, began, strict=True)]
        return self._done / max(cpu - share * (ended_s - begun_s) for cpu, share in zip(spent, idle, strict=True))

    def _read(self) -> tuple[float, list[float]]:
        return time.monotonic(), [cpu_s(pid) for pid in self._pids]


def client_of(folder: Path, urls: list[str]) -> Client:
    """Return a process's client; with two addresses, the second Redis has the logs of the second shard."""
    group: Mapping[str, Any] = {"two": {"url": urls[1]}} if len(urls) > 1 else {}
    named = {"redis": "two"} if group else {}
    settings = {
        "redis": {"url": urls[0], "timeout_s": 2, **group},
        "shards": {
            "s0": {"primary": f"sqlite://{folder}/s0.sqlite", "buckets": evens(0)},
            "s1": {"primary": f"sqlite://{folder}/s1.sqlite", "buckets": evens(1), **named},
        },
        "tables": {"purchase": {"shard_key": "customer", "rule": "modulo"}},
        "spool": {"enabled": False},
    }
    return Client(load(settings), bell=SilentBell())


def evens(first: int) -> str:
    """Return every second bucket, as the file says it."""
    return ",".join(map(str, range(first, 256, 2)))


@contextmanager
def running(folder: Path) -> Iterator[tuple[int, str]]:
    """Run a Redis; yield its process and its address."""
    [port] = free_ports(1)
    keep_password(folder, PASSWORD)
    argv = service(folder, installed(), port).argv
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for waiting in polls(20):
            if answers(port, PASSWORD):
                break
            if waiting.passed:
                sys.exit(f"{argv[0]} did not answer")
        yield server.pid, address(port, PASSWORD)
    finally:
        server.kill()
        server.wait()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, its threads included, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    main()
