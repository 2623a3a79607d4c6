"""What operators see and do where a shard key has a shard of its own: each screen names it, each command does right."""

from __future__ import annotations

from typing import Any

import pytest
from support.sandbox.deployments import Site, site
from support.sandbox.keys import KEY, World

from pipeline.admin import absence, dead, dead_op, reshape, stops, trace
from pipeline.admin import check as check
from pipeline.admin import shards as rebalance
from pipeline.admin.migration import migrate
from pipeline.admin.observe import Observer
from pipeline.admin.observe.moves import moves_of
from pipeline.admin.observe.record import Record
from pipeline.admin.shards import shrunk
from pipeline.admin.why import why
from pipeline.config import Topology
from pipeline.enqueue.deployment import restored
from pipeline.errors import BadOp, PipelineError
from pipeline.shard.records import ledger_queries, moves

__all__ = ["site"]
NAME = f"purchase={KEY}"


@pytest.fixture
def world(site: Site) -> World:
    made = World(site, "", split=True)
    made.follow()
    return made


def _refused(world: World) -> tuple[Any, Any]:
    """Send an op of the key that its shard refuses, and one of the same row behind it; return their receipts."""
    table = world.db.purchase
    world.client.enqueue_insert(table, customer=KEY, day=1)
    twin = world.client.enqueue_insert(table, customer=KEY, day=1)
    later = world.client.enqueue_update(table.id == twin.id, n=3)
    world.drain()
    return twin, later


# screens --------------------------------------------------------------------------------------------------------


