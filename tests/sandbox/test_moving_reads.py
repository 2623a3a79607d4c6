"""Reads of a bucket that moves, for each pair of states of its two shards: no row is missed, old, or there twice."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.kinds_of_reads import MOMENTS, Customers, assert_true, by_n

import pipeline
from pipeline import clock
from pipeline.config.buckets import NOWHERE, Placement
from pipeline.errors import PartialResult, ShardUnavailable
from pipeline.reads.routing.moving import Elsewhere
from pipeline.testing import Sandbox, sandbox

#: The states of the source and of the target, and which of them has the truth.
PAIRS = {
    **{(state, other): 0 for state in ("active", "holding", "halted") for other in ("", "copying", "catching", "gone")},
    ("moved", "catching"): 0,
    ("moved", "active"): 1,
    ("gone", "active"): 1,
    ("gone", "holding"): 1,
}
#: What stands in the target in each state of its: a copy is a part of an old one, and has a row that is deleted by now.
TARGETS = {"": {}, "copying": {0: 90, 3: 93}, "catching": {0: 90, 1: 91}, "gone": {3: 93}}


class World(Customers):
    """Two shards, a customer of the first whose bucket moves to the second, and others that stay."""

    others = 2

    def __init__(self, box: Sandbox):
        self.box, self.topology = box, box.client.topology
        self.db: Any = DAL("sqlite:memory", migrate=False)
        self.db.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer"))
        self.db.define_table("line", Field("customer", "integer", notnull=True), Field("sale", "reference sale"))
        self.db.define_table("country", Field("name"))
        pipeline.define_tables(self.db)
        self.customer = self._customer("s0", 0)
        self.bucket = self.topology.bucket_of("sale", self.customer)
        self.stays = [self._customer("s0", 1), self._customer("s1", 0)]
        self.ids = [pipeline.enqueue_insert(self.db.sale, customer=self.customer, qty=n).id for n in range(4)]
        self.lines = [pipeline.enqueue_insert(self.db.line, customer=self.customer, sale=one).id for one in self.ids]
        for customer in self.stays:
            one = pipeline.enqueue_insert(self.db.sale, customer=customer, qty=50)
            pipeline.enqueue_insert(self.db.line, customer=customer, sale=one.id)
        pipeline.enqueue_insert(self.db.country, name="no")
        box.drain()
        of_bucket = f"WHERE bucket = {self.bucket}"
        #: Where the customer's log ends.
        [self.mark] = box.client.nodes.primary("s0").query(f"SELECT epoch, seq FROM pipeline_watermarks {of_bucket}")

    def stand(self, states: tuple[str, str]) -> dict[int, int]:
        """Make both shards as they are in these states; return which rows of the customer there are in truth."""
        truth = PAIRS.get(states)
        for at, (shard, state) in enumerate(zip(("s0", "s1"), states, strict=True)):
            self.state(shard, state)
            self.rows(shard, self._rows(at, state, truth))
        return {} if truth is None else self._rows(truth, states[truth], truth)

    def _rows(self, at: int, state: str, truth: int | None) -> dict[int, int]:
        if at == truth:
            return {0: 10 + at, 1: 11 + at, 2: 12 + at}
        if at == 0:
            return {0: 70, 1: 71, 3: 73} if state == "moved" else {1: 71}
        return TARGETS.get(state, {})

    def state(self, shard: str, state: str) -> None:
        """Let the bucket have a state on a shard; an empty one: no watermark."""
        session = self.box.client.nodes.primary(shard)
        with session.transaction():
            session.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {self.bucket}")
            if state:
                into = "INSERT INTO pipeline_watermarks (bucket, epoch, seq, state, committed_ms)"
                session.execute(f"{into} VALUES ({self.bucket}, {self.mark[0]}, {self.mark[1]}, '{state}', 0)")

    def map(self, owner: str, *, moves: bool = True) -> None:
        """Let readers act on a map."""
        moving = {self.bucket: ("s0", "s1")} if moves else {}
        self.topology.follow(Placement(9, {self.bucket: owner} if owner == "s1" else {}, moving))


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    tables = {"sale": {"shard_key": "customer"}, "line": {"shard_key": "customer"}, "country": {"reference": True}}
    with sandbox(tables, shards=2) as made:
        yield made


@pytest.fixture(scope="module")
def made(box: Sandbox) -> World:
    return World(box)


@pytest.fixture
def world(made: World) -> Iterator[World]:
    # no thread of the client's decides when there is news
    made.box.client.health._topology, made.topology.heard_at_s = None, math.inf
    yield made
    made.topology.follow(NOWHERE)
    made.stand(("active", ""))


@pytest.mark.parametrize("states", PAIRS, ids="-".join)
def test_each_read_finds_each_row_once_whatever_the_states_and_the_owner_by_the_map(
    world: World, states: tuple[str, str]
) -> None:
    truth = world.stand(states)
    for owner in ("s0", "s1"):
        world.map(owner)

        assert_true(world, truth, f"the map says {owner}")


@pytest.mark.parametrize("states", PAIRS, ids="-".join)
def test_a_process_that_hears_of_no_map_finds_each_row_once(world: World, states: tuple[str, str]) -> None:
    truth = world.stand(states)
    world.forget_news()
    for owner, moves in (("s0", False), ("s1", False), ("s0", True), ("s1", True)):
        world.map(owner, moves=moves)

        assert_true(world, truth, f"the map of old says {owner}, {moves=}")


# while states change -------------------------------------------------------------------------------------------------

BEFORE, AFTER = {0: 10, 1: 11, 2: 12}, {0: 20, 2: 22, 3: 23}


class Mover:
    """Goes on with a move between the statements of a read; a reader hears of the map as late as it may.

    Args:
        world: whose bucket moves.
        dice: decides when.
        deaf: whether the reader hears nothing.
    """

    def __init__(self, world: World, dice: random.Random, *, deaf: bool):
        self.world, self._dice, self._deaf, self._lock = world, dice, deaf, threading.Lock()
        self.step, self._going = 0, False
        self._published, self._heard = NOWHERE, NOWHERE
        move = {world.bucket: ("s0", "s1")}
        self._steps: list[tuple[Callable[..., None], Any]] = [
            (self._publish, Placement(9, {}, move)),
            (self._state, ("s1", "copying")),
            (self._rows, ("s1", {0: 90, 3: 93})),
            (self._rows, ("s1", {0: 90, 1: 91, 2: 12})),
            (self._state, ("s1", "catching")),
            (self._rows, ("s1", BEFORE)),
            (self._state, ("s0", "moved")),
            (self._state, ("s1", "active")),
            (self._rows, ("s1", AFTER)),
            (self._publish, Placement(10, {world.bucket: "s1"}, move)),
            (self._state, ("s0", "gone")),
            (self._rows, ("s0", {1: 11})),
            (self._rows, ("s0", {})),
            (self._publish, Placement(11, {world.bucket: "s1"}, {})),
        ]
        world.topology.follow(NOWHERE)
        for shard, rows, state in (("s0", BEFORE, "active"), ("s1", {}, "")):
            self._state(shard, state)
            self._rows(shard, rows)

    def truths(self, first: int) -> list[dict[int, int]]:
        """Return which rows there were at some time since a step."""
        return [BEFORE] * (first <= 8) + [AFTER] * (self.step > 8)

    def go(self, steps: int) -> None:
        """Do the next steps."""
        with self._lock:
            for act, told in self._steps[self.step : self.step + steps]:
                # so long waits each mover before it copies, and before it deletes, that all have heard
                if told in (("s1", {0: 90, 3: 93}), ("s0", "gone")):
                    self._hear()
                act(told) if act == self._publish else act(*told)
                self.step += 1
            if self._dice.random() < 0.3:
                self._hear()

    def between(self) -> None:
        """Go on, or not, before a statement of a read."""
        if self._going:
            self.go(self._dice.choice((0, 0, 1, 3, 5, 14)))

    def during(self, read: Callable[[World], Any]) -> Any:
        """Return what a read finds while the move goes on."""
        self._going = True
        try:
            return read(self.world)
        finally:
            self._going = False

    def _publish(self, placement: Placement) -> None:
        self._published = placement

    def _hear(self) -> None:
        if not self._deaf and self._heard is not self._published:
            self._heard = self._published
            self.world.topology.follow(self._published)

    def _state(self, shard: str, state: str) -> None:
        self.world.state(shard, state)

    def _rows(self, shard: str, rows: dict[int, int]) -> None:
        self.world.rows(shard, rows)


@pytest.mark.parametrize("deaf", [False, True], ids=["by the map", "without a map"])
@pytest.mark.parametrize("seed", range(60))
def test_a_read_finds_what_was_true_at_some_time_while_it_ran(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int, deaf: bool
) -> None:
    """Where the mover goes on between any two statements, and the reader hears of it late."""
    dice = random.Random(seed)
    mover = Mover(world, dice, deaf=deaf)
    if deaf:
        world.forget_news()
    for node in ("s0", "s1"):
        adapter = world.box.client.reads._router.readers[node].adapter
        monkeypatch.setattr(adapter, "execute", _after(mover.between, adapter.execute))
    mover.go(dice.choice((0, dice.randrange(14))))
    while mover.step < 14:
        kind, first = dice.choice([*MOMENTS]), mover.step

        read, expected = MOMENTS[kind]

        found = mover.during(read)

        assert found in map(expected, mover.truths(first)), f"{kind} from step {first} to {mover.step}"
        mover.go(1)


def _after(before: Callable[[], None], then: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **options: Any) -> Any:
        before()
        return then(*args, **options)

    return both


@pytest.mark.parametrize("deaf", [False, True], ids=["by the map", "without a map"])
@pytest.mark.parametrize("steps", [3, 6, 14])
@pytest.mark.parametrize("kind", ["select", "count", "sum", "read"])
@pytest.mark.parametrize("node", ["s0", "s1"])
def test_a_move_that_begins_within_a_read_is_noticed_behind_its_rows(
    world: World, monkeypatch: pytest.MonkeyPatch, node: str, kind: str, steps: int, deaf: bool
) -> None:
    mover = Mover(world, random.Random(1), deaf=deaf)
    # without a map the first statement asks for states
    (read, expected), goes = MOMENTS[kind], iter([0, steps] if deaf else [steps])
    if deaf:
        world.forget_news()
    adapter = world.box.client.reads._router.readers[node].adapter
    monkeypatch.setattr(adapter, "execute", _after(lambda: mover.go(next(goes, 0)), adapter.execute))

    found = read(world)

    assert found in map(expected, mover.truths(0))


def test_a_block_in_which_news_of_the_map_ends_says_at_its_end_that_the_bucket_has_left(world: World) -> None:
    mover, sale = Mover(world, random.Random(1), deaf=True), world.db.sale
    block = pipeline.read(sale, world.customer)
    node = block.__enter__()
    whole = by_n(world, node(node.sale.customer == world.customer).select())

    mover.go(14)
    world.forget_news()
    deleted = node(node.sale.customer == world.customer).select()

    assert whole == BEFORE
    assert not deleted
    with pytest.raises(Elsewhere):
        block.__exit__(None, None, None)


@pytest.fixture
def sent(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The statements that readers send, each with its node."""
    found: list[tuple[str, str]] = []
    for node in ("s0", "s1"):
        adapter = world.box.client.reads._router.readers[node].adapter

        def execute(sql: str, *rest: Any, node: str = node, then: Any = adapter.execute, **options: Any) -> Any:
            if "FROM" in sql:  # else a connection is opened, or tried after a second's rest
                found.append((node, sql))
            return then(sql, *rest, **options)

        monkeypatch.setattr(adapter, "execute", execute)
    return found


