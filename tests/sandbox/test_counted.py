"""What a process enqueues is counted by table, kind and way, once, and reaches the log within seconds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.spooling import Shop

import pipeline
from pipeline.clock import polls
from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.enqueue import held_ops, shipment
from pipeline.enqueue.dispatch import FEW_MEMBERS
from pipeline.enqueue.shipment import OpPlace, Sends
from pipeline.errors import LogUnavailable, PipelineFull, Unavailable
from pipeline.oplog import doorbell
from pipeline.oplog.doorbell import LITTLE, LITTLE_PREPARE_S, PREPARE_S, Bell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.spool import NullSpool
from pipeline.testing import Sandbox, sandbox

CONFIGURATION = {"redis": {"url": "redis://r.invalid/0"}, "shards": {"s0": {"primary": "sqlite:///s0.sqlite"}}}
TOPOLOGY = Topology(load(CONFIGURATION))


@dataclass(frozen=True, slots=True)
class Here:
    box: Sandbox
    db: Any

    def counts(self, shard: str = "s0") -> dict[str, int]:
        """Return the counters after what this process has noted is published."""
        self.box.bell.flush()
        return self.box.log.counts(shard)

    def enqueued(self, shard: str = "s0") -> dict[str, int]:
        return {name: n for name, n in self.counts(shard).items() if name.startswith("enqueued ")}


@pytest.fixture
def here() -> Iterator[Here]:
    with sandbox({"thing": {"shard_key": "owner"}, "sort": {"reference": True}}) as box:
        db = DAL("sqlite:memory")
        db.define_table("thing", Field("owner", "integer"), Field("name"))
        db.define_table("sort", Field("name"))
        pipeline.define_tables(db)
        yield Here(box, db)
        db.close()


def test_each_way_to_enqueue_is_counted_by_table_and_kind(here: Here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held_ops, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(held_ops, "SHEET_ROWS", 1000)
    thing = here.db.thing
    first = pipeline.enqueue_insert(thing, owner=7, name="a")
    pipeline.enqueue_insert(thing, owner=7, name="b", idempotency_key="once")
    pipeline.enqueue_insert(thing, owner=7, name="b", idempotency_key="once")
    pipeline.enqueue_bulk_insert(thing, [{"owner": 7, "name": f"n{n}"} for n in range(1500)])
    here.box.drain()
    pipeline.enqueue_update(thing, first.id, name="c")
    with pipeline.atomic():
        pipeline.enqueue_update(thing, first.id, name="d")
        pipeline.enqueue_delete(thing, first.id)

    found = here.counts()

    assert {name: n for name, n in found.items() if name.startswith("enqueued ")} == {
        "enqueued direct insert thing": 1502,
        "enqueued direct update thing": 2,
        "enqueued direct delete thing": 1,
    }
    calls = sum(n for name, n in found.items() if name.startswith("enqueue_ms direct "))
    assert calls == 6  # a bulk call of 1,500 rows sends twice
    assert found["enqueue_sum_us direct"] > 0
    assert here.counts() == found


def test_an_op_for_every_shard_counts_on_each(here: Here):
    pipeline.enqueue_insert(here.db.sort, name="tea")

    assert here.enqueued("s0") == here.enqueued("s1") == {"enqueued direct insert sort": 1}


def test_an_op_that_redis_does_not_take_counts_by_the_way_of_the_spool_and_not_again_when_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shop = Shop(tmp_path, monkeypatch)
    shop.buy(1)
    shop.log.away = True
    shop.buy(2)
    with shop.client.holding(shop.client.held()) as held:
        shop.buy(3)
        shop.buy(4)
    held.send()
    shop.log.away = False
    shop.drain()
    shop.box.bell.flush()

    found = {name: n for shard in ("s0", "s1") for name, n in shop.log.counts(shard).items()}

    assert found["enqueued direct insert purchase"] == 1
    assert found["enqueued spool insert purchase"] == 3
    assert sum(n for name, n in found.items() if name.startswith("enqueue_ms spool ")) == 2
    assert [text for _, text in shop.log.hosts().values()]
    shop.client.close()
    shop.box.client.close()
    shop.db.close()


def test_what_redis_does_not_take_is_counted_later_and_once(here: Here, monkeypatch: pytest.MonkeyPatch):
    def away(*arguments: Any, **options: Any) -> None:
        raise LogUnavailable("away on purpose")

    pipeline.enqueue_insert(here.db.thing, owner=7, name="a")
    with monkeypatch.context() as patched:
        patched.setattr(here.box.log, "finish", away)
        here.box.bell.flush()
    assert here.enqueued() == here.enqueued("s1") == {}
    pipeline.enqueue_insert(here.db.thing, owner=7, name="b")

    assert here.counts()["enqueued direct insert thing"] == 2
    pipeline.enqueue_insert(here.db.thing, owner=7, name="c")
    assert here.counts()["enqueued direct insert thing"] == 3


@pytest.mark.parametrize(
    ("why", "reason"), [(LogUnavailable("away", sent=False), "redis"), (PipelineFull("on purpose"), "full")]
)
def test_an_op_that_its_caller_could_not_enqueue_is_counted_with_what_was_not_there(
    here: Here, monkeypatch: pytest.MonkeyPatch, why: Unavailable, reason: str
):
    def refusing(*arguments: Any, **options: Any) -> None:
        raise why

    rows = [{"owner": 7, "name": f"n{n}"} for n in range(30)]
    with monkeypatch.context() as patched:
        for name in ("ship", "ship_one"):
            patched.setattr(here.box.client.publisher, name, refusing)
        for write in (
            lambda: pipeline.enqueue_insert(here.db.thing, owner=7, name="a"),
            lambda: pipeline.enqueue_insert(here.db.thing, owner=7, name="a", durability="fsync"),
            lambda: pipeline.enqueue_bulk_insert(here.db.thing, rows),
        ):
            with pytest.raises(type(why)):
                write()

    counts = here.counts() | here.counts("s1")
    assert {name: n for name, n in counts.items() if not name.startswith("enqueue")} == {
        f"refused {reason} insert thing": 32
    }


@pytest.mark.parametrize("members", [1, 3, FEW_MEMBERS, FEW_MEMBERS + 1, 40])
def test_of_an_atomic_group_each_member_is_counted_and_the_call_once(here: Here, members: int):
    for _ in range(2):
        with pipeline.atomic():
            for n in range(members):
                pipeline.enqueue_insert(here.db.thing, owner=7, name=f"n{n}")

    found = here.counts()

    assert found["enqueued direct insert thing"] == 2 * members
    assert sum(n for name, n in found.items() if name.startswith("enqueue_ms direct ")) == 2


def test_while_redis_is_away_a_process_keeps_no_more_counters_than_the_log_does(monkeypatch: pytest.MonkeyPatch):
    def away(*arguments: Any, **options: Any) -> None:
        raise LogUnavailable("away on purpose")

    monkeypatch.setattr(shipment, "MOST_COUNTERS", 10)
    log = MemoryLog()
    own = Sends(log, TOPOLOGY, NullSpool())
    monkeypatch.setattr(log, "finish", away)
    for n in range(30):
        own.taken.append(({(0, "insert", f"notes_{n}"): 1}, {0: OpPlace(None, 1, 1)}, 0.001))
        own.publish()

    assert [len(counts) for counts in own._counts.values()] == [10]


def test_calls_of_single_ops_are_counted_by_the_least_bound_that_holds():
    log = MemoryLog()
    own = Sends(log, TOPOLOGY, NullSpool())
    for took_s in (0.0001, 0.00011, 0.0002, 0.005, 0.0051, 9.0):
        own.single.append((3, "insert", "thing", False, took_s))
    own.single.append((3, "update", "thing", True, 0.002))

    own.publish()

    assert log.counts("s0") == {
        "enqueued direct insert thing": 6,
        "enqueued spool update thing": 1,
        **{f"enqueue_ms direct {bound}": 1 for bound in ("0.1", "5", "10", "inf")},
        "enqueue_ms direct 0.2": 2,
        "enqueue_ms spool 2": 1,
        "enqueue_sum_us direct": 9_010_510,
        "enqueue_sum_us spool": 2000,
    }


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_counts_its_own_ops_and_not_its_parents(here: Here):
    pipeline.enqueue_insert(here.db.thing, owner=7, name="parent")

    child = os.fork()
    if child == 0:
        pipeline.enqueue_insert(here.db.thing, owner=7, name="child")
        own = here.box.client.dispatch._sends
        assert own is not None
        os._exit(len(own.single))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 1


def test_the_thread_of_a_bell_publishes_by_itself_and_again_for_what_comes_later():
    log, bell = MemoryLog(), Bell("redis://127.0.0.1:1/0", "pl", ["s0"])
    sends = Sends(log, TOPOLOGY, NullSpool())

    for ops in (1, 2):
        sends.taken.append(({(3, "insert", "thing"): 1}, {3: OpPlace(None, 1, 1)}, 0.004))
        sends.ask(bell)
        for _ in polls(30):
            if log.counts("s0").get("enqueued spool insert thing") == ops:
                break

        assert log.counts("s0")["enqueued spool insert thing"] == ops
    assert log.counts("s0")["enqueue_ms spool 5"] == 2
    bell.close()


class Asked(SimpleQueue[Any]):
    """What a bell's thread is asked for, one after the other; nothing comes in place of the empty text."""

    def __init__(self, *wishes: object):
        self.wishes, self.waited_s = list(wishes), list[float | None]()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        self.waited_s.append(timeout)
        if (wish := self.wishes.pop(0)) == "":
            raise Empty
        return wish


