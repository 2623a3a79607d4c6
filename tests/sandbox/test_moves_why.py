"""What waits for a move says so, with the command that shows or ends the move; what has moved is asked where it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.sandbox.deployments import Site, drain, insert, model, run, site
from test_moves_shown import CUSTOMERS, Look, customer_on, depths, known_at_once, look, observer, until

from pipeline.admin import stops
from pipeline.admin.moving import MoveStep, orders
from pipeline.admin.why import why
from pipeline.client import Client
from pipeline.enqueue import buckets
from pipeline.errors import BadOp, ShardUnavailable, WaitTimeout
from pipeline.oplog.shared_state import ALIVE, ALIVE_TOKEN
from pipeline.shard.records import moves

__all__ = ["known_at_once", "look", "observer", "site"]


@pytest.fixture
def client(site: Site) -> Client:
    made = run(site, *CUSTOMERS)
    for shard in made.topology.shards:
        made.log.hold_lease(ALIVE.format(shard), ALIVE_TOKEN, 600_000)
    return made


def at_cut_over(client: Client, bucket: int) -> Iterator[MoveStep]:
    """Move a bucket until its source has stopped; return what is left of the steps."""
    return until(orders.order_move(client, [bucket], "s1", "me", keep_s=0), "stopping")


def because(bucket: int) -> str:
    return (
        f"because the move of {bucket} from s0 to s1 is at its cut-over; a mover ends it: see pipeline move list; or"
        f" run: pipeline move give-up {bucket}"
    )


def test_an_op_that_is_stopped_for_the_cut_over_says_so_to_all_who_ask(client: Client) -> None:
    bucket, customer = customer_on(client, "s0")
    steps = at_cut_over(client, bucket)
    receipt = insert(client, customer)
    drain(client)

    for name in (str(receipt), str(bucket), "s0", "purchase", ""):
        answer = why(client, name)
        assert [reason.kind for reason in answer.reasons] == ["moving"], name
        assert because(bucket) in answer.sentences[0], name
    with pytest.raises(WaitTimeout) as caught:
        receipt.wait(0)
    assert caught.value.why.endswith(because(bucket).removeprefix("because "))

    assert [*steps][-1].stage == "over"
    drain(client)
    assert receipt.status() == "applied"
    assert why(client, "").state == "fine"


def test_a_move_that_stops_no_op_is_no_reason_to_wait(client: Client) -> None:
    bucket, _ = customer_on(client, "s0")
    at_cut_over(client, bucket)

    assert why(client, "s0").reasons == ()
    assert why(client, str(bucket)).sentences == (
        f"bucket {bucket} is being moved from s0 to s1: stopping; see pipeline move list; or run: pipeline move give-up"
        f" {bucket}",
    )


def test_the_record_has_the_reason_at_the_shard_that_has_stopped(client: Client, look: Look) -> None:
    bucket, customer = customer_on(client, "s0")
    at_cut_over(client, bucket)
    client.log._server.keys.clear()  # type: ignore[attr-defined]
    insert(client, customer)

    s0, s1 = look().shards

    assert [(one.kind, one.scope, one.buckets) for one in s0.waits] == [("moving", str(bucket), 1)]
    assert s1.waits == ()
    assert depths(look()) == [1, 0]


def test_while_a_bucket_arrives_its_ops_wait_for_nothing_of_the_move(client: Client) -> None:
    bucket, customer = customer_on(client, "s0")
    until(orders.order_move(client, [bucket], "s1", "me", keep_s=0), "comparing")
    receipt = insert(client, customer)

    assert [reason.kind for reason in why(client, str(receipt)).reasons] == ["queued"]
    assert f"bucket {bucket} is being moved from s0 to s1: comparing;" in why(client, str(bucket)).sentences[-1]


def test_an_op_of_a_bucket_that_has_moved_is_asked_for_where_it_is(client: Client, site: Site) -> None:
    bucket, customer = customer_on(client, "s0")
    other, late = site.client(), site.client()
    first, second = insert(other, customer), insert(late, customer)
    [*orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()]
    queued = insert(client, customer)

    assert [(one.kind, one.shard) for one in why(other, str(queued)).reasons] == [("queued", "s1")]
    drain(client)
    assert first.wait(5) == "applied"
    assert second.status() == "applied"
    assert other.topology.shard_of(bucket) == "s1"
    assert why(client, str(bucket)).sentences == (f"nothing of bucket {bucket} waits; s1 owns it",)


def test_once_the_target_has_begun_nothing_waits_for_the_move(client: Client) -> None:
    bucket, customer = customer_on(client, "s0")
    until(orders.order_move(client, [bucket], "s1", "me", keep_s=3600), "waiting")
    queued = insert(client, customer)

    assert why(client, "s0").reasons == ()
    for name in ("s1", str(queued), str(bucket)):
        assert [(one.kind, one.shard) for one in why(client, name).reasons] == [("queued", "s1")], name
    assert why(client, str(bucket)).sentences[-1] == (
        f"bucket {bucket} is being moved from s0 to s1: waiting; see pipeline move list"
    )


def test_who_has_a_bucket_is_found_from_any_shard_that_had_it(client: Client) -> None:
    bucket, _ = customer_on(client, "s0")
    home = client.nodes
    assert buckets.where(home, bucket, "s0") == ("s0", None)
    for step in orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps():
        owner, leg = buckets.where(home, bucket, "s0")
        if step.stage in ("copying", "comparing"):
            assert (owner, leg, buckets.where(home, bucket, "s1")) == ("s0", None, ("s0", None))
        if step.stage == "cleaning":
            assert (owner, leg) == ("s1", None)
    [*orders.order_move(client, [bucket], "s0", "me", keep_s=0).steps()]
    assert [buckets.where(home, bucket, shard) for shard in ("s0", "s1")] == [("s0", None)] * 2


def test_a_source_that_has_forgotten_a_move_has_the_bucket(client: Client) -> None:
    bucket, _ = customer_on(client, "s0")
    mover = orders.order_move(client, [bucket], "s1", "me")
    next(mover.steps())
    source = client.nodes.primary("s0")
    with source.transaction():
        moves.forget_legs(source, [bucket], mover.leg.move)

    assert buckets.where(client.nodes, bucket, "s1") == ("s0", None)


def test_a_barrier_ends_also_where_a_bucket_has_moved_meanwhile(client: Client, site: Site) -> None:
    bucket, customer = customer_on(client, "s0")
    other = site.client()
    other.define_tables(model())
    [*orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()]
    insert(client, customer)
    drain(client)

    other.follower.barrier("purchase", 5)


def test_a_shard_that_is_away_while_a_bucket_moves_is_named_with_the_move(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, customer = customer_on(client, "s0")
    at_cut_over(client, bucket)
    receipt, primary = insert(client, customer), client.nodes.primary

    def without_s1(shard: str) -> object:
        if shard == "s1":
            raise ShardUnavailable(shard, "away")
        return primary(shard)

    monkeypatch.setattr(client.nodes, "primary", without_s1)

    for name in (str(receipt), "s0"):
        assert because(bucket) in why(client, name).sentences[0]


def test_a_process_that_knows_an_old_map_wakes_the_buckets_that_a_shard_has_now(client: Client, site: Site) -> None:
    bucket, customer = customer_on(client, "s0")
    flower = site.client()
    shard = stops.target_of(flower, "shard:s1")
    [*orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()]
    drain(client)
    stops.pause(client, shard)
    insert(client, customer)
    client.log.postpone("s1", [bucket], 4_000)

    stops.resume(flower, shard)

    assert bucket in client.log.due("s1", 99)


def test_a_number_that_is_no_bucket_is_refused(client: Client) -> None:
    with pytest.raises(BadOp, match="no bucket 64: there are 0-63"):
        why(client, "64")
