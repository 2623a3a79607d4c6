"""Workers of two shards read the log of a bucket one of whose keys has a shard of its own; each applies its own ops."""

from __future__ import annotations

import random

import pytest
from support.examples import THOROUGH
from support.sandbox.deployments import Site, apply, site
from support.sandbox.keys import KEY, World

from pipeline.admin import upkeep
from pipeline.apply.replay import Replay
from pipeline.enqueue.producer import Acknowledged
from pipeline.enqueue.spool_fallback import DrainThread
from pipeline.model import START, Position
from pipeline.shard.records import ledger_queries, moves

__all__ = ["site"]


@pytest.mark.parametrize("seed", range(30 if THOROUGH else 6))
def test_both_shards_together_have_what_one_would_have(site: Site, seed: int) -> None:
    plain, apart = World(site, "plain", split=False), World(site, "apart", split=True)
    for world in (plain, apart):
        luck = random.Random(seed)
        for _ in range(120):
            world.send(luck)
            if luck.random() < 0.1:
                apply(world.client, luck.choice((world.home, world.away)))
        world.drain()

    assert apart.rows() == plain.rows()
    assert {customer for customer, _, _ in apart.rows(apart.away)} <= {
        key for key in range(200) if apart.client.topology.bucket_of("purchase", key) != apart.bucket
    } | {KEY}
    assert KEY not in {customer for customer, _, _ in apart.rows(apart.home)}
    assert apart.rows(table="item", columns="name, n") == plain.rows(table="item", columns="name, n")
    assert apart.rows(table="stranger", columns="n") == plain.rows(table="stranger", columns="n")
    assert [row[0] for row in apart.aside()] == [row[0] for row in plain.aside()]
    assert plain.aside()
    assert apart.marks()[0] == apart.marks()[1]


def test_a_group_of_the_key_and_another_one_is_refused_for_good(site: Site) -> None:
    world = World(site, "", split=True)
    table = world.db.purchase
    with world.client.atomic():
        world.client.enqueue_insert(table, customer=KEY, day=1)
        world.client.enqueue_insert(table, customer=world.others[0], day=1)
    world.drain()

    assert world.rows() == []
    assert [state for state, *_ in world.aside()] == ["dropped", "dropped"]
    assert all(
        "writes rows of that key and of another one: send two groups" in why for why in world.reasons(world.home)
    )


def test_of_a_group_that_names_rows_by_their_ids_alone_each_shard_applies_its_own(site: Site) -> None:
    world = World(site, "", split=True)
    table = world.db.purchase
    rows = [world.client.enqueue_insert(table, customer=one, day=1).id for one in (KEY, world.others[0])]
    with world.client.atomic():
        for row in (*rows, rows[0] + 1024):  # the last is nowhere
            world.client.enqueue_update(table.id == row, n=5)
    world.drain()

    assert [n for _, _, n in world.rows()] == [5, 5]
    assert world.aside() == []


def test_an_update_and_a_delete_of_rows_of_both_keys_by_their_ids_are_done_once_on_each_shard(site: Site) -> None:
    world = World(site, "", split=True)
    table, of = world.db.purchase, (KEY, world.others[0])
    rows = [world.client.enqueue_insert(table, customer=one, day=day).id for one in of for day in (1, 2)]
    world.drain()
    added = world.client.enqueue_update(table.id.belongs(rows), n=table.n + 1, shard_key=KEY)
    gone = world.client.enqueue_delete(table.id.belongs([rows[0], rows[2]]), shard_key=world.others[0])
    assert (added.status(), gone.status()) == ("queued", "queued")
    world.apply(world.home)
    assert added.status() == "queued"  # until both shards have passed it
    world.drain()

    assert world.rows() == sorted((one, 2, 1) for one in of)
    assert world.rows(world.away) == [(KEY, 2, 1)]
    assert (added.status(), gone.status()) == ("applied", "applied")


def test_a_group_in_which_a_shard_finds_rows_of_both_is_applied_in_parts_and_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(site, "", split=True)
    table = world.db.purchase
    row = world.client.enqueue_insert(table, customer=KEY, day=1).id
    world.drain()
    with world.client.atomic():
        world.client.enqueue_update(table.id == row, n=5)
        world.client.enqueue_insert(table, customer=world.others[0], day=2)
    world.drain()

    assert {*world.rows()} == {(KEY, 1, 5), (world.others[0], 2, 0)}
    assert "group_in_parts" in caplog.text


