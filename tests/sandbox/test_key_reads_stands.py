"""Reads of a key that moves to a shard of its own and back: in each pair of states no row is missed, old, or twice."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from pydal import DAL, Field
from support.examples import THOROUGH
from support.sandbox.kinds_of_reads import COUNTS, MOMENTS, ROWS, SUMS, Customers, assert_true

import pipeline
from pipeline import clock
from pipeline.config.buckets import NOWHERE, KeyName, Piece, Placement, new_piece
from pipeline.errors import PartialResult, StaleRead
from pipeline.model import Position
from pipeline.reads import Need, Token
from pipeline.shard.records import moves
from pipeline.shard.records.moves import DEFAULTS, Leg
from pipeline.testing import Sandbox, sandbox

HOME, AWAY = "s0", "s1"


class Stand(NamedTuple):
    """How both shards stand: of the bucket and the key at home, and of the key away; an empty state: no watermark.

    Attributes:
        truth: the shard that serves the key.
        back: whether the last move is one back.
    """

    bucket: str
    here: str
    there: str
    truth: str
    back: bool = False


STANDS = [
    *(
        Stand(bucket, "", there, HOME)
        for bucket in ("active", "holding")
        for there in ("", "copying", "catching", "gone")
    ),
    Stand("stopped", "", "catching", HOME),
    Stand("stopped", "", "active", AWAY),
    Stand("lent", "moved", "active", AWAY),
    Stand("lent", "gone", "active", AWAY),
    Stand("lent", "gone", "holding", AWAY),
    *(Stand("lent", here, "active", AWAY, back=True) for here in ("gone", "copying", "catching")),
    Stand("lent", "catching", "moved", AWAY, back=True),
    Stand("stopped", "catching", "moved", AWAY, back=True),
    Stand("active", "", "moved", HOME, back=True),
    Stand("active", "", "gone", HOME, back=True),
]
#: What stands where the truth is not: a copy is of before, and what is left has rows that are deleted by now.
NOT_TRUE = {"": {}, "copying": {0: 90, 3: 93}, "catching": {0: 90, 1: 91}, "gone": {3: 93}, "moved": {0: 70, 3: 73}}


class World(Customers):
    """Two shards, a customer of the first that moves to the second, and others, one of them of the same bucket."""

    others = 3

    def __init__(self, box: Sandbox):
        self.box, self.topology = box, box.client.topology
        self.db: Any = DAL("sqlite:memory", migrate=False)
        self.db.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer"))
        self.db.define_table("line", Field("customer", "integer", notnull=True), Field("sale", "reference sale"))
        self.db.define_table("note", Field("customer", "integer", notnull=True))
        self.db.define_table("country", Field("name"))
        pipeline.define_tables(self.db)
        self.bucket = self.topology.buckets_of(HOME)[0]
        alike = [n for n in range(1, 9999) if self.topology.bucket_of("sale", n) == self.bucket]
        self.customer, self.neighbour = alike[:2]
        self.of = KeyName(self.bucket, "sale", str(self.customer))
        self.piece = new_piece(self.bucket, 3)
        self.ids = [pipeline.enqueue_insert(self.db.sale, customer=self.customer, qty=n).id for n in range(4)]
        self.lines = [pipeline.enqueue_insert(self.db.line, customer=self.customer, sale=one).id for one in self.ids]
        stays = [self._customer(HOME, 1), self._customer(AWAY, 0)]
        made = [pipeline.enqueue_insert(self.db.sale, customer=one, qty=50) for one in (self.neighbour, *stays)]
        for customer, one in zip((self.neighbour, *stays), made, strict=True):
            pipeline.enqueue_insert(self.db.line, customer=customer, sale=one.id)
        self.neighbours = made[0].id
        #: A row of the customer in a table that is spread by another rule: it is in the bucket `customer % buckets`.
        self.note = pipeline.enqueue_insert(self.db.note, customer=self.bucket)
        pipeline.enqueue_insert(self.db.country, name="no")
        box.drain()
        of_bucket = f"WHERE bucket = {self.bucket}"
        [self.mark] = box.client.nodes.primary(HOME).query(f"SELECT epoch, seq FROM pipeline_watermarks {of_bucket}")

    def stand(self, stand: Stand) -> dict[int, int]:
        """Make both shards as they are then; return which rows of the customer there are in truth."""
        at = 1 if stand.truth == AWAY else 0
        truth = {0: 10 + at, 1: 11 + at, 2: 12 + at}
        self.leg(back=stand.back)
        for shard, state in ((HOME, stand.here), (AWAY, stand.there)):
            self.state(shard, self.piece, state)
            self.rows(shard, truth if shard == stand.truth else NOT_TRUE[state if shard == AWAY or state else "moved"])
        self.state(HOME, self.bucket, stand.bucket)
        self.state(AWAY, self.bucket, "gone")  # the bucket was there once
        return truth

    def leg(self, *, back: bool = False, move: int = 5) -> None:
        """Let the row of a move be on both shards."""
        pair = (AWAY, HOME) if back else (HOME, AWAY)
        for shard in (HOME, AWAY):
            session = self.box.client.nodes.primary(shard)
            with session.transaction():
                moves.write_leg(
                    session, Leg(self.piece, move, *pair, clock.wall_ms(), 0, "me", DEFAULTS, None, None, self.of)
                )

    def forget_moves(self) -> None:
        """Let no key have moved."""
        for shard in (HOME, AWAY):
            session = self.box.client.nodes.primary(shard)
            with session.transaction():
                session.execute("DELETE FROM pipeline_moves")
            self.state(shard, self.piece, "")

    def state(self, shard: str, number: int, state: str) -> None:
        """Let a bucket or a piece have a state on a shard; an empty one: no watermark."""
        session = self.box.client.nodes.primary(shard)
        with session.transaction():
            session.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {number}")
            if state:
                moves.place_mark(session, number, Position(*self.mark), state)

    def map(self, shard: str, *, moving: bool = True, back: bool = False) -> None:
        """Let readers act on a map by which a shard has the customer; an empty name: the map does not know of it."""
        pieces = {self.piece: Piece(self.piece, self.of, shard)} if shard else {}
        pair = (AWAY, HOME) if back else (HOME, AWAY)
        self.topology.follow(Placement(9, {}, {self.piece: pair} if moving else {}, pieces))


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    tables = {
        "sale": {"shard_key": "customer"},
        "line": {"shard_key": "customer"},
        "note": {"shard_key": "customer", "rule": "modulo"},
        "country": {"reference": True},
    }
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
    made.stand(STANDS[0])


def _assert_all(world: World, truth: dict[int, int], about: str) -> None:
    assert_true(world, truth, about)
    sale, db = world.db.sale, world.db
    for options in ({}, {"shard_key": world.neighbour}, {"pending": True}):
        row = pipeline.get(sale, world.neighbours, **options)
        assert (row and row.qty) == 50, f"the neighbour {options}, {about}"
    with pipeline.read(sale, world.neighbour) as node:
        assert node(node.sale.customer == world.neighbour).select(node.sale.qty).first().qty == 50, about
    assert len(pipeline.select(sale.customer == world.neighbour)) == 1, about
    assert pipeline.count(db.note) == 1, about
    assert pipeline.get(db.note, world.note.id).customer == world.bucket, about
    for n, one in enumerate(world.ids):
        rows = pipeline.select(sale.id == one, limitby=(0, 1))
        assert [row.qty for row in rows] == [truth.get(n)] * (n in truth), about
        assert pipeline.count(sale.id == one) == (n in truth), about
        assert pipeline.count(sale.id == one, distinct=sale.qty) == (n in truth), about
        total = sale.qty.sum()
        assert pipeline.select((sale.id == one) & (sale.qty < 99), total).first()[total] == truth.get(n), about
    assert pipeline.select(sale.id == world.neighbours, limitby=(0, 1)).first().qty == 50, about


@pytest.mark.parametrize("stand", STANDS, ids=str)
def test_each_read_finds_each_row_once_whatever_the_states_and_the_map(world: World, stand: Stand) -> None:
    truth = world.stand(stand)
    for owner in (HOME, AWAY):
        world.map(owner, back=stand.back)

        _assert_all(world, truth, f"the map says {owner}")


@pytest.mark.parametrize("stand", STANDS, ids=str)
def test_a_process_that_hears_of_no_map_finds_each_row_once(world: World, stand: Stand) -> None:
    truth = world.stand(stand)
    world.forget_news()
    for owner, moving in (("", False), (HOME, False), (AWAY, False), (HOME, True), (AWAY, True)):
        world.map(owner, moving=moving, back=stand.back)

        _assert_all(world, truth, f"the map of old says {owner}, {moving=}")


def test_a_token_of_the_bucket_counts_on_the_shard_that_is_read(world: World) -> None:
    """Neither shard has passed more for the other one's sake."""
    world.stand(Stand("lent", "gone", "active", AWAY))
    world.rows(HOME, {})
    world.map(AWAY, moving=False)
    sale = world.db.sale
    options: dict[str, Any] = {"after": world.later, "wait_s": 0.01}

    world.go_on(HOME, world.bucket)
    assert pipeline.get(sale, world.neighbours, shard_key=world.neighbour, **options).qty == 50
    for read in (
        lambda: pipeline.get(sale, world.ids[0], **options),
        lambda: pipeline.get(sale, world.neighbours, **options),
        lambda: pipeline.select(sale.customer == world.customer, **options),
        lambda: pipeline.count(sale, **options),
    ):
        with pytest.raises((StaleRead, PartialResult)):
            read()
    world.go_on(AWAY, world.piece)
    assert pipeline.get(sale, world.ids[0], **options).qty == 11
    assert pipeline.get(sale, world.neighbours, **options).qty == 50
    assert pipeline.count(sale, **options) == 6