def test_while_nothing_moves_a_read_sends_its_own_statement_alone(world: World, sent: list[tuple[str, str]]) -> None:
    pipeline.get(world.db.sale, world.ids[1])
    pipeline.count(world.db.sale)
    with pipeline.read(world.db.sale, world.customer) as node:
        node(node.sale.customer == world.customer).select()

    assert sorted(node for node, _ in sent) == ["s0", "s0", "s0", "s1"]
    assert not any("pipeline_watermarks" in sql or "CRC32" in sql for _, sql in sent)


def test_while_a_bucket_moves_reads_of_others_send_nothing_more(world: World, sent: list[tuple[str, str]]) -> None:
    world.stand(("active", "copying"))
    world.map("s0")

    for customer in world.stays:
        assert len(pipeline.select(world.db.sale.customer == customer)) == 1

    assert [node for node, _ in sent] == ["s0", "s1"]
    assert not any("pipeline_watermarks" in sql for _, sql in sent)


def test_what_the_source_will_never_have_is_not_waited_for_there(world: World, sent: list[tuple[str, str]]) -> None:
    """The map of the reader is of before the target began."""
    world.stand(("moved", "active"))
    world.map("s0")
    world.go_on("s1", world.bucket)

    row = pipeline.get(world.db.sale, world.ids[0], after=world.later, wait_s=1)

    assert row.qty == 11
    assert {node for node, _ in sent} == {"s1"}