def test_a_group_of_the_keys_rows_by_their_ids_is_applied(site: Site) -> None:
    world = World(site, "", split=True)
    table = world.db.purchase
    rows = [world.client.enqueue_insert(table, customer=KEY, day=day).id for day in (1, 2)]
    world.drain()
    with world.client.atomic():
        for row in rows:
            world.client.enqueue_update(table.id == row, n=5)
    world.drain()

    assert world.rows(world.away) == [(KEY, 1, 5), (KEY, 2, 5)]
    assert world.aside() == []


def test_rows_of_the_key_that_still_stand_at_home_are_not_touched(site: Site) -> None:
    world = World(site, "", split=False)
    table = world.db.purchase
    row = world.client.enqueue_insert(table, customer=KEY, day=1).id
    world.drain()
    world.split()
    marks = ledger_queries.positions_of(world.client.nodes.primary(world.home))
    for shard, number in ((world.home, world.bucket), (world.away, world.piece)):
        with world.client.nodes.primary(shard).transaction():
            state = "lent" if shard == world.home else "active"
            moves.place_mark(world.client.nodes.primary(shard), number, Position(1, 0), state)
    assert marks

    world.client.enqueue_update(table.id == row, n=5)
    world.client.enqueue_update(table.customer == KEY, n=6)
    world.client.enqueue_update(table.id.belongs([row]), n=7, shard_key=world.others[0])
    world.client.enqueue_delete(table.id == row)
    world.drain()

    assert world.rows(world.home) == [(KEY, 1, 0)]


def test_what_is_set_aside_is_kept_by_the_shard_that_applies_it(site: Site) -> None:
    world = World(site, "", split=True)
    table = world.db.purchase
    for customer in (KEY, world.others[0]):
        world.client.enqueue_insert(table, customer=customer, day=1)
        twin = world.client.enqueue_insert(table, customer=customer, day=1)
        world.client.enqueue_update(table.id == twin.id, n=9)
    world.drain()

    sql = "SELECT bucket, state FROM pipeline_rejects ORDER BY seq"
    assert world.client.nodes.primary(world.home).query(sql) == [(world.bucket, "rejected"), (world.bucket, "parked")]
    assert world.client.nodes.primary(world.away).query(sql) == [(world.piece, "rejected"), (world.piece, "parked")]
    [(state,)] = world.client.nodes.primary(world.home).query(
        f"SELECT state FROM pipeline_watermarks WHERE bucket = {world.bucket}"
    )
    assert state == "lent"


def test_nothing_of_a_bucket_is_applied_while_it_is_stopped(site: Site) -> None:
    world = World(site, "", split=True)
    session = world.client.nodes.primary(world.home)
    with session.transaction():
        moves.place_mark(session, world.bucket, Position(0, -1), "stopped")
    world.client.enqueue_insert(world.db.purchase, customer=world.others[0], day=1)
    world.drain()

    assert world.rows() == []
    assert "moving" in repr(world.client.log.waits(world.home))


def test_both_shards_note_the_sequence_of_each_op_that_they_pass(site: Site) -> None:
    world = World(site, "", split=True)
    for customer in (KEY, world.others[0], KEY):
        world.client.enqueue_insert(world.db.purchase, customer=customer, day=customer)
    world.drain()

    found = [
        world.client.nodes.primary(shard).query(f"SELECT producer, seq FROM pipeline_producers WHERE bucket = {number}")
        for shard, number in ((world.home, world.bucket), (world.away, world.piece))
    ]
    assert found[0] == found[1]
    assert [seq for _, seq in found[0]] == [3]


def test_a_key_that_is_away_with_no_row_of_its_move_lets_its_bucket_wait(site: Site) -> None:
    world = World(site, "", split=True)
    session = world.client.nodes.primary(world.home)
    with session.transaction():
        session.execute("DELETE FROM pipeline_moves")
    world.client.enqueue_insert(world.db.purchase, customer=world.others[0], day=1)
    world.drain()

    assert world.rows() == []


# what is kept until both shards have it ---------------------------------------------------------------------------


