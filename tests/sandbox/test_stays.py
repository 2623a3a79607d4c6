"""A worker stays at a shard while ops come. It leaves when it is asked to stop, as others wait, or after its time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline.admin import stops
from pipeline.apply.transaction import Outcome
from pipeline.clock import polls
from pipeline.oplog.doorbell import SilentBell
from pipeline.per_process import PerProcess
from pipeline.testing import Sandbox, sandbox
from workers import process, tasks
from workers.tasks import BEGIN, IN_VAIN, MANY, Gathering, Stay, gather_s


class Watched(SilentBell):
    """A bell that is asked whether others wait: each time another op comes, until there are no more."""

    def __init__(self, box: Sandbox, db: Any, ops: int, *, wanted: int = 1_000):
        super().__init__()
        self.box, self.db, self.ops, self.wanted, self.rung_meanwhile = box, db, ops, wanted, 0

    def waits(self, shards: Collection[str]) -> Collection[str]:
        if self.ops:
            self.ops -= 1
            self.box.client.enqueue_insert(self.db.sale, customer=7)
            self.rung_meanwhile += len(self.box.bell.rung)
            self.box.bell.rung.clear()
        self.wanted -= 1
        return shards if self.wanted <= 0 else ()


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("sale", Field("customer", "integer"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """One shard with an op in its log, whose bell is rung; the stays of this process are at it."""
    with sandbox({"sale": {"shard_key": "customer"}}, shards=1) as made:
        made.client.define_tables(db)
        made.client.enqueue_insert(db.sale, customer=7)
        made.bell.rung.clear()
        made.log._server.dirty["s0"] = dict.fromkeys(made.log._server.dirty["s0"], 0)  # due for a while
        monkeypatch.setattr(process, "applier", made._appliers.__getitem__)
        monkeypatch.setattr(process, "process_client", lambda: made.client)
        monkeypatch.setattr(tasks, "LOOK_S", -1.0)
        monkeypatch.setattr(tasks, "SLICE_S", -1.0)
        monkeypatch.setattr(tasks, "STAY_S", 30.0)
        monkeypatch.setattr(tasks, "_gatherings", PerProcess[dict[str, Gathering]](dict))
        yield made
        process.ask_to_stop(False)
        process._stays[:] = type(process._stays)(bytes(process._stays.nbytes)).cast("H")


def test_ops_that_come_meanwhile_are_applied_in_one_stay_and_none_is_rung_for(box: Sandbox, db: Any):
    bell = Watched(box, db, ops=5, wanted=12)

    done = Stay("s0", bell, ["s1"]).run()

    assert (done["applied"], done["batches"]) == (6, 6)
    assert bell.rung_meanwhile == 0
    assert bell.rung == []
    assert len(box.rows("sale")) == 6


def test_who_leaves_because_others_wait_rings_for_what_came_meanwhile(box: Sandbox, db: Any):
    bell = Watched(box, db, ops=1, wanted=1)

    done = Stay("s0", bell, ["s1"]).run()

    assert done["applied"] == 1
    assert bell.rung == ["s0"]


def test_who_has_work_leaves_for_no_shard_that_somebody_is_at_and_who_is_idle_does(box: Sandbox, db: Any):
    box.log.due("s1", 1, "another")
    bell = Watched(box, db, ops=5, wanted=1)

    done = Stay("s0", bell, ["s1"]).run()

    assert (done["applied"], bell.rung) == (6, [])
    assert bell.wanted > -20, "it asked no more once nothing was due"


@pytest.mark.parametrize("there", [True, False])
def test_who_waits_asks_the_broker_seldom_while_processes_of_its_worker_are_at_all_other_shards(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch, there: bool
):
    monkeypatch.setattr(tasks, "LISTEN_S", 60.0)
    monkeypatch.setattr(tasks, "STAY_S", 1.0)
    monkeypatch.setattr(box.client.topology, "shards", ("s0", "s1"))
    monkeypatch.setattr(process, "current_process_index", lambda base: 1)
    process.stay_at("s1")
    monkeypatch.setattr(process, "current_process_index", lambda base: 0)

    Stay("s0", bell := Watched(box, db, ops=0), ["s1"] if there else ["s2"]).run()

    assert (1_000 - bell.wanted < 5) == there
    assert process.are_stayed_at(["s1"])
    assert not process.are_stayed_at(["s0"])


@pytest.mark.parametrize("there", [True, False])
def test_who_has_work_asks_the_broker_seldom_while_processes_of_its_worker_are_at_all_other_shards(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch, there: bool
):
    monkeypatch.setattr(tasks, "LOOK_S", 0.0)
    monkeypatch.setattr(tasks, "SELDOM_S", 60.0)
    monkeypatch.setattr(tasks, "STAY_S", 60.0)
    applier, applied = box._appliers["s0"], list[int]()
    apply = applier.apply
    monkeypatch.setattr(process, "are_stayed_at", lambda shards: there)
    monkeypatch.setattr(process, "asked_to_stop", lambda: sum(applied) == 6)

    def apply_and_send_another(bell: Any) -> Outcome:
        if len(applied) < 5:
            box.client.enqueue_insert(db.sale, customer=7)
        applied.append((outcome := apply(bell)).applied)
        return outcome

    monkeypatch.setattr(applier, "apply", apply_and_send_another)

    Stay("s0", bell := Watched(box, db, ops=0), ["s1"]).run()

    assert sum(applied) == 6
    assert (1_000 - bell.wanted < 3) == there


def pauses_after(monkeypatch: pytest.MonkeyPatch, batches: Sequence[int], *, waited: bool = False) -> list[float]:
    """Return how long a worker pauses after each of some batches, by their ops; one begins every 20 ms."""
    gathering, now_s, found = Gathering(), 100.0, list[float]()
    for ops in batches:
        now_s += 0.02
        monkeypatch.setattr(tasks.clock, "mono_s", lambda now=now_s: now)
        gathering.learn(ops, now_s, waited=waited)
        found.append(gathering.pause_s())
    return found


def test_the_time_between_two_ops_is_that_of_many_batches_however_uneven(monkeypatch: pytest.MonkeyPatch):
    seen = list[float]()
    monkeypatch.setattr(tasks, "gather_s", lambda between_s: seen.append(between_s) or 0.0)

    pauses_after(monkeypatch, [2, 8] * 100)

    assert seen[-1] == pytest.approx(0.004, rel=0.2), "and not the mean of 0.01 and 0.0025"


def test_a_rest_between_two_loads_is_no_time_between_two_ops(monkeypatch: pytest.MonkeyPatch):
    seen = list[float]()
    monkeypatch.setattr(tasks, "gather_s", lambda between_s: seen.append(between_s) or 0.0)

    pauses_after(monkeypatch, [2] * 20 + [0] * 50 + [2])

    assert seen == pytest.approx([0.01] * len(seen))


def test_ops_of_which_each_comes_after_the_last_was_applied_wait_for_no_others(monkeypatch: pytest.MonkeyPatch):
    assert not any(pauses_after(monkeypatch, [1, 0] * 200, waited=True))


@pytest.mark.parametrize("waits", [True, False])
def test_a_worker_pauses_where_ops_come_while_it_applies_and_not_where_they_come_while_it_waits(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch, waits: bool
):
    monkeypatch.setattr(tasks, "LOOK_S", 60.0 if waits else -1.0)
    monkeypatch.setattr(tasks, "gather_s", lambda between_s: 60.0)
    pauses, pause_s = list[float](), Gathering.pause_s
    monkeypatch.setattr(Gathering, "pause_s", lambda self: pauses.append(pause_s(self)) or 0.0)

    done = Stay("s0", Watched(box, db, ops=9, wanted=20), ["s1"]).run()

    assert (done["applied"], any(pauses)) == (10, not waits)


@pytest.mark.parametrize(("ops", "waited"), [(1, False), (2, True)])
def test_ops_are_gathered_once_some_came_close_together(monkeypatch: pytest.MonkeyPatch, ops: int, waited: bool):
    pauses = pauses_after(monkeypatch, [ops] * BEGIN + [3, 1, 0, 1, 2] * 40, waited=waited)

    assert not any(pauses[: BEGIN - 1])
    assert all(pauses[BEGIN - 1 :])


def test_ops_are_gathered_ever_more_seldom_while_that_is_in_vain(monkeypatch: pytest.MonkeyPatch):
    pauses = pauses_after(monkeypatch, [1] * 2000)

    assert all(pauses[BEGIN - 1 : BEGIN + IN_VAIN - 1])
    assert sum(map(bool, pauses)) < 2000 * 0.05


def test_a_bulk_call_has_no_ops_gathered(monkeypatch: pytest.MonkeyPatch):
    assert not any(pauses_after(monkeypatch, [MANY] * 50 + [150] + [1] * 50, waited=True))


def test_a_worker_that_is_asked_to_stop_leaves_after_its_batch(box: Sandbox):
    process.ask_to_stop()

    done = Stay("s0", bell := SilentBell()).run()

    assert (done["applied"], bell.rung) == (1, [])


def test_a_stay_is_over_after_its_time(box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "STAY_S", 0.0)
    bell = Watched(box, db, ops=100)

    assert Stay("s0", bell, ["s1"]).run()["applied"] == 1


def test_the_next_op_rings_once_nobody_stays(box: Sandbox, db: Any):
    Stay("s0", Watched(box, db, ops=0, wanted=3), ["s1"]).run()

    box.client.enqueue_insert(db.sale, customer=7)

    assert box.bell.rung == ["s0"]


def test_a_paused_shard_is_left_at_once_and_not_rung_for(box: Sandbox):
    stops.pause(box.client, stops.target_of(box.client, "s0"))

    done = Stay("s0", bell := SilentBell()).run()

    assert "paused" in str(done["waiting"])
    assert bell.rung == []


def test_a_stay_that_fails_holds_the_bell_no_longer(box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch):
    applier = box._appliers["s0"]
    monkeypatch.setattr(applier, "_turn", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        Stay("s0", bell := SilentBell()).run()

    assert bell.rung == []
    box.client.enqueue_insert(db.sale, customer=7)
    assert box.bell.rung == ["s0"]


def test_a_second_worker_at_a_shard_leaves_when_nothing_is_due(box: Sandbox):
    box.drain()
    box.log.due("s0", 1, "another")

    done = Stay("s0", bell := SilentBell()).run()

    assert (done["applied"], bell.rung) == (0, [])
    assert box.log._get("bell:s0") == "l another"


def test_what_comes_between_the_end_of_a_wait_and_its_batch_is_rung_for_where_another_has_the_rest(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch
):
    applier, bell = box._appliers["s0"], SilentBell()
    applier.holder = "me"
    assert list(applier.listen(0.0))[-1] is True, "the op of the fixture is due"
    box.client.enqueue_insert(db.sale, customer=8)
    came_ms = box.log.now_ms()
    assert any(box.log.now_ms() > came_ms + 3 for _ in polls(5))

    monkeypatch.setattr(applier, "_turn", lambda *_: Outcome(left=1, waiting="held by another worker"))
    applier.apply(bell)
    applier.leave(bell)

    assert box.bell.rung == [], "the bell was held"
    assert bell.rung == ["s0"]


@pytest.mark.parametrize(
    ("between_s", "wait_s"), [(0.0001, 0.02), (0.008, 0.028), (0.015, 0.09), (0.03, 0.12), (0.07, 0.0)]
)
def test_a_batch_waits_for_some_ops_for_six_that_come_seldom_and_for_none_that_come_more_so(
    between_s: float, wait_s: float
):
    assert gather_s(between_s) == pytest.approx(wait_s)


class Knot:
    """Garbage that only the collector frees."""

    def __init__(self) -> None:
        self.rope = [[self] for _ in range(1_000)]


def test_what_batches_leave_behind_is_collected_between_them_and_nothing_within_one(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch
):
    applier, left, collecting = box._appliers["s0"], list[Any](), list[bool]()

    def leave_behind(name: str) -> None:
        if name == "execute":
            left.append(weakref.ref(Knot()))
            collecting.append(gc.isenabled())

    monkeypatch.setattr(applier._transaction, "step", leave_behind)

    Stay("s0", Watched(box, db, ops=40, wanted=80), ["s1"]).run()

    assert len(left) == 41
    assert not any(collecting)
    assert sum(one() is not None for one in left) < 20
