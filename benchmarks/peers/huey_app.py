"""Configure the Huey consumer of the peer "one task per write": no results stored, blocking pops."""

from __future__ import annotations

from huey import RedisHuey

from benchmarks.peers.purchases import insert, target
from benchmarks.rows import Row
from benchmarks.target import HUEY_DATABASE

huey = RedisHuey("purchases", url=target.peer_url(HUEY_DATABASE), results=False, immediate=False)


@huey.task()
def insert_purchase(row: Row) -> None:
    """Write one row."""
    insert(row)
