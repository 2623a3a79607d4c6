"""`python -m examples.web2py.load`: many users at once, by Locust, and what must be true afterwards.

No request fails, nobody misses what he has just written, and nine reads of ten are served by replicas.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console

from examples.web2py.running import Shop, ask, running_shop
from examples.web2py.server import why_not
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.reads.routing import Chosen

ROOT = Path(__file__).parents[2]
USERS, SECONDS = 50, 30
#: Replicas' part of all reads.
SHARE = 0.9
#: How long Locust may take to start and to end, and the counts of reads to arrive, s.
GRACE_S, COUNTED_S = 60, 20
#: Pages that must show what their user has just written.
OWN = ("add a customer", "buy", "customer (own purchase)")


class Load(NamedTuple):
    """What came of it."""

    requests: int
    #: What went wrong, with how often.
    failures: dict[str, int]
    #: Pages that had to show their user's own write, and did.
    own_reads: int
    #: How many reads went to a node of this role.
    reads: dict[str, int]
    #: Tickets of requests that failed.
    tickets: int
    #: Median and 99th percentile of a request, ms.
    p50_ms: float
    p99_ms: float

    @property
    def share(self) -> float:
        """Replicas' part of all reads."""
        return self.reads.get("replica", 0) / max(1, sum(self.reads.values()))

    @property
    def faults(self) -> list[str]:
        """Return what must not be."""
        found = [f"{count} × {what}" for what, count in self.failures.items()]
        found += [f"{self.tickets} tickets"] if self.tickets else []
        found += [] if self.own_reads else ["nobody has read what he wrote"]
        found += [f"replicas served {self.share:.1%} of the reads, not {SHARE:.0%}"] if self.share < SHARE else []
        return found


def drive(shop: Shop, users: int, seconds: int) -> Load:
    """Let so many users at the shop, all of them within a third of the time."""
    with closing(Client(shop.cluster.config)) as client:
        before = _reads(client)
        figures = _locust(shop, users, seconds)
        for _ in polls(COUNTED_S):  # a process tells its counts with its next look at Redis
            ask(f"{shop.url}/default/customers")
            reads = _reads(client) - before
            if sum(reads.values()) >= sum(row["num_requests"] for row in figures["stats"]):
                break
    rows = figures["stats"]
    return Load(
        requests=sum(row["num_requests"] for row in rows),
        failures=figures["failures"],
        own_reads=sum(row["num_requests"] - row["num_failures"] for row in rows if row["name"] in OWN),
        reads=dict(reads),
        tickets=len(shop.errors),
        p50_ms=figures["p50_ms"],
        p99_ms=figures["p99_ms"],
    )


def _locust(shop: Shop, users: int, seconds: int) -> Any:
    """Run Locust in a process of its own: it makes all of Python's sockets others."""
    argv = [sys.executable, "-m", "examples.web2py.locust_run", shop.url, str(users), str(seconds)]
    run = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, timeout=seconds + GRACE_S, check=True)
    return json.loads(run.stdout)


def _reads(client: Client) -> Counter[str]:
    found: Counter[str] = Counter()
    for choice, reads in client.log.reads().items():
        found[Chosen.parse(choice).kind] += reads
    return found


@click.command()
@click.option("--users", default=USERS, show_default=True)
@click.option("--seconds", default=SECONDS, show_default=True)
@click.option("--workers", default=1, show_default=True)
def main(users: int, seconds: int, workers: int) -> None:
    """Bring the shop up on MariaDB, let users at it, and exit with 0 if all is as it must be."""
    if reason := why_not():
        raise click.ClickException(reason)
    console = Console(highlight=False)
    faults = ["it was interrupted"]
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-load-", ignore_cleanup_errors=True) as folder,
        suppress(KeyboardInterrupt),
    ):
        say = lambda step: console.print(f"  [dim]{step}[/]")  # noqa: E731
        with running_shop(Path(folder), "mariadb", workers=workers, report=say) as shop:
            console.print(f"{users} users for {seconds} s at {shop.url}")
            load = drive(shop, users, seconds)
        faults = load.faults
        console.print(f"{load.requests:,} requests, p50 {load.p50_ms:.0f} ms, p99 {load.p99_ms:.0f} ms")
        console.print(f"{load.own_reads:,} pages had to show their user's own write, and did")
        console.print(f"replicas served {load.share:.1%} of {sum(load.reads.values()):,} reads")
    for fault in faults:
        console.print(f"[bold red]{fault}[/]")
    sys.exit(int(bool(faults)))


if __name__ == "__main__":
    main()