@pytest.fixture
def world(site: Site, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(upkeep, "_as_of", lambda client, shard, now: now)
    monkeypatch.setattr(Acknowledged, "_keep_watch", lambda self: None)  # no thread settles
    return World(site, "", split=True)


def test_the_log_is_trimmed_behind_both_shards(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.client.enqueue_insert(world.db.purchase, customer=world.others[0], day=1)
    world.apply(world.home)

    upkeep.trim(world.client, world.home)
    upkeep.trim(world.client, world.away)
    assert len(world.log.read({world.bucket: START}, {world.bucket: 9})[world.bucket]) == 2

    world.apply(world.away)
    upkeep.trim(world.client, world.away)
    assert len(world.log.read({world.bucket: START}, {world.bucket: 9})[world.bucket]) == 2
    upkeep.trim(world.client, world.home)
    assert world.log.read({world.bucket: START}, {world.bucket: 9})[world.bucket] == []


def test_a_new_epoch_of_the_bucket_is_above_the_watermark_of_its_key(world: World) -> None:
    session = world.client.nodes.primary(world.away)
    with session.transaction():
        session.execute(f"UPDATE pipeline_watermarks SET epoch = 9000000000 WHERE bucket = {world.piece}")

    receipt = world.client.enqueue_insert(world.db.purchase, customer=world.others[0], day=1)

    assert receipt.position.epoch > 9000000000


def test_an_op_that_only_one_of_both_shards_has_passed_is_called_lost_where_redis_forgets_it(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    world.apply(world.home)
    world.log.fail_over()

    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=2)
    world.drain()
    world.client.publisher.settle()
    world.drain()
    world.client.publisher.settle()

    sql = "SELECT bucket, first_seq, last_seq FROM pipeline_lost"
    assert world.client.nodes.primary(world.away).query(sql) == [(world.piece, 1, 1)]
    assert world.client.nodes.primary(world.home).query(sql) == []


def test_what_was_acknowledged_stays_in_mind_until_both_shards_have_it(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    acked = {(world.bucket, producer.producer): (1, 1) for producer in world.client.publisher.idle}
    world.apply(world.home)
    assert world.client.publisher.judge(acked) == set()

    world.apply(world.away)

    assert world.client.publisher.judge(acked) == acked.keys()


def test_the_spool_keeps_an_op_until_both_shards_have_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DrainThread, "wake", lambda self: None)  # it drains and forgets at moments of its own
    world = World(site, "", split=True, spool="spool")
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1, durability="spooled")
    world.client.drainer.drain()
    world.apply(world.home)
    assert world.client.drainer.forget() == 0

    world.apply(world.away)

    assert world.client.drainer.forget() == 1


def test_a_key_whose_shard_was_not_woken_is_found_behind_its_log(world: World) -> None:
    world.client.enqueue_insert(world.db.purchase, customer=KEY, day=1)
    assert world.log.due(world.away, 9) == {}

    assert upkeep.reconcile(world.client, world.away) == 1

    assert list(world.log.due(world.away, 9)) == [world.piece]
    world.apply(world.away)
    assert world.rows(world.away) == [(KEY, 1, 0)]


def test_nothing_of_a_bucket_is_replayed_while_its_key_moves(world: World) -> None:
    session = world.client.nodes.primary(world.home)
    with session.transaction():
        assert moves.moving(session, world.home, [world.bucket]) == set()
        session.execute("UPDATE pipeline_moves SET note = '{}'")  # its rows are being deleted
        assert moves.moving(session, world.home, [world.bucket, world.piece]) == {world.bucket, world.piece}


def test_a_replay_of_an_op_by_a_query_touches_no_row_of_the_other_shard(world: World) -> None:
    table, rows = world.db.purchase, [0, 0]
    for nth, customer in enumerate((KEY, world.others[0])):
        rows[nth] = world.client.enqueue_insert(table, customer=customer, day=1).id
        world.client.enqueue_insert(table, customer=customer, day=2)
    world.drain()
    world.client.enqueue_update(table.id.belongs(rows), day=2, shard_key=KEY)  # refused by both: the day is taken
    world.drain()
    for shard, number in ((world.home, world.bucket), (world.away, world.piece)):
        session = world.client.nodes.primary(shard)
        with session.transaction():
            # a row of the other shard's key, as a move leaves it for a while
            stale = world.others[0] if shard == world.away else KEY
            row = rows[0] if stale == KEY else rows[1]
            session.execute(f"INSERT INTO purchase (id, customer, day, n) VALUES ({row}, {stale}, 1, 0)")
            session.execute("DELETE FROM purchase WHERE day = 2")
        [(epoch, seq)] = session.query("SELECT epoch, seq FROM pipeline_rejects")
        worker = Replay(shard, session, world.log, world.client.settings.apply, world.client.settings.tables)
        list(worker.run({number: [Position(epoch, seq)]}, "me"))

    assert {*world.rows(world.home)} == {(KEY, 1, 0), (world.others[0], 2, 0)}
    assert {*world.rows(world.away)} == {(KEY, 2, 0), (world.others[0], 1, 0)}
