"""Receipts of a bucket one of whose keys is away: an op counts as applied once both shards have passed it."""

from __future__ import annotations

import pytest
from support.sandbox.deployments import Site, site
from support.sandbox.keys import KEY, World

from pipeline.config.buckets import NOWHERE
from pipeline.enqueue.producer import Acknowledged
from pipeline.errors import Lost, Rejected, WaitTimeout
from pipeline.shard.records import moves

__all__ = ["site"]


@pytest.fixture
def world(site: Site, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(Acknowledged, "_keep_watch", lambda self: None)  # no thread settles
    return World(site, "", split=True)


@pytest.mark.parametrize("known", [False, True], ids=["the map is old", "the map is news"])
@pytest.mark.parametrize("first_away", [False, True])
def test_an_op_counts_as_applied_once_both_shards_have_passed_it(world: World, known: bool, first_away: bool) -> None:
    receipt = world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.client.topology.follow(world.client.topology.placement if known else NOWHERE)
    assert bool(world.client.topology.split) is known
    world.log.mark_dirty(world.away, [world.piece])

    first, second = (world.away, world.home) if first_away else (world.home, world.away)
    world.apply(first)
    assert receipt.status() == "queued"
    with pytest.raises(WaitTimeout):
        receipt.wait(0.01)
    assert world.client.follower.why(receipt) is not None
    world.apply(second)

    assert receipt.status() == "applied"
    assert receipt.wait(1) == "applied"
    world.client.wait_all([receipt], timeout_s=1)
    world.client.barrier("purchase", timeout_s=1)


def test_a_barrier_waits_for_both_shards(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.apply(world.home)

    with pytest.raises(WaitTimeout):
        world.client.barrier("purchase", timeout_s=0.05)


def test_what_the_keys_shard_refuses_is_rejected(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    twin = world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    later = world.client.enqueue_update(world.db.purchase.id == twin.id, n=3)
    world.drain()

    assert (twin.status(), later.status()) == ("rejected", "parked")
    with pytest.raises(Rejected, match="UNIQUE constraint failed"):
        twin.wait(0)
    with pytest.raises(Rejected):
        world.client.wait_all([twin], timeout_s=1)
    reason = world.client.follower.why(later)
    assert reason is not None
    assert reason.kind == "parked"


def test_a_group_that_both_refuse_is_dropped_with_the_reason(world: World) -> None:
    with world.client.atomic():
        receipt = world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
        world.client.enqueue_insert(world.db.purchase, customer=world.others[0], day=1)
    world.drain()

    assert receipt.status() == "dropped"
    with pytest.raises(Rejected, match="send two groups"):
        receipt.wait(0)


def test_an_op_that_only_the_buckets_shard_has_passed_is_lost_where_redis_forgets_it(world: World) -> None:
    receipt = world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.apply(world.home)
    world.log.fail_over()
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=2)
    world.drain()

    assert receipt.status() == "lost"
    with pytest.raises(Lost):
        receipt.wait(0)


def test_an_op_of_a_bucket_that_has_stopped_for_its_key_is_as_the_bucket_says(site: Site) -> None:
    world = World(site, "", split=False)
    receipt = world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.drain()
    session = world.client.nodes.primary(world.home)
    with session.transaction():
        moves.set_state(session, [world.bucket], "stopped")

    assert receipt.status() == "applied"
