"""Time an enqueue with `sign_key` beside one without: calls in turn, on one Redis, from one process.

python -m benchmarks.signing --rounds 4000
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from pydal import DAL, Field

from benchmarks.turns import HEAD, in_turn, report
from pipeline.admin.migrate import migrate
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.devcluster.cluster import Cluster
from pipeline.oplog.doorbell import SilentBell

KEYS = {"signed": "k" * 40, "plain": ""}
GOAL = "≤ 1.1 ×"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4000)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        cluster = Cluster.up(Path(folder) / "cluster", shards=1, replicas=0, workers=0, owned=True)
        stack.callback(cluster.down)
        db = stack.enter_context(closing(DAL("sqlite:memory", bigint_id=True, migrate=False)))
        db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer"), Field("note", length=80))
        clients = [stack.enter_context(closing(_client(load(cluster.config).redis.url, folder, name))) for name in KEYS]
        for client in clients:
            client.define_tables(db)
            migrate(client)
        print(HEAD)
        report("an insert, signed; beside: not signed", *in_turn(rounds, *(_insert(one, db) for one in clients)), GOAL)


def _client(url: str, folder: str, name: str) -> Client:
    return Client(
        {
            "redis": {"url": url, "prefix": name, "sign_key": KEYS[name]},
            "shards": {"s0": {"primary": f"sqlite://{folder}/{name}.sqlite"}},
            "spool": {"enabled": False},
        },
        bell=SilentBell(),
    )


def _insert(client: Client, db: Any) -> Any:
    return lambda: client.enqueue_insert(db.purchase, customer=7, qty=3, note="as long as what people write in notes")


if __name__ == "__main__":
    main()
