"""Shards at which nothing happens are looked at seldom, and at once when something happens there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline.admin import observe as observers
from pipeline.admin import stops
from pipeline.admin.moving import orders
from pipeline.admin.observe import Observer, readings
from pipeline.admin.observe.readings import OnPrimary, Primaries
from pipeline.admin.observe.record import Record
from pipeline.errors import LogUnavailable
from pipeline.oplog import doorbell
from pipeline.oplog.doorbell import Quiet
from pipeline.oplog.memory.log import MemoryLog
from pipeline.reads.health.prober import QUIET_PROBES, Prober
from pipeline.shard import NodeSession
from pipeline.shard.nodes import Nodes
from pipeline.testing import Sandbox, sandbox
from workers import chores
from workers.chores import CHORES, Alarm, Chores, Moves, Overview
from workers.process import Turns

SHARDS = ["s0", "s1"]


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("sale", Field("customer", "integer"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Two shards that are quiet as soon as two looks have found them alike."""
    monkeypatch.setattr(doorbell, "QUIET_SHARD_S", 0.0)
    with sandbox({"sale": {"shard_key": "customer"}}, shards=2) as made:
        made.client.define_tables(db)
        yield made


@pytest.fixture
def probed(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Prober, list[str]]]:
    """A prober of both shards, and the names of the nodes that it has probed."""
    asked: list[str] = []
    made = Prober(Nodes(box.client.settings), SHARDS, box.log)
    for name, probe in made._probes.items():
        monkeypatch.setattr(probe, "begin", lambda name=name, begin=probe.begin: (asked.append(name), begin()))
    yield made, asked
    made.close()


def enqueue_on(box: Sandbox, db: Any, shard: str) -> None:
    topology = box.client.topology
    customer = next(n for n in range(99) if topology.shard_of(topology.bucket_of("sale", n)) == shard)
    box.client.enqueue_insert(db.sale, customer=customer)


def test_a_quiet_shard_of_one_node_is_probed_at_each_fifth_time_and_reported_each_time(
    box: Sandbox, probed: tuple[Prober, list[str]]
):
    prober, asked = probed
    prober.probe()
    assert asked == SHARDS
    prober.probe()
    asked.clear()

    for _ in range(2 * QUIET_PROBES):
        box.log._server.health.clear()
        prober.probe()
        assert {*box.log.health()[1]} == {*SHARDS}

    assert sorted(asked) == sorted(2 * SHARDS)


def test_a_shard_where_something_happens_is_probed_the_next_time_and_the_watermark_reported(
    box: Sandbox, db: Any, probed: tuple[Prober, list[str]]
):
    prober, asked = probed
    for _ in range(2 * QUIET_PROBES):
        prober.probe()
    before = box.log.health()[1]["s1"][1]
    asked.clear()
    enqueue_on(box, db, "s1")
    for _ in range(3):
        prober.probe()
    assert asked.count("s1") == 3, "it has work"
    box.drain()

    prober.probe()

    assert asked.count("s1") == 4
    assert box.log.health()[1]["s1"][1] != before


def test_a_quiet_node_that_does_not_answer_is_probed_each_time(
    box: Sandbox, probed: tuple[Prober, list[str]], monkeypatch: pytest.MonkeyPatch
):
    prober, asked = probed
    for health in prober._shards:
        monkeypatch.setattr(type(health), "silent", lambda self, node: node == "s1")

    for _ in range(6):
        prober.probe()

    assert asked.count("s1") == 6


def test_a_shard_with_replicas_is_probed_each_time(box: Sandbox, tmp_path: Path):
    shards = box.client.settings.shards
    with_replica = {**shards, "s0": replace(shards["s0"], replicas=(f"sqlite://{tmp_path}/s0r.sqlite",))}
    prober = Prober(Nodes(replace(box.client.settings, shards=with_replica)), ["s0"], box.log)
    [health] = prober._shards
    taken: list[Any] = []
    health.take = lambda results, at_s: taken.append(results)  # type: ignore[method-assign]

    for _ in range(6):
        prober.probe()

    assert len(taken) == 6
    prober.close()


