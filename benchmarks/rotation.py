"""Measure how long a stalled, stopped or frozen replica is still chosen, on a shard with two replicas and its prober.

    python -m benchmarks.rotation [--tries 10]

A reader in this process routes all the time. The clock runs from the fault until no read chooses the broken replica,
however much lag is allowed. Each fault begins at other moments between two probes, one of them right after a probe.
Each is tried while nothing is written, with a write now and then, and while writes flow.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.servers.probing import Shard, probing, shard, until
from support.servers.proxy import Proxy

from pipeline import clock
from pipeline.apply.applier import Applier
from pipeline.reads.health import NodeState

BROKEN = "s0-r1"
FAULTS = ("stalled", "stopped", "frozen")
#: The seconds between two batches of writes.
LOADS = {"nothing is written": 1000.0, "a write now and then": 0.7, "writes flow": 0.05}
#: The goal, s, and how long a reader tries before it gives up.
GOAL_S, PATIENCE_S = 2.0, 15.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=10)
    tries = parser.parse_args().tries
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as folder, shard(Path(folder) / "cluster") as one:
        print("| fault | load | out of rotation after, s: median | longest | goal | |\n|---|---|---|---|---|---|")
        with probing(one), Proxy(one.port("s0")) as link:
            one.follow(BROKEN, link.port)
            for load, pause_s in LOADS.items():
                with writing(one, pause_s):
                    for fault in FAULTS:
                        report(fault, load, [trial(one, link, fault, at / tries) for at in range(tries)])


def trial(one: Shard, link: Proxy, fault: str, phase: float) -> float:
    """Break the replica at a moment between two probes; return after how many seconds no read would choose it."""
    until(lambda: serves(one), 120)
    told = one.client.health.reports()
    until(lambda: one.client.health.reports() is not told)
    clock.sleep_s(phase)
    breaking, mending = ways(one, link)[fault]
    started = clock.mono_s()
    breaking()
    try:
        for deadline in clock.polls(PATIENCE_S, first_s=0.002, most_s=0.002):
            if not serves(one):
                return deadline.waited_s + deadline.started - started
        return PATIENCE_S
    finally:
        mending()


def ways(one: Shard, link: Proxy) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return how each fault is made and repaired."""
    return {
        "stalled": (link.pause, link.resume),
        "stopped": (lambda: one.sql(BROKEN, "STOP SLAVE"), lambda: one.sql(BROKEN, "START SLAVE")),
        "frozen": (
            lambda: one.cluster.stop(BROKEN, signal.SIGSTOP),
            lambda: one.cluster.stop(BROKEN, signal.SIGCONT),
        ),
    }


def serves(one: Shard) -> bool:
    """Return whether a read may go to the replica, while another replica is well."""
    return one.report(BROKEN).state is NodeState.IN


@contextmanager
def writing(one: Shard, pause_s: float) -> Iterator[None]:
    """Apply batches, so many seconds apart."""
    applier = Applier("s0", one.client.nodes.primary("s0"), one.client.log, one.client.settings.apply)
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(pause_s):
            one.client.enqueue_bulk_insert("tally", [{"owner": at, "n": 0} for at in range(8)])
            applier.apply()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def report(fault: str, load: str, spent: list[float]) -> None:
    median, longest = sorted(spent)[len(spent) // 2], max(spent)
    met = "met" if longest <= GOAL_S else "missed"
    print(f"| {fault} | {load} | {median:.2f} | {longest:.2f} | ≤ {GOAL_S:.0f} | {met} |", flush=True)


if __name__ == "__main__":
    main()