def test_what_was_seen_on_one_shard_is_waited_for_on_the_other_and_is_not_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.stand(Stand("lent", "gone", "active", AWAY))
    world.rows(HOME, {})
    world.map(AWAY, moving=False)
    sale, reads = world.db.sale, world.box.client.reads
    session = reads.session()
    for _ in range(2):
        world.go_on(AWAY, world.piece)

    assert pipeline.get(sale, world.ids[0], after=session).qty == 11

    assert session.token[world.bucket].position == Position(world.mark[0], world.mark[1] + 2)
    assert {*session.token} <= {world.bucket, world.topology.reference_bucket}
    with pytest.raises(StaleRead):
        pipeline.get(sale, world.neighbours, shard_key=world.neighbour, after=session, wait_s=0.01)
    # every node of the bucket's shard has passed it, and its shard alone is asked
    passed = {world.bucket: Position(world.mark[0], 99)}
    monkeypatch.setattr(reads._router.replicas, "passed", lambda shard: passed)
    pipeline.get(sale, world.ids[0], after=session)
    assert world.bucket in session.token


# while states change -------------------------------------------------------------------------------------------------

THERE, AGAIN, BACK = {0: 10, 1: 11, 2: 12}, {0: 20, 2: 22, 3: 23}, {0: 30, 3: 33}


