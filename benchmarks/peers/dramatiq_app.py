"""Configure the Dramatiq worker of the peer "one message per write", with the library's own defaults."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.purchases import insert, target
from benchmarks.rows import Row
from benchmarks.target import DRAMATIQ_DATABASE

broker = RedisBroker(url=target.peer_url(DRAMATIQ_DATABASE))
dramatiq.set_broker(broker)


@dramatiq.actor
def insert_purchase(row: Row) -> None:
    """Write one row."""
    insert(row)
