"""Measure how soon a host's producers are on the direct way again after a disturbance, while Redis is well.

    python -m benchmarks.way_back [--producers 4] [--rate 100] [--burn 2]

With `--rate 0` it is half of what the host can send: as many producers that never pause, beside the same burners, say.
Producers are processes that start cold, all at once, beside processes that only use the processors. Disturbances
follow: Redis stands still for two seconds, Redis is killed and started. From three seconds after each, the share of ops
that went directly into the log has to be 99 % at least. No caller may see an error. A cold start is over when each
producer has enqueued its first op.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.servers.rig import Rig, rig_of

from pipeline.client import Client
from pipeline.errors import PipelineError

#: After so long every op has to go directly, s; and what is measured then.
GRACE_S, WATCHED_S = 3.0, 5.0
#: The least share of ops on the direct way.
LEAST_SHARE = 0.99
#: How long Redis stands still, s.
STILL_S = 2.0
#: A rate at which a producer never pauses, ops/s.
NO_PAUSE = 1e9
SPOOL, TIMEOUT = '[spool]\npath = "{}"\n', "[redis]\ntimeout_s = 0.25\n"


@dataclass(slots=True)
class Told:
    """What one producer tells: of each op when it was taken, whether it went directly, and how long the call took."""

    ops: list[tuple[float, bool, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    #: How long the host's other writers waited while this process handed over, s, and whether it came to an end.
    pauses: list[tuple[float, bool]] = field(default_factory=list)


def produce(config: str, rate: float) -> None:
    """Enqueue at a rate until it is over, and print what became of it."""
    from support.tables import define

    client, db, told = Client(config), define(), Told()
    client.define_tables(db)
    keep_pauses(client.drainer, told)
    due, owners = time.time(), count(os.getpid() * 1000)
    while not _over(config).exists():
        if (now := time.time()) < due:
            time.sleep(due - now)
        due = max(due + 1 / rate, now - 1.0)  # what it is behind it makes up for, a second's worth at most
        began = time.time()
        try:
            receipt = client.enqueue_insert(db.event, owner=next(owners), body="on its way")
            told.ops.append((time.time(), receipt.position is not None, time.time() - began))
            if len(told.ops) == 1:
                Path(f"{config}.{os.getpid()}").touch()
        except PipelineError as error:
            told.errors.append(f"{type(error).__name__}: {error}")
    print(json.dumps({"ops": told.ops, "errors": told.errors, "pauses": told.pauses}))
    sys.stdout.flush()
    os._exit(0)  # a busy machine ends many processes slowly


def keep_pauses(drainer: Any, told: Told) -> None:
    """Note how long each hand-over of this process takes."""
    drain = drainer.drain

    def noted(*arguments: Any, **options: Any) -> Any:
        done = drain(*arguments, **options)
        if done.pause_s:
            told.pauses.append((done.pause_s, done.empty))
        return done

    drainer.drain = noted


def still(rig: Rig) -> None:
    """Let Redis stand still for a while, its connections open."""
    with rig.frozen("redis"):
        time.sleep(STILL_S)


def restart(rig: Rig) -> None:
    """Kill Redis and start it: another lineage."""
    rig.cluster.kill("redis")
    rig.cluster.start("redis")


DISTURBANCES: dict[str, Callable[[Rig], None]] = {
    "cold start": lambda rig: None,
    f"Redis stands still for {STILL_S:.0f} s": still,
    "Redis is killed and started": restart,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--producers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--burn", type=int, default=2)
    parser.add_argument("--as-producer", nargs=2, default=None)
    given = parser.parse_args()
    if given.as_producer:
        config, rate = given.as_producer
        produce(config, float(rate))
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-bench-", dir=".") as name,
        rig_of(Path(name).resolve() / "cluster", "mariadb", workers=0, replicas=0) as rig,
        burning(given.burn),
    ):
        rate = given.rate or half_of_the_most(rig, given.producers)
        print(f"{given.producers} producers at {rate:.0f} ops/s each, {given.burn} processes burn\n")
        sys.exit(report(*run(rig, given.producers, rate)))


def half_of_the_most(rig: Rig, producers: int) -> float:
    """Return half of what each of some producers sends that never pause, ops/s."""
    over, told = run(rig, producers, NO_PAUSE, {"cold start": lambda rig: None})
    since = over[0][1] + GRACE_S
    ops = [op for one in told for op in one.ops if since <= op[0] < since + WATCHED_S]
    print(f"{producers} producers that never pause: {len(ops) / WATCHED_S:.0f} ops/s, {direct(ops):.1%} directly")
    return len(ops) / WATCHED_S / 2 / producers


def run(
    rig: Rig, producers: int, rate: float, disturbances: Mapping[str, Callable[[Rig], None]] | None = None
) -> tuple[list[tuple[str, float]], list[Told]]:
    """Return when each disturbance was over, and what the producers tell."""
    spool = rig.cluster.directory / f"host-{len(disturbances or DISTURBANCES)}.spool"
    config = rig.config_through({}, SPOOL.format(spool), TIMEOUT)
    command = [sys.executable, "-m", "benchmarks.way_back", "--as-producer", str(config), str(rate)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(producers)]
    over = []
    for name, disturb in (disturbances or DISTURBANCES).items():
        disturb(rig)
        while len(list(config.parent.glob(f"{config.name}.*"))) < producers:
            time.sleep(0.01)  # interpreters start and import
        over.append((name, time.time()))
        time.sleep(GRACE_S + WATCHED_S)
    _over(str(config)).touch()
    return over, [told_of(process.communicate(timeout=120)[0]) for process in started]


def _over(config: str) -> Path:
    """Return the file that ends the producers; they find it, however long the machine took to get here."""
    return Path(f"{config}-over")


def told_of(text: str) -> Told:
    found: dict[str, Any] = json.loads(text)
    return Told([tuple(op) for op in found["ops"]], found["errors"], [tuple(one) for one in found["pauses"]])


def report(over: Sequence[tuple[str, float]], told: Sequence[Told]) -> int:
    """Print a table; return the exit code."""
    ops = sorted(op for one in told for op in one.ops)
    errors = [error for one in told for error in one.errors]
    print(
        "| after | ops | direct, first 3 s | direct, then | ops/s then | longest call, ms |\n|---|---|---|---|---|---|"
    )
    missed = bool(errors)
    for name, at in over:
        first = [op for op in ops if at <= op[0] < at + GRACE_S]
        then = [op for op in ops if at + GRACE_S <= op[0] < at + GRACE_S + WATCHED_S]
        share = direct(then)
        missed = missed or share < LEAST_SHARE
        longest = max((op[2] for op in first + then), default=0.0) * 1000
        rate = len(then) / WATCHED_S
        print(f"| {name} | {len(first + then)} | {direct(first):.1%} | {share:.2%} | {rate:.0f} | {longest:.0f} |")
    pauses = sorted(1000 * took_s for one in told for took_s, _ in one.pauses)
    if pauses:
        ended = sum(ended for one in told for _, ended in one.pauses)
        print(f"\n{len(pauses)} hand-overs, {ended} to their end, of pauses of", end=" ")
        print(f"p50 {_part(pauses, 0.5):.0f}, p99 {_part(pauses, 0.99):.0f}, at most {pauses[-1]:.0f} ms;", end=" ")
        print(f"{sum(one <= 20 for one in pauses) / len(pauses):.0%} within 20 ms")
    print(f"\n{len(ops)} ops, {len(errors)} errors to callers; load average {os.getloadavg()[0]:.1f}")
    for error in sorted(set(errors))[:5]:
        print(f"  {errors.count(error)} x {error}")
    return int(missed)


def _part(found: Sequence[float], share: float) -> float:
    return found[min(len(found) - 1, int(share * len(found)))]


def direct(ops: Sequence[tuple[float, bool, float]]) -> float:
    return sum(op[1] for op in ops) / len(ops) if ops else 0.0


@contextmanager
def burning(processes: int) -> Iterator[None]:
    """Keep the processors busy."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    main()
