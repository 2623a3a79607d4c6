"""Measure the longest wait of a call or web request while Redis or a database hangs, as a share of `[redis] timeout_s`.

    python -m benchmarks.waits [--tries 10]

Redis is behind a proxy that holds back every byte from a chosen request on, with all connections open, or that delays
each reply. A primary is behind one, too. The time to sync the spool's file to the disk counts. Every op is in the log
or in the spool afterwards, or the run fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.servers.proxy import Proxy
from support.servers.rig import Rig, rig_of

from pipeline import clock
from pipeline.client import Client
from pipeline.model.receipt import Receipt
from pipeline.web.request import Request

TIMEOUT_S = 0.25
#: The delay of a reply, s: below what one reply may take, but three of them exceed the whole.
LINGERING_S = 0.35 * TIMEOUT_S
SPOOL = '[spool]\npath = "{}"\n'


@dataclass
class Ground:
    """A deployment whose Redis and whose first primary hang on demand."""

    rig: Rig
    redis: Proxy
    database: Proxy
    folder: Path

    @contextmanager
    def process(self, *, known: bool) -> Iterator[Client]:
        """Return a client like that of a new process of the host; *known*: the client has sent to both shards."""
        proxies = {self.rig.port("redis"): self.redis.port, self.rig.port("s0"): self.database.port}
        spool = SPOOL.format(self.folder / "host.spool")
        made = Client(self.rig.config_through(proxies, spool, f"[redis]\ntimeout_s = {TIMEOUT_S}\n"))
        made.define_tables(self.rig.db)
        if known:
            for owner in self.rig.owners(8):
                insert(made, owner)
        try:
            yield made
        finally:
            self.mend()
            assert any(not made.spool.waiting() for _ in clock.polls(60)), "the spool does not drain"
            made.close()

    def mend(self) -> None:
        """Let all bytes pass again."""
        self.redis.delay_s = 0.0
        for proxy in (self.redis, self.database):
            proxy.resume()
            proxy.cut()


def insert(client: Client, owner: int) -> Receipt:
    return client.enqueue_insert("event", owner=owner, body="waits")


def of_the_first(ground: Ground) -> int:
    """Return a shard key of the shard whose primary hangs."""
    topology = ground.rig.client.topology
    return next(o for o in ground.rig.owners(64) if topology.shard_of(topology.bucket_of("event", o)) == "s0")


def new_lineage(ground: Ground) -> None:
    """Delete Redis's epochs, as if Redis were another server."""
    for key in ground.rig.redis.scan_iter(match="*:epoch:*"):
        ground.rig.redis.delete(key)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=10)
    tries = parser.parse_args().tries
    print("| what hangs | who calls | waited, share of the time-out: median | longest |\n|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-bench-", dir=".") as name,
        ground_in(Path(name).resolve()) as ground,
    ):
        for (what, who), scene in SCENES.items():
            took = sorted(scene(ground) / TIMEOUT_S for _ in range(tries))
            print(f"| {what} | {who} | {took[len(took) // 2]:.2f} | {took[-1]:.2f} |", flush=True)


@contextmanager
def ground_in(folder: Path) -> Iterator[Ground]:
    folder = folder.resolve()
    with (
        rig_of(folder / "cluster", "mariadb", workers=0) as rig,
        Proxy(rig.port("redis")) as redis,
        Proxy(rig.port("s0")) as database,
    ):
        ground = Ground(rig, redis, database, folder)
        with ground.process(known=True):
            pass  # a host that has reached Redis before
        yield ground


def timed(call: Callable[[], Receipt | list[Receipt]]) -> float:
    """Return how long a call took, and check that its op is in the log or in the spool."""
    started = clock.mono_s()
    made = call()
    took_s = clock.mono_s() - started
    for receipt in made if isinstance(made, list) else [made]:
        assert receipt.producer, "neither sent nor spooled"
    return took_s


def one_call(break_it: Callable[[Ground], object], *, known: bool) -> Callable[[Ground], float]:
    """Measure one call of a process at work, or of a new one."""

    def scene(ground: Ground) -> float:
        with ground.process(known=known) as client:
            owner = of_the_first(ground)
            break_it(ground)
            return timed(lambda: insert(client, owner))

    return scene


known_process, new_process = partial(one_call, known=True), partial(one_call, known=False)


def request(break_it: Callable[[Ground], object], ops: int = 8) -> Callable[[Ground], float]:
    """Measure a web request in mode on_commit: its calls, and the sending after its commit."""

    def scene(ground: Ground) -> float:
        with ground.process(known=True) as client:
            owners = [of_the_first(ground), *ground.rig.owners(ops - 1)]
            break_it(ground)
            asked = Request(client, client.held())

            def whole() -> list[Receipt]:
                made = [asked.enqueue_insert("event", owner=owner, body="waits") for owner in owners]
                asked.finish()
                return made

            return timed(whole)

    return scene


def hanging(ground: Ground) -> None:
    ground.redis.pause()


def hanging_at(asked: bytes, *, forgotten: bool = False) -> Callable[[Ground], None]:
    def break_it(ground: Ground) -> None:
        if forgotten:
            new_lineage(ground)
        ground.redis.pause_at(asked)

    return break_it


def lingering(ground: Ground) -> None:
    ground.redis.delay_s = LINGERING_S


def lingering_and_forgotten(ground: Ground) -> None:
    new_lineage(ground)
    lingering(ground)


def database_hanging(ground: Ground) -> None:
    ground.database.pause()


def database_hanging_and_forgotten(ground: Ground) -> None:
    new_lineage(ground)
    database_hanging(ground)


SCENES = {
    ("nothing", "a process at work"): known_process(lambda ground: None),
    ("nothing", "a new process"): new_process(lambda ground: None),
    ("Redis", "a process at work"): known_process(hanging),
    ("Redis", "a new process"): new_process(hanging),
    ("Redis, at the lease of ids", "a new process"): new_process(hanging_at(b":ids\r")),
    ("Redis, at the epoch", "a new process"): new_process(hanging_at(b"replication")),
    ("Redis, at the append", "a new process"): new_process(hanging_at(b":bell:")),
    ("Redis, at a new epoch", "a process at work"): known_process(hanging_at(b"replication", forgotten=True)),
    ("Redis, at a look after it", "a process at work"): known_process(hanging_at(b"HGETALL", forgotten=True)),
    ("each reply lingers", "a process at work"): known_process(lingering),
    ("each reply lingers", "a new process"): new_process(lingering),
    ("each reply lingers, new lineage", "a process at work"): known_process(lingering_and_forgotten),
    ("each reply lingers", "a request of 8 ops"): request(lingering),
    ("each reply lingers, new lineage", "a request of 8 ops"): request(lingering_and_forgotten),
    ("Redis", "a request of 8 ops"): request(hanging),
    ("the primary", "a new process"): new_process(database_hanging),
    ("the primary, new lineage", "a process at work"): known_process(database_hanging_and_forgotten),
    ("the primary, new lineage", "a request of 8 ops"): request(database_hanging_and_forgotten),
}

if __name__ == "__main__":
    main()
