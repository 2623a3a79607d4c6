"""`make storm MINUTES=10`: random schedules until the time is over; `SEED=7 KIND=sandbox`: one of them again.

A failing seed is kept in a file, and told. The result is JSON, and the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from storm import sandbox_storm, server_storm
from storm.outcome import Outcome, report, table

from pipeline import clock

#: Seeds that failed, a line each: kind and seed.
KEPT = Path("storm-failures.txt")
KINDS = ("sandbox", "servers")


@contextmanager
def _servers(only: Sequence[str]) -> Iterator[Callable[[int], Outcome]]:
    with tempfile.TemporaryDirectory(prefix="storm-") as folder, server_storm.storm(Path(folder), only) as storm:
        _log_to(storm.rig.cluster.directory / "logs" / "callers.log")
        yield storm.run


def _log_to(path: Path) -> None:
    """Write what the callers' side logs beside the workers' logs: it is kept where a schedule was not back in time."""
    logging.disable(logging.NOTSET)
    logging.basicConfig(
        filename=path, level=logging.INFO, format="%(asctime)s %(threadName)s %(name)s %(message)s", force=True
    )


def _kept(outcome: Outcome) -> Outcome:
    if outcome.broken:
        with KEPT.open("a") as file:
            file.write(f"{outcome.kind} {outcome.seed}\n")
        print(f"\n{outcome.kind} {outcome.seed}: make storm KIND={outcome.kind} SEED={outcome.seed}", file=sys.stderr)
        for sentence in outcome.broken[:5]:
            print(f"  {sentence[:500]}", file=sys.stderr)
    return outcome


def _sandboxes(seeds: Iterator[int], for_s: float) -> list[Outcome]:
    """Run schedules in as many processes as there are processors."""
    logging.disable(logging.CRITICAL)
    deadline, done = clock.Deadline(for_s), list[Outcome]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        while not deadline.passed:
            done += map(_kept, pool.map(sandbox_storm.run, [next(seeds) for _ in range(20)]))
            print(f"\rsandbox: {len(done)} schedules", end="", file=sys.stderr, flush=True)
    return done


def _on_servers(seeds: Iterator[int], for_s: float, only: Sequence[str]) -> list[Outcome]:
    deadline, done = clock.Deadline(for_s), list[Outcome]()
    with _servers(only) as run:
        while not deadline.passed:
            done.append(_kept(run(next(seeds))))
            print(f"\rservers: {len(done)} schedules", end="", file=sys.stderr, flush=True)
    return done


def _again(kind: str, seed: int, only: Sequence[str]) -> Outcome:
    if kind == "sandbox":
        logging.disable(logging.CRITICAL)
        return sandbox_storm.run(seed)
    with _servers(only) as run:
        return run(seed)


def main() -> int:
    """Run what was asked for; exit 1 where a promise was broken."""
    asked = argparse.ArgumentParser(prog="make storm")
    asked.add_argument("--minutes", type=float, default=1.0)
    asked.add_argument("--seed", type=int)
    asked.add_argument("--kind", choices=KINDS, help="by default both, half of the time each")
    asked.add_argument("--faults", default="", help="on servers: only these, such as 'redis killed,stream deleted'")
    asked.add_argument("--json", type=Path, help="where to write the result")
    options = asked.parse_args()
    only = [name for name in options.faults.split(",") if name]
    if options.seed is not None:
        outcomes = [_kept(_again(options.kind or "sandbox", options.seed, only))]
    else:
        kinds = [options.kind] if options.kind else list(KINDS)
        first, outcomes = random.SystemRandom().randrange(1 << 40), list[Outcome]()
        for kind in kinds:
            seeds, for_s = iter(range(first, first + (1 << 30))), options.minutes * 60 / len(kinds)
            outcomes += _sandboxes(seeds, for_s) if kind == "sandbox" else _on_servers(seeds, for_s, only)
    result = {kind: report(one for one in outcomes if one.kind == kind) for kind in KINDS}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print("\n" + table(result))
    return int(any(one.broken for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
