"""A replica is promoted by somebody else: the pipeline goes on there, with nothing restarted, lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers.probing import REPLICAS, Shard, probing, shard, until

from pipeline.config.settings import load
from pipeline.errors import ShardUnavailable
from pipeline.model.receipt import Receipt
from pipeline.shard.nodes import Nodes

pytestmark = pytest.mark.mariadb

HOUR_MS = 3_600_000


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Shard]:
    with shard(tmp_path / "cluster") as made:
        yield made


def additions(one: Shard, row_id: int, owner: int, count: int) -> list[Receipt]:
    """Enqueue what shows a loss as much as a double: additions to one row."""
    tally = one.db.tally
    return [one.client.enqueue_update(tally.id == row_id, n=tally.n + 1, shard_key=owner) for _ in range(count)]


def tallies(one: Shard, node: str) -> list[int]:
    lines = one.sql(node, "SELECT n FROM shop.tally ORDER BY owner").split()
    return list(map(int, lines[1:]))


def test_a_promoted_replica_gets_all_that_the_dead_primary_took_with_it_and_all_that_comes(one: Shard) -> None:
    workers = [one.start_worker(number) for number in range(2)]
    rows = [one.client.enqueue_insert("tally", {"owner": owner, "n": 0}) for owner in range(12)]
    one.client.wait_all(rows)
    one.healthy()
    for replica in REPLICAS:
        until(lambda replica=replica: len(tallies(one, replica)) == 12)  # type: ignore[misc]
    one.cut_off()
    unreplicated = [r for owner, row in enumerate(rows) for r in additions(one, row.id, owner, 5)]
    one.client.wait_all(unreplicated)
    assert tallies(one, "s0") == [5] * 12
    assert tallies(one, "s0-r0") == [0] * 12

    one.cluster.kill("s0")
    during = [r for owner, row in enumerate(rows) for r in additions(one, row.id, owner, 5)]
    one.promote("s0-r0")
    one.follow("s0-r1", one.port("s0-r0"))
    after = [r for owner, row in enumerate(rows) for r in additions(one, row.id, owner, 5)]

    until(lambda: tallies(one, "s0-r0") == [15] * 12)
    until(lambda: one.report("s0-r0").takes_writes is True and one.report("s0").takes_writes is None)
    one.client.wait_all([*unreplicated, *during, *after])
    until(lambda: tallies(one, "s0-r1") == [15] * 12)
    one.healthy("s0-r1")
    assert one.client.nodes.primary_name("s0") == "s0-r0"
    assert set(one.client.nodes.replica_names("s0")) == {"s0", "s0-r1"}
    assert all(map(one.cluster.is_alive, workers))


def test_with_nothing_new_to_write_a_promotion_alone_brings_back_what_was_not_replicated(one: Shard) -> None:
    one.start_worker(0)
    [row] = [one.client.enqueue_insert("tally", {"owner": 1, "n": 0})]
    row.wait(20)
    one.healthy()
    for replica in REPLICAS:
        until(lambda replica=replica: tallies(one, replica) == [0])  # type: ignore[misc]
    one.cut_off()
    assert row.id is not None
    one.client.wait_all(additions(one, row.id, 1, 7))

    one.cluster.kill("s0")
    one.promote("s0-r0")

    until(lambda: tallies(one, "s0-r0") == [7])


def test_a_primary_that_was_made_read_only_is_left_for_the_one_that_takes_writes(one: Shard) -> None:
    one.start_worker(0)
    row = one.client.enqueue_insert("tally", {"owner": 1, "n": 0})
    row.wait(20)
    one.healthy()
    assert row.id is not None

    one.sql("s0", "SET GLOBAL read_only=1")
    receipts = additions(one, row.id, 1, 3)
    until(lambda: tallies(one, "s0-r0") == [0])
    one.promote("s0-r0")
    account = f"MASTER_USER='replicator', MASTER_PASSWORD='{one.cluster.password}'"
    one.sql("s0", f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', {account}, MASTER_USE_GTID=slave_pos")
    one.follow("s0", one.port("s0-r0"))

    one.client.wait_all(receipts)
    assert tallies(one, "s0-r0") == [3]
    until(lambda: tallies(one, "s0") == [3])
    one.healthy("s0")
    until(lambda: one.client.nodes.primary_name("s0") == "s0-r0")


def test_a_failed_primary_s_nodes_are_asked_also_while_nobody_probes(one: Shard) -> None:
    nodes = Nodes(load(one.config))
    assert nodes.primary("s0").query("SELECT 1") == [(1,)]

    one.cluster.kill("s0")
    one.promote("s0-r0")
    with pytest.raises(ShardUnavailable):
        nodes.primary("s0").query("SELECT 1")

    assert nodes.primary("s0").node == "s0-r0"
    assert nodes.primary("s0").query("SELECT CURRENT_USER()") == [("app@127.0.0.1",)]
    nodes.close()


def test_of_two_promoted_replicas_none_is_chosen_and_the_error_names_both(one: Shard) -> None:
    nodes = Nodes(load(one.config))
    nodes.primary("s0").query("SELECT 1")
    one.cluster.kill("s0")
    for replica in REPLICAS:
        one.promote(replica)
    with pytest.raises(ShardUnavailable):
        nodes.primary("s0").query("SELECT 1")

    with pytest.raises(ShardUnavailable, match="s0-r0 and s0-r1 both take writes"):
        nodes.primary("s0")
    nodes.close()


def test_the_prober_says_who_takes_writes_and_has_the_promoted_node_reconciled(one: Shard) -> None:
    log = one.client.log
    log.take_lease("reconcile:s0", HOUR_MS)  # the last reconcile was a moment ago
    with probing(one):
        one.healthy()
        one.cluster.kill("s0")
        one.promote("s0-r0")

        until(lambda: one.client.nodes.primary_name("s0") == "s0-r0")
        until(lambda: log.take_lease("reconcile:s0", HOUR_MS))  # as a worker does that is free for it