class Mover:
    """Lets the key leave and come back between the statements of a read; a reader hears of the map as late as it may.

    Args:
        world: whose key moves.
        dice: decides when.
        deaf: whether the reader hears nothing.
    """

    def __init__(self, world: World, dice: random.Random, *, deaf: bool):
        self.world, self._dice, self._deaf, self._lock = world, dice, deaf, threading.Lock()
        self.step, self._going = 0, False
        self._published = self._heard = NOWHERE
        out, back = self._moving((HOME, AWAY)), self._moving((AWAY, HOME))
        bucket, piece, state, rows = world.bucket, world.piece, world.state, world.rows
        self._steps: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            (self._ordered, (False, 5)),
            (self._publish, (out(HOME),)),
            (self._hear, (True,)),
            (state, (AWAY, piece, "copying")),
            (rows, (AWAY, {0: 90, 3: 93})),
            (rows, (AWAY, THERE)),
            (state, (AWAY, piece, "catching")),
            (state, (HOME, bucket, "stopped")),
            (state, (AWAY, piece, "active")),
            (rows, (AWAY, AGAIN)),
            (self._parted, ()),
            (self._publish, (out(AWAY),)),
            (self._hear, (True,)),
            (state, (HOME, piece, "gone")),
            (rows, (HOME, {1: 11})),
            (rows, (HOME, {})),
            (self._publish, (self._map(AWAY),)),
            (self._ordered, (True, 6)),
            (self._publish, (back(AWAY),)),
            (self._hear, (True,)),
            (state, (HOME, piece, "copying")),
            (rows, (HOME, {0: 91, 1: 94})),
            (rows, (HOME, AGAIN)),
            (state, (HOME, piece, "catching")),
            (state, (AWAY, piece, "moved")),
            (state, (HOME, bucket, "stopped")),
            (self._merged, ()),
            (rows, (HOME, BACK)),
            (self._publish, (back(HOME),)),
            (self._hear, (True,)),
            (state, (AWAY, piece, "gone")),
            (rows, (AWAY, {2: 22})),
            (rows, (AWAY, {})),
            (self._publish, (Placement(13),)),
        ]
        world.topology.follow(NOWHERE)
        world.stand(STANDS[0])
        world.forget_moves()
        rows(HOME, THERE)
        rows(AWAY, {})

    @property
    def over(self) -> bool:
        return self.step == len(self._steps)

    def truths(self, first: int) -> list[dict[int, int]]:
        """Return which rows there were at some time since a step."""
        began = [n for n, (_, told) in enumerate(self._steps, 1) if told in ((AWAY, AGAIN), (HOME, BACK))]
        spans = zip((0, *began), (*began, len(self._steps) + 1), (THERE, AGAIN, BACK), strict=True)
        return [rows for start, end, rows in spans if first < end and self.step >= start]

    def go(self, steps: int) -> None:
        """Do the next steps."""
        with self._lock:
            for act, told in self._steps[self.step : self.step + steps]:
                act(*told)
                self.step += 1
            self._hear(self._dice.random() < 0.3)

    def between(self) -> None:
        """Go on, or not, before a statement of a read."""
        if self._going:
            self.go(self._dice.choice((0, 0, 1, 3, 5, 16, 34)))

    def during(self, read: Callable[[World], Any]) -> Any:
        """Return what a read finds while the move goes on."""
        self._going = True
        try:
            return read(self.world)
        finally:
            self._going = False

    def _map(self, shard: str) -> Placement:
        piece = Piece(self.world.piece, self.world.of, shard)
        return Placement(10 if shard == AWAY else 9, {}, {}, {self.world.piece: piece})

    def _moving(self, pair: tuple[str, str]) -> Callable[[str], Placement]:
        return lambda shard: self._map(shard)._replace(moves={self.world.piece: pair})

    def _ordered(self, back: bool, move: int) -> None:
        self.world.leg(back=back, move=move)

    def _parted(self) -> None:
        session = self.world.box.client.nodes.primary(HOME)
        with session.transaction():
            moves.place_mark(session, self.world.piece, Position(*self.world.mark), "moved")
            moves.set_state(session, [self.world.bucket], "lent")

    def _merged(self) -> None:
        session = self.world.box.client.nodes.primary(HOME)
        with session.transaction():
            session.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {self.world.piece}")
            moves.set_state(session, [self.world.bucket], "active")

    def _publish(self, placement: Placement) -> None:
        self._published = placement

    def _hear(self, now: bool) -> None:
        if now and not self._deaf and self._heard is not self._published:
            self._heard = self._published
            self.world.topology.follow(self._published)