def test_what_goes_to_the_target_meanwhile_is_waited_for_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the reader may wait, it looks again whether the source goes on."""
    world.stand(("active", "catching"))
    world.map("s0")
    began_s, slept = clock.mono_s(), list[float]()

    def sleep_s(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            world.stand(("moved", "active"))
            world.go_on("s1", world.bucket)

    monkeypatch.setattr(clock, "mono_s", lambda: began_s + sum(slept))
    monkeypatch.setattr(clock, "sleep_s", sleep_s)
    row = pipeline.get(world.db.sale, world.ids[0], after=world.later, wait_s=30)

    assert row.qty == 11
    assert sum(slept) < 5


@pytest.mark.parametrize("deaf", [False, True], ids=["by the map", "without a map"])
def test_where_no_shard_serves_a_bucket_a_read_fails_and_finds_no_part(world: World, deaf: bool) -> None:
    world.stand(("gone", "catching"))
    world.map("s0")
    if deaf:
        world.forget_news()

    with pytest.raises(ShardUnavailable, match="read again"):
        pipeline.get(world.db.sale, world.ids[1])
    with pytest.raises(ShardUnavailable), pipeline.read(world.db.sale, world.customer):
        pass
    with pytest.raises(PartialResult):
        pipeline.count(world.db.sale, timeout_s=0.2)