def test_where_the_log_does_not_answer_no_shard_is_quiet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doorbell, "QUIET_SHARD_S", 0.0)
    log = MemoryLog()
    known = Quiet(log, SHARDS)
    known.look()
    known.look()
    assert known.is_quiet("s0")
    monkeypatch.setattr(log, "stirs", failing)

    known.look()

    assert not known.is_quiet("s0")


def failing(*_: Any) -> Any:
    raise LogUnavailable("away")


# records ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def observer(box: Sandbox, probed: tuple[Prober, list[str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Observer]:
    monkeypatch.setattr(observers, "log_of", lambda settings, read_s: box.log)
    monkeypatch.setattr(observers, "COUNTS_S", 0.0)
    monkeypatch.setattr(type(box.log), "close", lambda log: None)
    made = Observer(box.client.settings)
    for _ in range(3):
        probed[0].probe()
        made.follow()
    yield made
    made.close()


def test_a_quiet_primary_is_asked_now_and_then_and_at_once_after_an_order(
    box: Sandbox, observer: Observer, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    ask = Primaries.ask
    monkeypatch.setattr(Primaries, "ask", lambda self, uris: asked.extend(uris) or ask(self, uris))
    for _ in range(observers.QUIET_COUNTS):
        observer.follow()
    assert sorted(asked) == SHARDS

    stops.pause(box.client, stops.target_of(box.client, "sale"), "look here")

    assert waits(observer.follow()) == {"s0": ["sale"], "s1": ["sale"]}
    stops.resume(box.client, stops.target_of(box.client, "sale"))
    assert waits(observer.follow()) == {"s0": [], "s1": []}


def test_an_op_of_a_quiet_shard_is_in_the_next_record(box: Sandbox, db: Any, observer: Observer):
    assert [shard.depth for shard in observer.follow().shards] == [0, 0]

    enqueue_on(box, db, "s1")

    assert [shard.depth for shard in observer.follow().shards] == [0, 1]


def test_the_queue_of_a_quiet_shard_is_not_read_again(
    box: Sandbox, observer: Observer, monkeypatch: pytest.MonkeyPatch
):
    observer.follow()
    monkeypatch.setattr(box.log, "queued", failing)

    assert [shard.depth for shard in observer.follow().shards] == [0, 0]


def waits(record: Record) -> dict[str, list[str]]:
    return {shard.shard: [reason.scope for reason in shard.waits] for shard in record.shards}


# moves -----------------------------------------------------------------------------------------------------------


def test_moves_are_searched_for_seldom_while_nothing_happens_and_at_once_after_an_order(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    searched, found = [0], orders.under_way
    monkeypatch.setattr(orders, "under_way", lambda client: searched.append(1) or found(client))
    worker = Moves(box.client)

    def turn() -> int:
        box.log.ahead_ms += 1000 * 10  # no other worker's lease is in the way
        worker.turn()
        return searched.pop()

    assert [turn(), turn()] == [1, 0]

    orders.order_move(box.client, [box.client.topology.buckets_of("s0")[0]], "s1", "me", keep_s=0)
    assert turn() == 1
    assert turn() == 1, "as long as there is one"


def test_a_primary_is_asked_at_each_time_while_a_bucket_of_its_shard_moves(
    box: Sandbox, observer: Observer, monkeypatch: pytest.MonkeyPatch
):
    orders.order_move(box.client, [box.client.topology.buckets_of("s0")[0]], "s1", "me", keep_s=0)
    observer.follow()
    asked: list[str] = []
    ask = Primaries.ask
    monkeypatch.setattr(Primaries, "ask", lambda self, uris: asked.extend(uris) or ask(self, uris))

    for _ in range(observers.QUIET_COUNTS):
        observer.follow()

    assert asked.count("s0") == observers.QUIET_COUNTS
    assert asked.count("s1") == 1


def test_a_primary_that_does_not_answer_is_not_asked_again_meanwhile_and_delays_no_other(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    asked, answers, told_by = list[str](), threading.Event(), readings.told_by

    def told(session: NodeSession, shard: str) -> OnPrimary:
        asked.append(shard)
        assert shard == "s1" or answers.wait(5)
        return told_by(session, shard)

    monkeypatch.setattr(readings, "told_by", told)
    primaries, uris = Primaries(), {shard: box.client.settings.shards[shard].primary for shard in SHARDS}

    found = [primaries.ask(uris, 0.2) for _ in range(2)]
    answers.set()
    primaries._running["s0"].result(5)
    found.append(primaries.ask(uris))
    primaries.close()

    assert [isinstance(one["s0"], OnPrimary) for one in found] == [False, False, True]
    assert all(isinstance(one["s1"], OnPrimary) for one in found)
    assert sorted(asked) == ["s0", "s0", "s1", "s1", "s1"]


def test_a_primary_is_asked_over_one_connection_until_the_shard_has_another(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    made = list[str]()

    class Counted(NodeSession):
        def __init__(self, node: str, uri: str, **options: Any):
            made.append(uri)
            super().__init__(node, uri, **options)

    monkeypatch.setattr(readings, "NodeSession", Counted)
    primaries, first, second = Primaries(), *(box.client.settings.shards[shard].primary for shard in SHARDS)

    for uri in (first, first, second, second):
        assert isinstance(primaries.ask({"s0": uri})["s0"], OnPrimary)
    primaries.close()

    assert made == [first, second]


# chores ----------------------------------------------------------------------------------------------------------


class Woken(Turns):
    """A thread that is never started, and notes that it was woken."""

    def __init__(self) -> None:
        self.times = 0

    def wake(self) -> None:
        self.times += 1


@pytest.fixture
def chore(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> tuple[Alarm, Chores, Woken]:
    monkeypatch.setattr(chores, "LOOK_S", 0.0)
    overview, thread = Overview(box.log, ["s0"]), Woken()
    made = Chores(box.client, box.client.publisher.scopes["s0"], overview, sleeps=True)
    return Alarm(overview, {thread: made}), made, thread


def test_a_thread_sleeps_until_one_of_its_leases_ends(box: Sandbox, chore: tuple[Alarm, Chores, Woken]):
    alarm, one, thread = chore
    alarm.turn()
    assert thread.times == 1
    assert one.turn() == chores.SLEEP_S
    one.turn()
    alarm.turn()
    assert thread.times == 1

    chores.hasten(box.log, "reconcile", "s0")
    alarm.turn()

    assert thread.times == 2


def test_chores_of_a_quiet_shard_are_done_once_a_minute_and_some_at_once_when_it_stirs(
    box: Sandbox, db: Any, chore: tuple[Alarm, Chores, Woken], monkeypatch: pytest.MonkeyPatch
):
    alarm, one, _ = chore
    monkeypatch.setattr(Chores, "_quiet_s", lambda self, every_s=chores.QUIET_S: every_s)
    done: list[str] = []
    for name, (work, every_s) in [*CHORES.items()]:
        monkeypatch.setitem(CHORES, name, (noting(done, name, work), every_s))
    alarm.turn()
    one.turn()
    for name in CHORES:
        chores.hasten(box.log, name, "s0")
    alarm.turn()
    one.turn()
    done.clear()

    box.log.ahead_ms += 1000 * (chores.QUIET_S - 1)
    one.turn()
    assert done == []

    box.log.ahead_ms += 2000
    one._anyway_at_s.clear()  # as if this process's clock had gone on as well
    one.turn()
    assert done == ["reconcile", "release"], "with one node there is nothing to trim"
    done.clear()

    enqueue_on(box, db, "s0")
    alarm.turn()
    one.turn()
    assert done == ["losses", "trim", "release"]


def test_all_chores_of_a_quiet_shard_are_due_at_one_time(
    chore: tuple[Alarm, Chores, Woken], monkeypatch: pytest.MonkeyPatch
):
    ends = set()
    for now_s in range(1_000_000_000, 1_000_000_000 + chores.QUIET_S):
        monkeypatch.setattr(chores.clock, "wall_ms", lambda now_s=now_s: 1000 * now_s)
        lasts_s = chore[1]._quiet_s()
        assert chores.QUIET_S / 3 < lasts_s <= 4 * chores.QUIET_S / 3
        ends.add((now_s + lasts_s) % chores.QUIET_S)

    assert len(ends) == 1


def test_while_all_is_quiet_a_record_is_made_seldom_and_at_once_when_something_happens(
    box: Sandbox, db: Any, observer: Observer
):
    assert observer.will_do()

    enqueue_on(box, db, "s1")

    assert not observer.will_do()


def noting(done: list[str], name: str, work: Any) -> Any:
    return lambda client, shard: done.append(name) or work(client, shard)