@pytest.mark.parametrize("deaf", [False, True], ids=["by the map", "without a map"])
@pytest.mark.parametrize("seed", range(60 if THOROUGH else 15))
def test_a_read_finds_what_was_true_at_some_time_while_it_ran(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int, deaf: bool
) -> None:
    """Where the mover goes on between any two statements, there and back, and the reader hears of it late."""
    dice = random.Random(seed)
    mover = Mover(world, dice, deaf=deaf)
    if deaf:
        world.forget_news()
    for node in (HOME, AWAY):
        adapter = world.box.client.reads._router.readers[node].adapter
        monkeypatch.setattr(adapter, "execute", _after(mover.between, adapter.execute))
    mover.go(dice.choice((0, dice.randrange(34))))
    while not mover.over:
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


@pytest.mark.parametrize("kind", ["select of a key", "get 0", "count", "read"])
def test_a_key_that_leaves_and_comes_back_within_a_read_is_noticed_by_its_moves(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The reader hears of nothing meanwhile, and the states are as before."""
    mover, (read, expected) = Mover(world, random.Random(1), deaf=True), MOMENTS[kind]
    mover.go(2)
    world.map(HOME)
    goes = iter([0, 18, 16])  # before the states, before the rows, before the states again
    adapter = world.box.client.reads._router.readers[HOME].adapter
    monkeypatch.setattr(adapter, "execute", _after(lambda: mover.go(next(goes, 0)), adapter.execute))

    found = read(world)

    assert mover.over
    assert found in map(expected, mover.truths(2))


def test_a_node_serves_a_key_as_its_watermarks_say(world: World) -> None:
    session = world.box.client.nodes.primary(HOME)

    def seat(bucket: str, piece: str) -> str | None:
        world.state(HOME, world.bucket, bucket)
        world.state(HOME, world.piece, piece)
        found = moves.seats(session, [world.piece]).get(world.piece)
        return found.state if found is not None and found.serves else None

    assert seat("holding", "") == "holding"
    assert seat("stopped", "") == "moved"
    assert seat("lent", "") is None  # the bucket has lent the key under a later number, or another key
    assert seat("lent", "moved") is None  # its rows are of before, whatever the other shard says
    assert seat("lent", "catching") is None
    assert seat("gone", "moved") == "moved"
    assert seat("gone", "") is None


@pytest.mark.parametrize("stand", STANDS, ids=str)
@pytest.mark.parametrize("kind", [*ROWS, *SUMS, *COUNTS])
def test_the_first_read_of_a_process_that_knows_of_no_key_is_right(world: World, stand: Stand, kind: str) -> None:
    truth = world.stand(stand)
    world.forget_news()
    world.map("", moving=False)

    if kind in ROWS:
        assert ROWS[kind](world) == truth
    elif kind in SUMS:
        assert SUMS[kind](world) == sum(truth.values()) + 150
    else:
        assert COUNTS[kind](world) == len(truth) + 3


@pytest.mark.parametrize("deaf", [False, True], ids=["by the map", "without a map"])
@pytest.mark.parametrize("steps", [3, 8, 9, 12, 16, 26, 34])
@pytest.mark.parametrize("kind", ["select of a key", "select", "get 0", "get 0 pending", "count", "sum", "read"])
@pytest.mark.parametrize("node", [HOME, AWAY])
def test_a_move_that_begins_within_a_read_is_noticed_behind_its_rows(
    world: World, monkeypatch: pytest.MonkeyPatch, node: str, kind: str, steps: int, deaf: bool
) -> None:
    mover = Mover(world, random.Random(1), deaf=deaf)
    # without a map the first statements ask for moves and states
    (read, expected), goes = MOMENTS[kind], iter([0, 0, steps] if deaf else [steps])
    if deaf:
        world.forget_news()
    adapter = world.box.client.reads._router.readers[node].adapter
    monkeypatch.setattr(adapter, "execute", _after(lambda: mover.go(next(goes, 0)), adapter.execute))

    found = read(world)

    assert found in map(expected, mover.truths(0))


def test_what_a_session_saw_on_one_of_two_shards_replaces_nothing_that_it_wrote(world: World) -> None:
    """In a later epoch than that of the op, only the producer's sequence tells whether the other shard has it."""
    wrote = Need(Position(5, 9), {77: 3})
    for seen in ({world.piece: Position(6, 0)}, {world.bucket: Position(6, 0)}):
        session = world.box.client.reads.session()
        session._token = Token({world.bucket: wrote})

        session.saw(seen, {}, stale=False, split={world.bucket})

        assert session.token[world.bucket] == Need(Position(6, 0), {}, {77: 3})


def test_a_subselect_of_the_same_bucket_is_of_the_shard_that_has_its_rows(world: World) -> None:
    world.stand(Stand("lent", "gone", "active", AWAY))
    world.rows(HOME, {})
    world.rows(AWAY, {0: 50})
    world.map(AWAY, moving=False)
    sale, other = world.db.sale, world.db.sale.with_alias("other")
    like_the_neighbour = sale.qty.belongs(world.db(other.customer == world.neighbour).nested_select(other.qty))

    assert len(pipeline.select((sale.id == world.ids[0]) & like_the_neighbour)) == 1
    assert len(pipeline.select((sale.customer == world.customer) & like_the_neighbour)) == 1
    like_the_key = sale.qty.belongs(world.db(other.customer == world.customer).nested_select(other.qty))
    assert len(pipeline.select((sale.id == world.neighbours) & like_the_key)) == 1
    assert len(pipeline.select((sale.customer == world.neighbour) & like_the_key)) == 1
