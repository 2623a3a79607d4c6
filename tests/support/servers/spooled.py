"""A deployment with a Redis behind a proxy, and clients that have a spool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.client import Client
from pipeline.clock import polls
from pipeline.model.receipt import Receipt
from support.oracle import nodes
from support.servers.proxy import Proxy
from support.servers.rig import Rig

SPOOL = '[spool]\npath = "{}"\n'


class Spooled:
    """A deployment with a Redis behind a proxy, and clients that have a spool."""

    def __init__(self, rig: Rig, folder: Path):
        self.rig = rig
        self.proxy = Proxy(rig.port("redis"))
        self.path = folder / "app.spool"
        text = SPOOL.format(self.path)
        self.config = rig.config_through({rig.port("redis"): self.proxy.port}, text, "[redis]\ntimeout_s = 0.25\n")
        self.client = self.another()
        [self.owner] = rig.owners(1)
        self.tokens: list[str] = []
        self.row = self.client.enqueue_insert(rig.db.tally, owner=self.owner, name="counter")

    def another(self) -> Client:
        made = Client(self.config)
        made.define_tables(self.rig.db)
        return made

    def forget_epochs(self) -> None:
        """Let Redis be as another server, which has never given out an epoch."""
        redis = self.rig.redis
        redis.delete(*redis.scan_iter(match=f"{self.client.log.keys.epoch('*')[:-1]}*"))

    def epochs(self) -> int:
        """Return how many scopes have an epoch."""
        return len(list(self.rig.redis.scan_iter(match=f"{self.client.log.keys.epoch('*')[:-1]}*")))

    def run(self, code: str) -> str:
        """Return what a process of its own prints."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PIPELINE_CONFIG": str(self.config), "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()

    def bump(self, client: Client | None = None, **how: Any) -> Receipt:
        """Send an op that shows when it is doubled, lost or out of order."""
        token = f"{len(self.tokens)},"
        self.tokens.append(token)
        tally = self.rig.db.tally
        values = {"n": tally.n + 1, "trace": tally.trace + token}
        return (client or self.client).enqueue_update("tally", self.row.id, values, shard_key=self.owner, **how)

    def drained(self) -> bool:
        return any(not self.client.spool.waiting() for _ in polls(30))

    def found(self) -> tuple[int, str]:
        """Return the counter's row as it is in its shard."""
        shard = self.client.topology.shard_of(self.row.bucket)
        with nodes.connection(self.rig.primaries[shard]) as made:
            [(n, trace)] = nodes.fetch(made, f"SELECT n, trace FROM tally WHERE id = {self.row.id}")
        return n, trace

    def holds(self, receipts: list[Receipt]) -> None:
        """Assert that every op was applied once and in order."""
        with self.rig.worker(self.rig.config):
            for receipt in receipts:
                assert receipt.wait(30) in ("applied", "durable")
            assert self.found() == (len(self.tokens), "".join(self.tokens))

    def close(self) -> None:
        self.client.close()
        self.proxy.close()