@pytest.mark.parametrize(("calls", "again_s"), [(LITTLE, LITTLE_PREPARE_S), (LITTLE + 1, PREPARE_S)])
def test_the_thread_of_a_bell_adds_up_few_calls_less_often(monkeypatch: pytest.MonkeyPatch, calls: int, again_s: float):
    log, bell = MemoryLog(), Bell("redis://127.0.0.1:1/0", "pl", ["s0"])
    sends = Sends(log, TOPOLOGY, NullSpool())
    sends.single.extend([(3, "insert", "thing", False, 0.004)] * calls)
    monkeypatch.setattr(doorbell, "LATER_S", 1e9)

    bell._run(asked := Asked(sends, "", None))

    assert asked.waited_s == [None, again_s, LITTLE_PREPARE_S]
    assert log.counts("s0")["enqueued direct insert thing"] == calls


def test_a_flush_waits_until_what_was_enqueued_is_counted():
    log, bell = MemoryLog(), Bell("redis://127.0.0.1:1/0", "pl", ["s0"])
    sends = Sends(log, TOPOLOGY, NullSpool())
    sends.taken.append(({(3, "insert", "thing"): 5}, {3: OpPlace(None, 1, 1)}, 0.004))
    sends.ask(bell)

    bell.flush(timeout_s=30)

    assert log.counts("s0")["enqueued spool insert thing"] == 5
    bell.close()


def test_threads_lose_no_count(here: Here):
    def enqueue() -> None:
        for _ in range(50):
            pipeline.enqueue_insert(here.db.thing, owner=7, name="x")

    threads = [threading.Thread(target=enqueue) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert here.counts()["enqueued direct insert thing"] == 400
