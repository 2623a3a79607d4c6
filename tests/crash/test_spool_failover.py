"""Ops of level `spooled` while a MariaDB primary dies with what was not replicated, and Redis forgets everything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers.probing import REPLICAS, Shard, shard, until

from pipeline.model.receipt import Receipt
from pipeline.oplog.redis.connection import connect

pytestmark = pytest.mark.mariadb

OWNERS = 6


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Shard]:
    with shard(tmp_path / "cluster") as made:
        yield made


class Producers:
    """Threads that add to one row each, until they are told to end; every call must be acknowledged."""

    def __init__(self, one: Shard, rows: list[Receipt]):
        self.receipts: list[list[Receipt]] = [[] for _ in rows]
        self.faults: list[BaseException] = []
        self._one, self._ended = one, threading.Event()
        self._threads = [threading.Thread(target=self._add, args=(n, row.id)) for n, row in enumerate(rows)]
        for thread in self._threads:
            thread.start()

    def more(self, count: int) -> None:
        """Wait until each has been acknowledged so many more."""
        wanted = [len(done) + count for done in self.receipts]
        until(lambda: bool(self.faults) or all(len(d) >= w for d, w in zip(self.receipts, wanted, strict=True)), 60)
        assert self.faults == []

    def end(self) -> list[int]:
        """Return how many ops of each were acknowledged."""
        self._ended.set()
        for thread in self._threads:
            thread.join(30)
        assert self.faults == []
        return [len(done) for done in self.receipts]

    def _add(self, owner: int, row_id: int | None) -> None:
        tally = self._one.db.tally
        try:
            while not self._ended.wait(0.01):
                receipt = self._one.client.enqueue_update(
                    tally.id == row_id, n=tally.n + 1, shard_key=owner, durability="spooled"
                )
                self.receipts[owner].append(receipt)
        except BaseException as error:
            self.faults.append(error)


def tallies(one: Shard, node: str) -> list[int]:
    return list(map(int, one.sql(node, "SELECT n FROM shop.tally ORDER BY owner").split()[1:]))


@pytest.mark.parametrize("redis", ["keeps all", "forgets all"])
def test_no_acknowledged_op_is_lost_or_doubled_when_the_primary_dies_with_what_was_not_replicated(
    one: Shard, redis: str
) -> None:
    one.start_worker(0)
    rows = [one.client.enqueue_insert("tally", {"owner": owner, "n": 0}) for owner in range(OWNERS)]
    one.client.wait_all(rows)
    one.healthy()
    for replica in REPLICAS:
        until(lambda replica=replica: len(tallies(one, replica)) == OWNERS)  # type: ignore[misc]
    producers = Producers(one, rows)
    producers.more(10)
    one.cut_off()
    producers.more(20)
    until(lambda: sum(tallies(one, "s0")) > sum(tallies(one, "s0-r0")) + 10 * OWNERS)

    one.cluster.kill("s0")
    if redis == "forgets all":
        with connect(one.client.settings.redis.url, read_s=5, connect_s=5) as client:
            client.flushall()
    producers.more(20)
    promoted, behind = REPLICAS  # the first has all that the other has
    one.promote(promoted)
    one.follow(behind, one.port(promoted))
    producers.more(20)
    acknowledged = producers.end()

    until(lambda: tallies(one, promoted) == acknowledged, 60)
    until(lambda: tallies(one, behind) == acknowledged)
    assert {receipt.wait(20) for done in producers.receipts for receipt in done} <= {"applied", "durable"}
