"""What a worker does beside its tasks: ring again, do without a broker that fails, and chores that no queue delays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.configurations import small

from pipeline.admin import stops, upkeep
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config.settings import load
from pipeline.errors import LogUnavailable, ShardUnavailable
from pipeline.oplog.appends import EVERYWHERE
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.testing import Sandbox, sandbox
from workers import chores, process, threads
from workers.chores import CHORES, Chores, hasten
from workers.process import Turns
from workers.threads import Child, Pulse, Sweep

SHARDS = {"s0": {"primary": "sqlite://s0.sqlite"}, "s1": {"primary": "sqlite://s1.sqlite"}}
REDIS_OF_TWO = {"url": "redis://localhost/0", "two": {"url": "redis://localhost/1"}}
IN_TWO = {name: {**shard, "redis": group} for (name, shard), group in zip(SHARDS.items(), ("", "two"), strict=True)}


class DeafBroker(SilentBell):
    """A bell whose broker refuses: at maxmemory, or down."""

    def ring_now(self, shard: str, ops: int) -> bool:
        super().ring_now(shard, ops)
        return False


class Started(Child):
    """Notes which processes would be started."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []

    def start(self, *command: str) -> bool:
        self.commands.append(command)
        return True

    def close(self) -> None: ...


@pytest.fixture
def log() -> MemoryLog:
    """Two shards with work that is long due."""
    log = MemoryLog()
    for shard in SHARDS:
        log.mark_dirty(shard, [3])
    return log


def sweep(
    log: MemoryLog, bell: SilentBell, pulse: Pulse | None = None, served: tuple[str, ...] = ()
) -> tuple[Sweep, Started]:
    made: Any = Sweep(load(small(shards=SHARDS, spool={"enabled": False}), {}), pulse or Pulse(), served)
    made._log.close()
    made._bell.close()
    made._log, made._bell, made._alone = log, bell, Started()
    return made, made._alone


def test_a_worker_lets_others_know_which_shards_it_serves(log: MemoryLog):
    one, _ = sweep(log, SilentBell(), served=("s0",))

    one.turn()

    assert log.waits("s0").alive
    assert not log.waits("s1").alive


def test_a_lost_bell_is_rung_again_and_nothing_is_applied_beside_the_tasks(log: MemoryLog):
    bell = SilentBell()
    one, alone = sweep(log, bell)

    one.turn()

    assert bell.rung == ["s0", "s1"]
    assert alone.commands == []


def test_where_no_bell_can_be_rung_all_that_is_due_is_applied_without_the_broker_which_is_asked_once(log: MemoryLog):
    bell = DeafBroker()
    one, alone = sweep(log, bell)

    one.turn()

    assert alone.commands == [("workers", "s0", "s1")]
    assert bell.rung == ["s0"]


def test_of_several_workers_one_sweeps_and_another_goes_on_when_it_ends(log: MemoryLog):
    first, second = SilentBell(), SilentBell()
    (one, _), (other, _) = sweep(log, first), sweep(log, second)
    one.turn()

    other.turn()
    assert (first.rung, second.rung) == (["s0", "s1"], [])

    silence(log)
    one.close()
    other.turn()
    assert second.rung == ["s0", "s1"]


def test_a_worker_that_sweeps_and_is_killed_is_followed_by_another_within_seconds(log: MemoryLog):
    bell = SilentBell()
    (killed, _), (other, _) = sweep(log, SilentBell()), sweep(log, bell)
    killed.turn()
    silence(log)

    log.ahead_ms += threads.LEASE_MS
    other.turn()

    assert bell.rung == ["s0", "s1"]
    assert threads.LEASE_MS / 1000 + threads.SWEEP_S <= 2


class StrangeLease(MemoryLog):
    """A log whose Redis refuses the lease: somebody has put a set under its name."""

    def hold_lease(self, name: str, token: str, for_ms: int) -> bool:
        raise LogUnavailable("WRONGTYPE", sent=False)


def test_where_it_is_not_known_who_sweeps_every_worker_does():
    log, bell = StrangeLease(), SilentBell()
    log.mark_dirty("s1", [3])
    one, _ = sweep(log, bell)

    one.turn()

    assert bell.rung == ["s1"]


def silence(log: MemoryLog) -> None:
    """Lose the messages that were rung."""
    for shard in SHARDS:
        log.leave(shard, "")
        log._server.keys.pop(f"bell:{shard}", None)


class HalfAway(MemoryLog):
    """A log whose Redis of the shard s0 is away."""

    def sweep(self, shard: str, *, due_ms: int) -> tuple[bool, int]:
        if shard == "s0":
            raise LogUnavailable("away")
        return super().sweep(shard, due_ms=due_ms)


def test_a_redis_that_is_away_keeps_no_other_redis_from_being_swept():
    log, bell = HalfAway(), SilentBell()
    log.mark_dirty("s1", [3])
    made: Any = Sweep(load(small(redis=REDIS_OF_TWO, shards=IN_TWO, spool={"enabled": False}), {}), Pulse(), ("s1",))
    made._log.close()
    made._bell.close()
    made._log, made._bell, made._alone = log, bell, Started()

    made.turn()

    assert bell.rung == ["s1"]
    assert log.waits("s1").alive


