"""What an operator sees of moves: how far each is, what stands still, and each bucket at the shard that owns it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.sandbox.deployments import Site, drain, insert, run, site

from pipeline.admin.moving import mover as movers
from pipeline.admin.moving import orders
from pipeline.admin.moving.mover import Mover
from pipeline.admin.observe.observer import Observer
from pipeline.admin.observe.reached import ask_node
from pipeline.admin.observe.record import Record
from pipeline.client import Client
from pipeline.errors import ShardUnavailable
from pipeline.reads.health.probe import probe
from pipeline.reads.health.report import Report

__all__ = ["site"]

CUSTOMERS = range(40)
Look = Callable[[], Record]


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)


@pytest.fixture
def client(site: Site) -> Client:
    return run(site, *CUSTOMERS)


@pytest.fixture
def observer(site: Site, client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Observer]:
    monkeypatch.setattr("pipeline.admin.observe.observer.log_of", lambda settings, read_s: site.log)
    monkeypatch.setattr("pipeline.admin.observe.observer.COUNTS_S", 0.0)
    monkeypatch.setattr(type(site.log), "close", lambda log: None)
    made = Observer(client.settings)
    yield made
    made.close()


@pytest.fixture(params=["by its workers", "by its own look"])
def look(request: pytest.FixtureRequest, client: Client, observer: Observer) -> Look:
    """Return how a record is made: as workers make it, and as a command does where none runs."""

    def followed() -> Record:
        probed(client)
        return observer.follow()

    return followed if request.param == "by its workers" else observer.look


def probed(client: Client) -> None:
    """Publish what the prober does."""
    found = {}
    for shard in client.topology.shards:
        result = probe(client.nodes.primary(shard))
        marks = {bucket: position for bucket, position in result.marks.items() if position.epoch > 0}
        found[shard] = Report(0, False, True, "", marks).to_json()
    client.log.publish_health(found, 60_000)


def customer_on(client: Client, shard: str) -> tuple[int, int]:
    """Return a bucket of a shard, and a customer whose rows it has."""
    found = ((client.topology.bucket_of("purchase", one), one) for one in CUSTOMERS)
    return next(pair for pair in found if client.topology.shard_of(pair[0]) == shard)


def until(mover: Mover, stage: str) -> Iterator[movers.MoveStep]:
    """Go on until a stage; return what is left of the steps."""
    steps = mover.steps()
    while next(steps).stage != stage:
        pass
    return steps


def depths(record: Record) -> list[int | None]:
    return [shard.depth for shard in record.shards]


def test_ops_of_a_bucket_that_has_moved_are_queued_at_the_shard_that_owns_it(client: Client, look: Look) -> None:
    bucket, customer = customer_on(client, "s0")
    [*_, last] = orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()
    assert last.stage == "over"
    for _ in range(3):
        insert(client, customer)

    record = look()

    assert not record.unknown
    assert depths(record) == [0, 3]
    assert [one.bucket for one in record.shards[1].buckets] == [bucket]
    drain(client)
    assert depths(look()) == [0, 0]


def test_an_op_is_queued_at_one_shard_at_each_step_of_a_move(client: Client, look: Look) -> None:
    bucket, customer = customer_on(client, "s0")
    sent = 0
    for _ in orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps():
        insert(client, customer)
        sent += 1
        assert sum(depth or 0 for depth in depths(look())) == sent
    assert sent > 4
    assert depths(look()) == [0, sent]


def test_of_a_shard_whose_primary_is_away_no_bucket_is_counted_that_has_left(
    client: Client, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, customer = customer_on(client, "s0")
    [*orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()]
    insert(client, customer)
    away = ShardUnavailable("s0", "away")

    def without_s0(shard: str, uri: str) -> object:
        if shard == "s0":
            raise away
        return asked(shard, uri)

    asked = ask_node
    monkeypatch.setattr("pipeline.admin.observe.observer.ask_node", without_s0)

    record = observer.look()

    assert record.shards[0].at_most
    assert depths(record) == [0, 1]


def test_ops_of_a_bucket_that_has_come_are_no_sudden_rate(client: Client, look: Look) -> None:
    bucket, customer = customer_on(client, "s0")
    for _ in range(50):
        insert(client, customer)
    drain(client)
    look()
    [*orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()]
    drain(client)

    assert [shard.rate for shard in look().shards] == [0.0, 0.0]