@pytest.fixture
def look(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("pipeline.admin.observe.log_of", lambda settings, read_s: world.log)
    return Observer(world.client.settings).look


def _of(record: Record, shard: str) -> Any:
    return next(one for one in record.shards if one.shard == shard)


def test_a_record_counts_the_keys_ops_at_its_shard_and_names_the_key(world: World, look: Any) -> None:
    for day in range(3):
        world.client.enqueue_insert(world.db.purchase, customer=KEY, day=day)
    world.apply(world.home)

    record = look()

    home, away = (_of(record, shard) for shard in (world.home, world.away))
    assert (home.depth, away.depth) == (0, 3)
    assert (home.owned, away.owned) == (1, 1)
    assert [(str(one), one.depth) for one in away.buckets] == [(NAME, 3)]
    world.drain()
    assert [one.depth for one in look().shards] == [0, 0]


def test_while_a_key_is_in_its_bucket_another_shard_counts_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(site, "", split=True)
    _back(world)
    monkeypatch.setattr("pipeline.admin.observe.log_of", lambda settings, read_s: world.log)
    for day in range(3):
        world.client.enqueue_insert(world.db.purchase, customer=KEY, day=day)

    record = Observer(world.client.settings).look()

    assert (_of(record, world.home).depth, _of(record, world.away).depth) == (3, 0)


def _back(world: World) -> None:
    """Let the key be back in its bucket, and its shard have deleted its rows."""
    session = world.client.nodes.primary(world.home)
    with session.transaction():
        session.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {world.piece}")
        moves.set_state(session, [world.bucket], "active")
    there = world.client.nodes.primary(world.away)
    with there.transaction():
        moves.set_state(there, [world.piece], "gone")
    world.follow()


def test_moves_are_shown_by_the_key(world: World) -> None:
    for shard in (world.home, world.away):
        session = world.client.nodes.primary(shard)
        with session.transaction():
            session.execute("UPDATE pipeline_moves SET note = '{}'")
    told = {shard: moves.legs(world.client.nodes.primary(shard)) for shard in (world.home, world.away)}

    [one] = moves_of(told, 10**15)

    assert (one.buckets, one.source, one.target, one.state) == (NAME, world.home, world.away, "cleaning")
    assert str(one) == f"the move of {NAME} to {world.away}"
    session = world.client.nodes.primary(world.away)
    with session.transaction():
        moves.set_state(session, [world.piece], "copying")
        home = world.client.nodes.primary(world.home)
    with home.transaction():
        home.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {world.piece}")
        moves.set_state(home, [world.bucket], "active")
    told = {shard: moves.legs(world.client.nodes.primary(shard)) for shard in (world.home, world.away)}
    [one] = moves_of(told, 10**15)
    assert one.mend.endswith(f"or run: pipeline move give-up {NAME}")


def test_why_answers_for_a_key_and_tells_where_it_is(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.apply(world.home)

    of_key, of_bucket = why(world.client, NAME), why(world.client, str(world.bucket))

    assert (of_key.what, of_key.state) == (NAME, "waiting")
    assert of_bucket.state == "fine"
    assert of_bucket.sentences[-1] == f"{NAME} of it is on {world.away}: see pipeline why {NAME}"
    world.drain()
    assert why(world.client, NAME).sentences == (f"nothing of {NAME} waits; {world.away} owns it",)
    with pytest.raises(BadOp, match="is no key that has a shard of its own"):
        why(world.client, "purchase=8")


@pytest.mark.parametrize("begun", [False, True])
def test_a_bucket_that_has_stopped_for_its_key_says_so(site: Site, begun: bool) -> None:
    world = World(site, "", split=True)
    home, away = (world.client.nodes.primary(shard) for shard in (world.home, world.away))
    with home.transaction():
        home.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {world.piece}")
        moves.set_state(home, [world.bucket], "stopped")
    if not begun:
        with away.transaction():
            moves.set_state(away, [world.piece], "catching")
    world.follow()
    world.client.enqueue_insert(world.db.purchase, customer=world.others[0], day=1)

    answer = why(world.client, str(world.bucket))

    assert [reason.kind for reason in answer.reasons] == ["moving"]
    sentence = f"the move of {NAME} from {world.home} to {world.away} is at its cut-over"
    assert sentence in answer.sentences[0]
    assert f"pipeline move give-up {NAME}" in answer.sentences[0]


def test_trace_asks_the_keys_shard_by_its_number(world: World) -> None:
    receipt = world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.apply(world.home)

    before = trace.story(world.client, str(receipt))
    world.drain()
    after = trace.story(world.client, str(receipt))

    assert {one.shard: one.state for one in before.shards} == {world.home: "applied", world.away: "queued"}
    assert before.status == "queued"
    assert {one.shard: one.state for one in after.shards} == {world.home: "applied", world.away: "applied"}
    assert after.status == "applied"


# check ----------------------------------------------------------------------------------------------------------


class _Evidence:
    def __init__(self, world: World):
        self.misfits, self.epochs = (), dict[str, int]()
        self.topology = world.client.topology
        self.primaries = [_Node(world, shard) for shard in world.client.topology.shards]


class _Node:
    def __init__(self, world: World, shard: str):
        self.node, self.marks = shard, ledger_queries.marks_of(world.client.nodes.primary(shard))


def _findings(world: World) -> list[str]:
    return [one.what for one in check.bucket_findings(_Evidence(world))]  # type: ignore[arg-type]


def test_check_finds_nothing_wrong_with_a_key_that_is_away(world: World) -> None:
    assert _findings(world) == []
    _back(world)
    assert _findings(world) == []


def test_check_finds_a_bucket_that_is_applied_with_a_key_which_is_away(world: World) -> None:
    home = world.client.nodes.primary(world.home)
    with home.transaction():
        moves.set_state(home, [world.bucket], "active")

    assert _findings(world) == [
        f"bucket {world.bucket} is applied with {NAME}, which {world.away} has: its ops are applied twice"
    ]


def test_check_names_a_key_whose_watermark_is_missing(world: World) -> None:
    away = world.client.nodes.primary(world.away)
    with away.transaction():
        away.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {world.piece}")

    assert _findings(world) == [f"{NAME} have no watermark row here"]


def test_migrate_takes_a_key_that_is_away_for_no_bucket(world: World) -> None:
    migrate(world.client)

    assert ledger_queries.marks_of(world.client.nodes.primary(world.home))[world.bucket].state == "lent"


# ops that were set aside ------------------------------------------------------------------------------------------


def test_ops_of_the_key_that_are_set_aside_are_listed_shown_edited_and_replayed(world: World) -> None:
    twin, later = _refused(world)

    found = [*dead.dead_ops(world.client, dead.Where.parse([f"bucket={world.bucket}"]))]
    assert [(one.shard, one.op.entry.bucket, one.op.state) for one in found] == [
        (world.away, world.piece, "rejected"),
        (world.away, world.piece, "parked"),
    ]
    place = (world.piece, found[0].op.entry.position)
    shown = dead_op.show(world.client, place)
    assert (shown.found.shard, shown.behind, shown.writes[0].there) == (world.away, 1, False)
    text = f"{place[0]}:{place[1]}"
    assert dead.place_of(text) == place
    with pytest.raises(BadOp, match="says which row the op is about"):
        dead_op.edit(world.client, place, {"customer": 8})

    with world.client.nodes.primary(world.away).transaction():
        world.client.nodes.primary(world.away).execute("DELETE FROM purchase")
    ops = dead.chosen(world.client, dead.Where.parse([], [text]), dead.HEADS)
    assert [one.done.replayed for one in dead.replay(world.client, ops)] == [2]
    assert (twin.status(), later.status()) == ("replayed", "replayed")
    assert world.rows(world.away) == [(KEY, 1, 3)]
    assert world.rows(world.home) == []


def test_an_op_of_the_key_is_dropped_where_it_is_set_aside(world: World) -> None:
    twin, _ = _refused(world)

    ops = dead.chosen(world.client, dead.Where.parse([f"bucket={world.bucket}"]), ("rejected",))
    assert sum(one.done.dropped for one in dead.replay(world.client, ops, drop=True)) == 1

    assert twin.status() == "dropped"


# commands ---------------------------------------------------------------------------------------------------------


def test_drain_waits_for_the_keys_ops_and_resume_wakes_them(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.apply(world.home)
    target = stops.target_of(world.client, world.away)

    left = stops.drain_and_pause(world.client, target, 5)
    assert next(left) == 1
    world.apply(world.away)
    assert list(left) == [0]

    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=2)
    world.log.mark_dirty(world.away, [world.piece])
    world.log.postpone(world.away, [world.piece], 100_000)
    stops.resume(world.client, target)
    world.apply(world.away)
    assert len(world.rows(world.away)) == 2


def test_rebalance_leaves_a_bucket_where_it_is_whose_key_has_a_shard_of_its_own(world: World) -> None:
    for day in range(9):
        world.client.enqueue_insert(world.db.purchase, customer=KEY, day=day)
    for day in range(4):
        world.client.enqueue_insert(world.db.purchase, customer=world.others[0], day=day)
    world.drain()

    steps, weights = rebalance.planned(world.client, 0.0, ("rows",))

    assert steps == []
    assert (weights.rows[world.bucket], weights.rows[world.piece]) == (4, 9)


def test_a_plan_is_told_what_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[dict[str, Any]]()
    monkeypatch.setattr(rebalance, "plan", lambda *arguments, **options: given.append(options) or [])

    rebalance.planned(world.client, 0.0, ("rows",))

    assert given == [{"fixed": {world.bucket, world.piece}}]


def test_the_plan_moves_nothing_that_is_fixed() -> None:
    weights, owners = {0: 5.0, 1: 4.0, 2: 1.0}, dict.fromkeys(range(3), "s0")
    shards = {"s0": 1.0, "s1": 1.0}

    steps = rebalance.plan(weights, owners, shards, fixed=(0,))

    assert [(one.bucket, one.target) for one in steps] == [(1, "s1"), (2, "s1")]


def test_a_restore_of_either_shard_is_refused_by_name(world: World) -> None:
    for shard in (world.home, world.away):
        with pytest.raises(PipelineError, match=f"{NAME} of bucket {world.bucket} .* has a shard of its own"):
            absence.restoration_of(world.client, shard)
        with pytest.raises(PipelineError, match="Promote a replica"):
            absence.restore(world.client, shard)


def test_workers_refuse_a_database_that_lacks_the_key(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.drain()
    client = world.client
    assert restored(client.log, client.nodes, client.topology, world.away) == ""
    away = client.nodes.primary(world.away)
    with away.transaction():
        away.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {world.piece}")

    said = restored(client.log, client.nodes, client.topology, world.away)

    assert f"lacks what was applied there in the buckets {NAME}" in said


def test_rows_of_the_key_belong_to_its_shard(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.client.enqueue_insert(world.db.purchase, customer=world.others[0], day=1)
    world.drain()
    [schema] = [one for one in reshape.published(world.client) if one.name == "purchase"]

    assert [*reshape.misplaced(world.client, schema)] == []
    with pytest.raises(PipelineError, match=f"has a shard of its own: send it back first: pipeline move back {NAME}"):
        reshape.adopt_rows(world.client, "purchase")


def test_a_shard_that_has_a_key_is_not_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = Topology.buckets_of
    monkeypatch.setattr(Topology, "buckets_of", lambda self, one: () if one == world.away else owned(self, one))

    with pytest.raises(PipelineError, match=f"'{world.away}' has the key {NAME}: send it back first"):
        shrunk(world.client, world.away)
