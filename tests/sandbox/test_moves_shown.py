"""What an operator sees of moves: how far each is, what stands still, and each bucket at the shard that owns it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from support.sandbox.deployments import Site, drain, insert, run, site

from pipeline import clock
from pipeline.admin import moving as movers
from pipeline.admin.moving import MoveEnded, Mover, orders
from pipeline.admin.moving.buckets_rows import Different
from pipeline.admin.observe import Observer
from pipeline.admin.observe import moves as shown
from pipeline.admin.observe.moves import pace_of
from pipeline.admin.observe.readings import ask_node, ask_primary
from pipeline.admin.observe.record import Record
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.reads.health import Report, probe
from pipeline.shard.records import moves
from pipeline.shard.records.moves import MoveNote
from workers.chores import Moves

__all__ = ["site"]

CUSTOMERS = range(40)
Look = Callable[[], Record]


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    monkeypatch.setattr(movers, "NOTED_S", 0.0)


@pytest.fixture
def client(site: Site) -> Client:
    return run(site, *CUSTOMERS)


@pytest.fixture
def observer(site: Site, client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Observer]:
    monkeypatch.setattr("pipeline.admin.observe.log_of", lambda settings, read_s: site.log)
    monkeypatch.setattr("pipeline.admin.observe.COUNTS_S", 0.0)
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
    assert [shard.owned for shard in record.shards] == [31, 33]
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
    monkeypatch.setattr("pipeline.admin.observe.ask_node", without_s0)

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


def test_a_record_says_how_far_a_move_is_until_it_is_over(client: Client, look: Look) -> None:
    bucket, _ = customer_on(client, "s0")
    mover = orders.order_move(client, [bucket], "s1", "me", keep_s=1, note=MoveNote(total=10))
    ordered, seen = look(), []
    for _ in mover.steps():
        seen += [(one.state, one.rows, one.total) for one in look().moves]

    assert [str(one) for one in ordered.moves] == [f"the move of {bucket} to s1"]
    assert [one.state for one in ordered.moves] == ["beginning"]
    states = [*dict.fromkeys(state for state, _, _ in seen)]
    assert states == ["copying", "comparing", "stopping", "waiting", "cleaning"]
    assert {(rows, total) for state, rows, total in seen if state != "cleaning"} == {(rows_of(client, bucket), 10)}
    assert look().moves == ()
    assert not look().faults()


def rows_of(client: Client, bucket: int) -> int:
    return sum(client.topology.bucket_of("purchase", one) == bucket for one in CUSTOMERS)


def test_a_move_that_no_mover_attends_is_a_fault_and_workers_mend_it(
    client: Client, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, _ = customer_on(client, "s0")
    mover = orders.order_move(client, [bucket], "s1", "me", keep_s=0)
    until(mover, "copying")
    assert not look().faults()

    noted(client, mover, told_ms=clock.wall_ms() - 61_000)
    client.log.ahead_ms += 61_000  # type: ignore[attr-defined]

    [fault] = look().faults()
    assert timeless(str(fault)) == f"s0: the move of {bucket} to s1 stands still: no mover has been at it for N s"
    assert fault.fix == f"start workers: they go on with it; or run: pipeline move give-up {bucket}"
    worked(client)
    assert not look().faults()
    assert look().moves == ()


def timeless(text: str) -> str:
    return re.sub(r"\d+ s\b", "N s", text)


def noted(client: Client, mover: Mover, **changes: Any) -> None:
    """Change what a mover has noted, and when the move was ordered."""
    target = client.nodes.primary(mover.leg.target)
    [leg] = [leg for leg in moves.legs(target).values() if leg.move == mover.leg.move]
    moves.note(target, mover.buckets, leg.move, **changes)
    for shard in (mover.leg.source, mover.leg.target):
        with client.nodes.primary(shard).transaction():
            client.nodes.primary(shard).execute(f"UPDATE pipeline_moves SET began_ms = 1 WHERE move = {leg.move}")


def worked(client: Client) -> None:
    """Let a worker go on with the moves until they are over."""
    worker = Moves(client)
    for _ in polls(10, first_s=0.01):
        worker.turn()
        client.log.release_lease("moves", "1")
        if not [*orders.under_way(client)]:
            return
    raise AssertionError("a move is not over")


def test_a_move_that_was_ordered_and_never_begun_is_a_fault(
    client: Client, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.order_move(client, [3], "s1", "me")
    assert not look().faults()

    monkeypatch.setattr(shown, "STILL_MS", -1)

    assert "the move of 3 to s1 stands still: no mover has been at it for N s" in timeless(str(look().faults()[0]))


def test_what_stops_a_mover_is_shown_at_once_and_is_a_fault_once_it_lasts(
    client: Client, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, _ = customer_on(client, "s0")
    mover = orders.order_move(client, [bucket], "s1", "me", keep_s=0)

    def behind() -> None:
        raise PipelineError("s1 is behind s0 in reference tables: see pipeline why")

    monkeypatch.setattr(mover, "_give_span", behind)
    for _ in range(2):
        with pytest.raises(PipelineError):
            [*mover.steps()]

    [move] = look().moves
    assert (move.state, move.still) == ("stopping", "")
    assert move.text == "s1 is behind s0 in reference tables: see pipeline why"
    noted(client, mover, waits_from_ms=clock.wall_ms() - 61_000)
    [fault] = look().faults()
    assert timeless(fault.what) == f"stands still: it has waited N s: {move.text}"
    assert fault.fix == f"mend that, and it goes on; or run: pipeline move give-up {bucket}"
    mover.release()
    worked(client)
    assert look().moves == ()


def test_since_when_a_mover_waits_is_kept_and_a_countdown_is_no_standstill(client: Client, look: Look) -> None:
    mover = orders.order_move(client, [3], "s1", "me", keep_s=3600)
    steps = until(mover, "stopping")
    for _ in range(3):
        last = next(steps)
    [move] = look().moves
    assert last.stage == "waiting"
    assert (move.state, move.text, move.still) == ("waiting", last.text, "")
    assert not move.ends

    target, still = client.nodes.primary("s1"), []
    for text in ("for a replica", "for a replica", "for another"):
        moves.note_progress(target, mover.buckets, mover.leg.move, "waiting", text, 0)
        still += [timeless(one.still) for one in look().moves]
        if len(still) == 1:
            noted(client, mover, waits_from_ms=clock.wall_ms() - 61_000)

    assert still == ["", "it has waited N s: for a replica", ""]


def test_a_move_that_was_given_up_says_why_until_it_is_cleaned_and_is_no_fault(
    client: Client, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = orders.order_move(client, [3], "s1", "me", keep_s=0)

    def differ(*arguments: object) -> None:
        raise Different("1 rows of 'purchase' differ")

    monkeypatch.setattr(movers.buckets_rows, "compare_records", differ)
    with pytest.raises(MoveEnded):
        [*mover.steps()]

    record = look()

    assert [(one.state, one.text, one.still) for one in record.moves] == [
        ("giving up", "1 rows of 'purchase' differ", "")
    ]
    assert not record.faults()
    mover.release()
    worked(client)
    assert look().moves == ()


def test_a_shard_that_is_away_leaves_its_moves_not_known(
    client: Client, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.order_move(client, [3], "s1", "me")

    def without_s1(shard: str, uri: str) -> object:
        if shard == "s1":
            raise ShardUnavailable("s1", "away")
        return asked(shard, uri)

    asked = ask_primary
    monkeypatch.setattr("pipeline.admin.observe.ask_primary", without_s1)
    monkeypatch.setattr(shown, "STILL_MS", -1)

    record = observer.look()

    assert [(one.state, one.still) for one in record.moves] == [("not known", "")]
    assert record.unknown


def test_the_pace_is_that_of_the_step_and_what_is_left_is_known_where_the_rows_are() -> None:
    copying = MoveNote(total=1000, copied_from_ms=1_000, told_ms=11_000, step="copying", step_rows=100, step_from_ms=9)
    comparing = replace(copying, step="comparing", step_rows=500, step_from_ms=6_000)

    assert pace_of(copying) == (10.0, 90)
    assert pace_of(comparing) == (100.0, 5)
    assert pace_of(replace(comparing, total=0)) == (100.0, None)
    assert pace_of(MoveNote()) == (None, None)