def test_a_worker_whose_event_loop_stands_still_hears_no_bell_and_applies_without_the_broker(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(threads, "STILL_S", -1.0)
    one, alone = sweep(log, SilentBell())

    one.turn()

    assert alone.commands == [("workers", "s0", "s1")]


def test_nothing_is_done_twice_at_once_and_a_child_is_ended_with_its_worker():
    child = Child("")
    assert child.start("timeit", "-n", "1", "import time; time.sleep(60)")

    assert not child.start("timeit", "-n", "1", "pass")

    child.close()
    assert not child.runs


# chores ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("sale", Field("customer", "integer"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    """One shard with an op in its log."""
    with sandbox({"sale": {"shard_key": "customer"}}, shards=1) as made:
        made.client.define_tables(db)
        made.client.enqueue_insert(db.sale, customer=7)
        yield made


def chores_of(box: Sandbox, scope: str = "s0") -> Chores:
    return Chores(box.client, box.client.publisher.scopes[scope])


def test_a_bucket_that_the_dirty_set_forgot_is_found_at_most_once_in_a_while_or_at_once_when_hastened(box: Sandbox):
    one = chores_of(box)
    forget_dirty(box)
    one.turn()
    assert box.log.dirty("s0") == 1

    forget_dirty(box)
    one.turn()
    assert box.log.dirty("s0") == 0

    hasten(box.log, "reconcile", "s0")
    one.turn()
    assert box.log.dirty("s0") == 1


def test_leases_that_another_worker_holds_are_asked_for_seldom_and_those_given_up_at_once(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    log: Any = box.log
    monkeypatch.setattr(chores, "LOOK_S", 0.0)
    one = Chores(box.client, box.client.publisher.scopes["s0"], chores.Overview(log, ["s0"]))
    one.turn()
    one.turn()
    asked: list[str] = []
    take = log.take_lease
    monkeypatch.setattr(log, "take_lease", lambda name, for_ms: asked.append(name) or take(name, for_ms))

    one.turn()
    assert asked == []

    hasten(log, "reconcile", "s0")
    one.turn()
    assert asked == ["reconcile:s0"]


def test_a_lease_that_outlasts_its_time_is_asked_for_all_the_same(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    log: Any = box.log
    one = Chores(box.client, box.client.publisher.scopes["s0"], chores.Overview(log, ["s0"]))
    one.turn()
    log.ahead_ms -= 3_600_000
    monkeypatch.setattr(chores, "LOOK_S", 0.0)
    monkeypatch.setattr(one, "_anyway_at_s", dict.fromkeys(one._anyway_at_s, 0.0))
    forget_dirty(box)

    one.turn()

    assert log.dirty("s0") == 1


def test_a_look_at_a_redis_that_is_away_says_that_nothing_is_known():
    class Away(MemoryLog):
        def look(self, *_: Any) -> Any:
            raise LogUnavailable("away")

    assert chores.Overview(Away(), ["s0"]).seen() == (frozenset(), frozenset())


def test_what_a_stop_held_back_is_released_by_a_chore(box: Sandbox, db: Any):
    target = stops.target_of(box.client, "sale")
    stops.pause(box.client, target)
    box.drain()
    assert box.rows("sale") == []
    stops.resume(box.client, target)

    chores_of(box).turn()

    assert [row["customer"] for row in box.rows("sale")] == [7]


@pytest.mark.parametrize("scope", ["s0", EVERYWHERE])
def test_the_epoch_of_another_server_is_raised_before_a_request_needs_it(box: Sandbox, scope: str):
    box.log.restart()
    assert not box.log.epoch(scope)[1]

    chores_of(box, scope).turn()

    assert box.log.epoch(scope)[1]


def test_a_chore_that_fails_stops_no_other(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(CHORES, "reconcile", (failing(ValueError("on purpose"), times=9), 30))

    chores_of(box).turn()

    assert box.log._server.notes["s0"]  # which trimming takes of a shard without replicas


def test_a_primary_that_has_died_is_noticed_by_one_failure_and_its_successor_is_asked_at_once(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    forget_dirty(box)
    monkeypatch.setitem(CHORES, "reconcile", (failing(ShardUnavailable("s0", "it died"), times=1), 30))

    chores_of(box).turn()

    assert box.log.dirty("s0") == 1


def test_a_thread_goes_on_after_a_turn_that_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "FAILED_S", 0.0)
    work = Failing()
    thread = Turns("test", work)

    thread.start()

    assert any(work.turns > 2 for _ in polls(10))
    thread.stop()
    assert work.closed


class Failing:
    """A work whose first turn fails."""

    def __init__(self) -> None:
        self.turns, self.closed = 0, False

    def turn(self) -> float:
        self.turns += 1
        if self.turns == 1:
            raise ValueError("on purpose")
        return 0.001

    def close(self) -> None:
        self.closed = True


def forget_dirty(box: Sandbox) -> None:
    box.log._server.dirty.clear()


def failing(error: Exception, times: int) -> Any:
    """Return a reconcile that fails so many times."""
    errors = [error] * times

    def reconcile(client: Client, shard: str) -> int:
        if errors:
            raise errors.pop()
        return upkeep.reconcile(client, shard)

    return reconcile
