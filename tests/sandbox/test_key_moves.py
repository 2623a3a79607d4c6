"""One shard key moves to a shard of its own while ops arrive: whole, once, in order, and back into its bucket."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.deployments import Site, apply, backup_of, restore, site

from pipeline.admin import absence, dead, shards, upkeep
from pipeline.admin import moving as movers
from pipeline.admin.dead import Where
from pipeline.admin.migration import migrate
from pipeline.admin.moving import MoveEnded, Mover, orders
from pipeline.admin.trace import story
from pipeline.apply.replay import Replay
from pipeline.client import Client
from pipeline.config.buckets import Placement, log_number
from pipeline.enqueue import deployment
from pipeline.enqueue.buckets import draw, follow
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.model import Position
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.set_aside import ASIDE

__all__ = ["site"]

TABLES: dict[str, Any] = {
    "purchase": {"shard_key": "customer", "unique": [["customer", "day"]]},
    "item": {},
}
KEY, TEXT = 7, "purchase=7"


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)


def model() -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("purchase", Field("customer", "integer"), Field("day", "integer"), Field("n", "integer", default=0))
    db.define_table("item", Field("name"), Field("n", "integer", default=0))
    return db


class World:
    """A deployment of three shards with rows of the key, and of others of its bucket."""

    def __init__(self, site: Site):
        self.client: Client = site.client(buckets=3, tables=TABLES, shards=dict.fromkeys(("s0", "s1", "s2")))
        self.db = model()
        self.client.define_tables(self.db)
        migrate(self.client)
        topology = self.client.topology
        self.bucket = topology.bucket_of("purchase", KEY)
        self.other = next(key for key in range(8, 99) if topology.bucket_of("purchase", key) == self.bucket)
        self.home = topology.shard_of(self.bucket)
        self.away = next(shard for shard in topology.shards if shard != self.home)
        self.rows_of_key = [self.insert(KEY, day) for day in range(20)]
        self.rows_of_other = [self.insert(self.other, day) for day in range(5)]
        self.drain()

    def insert(self, customer: int, day: int) -> int:
        return int(self.client.enqueue_insert(self.db.purchase, customer=customer, day=day).id)

    def add(self, row: int, n: int = 1) -> Any:
        return self.client.enqueue_update(self.db.purchase.id == row, n=self.db.purchase.n + n)

    def drain(self) -> None:
        for _ in range(3):
            for shard in self.client.topology.shards:
                while apply(self.client, shard).left:
                    pass

    def move(self, target: str, keep_s: int = 0) -> Mover:
        return orders.order_key(self.client, TEXT, target, "me", keep_s)

    def moved(self, target: str) -> list[str]:
        return [step.stage for step in self.move(target).steps()]

    def rows(self, shard: str, customer: int) -> list[tuple[int, int]]:
        sql = f"SELECT day, n FROM purchase WHERE customer = {customer} ORDER BY day"
        found: list[tuple[int, int]] = self.client.nodes.primary(shard).query(sql)
        return found

    def states(self) -> list[Any]:
        """The state of the bucket at home, and of the key at home and away."""
        [number] = {n for s in (self.home, self.away) for n in self.legs(s)} or {0}
        here, there = (ledger_queries.marks_of(self.client.nodes.primary(s)) for s in (self.home, self.away))
        return [here[self.bucket].state, *(marks[number].state if number in marks else None for marks in (here, there))]

    def legs(self, shard: str) -> list[int]:
        found = self.client.nodes.primary(shard).query("SELECT bucket FROM pipeline_moves WHERE of_bucket IS NOT NULL")
        return [number for (number,) in found]


@pytest.fixture
def world(site: Site) -> World:
    return World(site)


def test_a_key_moves_with_its_rows_and_leaves_the_others(world: World) -> None:
    stages = world.moved(world.away)

    assert [*dict.fromkeys(stages)] == ["copying", "comparing", "stopping", "cleaning", "over"]
    assert world.states() == ["lent", "gone", "active"]
    assert len(world.rows(world.away, KEY)) == 20
    assert world.rows(world.home, KEY) == []
    assert len(world.rows(world.home, world.other)) == 5
    assert world.rows(world.away, world.other) == []
    topology = world.client.topology
    assert topology.shard_of(world.bucket) == world.home
    assert topology.shards_of(world.bucket) == (world.home, world.away)
    assert [piece.shard for piece in topology.placement.pieces.values()] == [world.away]
    assert topology.placement.moves == {}


def test_a_key_comes_back_into_its_bucket(world: World) -> None:
    world.moved(world.away)
    row = world.insert(KEY, 99)
    world.add(row)
    world.add(world.rows_of_key[3], 5)
    world.drain()

    world.moved(world.home)

    assert world.states() == ["active", None, "gone"]
    assert world.rows(world.away, KEY) == []
    assert len(world.rows(world.home, KEY)) == 21
    assert (3, 5) in world.rows(world.home, KEY)
    assert (99, 1) in world.rows(world.home, KEY)
    assert world.client.topology.placement.pieces == {}
    world.add(row)
    world.drain()
    assert (99, 2) in world.rows(world.home, KEY)


@pytest.mark.parametrize("seed", range(6))
def test_ops_arrive_at_every_step_there_and_back_and_there_again(world: World, seed: int) -> None:
    luck, sums = random.Random(seed), {KEY: 0, world.other: 0}

    def send() -> None:
        for _ in range(luck.randrange(4)):
            customer = luck.choice([KEY, world.other])
            row = luck.choice(world.rows_of_key if customer == KEY else world.rows_of_other)
            world.add(row)
            sums[customer] += 1
        if luck.random() < 0.5:
            world.drain()

    for target in (world.away, world.home, world.away):
        for _ in world.move(target).steps():
            send()
        world.drain()

    assert sum(n for _, n in world.rows(world.away, KEY)) == sums[KEY]
    assert sum(n for _, n in world.rows(world.home, world.other)) == sums[world.other]
    assert world.rows(world.home, KEY) == []


def test_a_move_goes_on_when_its_mover_dies_at_any_step(world: World) -> None:
    steps, added = 0, 0
    for target in (world.away, world.home):
        world.move(target)
        while found := [*orders.under_way(world.client)]:
            steps += 1
            world.add(world.rows_of_key[0])
            world.add(world.rows_of_other[0])
            added += 1
            for _ in zip(range(steps % 5), found[0].steps(), strict=False):
                pass  # and dies
            world.drain()
        assert world.client.topology.placement.pieces or target == world.home
    assert dict(world.rows(world.home, KEY))[0] == added
    assert dict(world.rows(world.home, world.other))[0] == added


def give_up_while_comparing(world: World, mover: Any) -> None:
    """Give a move up as it compares, and let what is under way go on to its end."""
    for step in mover.steps():
        if step.stage == "comparing":
            break
    mover.give_up("enough")
    for under_way in orders.under_way(world.client):
        list(under_way.steps())


def test_a_move_that_is_given_up_leaves_both_as_they_were(world: World) -> None:
    mover = world.move(world.away)
    give_up_while_comparing(world, mover)

    assert world.states() == ["active", None, "gone"]
    assert world.rows(world.away, KEY) == []
    world.moved(world.away)
    assert world.states() == ["lent", "gone", "active"]


def test_a_way_back_that_is_given_up_leaves_the_key_away(world: World) -> None:
    world.moved(world.away)
    mover = world.move(world.home)
    give_up_while_comparing(world, mover)

    assert world.states() == ["lent", "gone", "active"]
    assert world.rows(world.home, KEY) == []
    world.add(world.rows_of_key[0])
    world.drain()
    assert (0, 1) in world.rows(world.away, KEY)
    world.moved(world.home)
    assert world.states() == ["active", None, "gone"]


def test_a_way_back_that_is_given_up_while_both_have_stopped_lets_both_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.moved(world.away)
    mover = world.move(world.home)
    monkeypatch.setattr(movers.buckets_rows, "merge", lambda *arguments: False)

    with pytest.raises(MoveEnded, match="have not seen the same ops yet"):
        list(mover.steps())

    assert world.states() == ["lent", "gone", "active"]
    for row in (world.rows_of_key[0], world.rows_of_other[0]):
        world.add(row)
    world.drain()
    assert (0, 1) in world.rows(world.away, KEY)
    assert (0, 1) in world.rows(world.home, world.other)


def test_what_is_set_aside_leaves_with_the_key_and_comes_back(world: World) -> None:
    for customer, rows in ((KEY, world.rows_of_key), (world.other, world.rows_of_other)):
        twin = world.insert(customer, 3)  # the day is taken
        world.add(twin)
        assert rows
    world.drain()
    sql = "SELECT bucket, state FROM pipeline_rejects ORDER BY seq"
    here, there = (world.client.nodes.primary(shard) for shard in (world.home, world.away))
    assert len(here.query(sql)) == 4

    world.moved(world.away)
    [piece] = world.client.topology.placement.pieces
    assert there.query(sql) == [(piece, "rejected"), (piece, "parked")]
    assert here.query(sql) == [(world.bucket, "rejected"), (world.bucket, "parked")]

    positions = [Position(*row) for row in there.query("SELECT epoch, seq FROM pipeline_rejects ORDER BY seq")]
    client = world.client
    worker = Replay(world.away, there, client.log, client.settings.apply, client.settings.tables)
    list(worker.run({piece: positions[:1]}, "me", drop=True))
    world.moved(world.home)

    assert sorted(here.query(sql)) == [
        (world.bucket, "dropped"),
        (world.bucket, "parked"),
        (world.bucket, "rejected"),
        (world.bucket, "replayed"),
    ]
    assert here.query("SELECT COUNT(*) FROM pipeline_held") == [(2,)]


def test_a_group_of_both_keys_that_is_set_aside_keeps_the_key_at_home(world: World) -> None:
    table = world.db.purchase
    with world.client.atomic():
        world.client.enqueue_insert(table, customer=KEY, day=3)
        world.client.enqueue_insert(table, customer=world.other, day=77)
    world.drain()

    with pytest.raises(PipelineError, match=r"the op at .* is set aside, and may be of purchase=7 and of other keys"):
        world.move(world.away)
    assert world.legs(world.home) == []


def test_a_group_of_both_keys_that_is_applied_while_the_key_is_copied_comes_along_in_part(world: World) -> None:
    table, done = world.db.purchase, False
    for step in world.move(world.away).steps():
        if step.stage == "copying" and not done:
            with world.client.atomic():
                world.client.enqueue_insert(table, customer=KEY, day=50)
                world.client.enqueue_insert(table, customer=world.other, day=50)
            world.drain()
            done = True

    assert (50, 0) in world.rows(world.away, KEY)
    assert (50, 0) in world.rows(world.home, world.other)


def test_a_group_of_both_keys_that_is_set_aside_while_the_key_is_copied_ends_the_move(world: World) -> None:
    table, steps = world.db.purchase, world.move(world.away).steps()
    assert any(step.stage == "copying" for step in steps)
    with world.client.atomic():
        world.client.enqueue_insert(table, customer=KEY, day=3)
        world.client.enqueue_insert(table, customer=world.other, day=51)
    world.drain()

    with pytest.raises(MoveEnded, match="may be of purchase=7 and of other keys: first run: pipeline dead replay"):
        list(steps)

    world.add(world.rows_of_key[0])
    world.drain()
    assert (0, 1) in world.rows(world.home, KEY)


def pair(world: World, refused: int) -> Any:
    """Update rows of both keys by their ids in one group; the database refuses what is of the one given."""
    table, rows = world.db.purchase, {KEY: world.rows_of_key, world.other: world.rows_of_other}
    with world.client.atomic():
        for key, (_, row, *_) in rows.items():
            changed = {"day": 2} if key == refused else {}
            receipt = world.client.enqueue_update(table.id == row, n=table.n + 1, **changed)
    world.drain()
    return receipt


def settled(world: World, shard: str, number: int, refused: int) -> None:
    """Let a refused update have the day that it wants, and replay it."""
    rows = world.rows_of_key if refused == KEY else world.rows_of_other
    world.client.enqueue_delete(world.db.purchase.id == rows[2])
    world.drain()
    session, settings = world.client.nodes.primary(shard), world.client.settings
    sql = f"SELECT epoch, seq FROM pipeline_rejects WHERE bucket = {number} AND state = 'rejected'"
    heads = {number: [Position(*row) for row in session.query(sql)]}
    replayed = list(Replay(shard, session, world.client.log, settings.apply, settings.tables).run(heads, "me"))
    assert [one.replayed for one in replayed] == [1]


@pytest.mark.parametrize("refused", ["key", "other"])
def test_a_group_by_ids_of_which_one_shard_refuses_its_part_is_settled_there_before_the_key_comes_back(
    world: World, refused: str
) -> None:
    world.moved(world.away)
    [piece] = world.client.topology.placement.pieces
    key, shard, number = {"key": (KEY, world.away, piece), "other": (world.other, world.home, world.bucket)}[refused]
    receipt = pair(world, key)
    assert receipt.status() == "rejected"
    other = world.other if key == KEY else KEY
    assert (1, 1) in world.rows(world.home if key == KEY else world.away, other)  # the other part is applied

    with pytest.raises(
        PipelineError,
        match=f"the op at {number}:.* and may be of purchase=7 and of other keys: first run: pipeline dead replay",
    ):
        world.moved(world.home)
    for mover in orders.under_way(world.client):  # what was copied is deleted first
        list(mover.steps())
    settled(world, shard, number, key)
    world.moved(world.home)

    assert (1, 1) in world.rows(world.home, other)
    assert (2, 1) in world.rows(world.home, key)


@pytest.mark.parametrize("refused", ["key", "other"])
def test_a_group_by_ids_that_is_set_aside_while_the_key_comes_back_ends_the_move(world: World, refused: str) -> None:
    world.moved(world.away)
    steps = world.move(world.home).steps()
    assert any(step.stage == "copying" for step in steps)
    pair(world, KEY if refused == "key" else world.other)

    with pytest.raises(MoveEnded, match="may be of purchase=7 and of other keys: first run: pipeline dead replay"):
        list(steps)

    for row in (world.rows_of_key[0], world.rows_of_other[0]):
        world.add(row)
    world.drain()
    assert (0, 1) in world.rows(world.away, KEY)
    assert (0, 1) in world.rows(world.home, world.other)


def test_what_cannot_move_is_refused_before(world: World) -> None:
    with pytest.raises(PipelineError, match="has purchase=7 already"):
        world.move(world.home)
    with pytest.raises(PipelineError, match="no shard 's9'"):
        world.move("s9")
    with pytest.raises(PipelineError, match="'nothing=7' names no key"):
        orders.order_key(world.client, "nothing=7", world.away, "me")
    third = next(shard for shard in ("s0", "s1", "s2") if shard not in (world.home, world.away))
    world.moved(world.away)
    with pytest.raises(PipelineError, match=r"has purchase=7 already"):
        world.move(world.away)
    with pytest.raises(PipelineError, match="send it back first: pipeline move back purchase=7"):
        world.move(third)
    with pytest.raises(PipelineError, match="lends one key at a time"):
        orders.order_key(world.client, f"purchase={world.other}", world.away, "me")
    with pytest.raises(PipelineError, match=r"is lent|send it back first"):
        orders.order_move(world.client, [world.bucket], world.away, "me")


def test_a_bucket_does_not_move_while_one_of_its_keys_does(world: World) -> None:
    world.move(world.away)
    with pytest.raises(PipelineError, match="is being moved"):
        orders.order_move(world.client, [world.bucket], world.away, "me")
    with pytest.raises(PipelineError, match="being moved already"):
        world.move(world.away)


def test_a_key_does_not_move_while_its_bucket_does(world: World) -> None:
    orders.order_move(world.client, [world.bucket], world.away, "me")
    with pytest.raises(PipelineError, match="being moved"):
        world.move(world.away)


def test_a_bucket_moves_once_its_key_is_back_and_lends_another_key_there(world: World) -> None:
    world.moved(world.away)
    world.moved(world.home)
    list(orders.order_move(world.client, [world.bucket], world.away, "me", keep_s=0).steps())
    assert world.client.topology.shard_of(world.bucket) == world.away

    list(orders.order_key(world.client, f"purchase={world.other}", world.home, "me", 0).steps())

    assert len(world.rows(world.home, world.other)) == 5
    assert len(world.rows(world.away, KEY)) == 20
    [piece] = world.client.topology.placement.pieces.values()
    assert (piece.shard, log_number(piece.number)) == (world.home, world.bucket)


def test_a_bucket_does_not_move_while_a_shard_keeps_rows_of_a_key_that_is_back(world: World) -> None:
    world.moved(world.away)
    steps = world.move(world.home, keep_s=9).steps()
    assert any("before rows" in step.text for step in steps)
    assert world.states() == ["active", None, "moved"]

    with pytest.raises(PipelineError, match="is being moved"):
        orders.order_move(world.client, [world.bucket], world.away, "me")


def test_a_mover_that_was_thought_dead_deletes_no_key_that_comes_to_where_its_bucket_was(world: World) -> None:
    mover = orders.order_move(world.client, [world.bucket], world.away, "me", keep_s=0)
    deletes = mover.steps()
    for step in deletes:
        if step.stage == "stopping" and "goes on" in step.text:
            break
    late = orders.Mover(world.client, mover.leg, mover.buckets)
    list(deletes)
    rows, tables = late._carrier._delete_rows(world.home), late._carrier._tables()
    assert tables

    list(orders.order_key(world.client, TEXT, world.home, "me", 0).steps())
    with pytest.raises(PipelineError, match="another mover is at these buckets"):
        list(rows)

    assert len(world.rows(world.home, KEY)) == 20


def commands(refused: str) -> list[tuple[bool, str]]:
    """Return the commands that a refusal names, in order: whether each drops, and the op."""
    return [(word == "drop", op) for word, op in re.findall(r"pipeline dead (replay|drop) (\d+:\d+-\d+)", refused)]


def given(world: World, *, drop: bool, op: str) -> int:
    """Give a command; return how many ops were refused again."""
    found = dead.chosen(world.client, Where.parse((), (op,)), ASIDE if drop else dead.HEADS)
    assert sum(len(own) for shard in found.values() for own in shard.values()) == 1
    return sum(one.done.refused for one in dead.replay(world.client, found, drop=drop, by="me"))


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_refusal_names_what_settles_a_group_that_waits_behind_others(world: World, apart: bool, heads: int) -> None:
    """The group waits behind inserts whose days are taken: each is refused again, and dropped."""
    table = world.db.purchase
    if apart:
        world.moved(world.away)
    twins = [world.insert(key, 3) for key in (KEY, world.other)[:heads]]
    others = [world.rows_of_other[0]] * (2 - heads)
    with world.client.atomic():
        for row in (*twins, *others):
            world.client.enqueue_update(table.id == row, n=table.n + 1)
    world.drain()
    target = world.home if apart else world.away

    # apart, the key's part is settled by the first: what is left at home names no row of the key that is there
    for _ in range(1 if apart else heads):
        with pytest.raises(PipelineError, match=" is set aside behind the op at ") as refused:
            world.moved(target)
        for mover in orders.under_way(world.client):  # what was copied is deleted first
            list(mover.steps())
        replay, drop = commands(str(refused.value))
        assert (replay[0], drop[0], replay[1]) == (False, True, drop[1])
        assert given(world, drop=False, op=replay[1]) == 1
        assert given(world, drop=True, op=drop[1]) == 0
    world.moved(target)

    assert (3, 0) in world.rows(target, KEY)
    if heads == 1:
        assert (0, 1) in world.rows(world.home, world.other)


# a database that was restored --------------------------------------------------------------------------------------


def refusals(world: World) -> dict[str, str]:
    """Return why which shards may not be restored."""
    found = dict[str, str]()
    for shard in world.client.topology.shards:
        try:
            absence.restoration_of(world.client, shard)
        except PipelineError as error:
            found[shard] = str(error)
    return found


def test_no_shard_of_a_key_is_restored_from_the_order_until_the_key_is_back_and_no_row_is_left(world: World) -> None:
    both = {world.home, world.away}
    for source, target in ((world.home, world.away), (world.away, world.home)):
        steps = world.move(target).steps()
        assert refusals(world).keys() >= {world.home}
        for step in steps:
            if step.stage != "over":
                found = refusals(world)
                assert found.keys() == both, step
                assert all(f"is being moved from {source} to {target}: nobody knows" in one for one in found.values())
        assert refusals(world).keys() == (both if target == world.away else set())


def test_a_key_is_not_forgotten_whose_shard_was_restored_from_a_backup_of_before_or_is_silent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = backup_of(world.client, world.away)
    world.moved(world.away)
    [piece] = world.client.topology.placement.pieces.values()
    nodes, first = world.client.nodes, Placement()

    restore(world.client, world.away, backup)

    assert [*draw(nodes, world.client.topology, first)[0].pieces.values()] == [piece]
    follow(world.client.log, nodes, world.client.topology, anew=True)
    assert refusals(world).keys() == {world.home, world.away}
    assert TEXT in deployment.restored(world.client.log, nodes, world.client.topology, world.away)
    primary = type(nodes).primary
    monkeypatch.setattr(
        type(nodes), "primary", lambda self, shard: silent(shard) if shard == world.away else primary(self, shard)
    )
    assert [*draw(nodes, world.client.topology, first)[0].pieces.values()] == [piece]


def silent(shard: str) -> Any:
    raise ShardUnavailable(shard, "does not answer")


def test_a_key_is_not_forgotten_whose_shard_was_restored_while_the_key_was_coming_back(world: World) -> None:
    backup = backup_of(world.client, world.away)
    world.moved(world.away)
    [piece] = world.client.topology.placement.pieces.values()
    stages = {"copying", "stopping"}
    for step in world.move(world.home).steps():
        if step.stage in stages:
            before = backup_of(world.client, world.away)
            restore(world.client, world.away, backup)
            drawn = draw(world.client.nodes, world.client.topology, Placement())[0]
            if "has stopped" in step.text or step.stage == "copying":
                assert [*drawn.pieces.values()] == [piece]
            restore(world.client, world.away, before)
            stages -= {step.stage}
    assert stages == set()


# what else looks at buckets ---------------------------------------------------------------------------------------


def test_what_looks_at_buckets_takes_a_key_that_is_away_for_none(world: World) -> None:
    world.moved(world.away)
    client, [piece] = world.client, world.client.topology.placement.pieces

    migrate(client)
    assert upkeep.reconcile(client, world.away) == 0
    upkeep.trim(client, world.home)
    transfers, weights = shards.planned(client, 0)
    assert all(transfer.bucket != world.bucket for transfer in transfers)
    assert (weights.rows[world.bucket], weights.rows[piece]) == (5, 20)
    assert [one.state for one in orders.known(client)] == ["done"]
    assert deployment.restored(client.log, client.nodes, client.topology, world.away) == ""
    assert client.topology.applied_by(world.away)[-1] == piece
    receipt = client.enqueue_insert(world.db.purchase, customer=KEY, day=70)
    world.drain()
    assert story(client, str(receipt)).status == "applied"


def test_a_shard_that_has_a_key_of_another_ones_bucket_is_not_removed(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shards, "_toml", lambda settings: tmp_path / "web.toml")  # of which nothing is read
    third = next(shard for shard in ("s0", "s1", "s2") if shard not in (world.home, world.away))
    world.moved(world.away)
    buckets = world.client.topology.buckets_of(world.away)
    list(orders.order_move(world.client, buckets, third, "me", keep_s=0).steps())

    with pytest.raises(PipelineError, match="has the key purchase=7: send it back first"):
        shards.shrunk(world.client, world.away)
