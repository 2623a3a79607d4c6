"""A shard's backup of before a bucket's move, or of during it: no bucket has two owners, or loses its rows unseen."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from support.sandbox.deployments import Site, backup_of, drain, drop_own_tables, insert, restore, run, site

from pipeline.admin import absence, upkeep
from pipeline.admin import moving as movers
from pipeline.admin.moving import orders
from pipeline.apply.applier import Applier
from pipeline.enqueue import deployment
from pipeline.errors import PipelineError
from pipeline.shard.columns import columns_of
from pipeline.shard.records import ledger_queries

__all__ = ["site"]


class World:
    """Two shards, and a bucket with rows that begins on s0."""

    def __init__(self, site: Site, *shards: str):
        self.site, self.client = site, run(site, shards=dict.fromkeys(shards or ("s0", "s1")))
        topology = self.client.topology
        buckets = ((one, topology.bucket_of("purchase", one)) for one in range(99))
        self.customer, self.bucket = next(pair for pair in buckets if topology.shard_of(pair[1]) == "s0")
        self.insert(5)

    def insert(self, count: int) -> list[Any]:
        found = [insert(self.client, self.customer) for _ in range(count)]
        drain(self.client)
        return found

    def move(self, target: str, upto: str = "over") -> None:
        self.order(target)
        self.go_on(upto)

    def order(self, target: str) -> None:
        orders.order_move(self.client, [self.bucket], target, "me", keep_s=0)

    def go_on(self, upto: str = "over") -> None:
        """Let movers go on with what is under way, up to a step."""
        for mover in orders.under_way(self.client):
            for step in mover.steps():
                if step.stage == upto:
                    break

    def states(self) -> list[str | None]:
        found = (
            ledger_queries.marks_of(self.client.nodes.primary(shard), [self.bucket]).get(self.bucket)
            for shard in self.client.topology.shards
        )
        return [mark.state if mark else None for mark in found]

    def rows(self, shard: str) -> int:
        sql = f"SELECT COUNT(*) FROM purchase WHERE customer = {self.customer}"
        return int(self.client.nodes.primary(shard).query(sql)[0][0])


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)


@pytest.fixture
def world(site: Site) -> World:
    return World(site)


@pytest.mark.parametrize("own_tables", [True, False])
@pytest.mark.parametrize("ops", [0, 2])
def test_a_backup_without_the_rows_of_a_bucket_that_came_is_refused_before_anything_is_done(
    world: World, own_tables: bool, ops: int
) -> None:
    before = backup_of(world.client, "s1")
    world.move("s1")
    world.insert(ops)
    restore(world.client, "s1", before)
    if not own_tables:
        drop_own_tables(world.client, "s1")

    why = f"this backup of s1 lacks the rows of the buckets {world.bucket}, which moved there from s0 by an order of"
    for refused in (absence.restoration_of, absence.restore):
        with pytest.raises(PipelineError, match=f"{why} .*: restore a backup of after the move, roll forward"):
            refused(world.client, "s1")

    assert bool(columns_of(world.client.nodes.primary("s1"), "pipeline_watermarks")) is own_tables
    if own_tables:
        assert world.states() == ["gone", None]


@pytest.mark.parametrize("stage", ["copying", "comparing"])
def test_a_backup_of_a_target_of_during_the_move_is_refused_once_the_source_keeps_no_rows(
    world: World, stage: str
) -> None:
    world.move("s1", upto=stage)
    during = backup_of(world.client, "s1")
    world.go_on()
    restore(world.client, "s1", during)

    with pytest.raises(PipelineError, match=f"lacks the rows of the buckets {world.bucket}"):
        absence.restore(world.client, "s1")


@pytest.mark.parametrize(
    ("stage", "until"),
    [
        *(("begin", until) for until in ("copying", "comparing", "stopping")),
        *(("copying", until) for until in ("comparing", "stopping")),
        ("comparing", "stopping"),
        ("stopping", "stopping"),
    ],
)
def test_a_target_that_is_restored_during_a_move_is_copied_to_again(world: World, stage: str, until: str) -> None:
    """The source keeps the rows until the move is over: nothing is missing yet, whatever the backup has."""
    backup = backup_of(world.client, "s1")
    world.order("s1")
    if stage != "begin":
        world.go_on(stage)
        backup = backup_of(world.client, "s1")
    world.insert(2)
    world.go_on(until)
    world.insert(1)

    restore(world.client, "s1", backup)
    absence.restore(world.client, "s1")
    insert(world.client, world.customer)
    world.go_on()
    world.insert(1)

    assert world.states() == ["gone", "active"]
    assert (world.rows("s0"), world.rows("s1")) == (0, 10)


@pytest.mark.parametrize("backup", ["before", "ordered", "copying", "comparing", "stopping"])
def test_a_restored_source_gives_up_a_bucket_that_has_left_since(world: World, backup: str) -> None:
    kept = backup_of(world.client, "s0")
    world.order("s1")
    if backup == "ordered":
        kept = backup_of(world.client, "s0")
    for step in next(orders.under_way(world.client)).steps():
        if step.stage == backup:
            kept, backup = backup_of(world.client, "s0"), ""
    world.insert(2)
    restore(world.client, "s0", kept)
    assert world.states() in (["active", "active"], ["moved", "active"])
    upkeep.reconcile(world.client, "s0")
    world.insert(1)
    assert (world.rows("s0"), world.rows("s1")) == (5, 8)

    plan = absence.restore(world.client, "s0")
    world.go_on()

    assert [one.owner for one in plan if one.bucket == world.bucket] in (["s1"], [])
    assert world.states() == ["gone", "active"]
    assert (world.rows("s0"), world.rows("s1")) == (0, 8)
    assert world.client.topology.placement.moves == {}
    world.insert(1)
    world.move("s0")
    assert world.rows("s0") == 9


def test_an_op_that_waits_wakes_no_bucket_that_has_left(world: World) -> None:
    client, before = world.client, backup_of(world.client, "s0")
    world.move("s1")
    world.insert(2)
    restore(client, "s0", before)
    session = client.nodes.primary("s0")
    session.execute(
        "CREATE TRIGGER late BEFORE INSERT ON purchase WHEN NOT EXISTS (SELECT 1 FROM purchase WHERE qty = 9)"
        " BEGIN SELECT RAISE(ABORT, 'not yet'); END"
    )
    topology = client.topology
    of_s0 = (one for one in range(99) if topology.shard_of(topology.bucket_of("purchase", one)) == "s0")
    waits = insert(client, next(of_s0))
    worker = Applier("s0", session, client.log, client.settings.apply, topology=topology)

    for _ in range(3):
        worker.apply()

    assert waits.status() == "queued"
    assert world.bucket not in client.log.due("s0", 99)
    assert (world.rows("s0"), world.rows("s1")) == (5, 7)


def test_rows_of_a_bucket_that_has_left_come_back_with_no_backup_without_our_tables(world: World) -> None:
    before = backup_of(world.client, "s0")
    world.move("s1")
    world.insert(2)
    restore(world.client, "s0", before)
    drop_own_tables(world.client, "s0")

    absence.restore(world.client, "s0")
    world.go_on()

    assert (world.rows("s0"), world.rows("s1")) == (0, 7)


def test_a_source_is_not_restored_while_its_target_may_have_more_than_the_backup(world: World) -> None:
    world.order("s1")
    ordered = backup_of(world.client, "s0")
    world.go_on("copying")
    restore(world.client, "s0", ordered)

    end = f"pipeline move give-up {world.bucket}"
    with pytest.raises(PipelineError, match=f"from s0 to s1, which may have what this backup lacks: .* {end}"):
        absence.restore(world.client, "s0")
    [mover] = orders.of_named(world.client, str(world.bucket))
    mover.give_up("a test")
    world.go_on()
    absence.restore(world.client, "s0")
    world.insert(1)

    assert world.states() == ["active", "gone"]
    assert (world.rows("s0"), world.rows("s1")) == (6, 0)


def test_a_source_from_before_the_order_keeps_its_bucket(world: World) -> None:
    before = backup_of(world.client, "s0")
    world.move("s1", upto="copying")
    restore(world.client, "s0", before)

    absence.restore(world.client, "s0")
    world.insert(1)
    world.go_on()

    assert world.states() == ["active", "gone"]
    assert (world.rows("s0"), world.rows("s1")) == (6, 0)


def test_both_shards_from_before_a_move_go_on_as_before_it(world: World) -> None:
    before = {shard: backup_of(world.client, shard) for shard in ("s0", "s1")}
    world.move("s1")
    world.insert(2)
    for shard, backup in before.items():
        restore(world.client, shard, backup)

    for shard in before:
        absence.restore(world.client, shard)
    drain(world.client)
    world.insert(1)

    assert world.states() == ["active", None]
    assert (world.rows("s0"), world.rows("s1")) == (8, 0)


def test_a_shard_from_before_a_bucket_left_and_came_back_names_what_it_lacks(world: World) -> None:
    before = backup_of(world.client, "s0")
    world.move("s1")
    away = world.insert(2)
    world.move("s0")
    log, topology = world.site.log, world.client.topology
    log.trim(log.tails([world.bucket]))
    restore(world.client, "s0", before)

    assert "run: pipeline restore s0" in deployment.restored(log, world.client.nodes, topology, "s0")
    [one] = [one for one in absence.restore(world.client, "s0") if one.bucket == world.bucket]
    assert sum(gap.last - gap.first + 1 for gap in one.lost) == 2
    kept = world.insert(1)

    assert [receipt.status() for receipt in (*away, *kept)] == ["lost", "lost", "applied"]
    assert world.rows("s0") == 6


def test_a_bucket_that_has_passed_through_a_shard_since_its_backup_is_not_missed_there(site: Site) -> None:
    world = World(site, "s0", "s1", "s2")
    before = backup_of(world.client, "s1")
    world.move("s1")
    world.move("s2")
    restore(world.client, "s1", before)

    absence.restore(world.client, "s1")
    world.insert(1)

    assert world.states() == ["gone", None, "active"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_move_of_long_ago_is_not_gone_on_with_by_its_restored_source(site: Site, kept: bool) -> None:
    world = World(site, "s0", "s1", "s2")
    world.order("s1")
    if kept:
        world.go_on("stopping")
    backup = backup_of(world.client, "s0")
    world.go_on()
    world.move("s0")
    world.move("s2")
    world.insert(2)

    restore(world.client, "s0", backup)
    for mover in orders.under_way(world.client):
        with suppress(PipelineError):
            for _ in zip(range(9), mover.steps(), strict=False):
                pass
    absence.restore(world.client, "s0")
    world.go_on()
    world.insert(1)

    assert world.states() == ["gone", "gone", "active"]
    assert [world.rows(shard) for shard in ("s0", "s1", "s2")] == [0, 0, 8]
