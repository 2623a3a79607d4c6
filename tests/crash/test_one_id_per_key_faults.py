"""One idempotency key, two processes of a host, a real Redis that dies, hangs and comes back: one row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.oracle import nodes
from support.servers.rig import Rig
from support.servers.spooled import Spooled

from pipeline.client import Client
from pipeline.model.receipt import Receipt


class Doubled(Spooled):
    """A host with two clients, as two of its processes would have them."""

    def __init__(self, rig: Rig, folder: Path):
        super().__init__(rig, folder)
        self.pair = [self.another(), self.another()]
        for client in self.pair:  # they know the epoch and have ids
            client.enqueue_insert(rig.db.event, owner=self.owner, body="before")

    def noted(self, client: Client) -> Receipt:
        values = {"owner": self.owner, "body": "once"}
        return client.enqueue_insert(self.rig.db.event, values, idempotency_key=f"form {self.owner}")

    def stop(self, how: str) -> None:
        if how == "dies":
            self.rig.cluster.kill("redis")
        else:
            self.proxy.pause()

    def go_on(self, how: str) -> None:
        if how == "dies":
            self.rig.cluster.start("redis")
        else:
            self.proxy.resume()

    def once(self) -> list[int]:
        """Bring everything to the shards; return the ids of the rows that were written with the key."""
        assert self.drained()
        self.client.drainer.drain()  # type: ignore[union-attr]  # it has a spool
        with self.rig.worker(self.rig.config):
            self.client.barrier("event", 30)
        shard = self.client.topology.shard_of(self.row.bucket)
        sql = f"SELECT id FROM event WHERE body = 'once' AND owner = {self.owner}"
        return [row for (row,) in nodes.rows(self.rig.primaries[shard], sql)]

    def one_row(self, *receipts: Receipt) -> None:
        """Assert that all made one row, that one of them names it, and that all say so."""
        [row] = self.once()
        assert row in [receipt.id for receipt in receipts]
        assert {receipt.wait(10) for receipt in receipts} <= {"applied", "durable"}

    def close(self) -> None:
        for client in self.pair:
            client.close()
        super().close()


@pytest.fixture
def doubled(valkey: Rig, tmp_path: Path) -> Iterator[Doubled]:
    with closing(Doubled(valkey, tmp_path)) as made:
        yield made


FAULTS = pytest.mark.parametrize("how", ["dies", "hangs"])


@FAULTS
@pytest.mark.parametrize(("goes", "comes_back"), [("before", "after"), ("before", "between"), ("between", "after")])
def test_two_calls_make_one_row_and_each_knows_that_it_is_there(
    doubled: Doubled, how: str, goes: str, comes_back: str
) -> None:
    first, second = doubled.pair
    held = first.held()
    if goes == "before":
        doubled.stop(how)
    with first.holding(held):
        one = doubled.noted(first)
    if goes == "between":
        doubled.stop(how)
    if comes_back == "between":
        doubled.go_on(how)

    other = doubled.noted(second)
    held.send()
    if comes_back == "after":
        doubled.go_on(how)

    doubled.one_row(one, other)


@FAULTS
def test_both_come_at_the_moment_at_which_redis_goes(doubled: Doubled, how: str) -> None:
    barrier, receipts = threading.Barrier(4), list[Receipt]()

    def call(client: Client, held: bool) -> None:
        ops = client.held()
        barrier.wait(30)
        if held:
            with client.holding(ops):
                receipts.append(doubled.noted(client))
            ops.send()
        else:
            receipts.append(doubled.noted(client))

    threads = [threading.Thread(target=call, args=(client, held)) for client in doubled.pair for held in (True, False)]
    doubled.stop(how)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    doubled.go_on(how)

    assert len(receipts) == 4
    doubled.one_row(*receipts)


@FAULTS
def test_both_calls_are_told_the_id_of_the_row_again_once_redis_is_back(doubled: Doubled, how: str) -> None:
    first, second = doubled.pair
    doubled.stop(how)
    first.enqueue_insert(doubled.rig.db.event, owner=doubled.owner, body="between")
    doubled.go_on(how)
    assert doubled.drained()
    held = first.held()
    first.away.close()

    with first.holding(held):
        one = doubled.noted(first)
    other = doubled.noted(second)
    held.send()

    assert doubled.once() == [one.id] == [other.id]
