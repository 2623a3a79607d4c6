"""A receipt is true while its bucket moves, also in a process that has not heard of the move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from support.sandbox.deployments import Site, apply, drain, insert, run, site

from pipeline.admin import moving as movers
from pipeline.admin.moving import orders
from pipeline.admin.moving.carrier import MoveStep
from pipeline.client import Client
from pipeline.enqueue import receipt_status

__all__ = ["site"]

CUSTOMER = 7


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)


@pytest.fixture
def client(site: Site) -> Client:
    return run(site, CUSTOMER)


@pytest.fixture
def deaf(site: Site) -> Client:
    """A process whose reads bring no news of the map."""
    made = site.client()
    made.health._topology = None
    return made


def moved(client: Client, stage: str = "over") -> str:
    """Move the customer's bucket up to a stage; return the shard that had it."""
    bucket = client.topology.bucket_of("purchase", CUSTOMER)
    source = client.topology.shard_of(bucket)
    [target] = {*client.topology.shards} - {source}
    for step in orders.order_move(client, [bucket], target, "me", keep_s=0).steps():
        if step.stage == stage:
            break
    return source


def test_an_op_that_was_applied_behind_a_move_is_known_to_be(client: Client, deaf: Client) -> None:
    receipt = insert(deaf, CUSTOMER)
    source = moved(client)
    drain(client)
    assert deaf.topology.shard_of(receipt.bucket) == source

    assert receipt.wait(timeout_s=0) == "applied"

    assert deaf.topology.shard_of(receipt.bucket) != source


def test_an_op_waits_while_its_bucket_has_no_owner(client: Client, deaf: Client) -> None:
    receipt = insert(deaf, CUSTOMER)

    moved(client, "stopping")

    assert receipt.status() == "queued"


def test_a_barrier_passes_behind_a_move(client: Client, deaf: Client) -> None:
    insert(deaf, CUSTOMER)
    moved(client)
    drain(client)

    deaf.barrier("purchase", timeout_s=5)


def test_what_redis_has_of_both_shards_ends_the_wait_for_an_op(
    client: Client, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_status, "STATUS_S", 1e9)  # no database is asked in between
    other = site.client()
    receipt = insert(other, CUSTOMER)
    source = moved(client, "comparing")
    other.topology.follow(client.topology.placement)
    other.health._topology = None
    [left] = orders.under_way(client)
    for _ in left.steps():
        pass
    drain(client)
    asked, mark = [], other.log.mark
    monkeypatch.setattr(other.log, "mark", lambda shard, bucket: asked.append(shard) or mark(shard, bucket))

    assert receipt.wait(timeout_s=1) == "applied"

    assert asked[:2] == [source, *{*other.topology.shards} - {source}]


def test_a_bucket_that_arrives_while_a_worker_lets_it_rest_is_applied_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mover ends a rest that has not begun yet: then nobody would end it."""
    steps = iter_moved(client)
    receipt = insert(client, CUSTOMER)
    shard, bucket, postpone = client.topology.shard_of(receipt.bucket), receipt.bucket, client.log.postpone
    [target] = {*client.topology.shards} - {shard}
    while next(steps).text != f"{shard} has stopped":
        pass
    client.log.mark_dirty(target, [bucket])

    def late(shard: str, buckets: Iterable[int], delay_ms: int) -> None:
        monkeypatch.setattr(client.log, "postpone", postpone)
        for _ in steps:
            pass
        postpone(shard, buckets, delay_ms)

    monkeypatch.setattr(client.log, "postpone", late)

    assert apply(client, target).ring
    apply(client, target)

    assert receipt.wait(timeout_s=0) == "applied"


def iter_moved(client: Client) -> Iterator[MoveStep]:
    bucket = client.topology.bucket_of("purchase", CUSTOMER)
    [target] = {*client.topology.shards} - {client.topology.shard_of(bucket)}
    return orders.order_move(client, [bucket], target, "me", keep_s=0).steps()
