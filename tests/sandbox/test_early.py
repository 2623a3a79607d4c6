"""Ops that need older ones of other buckets, in this process: how long they wait, and what waits."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline import clock
from pipeline.admin import dead, stops
from pipeline.admin.stops import release
from pipeline.apply import earlier_ops, executor, order, transaction
from pipeline.apply.applier import Applier
from pipeline.apply.batch import FactBook
from pipeline.apply.footprint import Needed
from pipeline.config.buckets import FIRST_PIECE
from pipeline.config.settings import ApplySettings
from pipeline.enqueue.producer import Run
from pipeline.enqueue.publisher import Publisher
from pipeline.errors import LogUnavailable
from pipeline.model import HEAD_BYTES, SMALLEST, START
from pipeline.shard import NodeSession
from pipeline.shard.records import READ_MARKS
from pipeline.testing import Sandbox, sandbox

TABLES = ("event", "parent", "child", "grandchild", "leaf", "node")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read the stops before each batch."""
    monkeypatch.setattr("pipeline.apply.pace.READ_EVERY_S", 0.0)


@pytest.fixture(autouse=True)
def of_many_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each op is another producer's: what hosts' clocks say of its order may be wrong."""
    monkeypatch.setattr(Publisher, "_take", lambda self, patient=False: self._made(patient))


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("note", unique=True), Field("body", "text"))
    db.define_table("parent", Field("who", "integer"), Field("note", unique=True), Field("more"))
    db.define_table("child", Field("who", "integer"), Field("up", "reference parent"), Field("note"))
    db.define_table("grandchild", Field("who", "integer"), Field("up", "reference child"))
    db.define_table("leaf", Field("who", "integer"), Field("up", "reference parent", ondelete="SET NULL"))
    db.define_table("node", Field("who", "integer"), Field("up", "reference node"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    tables = {name: {"shard_key": "who"} for name in TABLES}
    with sandbox(tables, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def test_an_op_is_not_rejected_because_its_server_was_away_for_longer_than_it_may_wait(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    taken = pipeline.enqueue_insert(db.event, who=first, note="a")
    box.drain()
    pipeline.enqueue_delete((db.event.id == taken.id) & (db.event.who == first))
    renewed = pipeline.enqueue_insert(db.event, who=second, note="a")
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    for away_s in (0, 3_600):
        now_s = clock.mono_s
        monkeypatch.setattr(clock, "mono_s", lambda now_s=now_s, away_s=away_s: now_s() + away_s)
        box.log.mark_dirty("s0", [taken.bucket, renewed.bucket])
        box.log.postpone("s0", [taken.bucket], 3_600_000)
        assert any(worker.apply().buckets for _ in clock.polls(20))
        assert renewed.status() == "queued"
    monkeypatch.undo()
    box.log.postpone("s0", [taken.bucket], 0)
    box.drain()

    assert renewed.status() == "applied"
    assert [row["note"] for row in box.rows("event")] == ["a"]


def test_a_worker_whose_ops_needed_others_takes_all_buckets_together_the_next_time_at_once(
    db: Any, box: Sandbox
) -> None:
    places = two_buckets(box)
    worker = Applier(
        "s0", box.client.nodes.primary("s0"), box.log, ApplySettings(buckets=1), topology=box.client.topology
    )

    def given_up() -> int:
        """Return how many transactions are given up until families of two buckets are applied."""
        for n in range(8):
            parent = pipeline.enqueue_insert(db.parent, who=places[n % 2])
            pipeline.enqueue_insert(db.child, who=places[1 - n % 2], up=parent.id)
        crossed = 0
        while box.log.dirty("s0"):
            crossed += worker.apply().crossed
        return crossed

    assert [given_up() > 0, given_up() > 0] == [True, False]
    assert [len(box.rows(name)) for name in ("parent", "child")] == [16, 16]


def test_a_child_is_not_rejected_that_comes_before_its_parent_in_a_transaction_that_is_given_up(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    enqueued = enqueuing(monkeypatch)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    enqueued(900, db.event, who=first)  # directly, while what follows was in the spool of another host
    parent = enqueued(100, db.parent, who=first)
    child = enqueued(400, db.child, who=second, up=parent.id)
    monkeypatch.undo()
    while box.log.dirty("s0"):
        worker.apply()

    assert [parent.status(), child.status()] == ["applied", "applied"]


def test_a_child_before_its_parent_is_not_rejected_because_the_log_goes_away_before_the_parent_is_committed(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    enqueued, steps = enqueuing(monkeypatch), list[str]()

    def step(name: str) -> None:
        steps.append(name)
        if name == "mark" and steps.count("mark") == 1:
            raise LogUnavailable("it went away")

    parent = enqueued(100, db.parent, who=first)
    child = enqueued(0, db.child, who=second, up=parent.id)  # on a host whose clock is behind
    monkeypatch.undo()
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), step, topology=box.client.topology)
    look(box, monkeypatch, worker, 20, due=[parent.bucket, child.bucket], each_s=60)

    assert steps.count("mark") > 1
    assert [parent.status(), child.status()] == ["applied", "applied"]


def test_a_child_that_was_put_off_is_so_again_where_the_commit_of_its_parent_is_undone_by_a_fail_over(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    enqueued = enqueuing(monkeypatch)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    enqueued(900, db.event, who=first)  # directly, while what follows was in the spool of another host
    parent = enqueued(100, db.parent, who=first)
    child = enqueued(400, db.child, who=second, up=parent.id)
    monkeypatch.undo()
    path = box.client.settings.shards["s0"].primary.removeprefix("sqlite://")
    with closing(sqlite3.connect(":memory:")) as older:
        with closing(sqlite3.connect(path)) as primary:
            primary.backup(older)
        while parent.status() != "applied":
            worker.apply()
        assert child.status() == "queued"
        with closing(sqlite3.connect(path)) as primary:
            older.backup(primary)
    while box.log.dirty("s0") or child.status() == "queued":
        box.log.mark_dirty("s0", [parent.bucket, child.bucket])
        worker.apply()

    assert [parent.status(), child.status()] == ["applied", "applied"]


def test_what_a_delete_waits_for_is_applied_though_its_bucket_was_not_marked_dirty(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.parent, who=first)
    box.drain()
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    deleted = pipeline.enqueue_delete((db.parent.id == parent.id) & (db.parent.who == first))
    box.log.mark_clean("s0", [child.bucket])  # a worker drained it on a primary that died since
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    while box.log.dirty("s0"):
        worker.apply()

    assert [child.status(), deleted.status()] == ["applied", "applied"]


def test_a_delete_ends_the_rest_of_an_older_child_that_would_last_for_longer_than_it_waits(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.parent, who=second)
    box.drain()
    child = pipeline.enqueue_insert(db.child, who=first, up=parent.id)
    deleted = pipeline.enqueue_delete((db.parent.id == parent.id) & (db.parent.who == second))
    box.log.postpone("s0", [child.bucket], 3_600_000)  # the log's clock has been set back by an hour since it rests
    worker, now_s, looks = (
        Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology),
        clock.mono_s,
        0,
    )

    while deleted.status() == "queued" and looks < 20:
        looks += 1
        monkeypatch.setattr(clock, "mono_s", lambda looks=looks: now_s() + looks)
        box.log.postpone("s0", [deleted.bucket], 0)
        worker.apply()

    box.log.postpone("s0", [child.bucket], 0)
    box.drain()
    assert states(child, deleted) == ["applied", "applied"]
    assert [box.rows(name) for name in ("parent", "child")] == [[], []]


def test_an_op_is_rejected_that_only_a_younger_delete_would_help_which_waits_for_it(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    taken = pipeline.enqueue_insert(db.parent, who=second, note="a")
    box.drain()
    doubled = pipeline.enqueue_insert(db.parent, who=first, note="a")
    deleted = pipeline.enqueue_delete((db.parent.id == taken.id) & (db.parent.who == second))
    worker, now_s, looks = (
        Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology),
        clock.mono_s,
        0,
    )

    while box.log.dirty("s0") and looks < 20:
        looks += 1
        monkeypatch.setattr(clock, "mono_s", lambda looks=looks: now_s() + looks)
        box.log.postpone("s0", [doubled.bucket, deleted.bucket], 0)
        worker.apply()

    assert [doubled.status(), deleted.status()] == ["rejected", "applied"]
    assert box.rows("parent") == []


def test_what_is_paused_holds_up_the_deletes_of_a_bucket_once_and_not_each_by_itself(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    rows = [pipeline.enqueue_insert(db.parent, who=second) for _ in range(20)]
    box.drain()
    stops.pause(box.client, stops.target_of(box.client, "event"), "")
    paused = pipeline.enqueue_insert(db.event, who=first)
    deletes = [pipeline.enqueue_delete((db.parent.id == row.id) & (db.parent.who == second)) for row in rows]
    settings = ApplySettings(set_aside=0)  # so that what is paused stays queued
    worker, now_s, waited_s = (
        Applier("s0", box.client.nodes.primary("s0"), box.log, settings, topology=box.client.topology),
        clock.mono_s,
        0,
    )

    while {one.status() for one in deletes} != {"applied"} and waited_s < 30:
        waited_s += 1
        monkeypatch.setattr(clock, "mono_s", lambda waited_s=waited_s: now_s() + waited_s)
        box.log.postpone("s0", [paused.bucket, deletes[0].bucket], 0)
        worker.apply()

    assert paused.status() == "queued"
    assert waited_s < 2 * ApplySettings().early_wait_s


def test_deletes_behind_an_op_do_not_keep_it_waiting_once_its_time_is_over(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = {pipeline.enqueue_insert(db.event, who=who).bucket: who for who in range(30)}
    first, *others = buckets.values()
    rows = [pipeline.enqueue_insert(db.child, who=first) for _ in others]
    box.drain()
    for who, row in zip(others, rows, strict=True):
        pipeline.enqueue_insert(db.grandchild, who=who, up=row.id)
    refused = pipeline.enqueue_insert(db.event, who=first, note="never")
    for row in rows:
        pipeline.enqueue_delete(db.child.id == row.id)  # each waits for a bucket of its own
    refuse(box)
    settings = ApplySettings(early_wait_s=1)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, settings, topology=box.client.topology)
    look(box, monkeypatch, worker, 3, due=[refused.bucket], resting=list(buckets), each_s=1)

    assert refused.status() == "rejected"


def test_refused_ops_wait_for_what_is_behind_a_batch_only_at_its_end(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that waited would else be something that the one before it waits for, back to the first of all."""
    monkeypatch.setattr(transaction, "FIRST_ROWS", 20)
    places, began_ns = two_buckets(box), clock.wall_ns()
    refuse(box)
    refused = []
    for n in range(60):
        monkeypatch.setattr(clock, "wall_ns", lambda n=n: began_ns + n * 10**8)
        refused.append(pipeline.enqueue_insert(db.event, who=places[n % 2], note=f"never {n}"))
    worker = Applier(
        "s0",
        box.client.nodes.primary("s0"),
        box.log,
        ApplySettings(max_rows=20, breaker=False),
        topology=box.client.topology,
    )

    look(box, monkeypatch, worker, 20, due=[one.bucket for one in refused[:2]])
    monkeypatch.undo()

    assert {one.status() for one in refused} == {"rejected"}


def test_what_refers_to_a_row_that_never_comes_is_no_part_of_a_circle(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for an older op, which stands behind two that wait each for a parent behind the next."""
    monkeypatch.setattr(transaction, "FIRST_ROWS", 1)
    one, two, three = buckets_of(box, 3)
    enqueued = enqueuing(monkeypatch)
    never = enqueued(30, db.child, who=one, up=1)
    parents = [enqueued(50, db.parent, who=one)]
    children = [enqueued(70, db.child, who=two, up=parents[0].id)]
    parents.append(enqueued(90, db.parent, who=two))
    children.append(enqueued(110, db.child, who=three, up=parents[1].id))
    old = enqueued(10, db.event, who=three)  # from another host's spool
    worker = Applier(
        "s0", box.client.nodes.primary("s0"), box.log, ApplySettings(max_rows=1), topology=box.client.topology
    )

    look(box, monkeypatch, worker, 20, due=[never.bucket, children[0].bucket, old.bucket])

    assert (never.status(), set(states(*parents, *children, old))) == ("rejected", {"applied"})


def test_an_op_is_not_refused_for_good_whose_parent_is_left_out_behind_an_early_op(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(box)
    first, second, third = buckets_of(box, 3)
    enqueued = enqueuing(monkeypatch)
    older = enqueued(900, db.event, who=third)
    enqueued(1000, db.event, who=first, note="never")  # directly, while what follows was in a spool
    parent = enqueued(500, db.parent, who=first)
    child = enqueued(600, db.child, who=second, up=parent.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    look(box, monkeypatch, worker, 3, due=[parent.bucket, child.bucket], resting=[older.bucket])
    assert states(parent, child) == ["queued", "queued"]
    monkeypatch.undo()
    box.log.postpone("s0", [older.bucket, parent.bucket, child.bucket], 0)
    box.drain()

    assert states(parent, child) == ["applied", "applied"]


@pytest.mark.parametrize(("rows", "tries"), [(1, 4), (2, 3)])  # single ops are guessed first
def test_what_refers_to_rows_behind_an_early_op_is_left_out_with_it_at_once(
    db: Any, monkeypatch: pytest.MonkeyPatch, rows: int, tries: int
) -> None:
    with sandbox({name: {"shard_key": "who"} for name in TABLES}, shards=1, buckets=16) as box:
        pipeline.define_tables(db)
        first, *others = buckets_of(box, 12)
        parents, children = [*pipeline.enqueue_bulk_insert(db.parent, [{"who": first}] * rows)], list[Any]()
        for who in others:
            born = [{"who": who, "up": parents[-1].id}] * rows
            children += pipeline.enqueue_bulk_insert(db.child, born)
            parents += pipeline.enqueue_bulk_insert(db.parent, [{"who": who}] * rows)
        worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
        tried, run = list[str](), transaction.ApplyTransaction.run
        monkeypatch.setattr(
            transaction.ApplyTransaction, "run", lambda self, *how, **more: tried.append("") or run(self, *how, **more)
        )
        look(box, monkeypatch, worker, 2, due=[one.bucket for one in children], resting=[parents[0].bucket])

        assert set(states(*children)) == {"queued"}
        assert len(tried) == tries, "one of some buckets, one of all, and one without what waits"
        box.log.postpone("s0", [one.bucket for one in parents], 0)
        box.drain()

        assert set(states(*parents, *children)) == {"applied"}


def by_insert(db: Any, who: int) -> int:
    return int(pipeline.enqueue_insert(db.parent, who=who).id)


def in_bulk(db: Any, who: int) -> int:
    return int(pipeline.enqueue_bulk_insert(db.parent, [{"who": who, "note": f"{n}"} for n in range(20)])[17].id)


def in_a_group(db: Any, who: int) -> int:
    with pipeline.atomic():
        pipeline.enqueue_insert(db.event, who=who)
        return int(pipeline.enqueue_insert(db.parent, who=who).id)


def by_a_trigger(db: Any, who: int) -> int:
    return int(pipeline.enqueue_insert(db.event, who=who, note="parent").id) + 1


@pytest.mark.parametrize("made", [by_insert, in_bulk, in_a_group, by_a_trigger])
def test_what_a_foreign_key_refuses_waits_for_whatever_may_make_the_row(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, made: Callable[[Any, int], int]
) -> None:
    if made is by_a_trigger:
        makes = "BEGIN INSERT INTO parent (id, who) VALUES (NEW.id + 1, NEW.who); END"
        session = box.client.nodes.primary("s0")
        session.execute(f"CREATE TRIGGER makes AFTER INSERT ON event WHEN NEW.note = 'parent' {makes}")
    first, second = two_buckets(box)
    at, bucket = after(monkeypatch), box.client.topology.bucket_of("parent", first)
    at(0)
    row = made(db, first)
    at(10)
    child = pipeline.enqueue_insert(db.child, who=second, up=row)

    waits_and_is_applied(box, monkeypatch, bucket, child)


def test_what_a_foreign_key_refuses_waits_for_nothing_else(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    at = after(monkeypatch)
    at(0)
    pipeline.enqueue_insert(db.event, who=first)
    gone, other = (pipeline.enqueue_insert(db.parent, who=first) for _ in range(2))
    box.drain()
    pipeline.enqueue_delete((db.parent.id == gone.id) & (db.parent.who == first))
    box.drain()
    pipeline.enqueue_update((db.parent.id == gone.id) & (db.parent.who == first), note="a")
    pipeline.enqueue_delete((db.parent.id == gone.id) & (db.parent.who == first))
    later = pipeline.enqueue_insert(db.parent, who=first)
    at(10)
    children = [pipeline.enqueue_insert(db.leaf, who=second, up=up) for up in (gone.id, other.id)]
    row = (db.leaf.id == children[1].id) & (db.leaf.who == second)
    children.append(pipeline.enqueue_update(row, up=gone.id))
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    look(box, monkeypatch, worker, 3, due=[children[0].bucket], resting=[other.bucket])

    assert states(*children, later) == ["rejected", "applied", "rejected", "queued"]


def of_its_table(db: Any, who: int) -> Any:
    return pipeline.enqueue_insert(db.event, who=who, note="open")


def in_a_sheet(db: Any, who: int) -> Any:
    return pipeline.enqueue_bulk_insert(db.event, [{"who": who, "note": "open"}] + [{"who": who}] * 20)[0]


def through_another(db: Any, who: int) -> Any:
    return pipeline.enqueue_insert(db.parent, who=who, note="opens")


def elsewhere(db: Any, who: int) -> Any:
    return pipeline.enqueue_insert(db.leaf, who=who)


def elsewhere_in_a_sheet(db: Any, who: int) -> Any:
    return pipeline.enqueue_bulk_insert(db.node, [{"who": who}] * 20)[0]


def older_and_child(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, older: Callable[[Any, int], Any]
) -> tuple[int, Any]:
    """Enqueue an older op, and then a child in another bucket; return the older one's bucket, and the child."""
    first, second = two_buckets(box)
    at = after(monkeypatch)
    at(0)
    bucket = older(db, first).bucket
    at(10)
    return bucket, pipeline.enqueue_insert(db.child, who=second)


def ask_whether_an_event_is_open(box: Sandbox) -> None:
    """Let a trigger refuse children until an event is open, which a parent may open."""
    session = box.client.nodes.primary("s0")
    unless_open = "WHEN NOT EXISTS (SELECT 1 FROM event WHERE note = 'open') BEGIN SELECT RAISE(ABORT, 'shut'); END"
    session.execute(f"CREATE TRIGGER asks BEFORE INSERT ON child {unless_open}")
    session.execute(
        "CREATE TRIGGER opens AFTER INSERT ON parent WHEN NEW.note = 'opens'"
        " BEGIN INSERT INTO event (id, who, note) VALUES (NEW.id, NEW.who, 'open'); END"
    )


@pytest.mark.parametrize("older", [of_its_table, in_a_sheet, through_another])
def test_what_a_trigger_refuses_waits_for_ops_that_may_change_what_it_reads(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, older: Callable[[Any, int], Any]
) -> None:
    ask_whether_an_event_is_open(box)
    bucket, child = older_and_child(db, box, monkeypatch, older)

    waits_and_is_applied(box, monkeypatch, bucket, child)


@pytest.mark.parametrize("older", [elsewhere, elsewhere_in_a_sheet])
def test_what_a_trigger_refuses_waits_for_no_other_ops(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, older: Callable[[Any, int], Any]
) -> None:
    ask_whether_an_event_is_open(box)
    resting, child = older_and_child(db, box, monkeypatch, older)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    look(box, monkeypatch, worker, 3, due=[child.bucket], resting=[resting])
    assert child.status() == "rejected"
    monkeypatch.undo()
    box.log.postpone("s0", [resting, child.bucket], 0)
    box.drain()

    assert child.status() == "rejected"


def test_what_a_trigger_fills_from_other_rows_waits_for_these_whatever_constraint_refuses_it(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = box.client.nodes.primary("s0")
    session.execute("ALTER TABLE child ADD COLUMN known INT CHECK (known > 0)")
    session.execute(
        "CREATE TRIGGER fills AFTER INSERT ON child BEGIN"
        " UPDATE child SET known = (SELECT COUNT(*) FROM event WHERE note = 'open') WHERE id = NEW.id; END"
    )
    bucket, child = older_and_child(db, box, monkeypatch, of_its_table)

    waits_and_is_applied(box, monkeypatch, bucket, child)


@pytest.mark.parametrize(
    ("most_bytes", "makes", "wanted"),
    [(8_000_000, False, "rejected"), (8_000_000, True, "queued"), (10_000, False, "queued")],
    ids=["nothing helps", "what helps is behind it", "what is behind it is not looked at"],
)
def test_behind_a_large_op_as_much_is_looked_at_as_may_be_kept_in_mind(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, most_bytes: int, makes: bool, wanted: str
) -> None:
    monkeypatch.setattr(earlier_ops, "MOST_BYTES", most_bytes)
    first, second = two_buckets(box)
    enqueued = enqueuing(monkeypatch)
    large = enqueued(0, db.event, who=first, body="x" * 2 * HEAD_BYTES)
    made = enqueued(5, db.parent, who=first) if makes else large
    child = enqueued(10, db.child, who=second, up=made.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    look(box, monkeypatch, worker, 3, due=[child.bucket], resting=[large.bucket])

    assert states(child, large) == [wanted, "queued"]


@pytest.mark.parametrize(
    ("known", "ids", "wanted"),
    [(True, "pipeline", "rejected"), (False, "pipeline", "queued"), (True, "database", "queued")],
    ids=["its id says", "no definition says what the id says", "the database gives ids"],
)
def test_a_row_is_looked_for_where_ops_are_that_may_make_it(
    db: Any, monkeypatch: pytest.MonkeyPatch, known: bool, ids: str, wanted: str
) -> None:
    monkeypatch.setattr(earlier_ops, "MOST_BYTES", 10_000)
    spread = {name: {"shard_key": "who"} for name in TABLES}
    with sandbox(spread | {"parent": {"shard_key": "who", "ids": ids}}, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        first, second, third = buckets_of(box, 3)
        enqueued = enqueuing(monkeypatch)
        gone = box.client.topology.bucket_of("event", third)
        large = enqueued(0, db.event, who=first, body="x" * 2 * HEAD_BYTES)
        enqueued(0, db.event, who=first)
        child = enqueued(10, db.child, who=second, up=SMALLEST + gone)
        worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
        if not known:
            monkeypatch.setattr(FactBook, "table_named", lambda self, name: None)

        look(box, monkeypatch, worker, 3, due=[child.bucket], resting=[large.bucket])

        assert states(child, large) == [wanted, "queued"]


@pytest.mark.parametrize("keys", [1, 2])
def test_children_that_are_refused_together_look_once_at_their_parents_logs_and_ask_once_what_waits(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, keys: int
) -> None:
    asked, rows = list[str](), NodeSession.rows
    first, *others = buckets_of(box, 1 + keys)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    pipeline.enqueue_bulk_insert(db.child, [{"who": first, "up": None}] * 2)
    worker.apply()  # learns the shape
    rests = pipeline.enqueue_insert(db.event, who=first)
    gone = [SMALLEST + box.client.topology.bucket_of("parent", who) for who in (first, *others[1:])]
    lost = [{"who": who, "up": up} for who, up in zip(others, gone, strict=True) for _ in range(2)]
    children = pipeline.enqueue_bulk_insert(db.child, lost)

    def noted(self: NodeSession, sql: str) -> list[tuple[Any, ...]]:
        asked.append(sql)
        return rows(self, sql)

    monkeypatch.setattr(NodeSession, "rows", noted)
    look(box, monkeypatch, worker, 1, due=[child.bucket for child in children], resting=[rests.bucket])

    assert states(rests, *children) == ["queued", *["rejected"] * len(lost)]
    assert sum(sql.startswith("SELECT table_name, MAX") for sql in asked) == 1
    looks = [sql for sql in asked if sql.startswith(READ_MARKS)]
    assert [sql for sql in looks if sql == READ_MARKS] == []
    assert sum(f" OR bucket >= {FIRST_PIECE}" in sql for sql in looks) == 1


def test_an_op_waits_anew_for_what_it_needs_next(db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = buckets_of(box, 3)
    one, other = (pipeline.enqueue_insert(db.parent, who=who) for who in (first, second))
    child = pipeline.enqueue_insert(db.child, who=third, up=other.id)
    needs = [one.id]  # a server names the first reference that has no row
    monkeypatch.setattr(executor, "needed_by", lambda *refused: Needed({"parent": needs}))
    worker, another = (
        Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
        for _ in range(2)
    )

    look(box, monkeypatch, worker, 9, due=[child.bucket], resting=[one.bucket, other.bucket], each_s=1)
    look(box, monkeypatch, another, 1, due=[one.bucket], resting=[child.bucket, other.bucket])
    assert states(one, child) == ["applied", "queued"]
    needs[:] = [other.id]
    look(box, monkeypatch, worker, 5, due=[child.bucket], resting=[other.bucket], each_s=1, from_s=9)

    assert child.status() == "queued"


def test_an_op_waits_anew_where_a_fail_over_undoes_what_was_before_it(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.parent, who=first)
    before = pipeline.enqueue_insert(db.event, who=second)
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    path = box.client.settings.shards["s0"].primary.removeprefix("sqlite://")

    with closing(sqlite3.connect(":memory:")) as older:
        with closing(sqlite3.connect(path)) as primary:
            primary.backup(older)
        look(box, monkeypatch, worker, 9, due=[child.bucket], resting=[parent.bucket], each_s=1)
        assert states(before, child) == ["applied", "queued"]
        with closing(sqlite3.connect(path)) as primary:
            older.backup(primary)
    look(box, monkeypatch, worker, 5, due=[child.bucket], resting=[parent.bucket], each_s=1, from_s=9)

    assert states(before, child) == ["applied", "queued"]


def test_an_op_is_applied_whose_parent_comes_between_its_refusal_and_the_look_at_what_waits(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    parent = SMALLEST + box.client.topology.bucket_of("parent", first)
    children = pipeline.enqueue_bulk_insert(db.child, [{"who": second, "up": parent} for _ in range(4)])
    session, awaited_by = box.client.nodes.primary("s0"), earlier_ops.EarlierOps.awaited_by

    def came(self: earlier_ops.EarlierOps, item: Any, **how: Any) -> Any:
        """Let another worker commit the parent: here in the same transaction, since SQLite has one writer."""
        session.execute(f"INSERT OR IGNORE INTO parent (id, who) VALUES ({parent}, {first})")
        return awaited_by(self, item, **how)

    monkeypatch.setattr(earlier_ops.EarlierOps, "awaited_by", came)
    Applier("s0", session, box.log, ApplySettings(), topology=box.client.topology).apply()

    assert states(*children) == ["applied"] * 4


def by_delete(db: Any, row: Any) -> None:
    pipeline.enqueue_delete(row)


def by_update(db: Any, row: Any) -> None:
    pipeline.enqueue_update(row, note="b")


@pytest.mark.parametrize("freed", [by_delete, by_update])
def test_an_op_whose_value_is_taken_waits_for_whatever_may_free_the_value(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, freed: Callable[[Any, Any], None]
) -> None:
    first, second = two_buckets(box)
    at, bucket = after(monkeypatch), box.client.topology.bucket_of("event", first)
    at(0)
    pipeline.enqueue_insert(db.event, who=first, note="a")
    box.drain()
    freed(db, (db.event.who == first) & (db.event.note == "a"))
    at(10)
    renewed = pipeline.enqueue_insert(db.event, who=second, note="a")

    waits_and_is_applied(box, monkeypatch, bucket, renewed)


def test_an_op_whose_value_is_taken_waits_for_nothing_else(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    at = after(monkeypatch)
    at(0)
    child = pipeline.enqueue_insert(db.child, who=first)
    pipeline.enqueue_insert(db.event, who=first, note="a")
    box.drain()
    others = [pipeline.enqueue_insert(db.event, who=first, note="b")]
    others.append(pipeline.enqueue_delete((db.child.id == child.id) & (db.child.who == first)))
    at(10)
    doubled = pipeline.enqueue_insert(db.event, who=second, note="a")
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    look(box, monkeypatch, worker, 3, due=[doubled.bucket], resting=[child.bucket])

    assert states(doubled, *others) == ["rejected", "queued", "queued"]


@pytest.mark.parametrize(("hosts", "wanted"), [(1, "rejected"), (2, "queued")])
def test_of_ops_of_one_process_its_own_clock_says_which_was_before(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, hosts: int, wanted: str
) -> None:
    if hosts == 1:
        of_one_host(box, monkeypatch)
    refuse(box)
    first, second = two_buckets(box)
    at = after(monkeypatch)
    at(0)
    refused = pipeline.enqueue_insert(db.event, who=second, note="never")
    at(10)
    younger = pipeline.enqueue_insert(db.event, who=first)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)

    look(box, monkeypatch, worker, 3, due=[refused.bucket], resting=[younger.bucket])

    assert states(refused, younger) == [wanted, "queued"]


@pytest.mark.parametrize("times", [2, 50])
def test_no_op_waits_for_what_is_sent_again_and_was_applied_before(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(transaction, "FIRST_ROWS", 4)
    of_one_host(box, monkeypatch)
    first, second = two_buckets(box)
    at = after(monkeypatch)

    def deleted(row: Any, who: int) -> None:
        pipeline.enqueue_delete((db.parent.id == row.id) & (db.parent.who == who))

    at(100)
    seen = [pipeline.enqueue_insert(db.event, who=second) for _ in range(times)]
    bucket = seen[0].bucket
    kept = box.log.read({bucket: START}, {bucket: 1_000})[bucket]
    rows = [pipeline.enqueue_insert(db.parent, who=who) for who in (first, second)]
    box.drain()
    at(200)
    deleted(rows[0], first)
    at(300)
    deleted(rows[1], second)
    pipeline.enqueue_insert(db.event, who=second)  # a batch ends behind it
    box.log.fail_over(box.log.replica())
    box.client.publisher.resend(kept[0].producer, {bucket: Run(1, [entry.payload for entry in kept])})
    worker = Applier(
        "s0", box.client.nodes.primary("s0"), box.log, ApplySettings(max_rows=4), topology=box.client.topology
    )
    look(box, monkeypatch, worker, 30, due=[0, 1, 2, 3])
    monkeypatch.undo()

    assert (box.rows("parent"), len(box.rows("event"))) == ([], times + 1)


def test_an_older_op_is_waited_for_though_one_that_is_hardly_younger_stands_before_it(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    at = after(monkeypatch)
    at(350)
    pipeline.enqueue_insert(db.event, who=first)  # from another host, while what follows was in a spool
    at(200)
    parent = pipeline.enqueue_insert(db.parent, who=first)
    at(300)
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 5, due=[child.bucket], resting=[parent.bucket], each_s=1)
    assert child.status() == "queued"
    monkeypatch.undo()
    box.log.postpone("s0", [parent.bucket, child.bucket], 0)
    box.drain()

    assert [parent.status(), child.status()] == ["applied", "applied"]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("deleted_ms", [450, 400])
def test_a_delete_comes_after_an_older_child_that_stands_behind_a_younger_op_in_its_bucket(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, deleted_ms: int, swapped: bool
) -> None:
    first, second = two_buckets(box)[:: -1 if swapped else 1]
    parent = pipeline.enqueue_insert(db.parent, who=second)
    box.drain()
    at = after(monkeypatch)
    at(500)
    pipeline.enqueue_insert(db.event, who=first)  # from another host, while what follows was on its way
    at(400)
    child = pipeline.enqueue_insert(db.child, who=first, up=parent.id)
    at(deleted_ms)  # a clock may stand still for a moment
    pipeline.enqueue_delete((db.parent.id == parent.id) & (db.parent.who == second))
    monkeypatch.undo()
    box.drain()

    assert child.status() == "applied"
    assert [box.rows(name) for name in ("parent", "child")] == [[], []]


def test_a_delete_keeps_nothing_behind_it_from_coming_before_what_needs_that(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    one = pipeline.enqueue_insert(db.child, who=first)
    box.drain()
    at = after(monkeypatch)
    at(100)
    pipeline.enqueue_delete((db.child.id == one.id) & (db.child.who == first))
    at(300)
    two = pipeline.enqueue_insert(db.child, who=first)
    at(350)
    below = pipeline.enqueue_insert(db.grandchild, who=second, up=two.id)
    at(50)
    pipeline.enqueue_insert(db.event, who=second)  # was in the spool of another host
    at(400)
    pipeline.enqueue_delete((db.child.id == two.id) & (db.child.who == first))
    monkeypatch.undo()
    box.drain()

    assert below.status() == "applied"
    assert [box.rows(name) for name in ("child", "grandchild")] == [[], []]


def test_a_child_is_applied_whose_family_comes_back_from_a_spool_behind_another_hosts_op(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    at = after(monkeypatch)
    at(500)
    pipeline.enqueue_insert(db.event, who=first)  # from another host, while what follows was in a spool
    at(100)
    parent = pipeline.enqueue_insert(db.parent, who=first)
    at(200)
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    at(300)
    pipeline.enqueue_delete((db.parent.id == parent.id) & (db.parent.who == first))
    monkeypatch.undo()
    box.drain()

    assert child.status() == "applied"
    assert [box.rows(name) for name in ("parent", "child")] == [[], []]


def test_a_delete_does_not_pass_what_the_delete_before_it_has_held_up(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    one, two = (pipeline.enqueue_insert(db.parent, who=second) for _ in range(2))
    box.drain()
    at = after(monkeypatch)
    at(200)
    pipeline.enqueue_delete((db.parent.id == one.id) & (db.parent.who == second))
    at(100)
    parent = pipeline.enqueue_insert(db.parent, who=second)  # was in the spool of another host
    at(150)
    children = [pipeline.enqueue_insert(db.child, who=first, up=parent.id)]
    at(300)
    children.append(pipeline.enqueue_insert(db.child, who=first, up=two.id))
    at(400)
    pipeline.enqueue_delete((db.parent.id == two.id) & (db.parent.who == second))
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 20, due=[parent.bucket, children[0].bucket], each_s=1)
    monkeypatch.undo()

    assert [child.status() for child in children] == ["applied", "applied"]
    assert [row["id"] for row in box.rows("parent")] == [parent.id]


def test_deletes_of_many_transactions_ask_once_what_refers_to_their_rows(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = two_buckets(box)
    parents = [pipeline.enqueue_insert(db.parent, who=first) for _ in range(4)]
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    worker.apply()
    told, now_s, read = list[object](), clock.mono_s(), order.constraints_in
    monkeypatch.setattr(order, "constraints_in", lambda *about: told.append(read(*about)) or told[-1])
    for later_s, parent in zip((0, 0.5, 0.9, 1.1), parents, strict=True):
        monkeypatch.setattr(clock, "mono_s", lambda later_s=later_s: now_s + later_s)
        pipeline.enqueue_delete(db.parent.id == parent.id, shard_key=first)
        worker.apply()

    assert box.rows("parent") == []
    assert len(told) == 2


def test_a_delete_waits_for_older_ops_that_name_its_row_and_for_no_others(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    one, two = (pipeline.enqueue_insert(db.child, who=second) for _ in range(2))
    box.drain()
    at = after(monkeypatch)
    at(100)
    below = pipeline.enqueue_insert(db.grandchild, who=first, up=two.id)
    at(200)
    pipeline.enqueue_delete(db.child.id == one.id)
    pipeline.enqueue_delete(db.child.id == two.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 5, due=[one.bucket], resting=[below.bucket])

    assert [row["id"] for row in box.rows("child")] == [two.id]
    monkeypatch.undo()
    box.log.postpone("s0", [one.bucket, below.bucket], 0)
    box.drain()
    assert (below.status(), box.rows("child")) == ("applied", [])


def test_a_delete_that_reaches_rows_through_others_waits_for_older_ops_that_do_not_name_its_row(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.parent, who=second)
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    box.drain()
    below = pipeline.enqueue_insert(db.grandchild, who=first, up=child.id)
    pipeline.enqueue_delete(db.parent.id == parent.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 5, due=[parent.bucket], resting=[below.bucket])
    monkeypatch.undo()

    assert [row["id"] for row in box.rows("parent")] == [parent.id]


def test_a_transaction_takes_what_its_early_ops_wait_for_though_older_ops_would_fill_it(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "FIRST_ROWS", 4)
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.child, who=first)
    box.drain()
    at = after(monkeypatch)
    at(500)
    for _ in range(4):
        pipeline.enqueue_insert(db.event, who=second)  # from another host, while what follows was in a spool
    at(100)
    child = pipeline.enqueue_insert(db.grandchild, who=second, up=parent.id)
    at(200)
    deleted = pipeline.enqueue_delete(db.child.id == parent.id, shard_key=first)
    for _ in range(8):
        pipeline.enqueue_insert(db.event, who=first)
    worker = Applier(
        "s0", box.client.nodes.primary("s0"), box.log, ApplySettings(max_rows=4), topology=box.client.topology
    )
    look(box, monkeypatch, worker, 20, due=[parent.bucket, child.bucket])
    monkeypatch.undo()

    assert states(child, deleted) == ["applied", "applied"]
    assert [box.rows(name) for name in ("child", "grandchild")] == [[], []]


def test_a_delete_ends_the_rest_of_an_older_child_at_once(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.child, who=first)
    box.drain()
    child = pipeline.enqueue_insert(db.grandchild, who=second, up=parent.id)
    deleted = pipeline.enqueue_delete(db.child.id == parent.id, shard_key=first)
    box.log.postpone("s0", [child.bucket], 3_000)  # the shard's server was away
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 5, due=[parent.bucket])

    assert states(child, deleted) == ["applied", "applied"]


def test_a_delete_waits_for_a_child_whose_bucket_is_tried_again_for_four_seconds(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.child, who=first)
    box.drain()
    child = pipeline.enqueue_insert(db.grandchild, who=second, up=parent.id)
    deleted = pipeline.enqueue_delete(db.child.id == parent.id, shard_key=first)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 9, due=[parent.bucket], resting=[child.bucket], each_s=0.5)
    assert states(child, deleted) == ["queued", "queued"]
    monkeypatch.undo()
    box.log.postpone("s0", [parent.bucket, child.bucket], 0)
    box.drain()

    assert states(child, deleted) == ["applied", "applied"]


@pytest.mark.parametrize("between", [1, 150, 450])
def test_a_delete_waits_for_an_older_child_however_far_behind_in_its_bucket_and_whatever_else_is_older(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, between: int
) -> None:
    first, second, third = buckets_of(box, 3)
    parent = pipeline.enqueue_insert(db.child, who=first)
    box.drain()
    at = after(monkeypatch)
    at(100)
    older = pipeline.enqueue_insert(db.event, who=third)
    at(400)
    pipeline.enqueue_bulk_insert(db.event, [{"who": second}] * between)  # of another host, not from a spool
    at(200)
    child = pipeline.enqueue_insert(db.grandchild, who=second, up=parent.id)
    at(300)
    deleted = pipeline.enqueue_delete(db.child.id == parent.id, shard_key=first)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 5, due=[parent.bucket], resting=[older.bucket, child.bucket])
    assert states(child, deleted) == ["queued", "queued"]
    monkeypatch.undo()
    box.log.postpone("s0", [older.bucket, parent.bucket, child.bucket], 0)
    box.drain()

    assert states(child, deleted) == ["applied", "applied"]


def test_a_delete_does_not_wait_for_many_older_ops_that_do_not_name_its_row(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.child, who=first)
    box.drain()
    [older, *_] = pipeline.enqueue_bulk_insert(db.event, [{"who": second}] * 150)
    deleted = pipeline.enqueue_delete(db.child.id == parent.id, shard_key=first)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 3, due=[parent.bucket], resting=[older.bucket])

    assert states(older, deleted) == ["queued", "applied"]


def test_two_deletes_do_not_wait_for_each_other_where_neither_sees_all_that_is_older(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.apply.earlier_ops.MOST_BYTES", 0)
    monkeypatch.setattr(transaction, "FIRST_ROWS", 10)
    places = two_buckets(box)
    rows = [pipeline.enqueue_insert(db.child, who=who) for who in places]
    box.drain()
    at = after(monkeypatch)
    at(500)
    deletes = [pipeline.enqueue_delete(db.child.id == rows[n].id, shard_key=places[n]) for n in range(2)]
    at(100)  # was in the spool of another host
    for who in places:
        pipeline.enqueue_bulk_insert(db.event, [{"who": who}] * 150)
    worker = Applier(
        "s0", box.client.nodes.primary("s0"), box.log, ApplySettings(max_rows=10), topology=box.client.topology
    )
    look(box, monkeypatch, worker, 10, due=[row.bucket for row in rows])

    assert "applied" in states(*deletes)


def test_an_op_is_put_off_until_the_older_op_that_helps_it_is_committed(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    other = pipeline.enqueue_insert(db.parent, who=second)
    box.drain()
    at = after(monkeypatch)
    at(400)  # without the child this waits for it, and the parent behind it, too
    pipeline.enqueue_delete((db.parent.id == other.id) & (db.parent.who == second))
    at(200)
    parent = pipeline.enqueue_insert(db.parent, who=second)  # was in the spool of another host
    at(300)
    child = pipeline.enqueue_insert(db.child, who=first, up=parent.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 20, due=[parent.bucket, child.bucket], each_s=1)
    monkeypatch.undo()

    assert [parent.status(), child.status()] == ["applied", "applied"]


@pytest.mark.parametrize("behind", [False, True])
def test_an_op_is_put_off_no_more_where_nothing_is_committed_without_it(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    first, second = two_buckets(box)
    taken = pipeline.enqueue_insert(db.event, who=first, note="a")
    box.drain()
    at = after(monkeypatch)
    at(500)  # from another host; what frees its value comes behind it, from a spool
    doubled = pipeline.enqueue_insert(db.event, who=first, note="a")
    at(100)
    pipeline.enqueue_delete((db.event.id == taken.id) & (db.event.who == first))
    parent = pipeline.enqueue_insert(db.parent, who=first)
    at(300)
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    at(400)
    if behind:
        pipeline.enqueue_insert(db.event, who=second)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 20, due=[parent.bucket, child.bucket], each_s=1)
    monkeypatch.undo()

    assert states(doubled, parent, child) == ["rejected", "applied", "applied"]


def test_an_op_is_put_off_no_more_where_what_it_waits_for_waits_for_it(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    taken = pipeline.enqueue_insert(db.event, who=second, note="a")
    box.drain()
    at = after(monkeypatch)
    at(100)
    doubled = pipeline.enqueue_insert(db.event, who=first, note="a")
    parent = pipeline.enqueue_insert(db.parent, who=first)
    at(50)  # from another host, whose clock is behind
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    at(300)
    pipeline.enqueue_delete((db.event.id == taken.id) & (db.event.who == second))
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 20, due=[doubled.bucket, child.bucket], each_s=1)
    monkeypatch.undo()

    assert states(doubled, parent, child) == ["rejected", "applied", "applied"]


def test_an_older_op_is_put_off_as_long_as_a_younger_one_before_what_it_needs(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    taken = pipeline.enqueue_insert(db.event, who=second, note="a")
    box.drain()
    at = after(monkeypatch)
    at(100)
    pipeline.enqueue_insert(db.event, who=second)  # is committed: the younger one's bucket may yet be helped
    at(300)
    doubled = pipeline.enqueue_insert(db.event, who=first, note="a")
    parent = pipeline.enqueue_insert(db.parent, who=first)
    at(200)  # from another host, whose clock is behind
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    at(500)
    pipeline.enqueue_delete((db.event.id == taken.id) & (db.event.who == second))
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 20, due=[doubled.bucket, child.bucket], each_s=1)
    monkeypatch.undo()

    assert states(doubled, parent, child) == ["rejected", "applied", "applied"]


def test_what_a_whole_transaction_refuses_for_good_waits_for_nothing_that_it_puts_off(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    taken = pipeline.enqueue_insert(db.event, who=second, note="a")
    pipeline.enqueue_insert(db.event, who=second, note="b")
    box.drain()
    at = after(monkeypatch)
    at(100)
    helped = pipeline.enqueue_insert(db.event, who=first, note="a")
    at(200)
    doubled = [pipeline.enqueue_insert(db.event, who=second, note="b") for _ in range(3)]
    pipeline.enqueue_delete((db.event.id == taken.id) & (db.event.who == second))
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 3, due=[helped.bucket, taken.bucket])
    monkeypatch.undo()

    assert states(helped, *doubled) == ["applied", *["rejected"] * 3]


def test_what_needs_rows_of_a_paused_table_waits_with_it_and_goes_on_with_it(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    paused = stops.target_of(box.client, "parent")
    stops.pause(box.client, paused, "")
    parent = pipeline.enqueue_insert(db.parent, who=first)
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    grandchild = pipeline.enqueue_insert(db.grandchild, who=first, up=child.id)
    changed = pipeline.enqueue_update((db.child.id == child.id) & (db.child.who == second), note="changed")
    event = pipeline.enqueue_insert(db.event, who=second, note="another table")
    box.drain()
    assert states(parent, child, grandchild, changed) == ["parked"] * 4
    assert event.status() == "applied"
    assert list(release(box.client, "s0", "ada")) == []  # nothing is tried that is known to wait

    stops.resume(box.client, paused)
    late = pipeline.enqueue_insert(db.child, who=first, up=parent.id)  # its parent is not released yet
    box.drain()
    assert late.status() == "parked"
    assert sum(release(box.client, "s0", "ada")) == 5

    assert states(parent, child, grandchild, changed, late) == ["replayed"] * 5
    assert {row["note"]: row["up"] for row in box.rows("child")} == {"changed": parent.id, None: parent.id}
    assert list(dead.dead_ops(box.client, dead.Where())) == []


def test_a_child_is_refused_at_last_whose_parent_does_not_come_with_what_was_paused(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    paused = stops.target_of(box.client, "parent")
    stops.pause(box.client, paused, "")
    parent = pipeline.enqueue_insert(db.parent, who=first)
    orphan = pipeline.enqueue_insert(db.child, who=second, up=parent.id + 2**20)
    node = pipeline.enqueue_insert(db.node, who=second, up=parent.id)  # refused, and of no table that waits
    box.drain()
    assert states(parent, orphan, node) == ["parked", "parked", "rejected"]
    stops.pause(box.client, stops.target_of(box.client, "node"), "")
    lone = pipeline.enqueue_insert(db.node, who=second, up=parent.id)
    box.drain()

    for table in ("parent", "node"):
        stops.resume(box.client, stops.target_of(box.client, table))
    for _ in release(box.client, "s0", "ada"):
        pass

    assert states(parent, orphan, lone) == ["replayed", "rejected", "rejected"]


def test_a_parent_is_deleted_after_what_was_paused_of_its_children(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    parent = pipeline.enqueue_insert(db.parent, who=first)
    box.drain()
    paused = stops.target_of(box.client, "leaf")
    stops.pause(box.client, paused, "")
    leaf = pipeline.enqueue_insert(db.leaf, who=second, up=parent.id)
    deleted = pipeline.enqueue_delete((db.parent.id == parent.id) & (db.parent.who == first))
    box.drain()
    assert states(leaf, deleted) == ["parked", "parked"]
    assert list(release(box.client, "s0", "ada")) == []

    stops.resume(box.client, paused)
    for _ in release(box.client, "s0", "ada"):
        pass

    assert states(leaf, deleted) == ["replayed", "replayed"]
    assert [row["up"] for row in box.rows("leaf")] == [None]  # as without the pause: ON DELETE SET NULL


@pytest.mark.parametrize("later", [False, True], ids=["the same worker", "another"])
def test_a_parent_is_deleted_after_what_waits_for_its_childrens_definition(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    monkeypatch.setattr("pipeline.apply.turns.SCHEMA_DELAY_MS", 0)  # no worker remembers what the shard is behind
    first, second = two_buckets(box)
    session = box.client.nodes.primary("s0")
    parent = pipeline.enqueue_insert(db.parent, who=first)
    box.drain()
    with session.transaction():
        session.execute("ALTER TABLE leaf RENAME COLUMN who TO away")
    leaf = pipeline.enqueue_insert(db.leaf, who=second, up=parent.id)
    worker = Applier("s0", session, box.log, ApplySettings(), topology=box.client.topology)
    worker.apply()
    assert states(leaf) == ["parked"]

    if later:
        worker = Applier("s0", session, box.log, ApplySettings(), topology=box.client.topology)
    deleted = pipeline.enqueue_delete(db.parent.id == parent.id, shard_key=first)
    worker.apply()
    assert states(leaf, deleted) == ["parked", "parked"]

    with session.transaction():
        session.execute("ALTER TABLE leaf RENAME COLUMN away TO who")
    assert sum(release(box.client, "s0", "ada")) == 2
    assert states(leaf, deleted) == ["replayed", "replayed"]
    assert [row["up"] for row in box.rows("leaf")] == [None]


def test_a_parent_is_deleted_after_a_child_that_waits_for_another_parents_definition(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    session = box.client.nodes.primary("s0")
    there = pipeline.enqueue_insert(db.child, who=first)
    box.drain()
    with session.transaction():
        session.execute("ALTER TABLE child RENAME COLUMN who TO away")
    made = pipeline.enqueue_insert(db.child, who=first)
    needy = pipeline.enqueue_insert(db.grandchild, who=second, up=made.id)
    worker = Applier("s0", session, box.log, ApplySettings(), topology=box.client.topology)
    for _ in range(3):
        worker.apply()
    assert states(made, needy) == ["parked", "parked"]

    with session.transaction():  # the table takes ops again, and nothing is released yet
        session.execute("ALTER TABLE child RENAME COLUMN away TO who")
    worker = Applier("s0", session, box.log, ApplySettings(), topology=box.client.topology)
    child = pipeline.enqueue_insert(db.grandchild, who=second, up=there.id)
    deleted = pipeline.enqueue_delete(db.child.id == there.id, shard_key=first)
    for _ in range(3):
        worker.apply()
    assert states(child, deleted) == ["parked", "parked"]

    assert sum(release(box.client, "s0", "ada")) == 4
    assert states(made, needy, child, deleted) == ["replayed"] * 4
    assert [row["id"] for row in box.rows("grandchild")] == [needy.id]


@pytest.mark.parametrize("apart", [False, True], ids=["in one transaction", "in several"])
def test_what_is_released_comes_in_order_though_the_order_of_buckets_is_another(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    first, second = two_buckets(box)
    at = after(monkeypatch)
    for table in ("child", "grandchild"):
        stops.pause(box.client, stops.target_of(box.client, f"table:{table}"))
    at(100)
    parent = pipeline.enqueue_insert(db.child, who=first)
    at(300)  # by another host, whose clock is ahead
    other = pipeline.enqueue_insert(db.child, who=second)
    at(302)
    others = pipeline.enqueue_delete(db.child.id == other.id, shard_key=second)
    at(101)
    child = pipeline.enqueue_insert(db.grandchild, who=second, up=parent.id)
    at(102)
    deleted = pipeline.enqueue_delete(db.child.id == parent.id, shard_key=first)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    every = parent, other, others, child, deleted
    at(400)
    for _ in range(3):
        worker.apply()
    assert states(*every) == ["parked"] * 5

    for table in ("child", "grandchild"):
        stops.resume(box.client, stops.target_of(box.client, f"table:{table}"))
    if apart:
        two = replace(box.client.settings, apply=ApplySettings(max_rows=2))
        monkeypatch.setattr(box.client, "settings", two)
    sum(release(box.client, "s0", "ada"))

    assert states(*every) == ["replayed"] * 5
    assert (box.rows("child"), box.rows("grandchild")) == ([], [])


def test_what_is_released_waits_for_older_ops_that_are_queued_yet(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    there = pipeline.enqueue_insert(db.child, who=first)
    box.drain()
    for table in ("child", "grandchild"):
        stops.pause(box.client, stops.target_of(box.client, f"table:{table}"))
    child = pipeline.enqueue_insert(db.grandchild, who=second, up=there.id)
    parent = pipeline.enqueue_insert(db.child, who=second)
    box.log.postpone("s0", [child.bucket], 3_600_000)  # as where the server was away
    deleted = pipeline.enqueue_delete(db.child.id == there.id, shard_key=first)
    needy = pipeline.enqueue_insert(db.grandchild, who=first, up=parent.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    worker.apply()
    assert states(child, parent, deleted, needy) == ["queued", "queued", "parked", "parked"]
    for table in ("child", "grandchild"):
        stops.resume(box.client, stops.target_of(box.client, f"table:{table}"))

    box.log.postpone("s0", [child.bucket], 3_600_000)
    assert sum(release(box.client, "s0", "ada")) == 0
    assert states(deleted, needy) == ["parked", "parked"]

    box.log.postpone("s0", [child.bucket], 0)
    worker.apply()
    sum(release(box.client, "s0", "ada"))
    assert states(child, parent, deleted, needy) == ["applied", "applied", "replayed", "replayed"]
    assert [row["id"] for row in box.rows("grandchild")] == [needy.id]


def test_an_op_is_tried_without_coming_before_older_ones_of_other_buckets(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    session = box.client.nodes.primary("s0")
    with session.transaction():
        session.execute("ALTER TABLE child RENAME COLUMN who TO away")
        session.execute("ALTER TABLE event RENAME COLUMN who TO away")
    parent = pipeline.enqueue_insert(db.child, who=first)
    child = pipeline.enqueue_insert(db.grandchild, who=second, up=parent.id)
    deleted = pipeline.enqueue_delete(db.child.id == parent.id, shard_key=first)
    pipeline.enqueue_insert(db.event, who=second)
    worker = Applier("s0", session, box.log, ApplySettings(), topology=box.client.topology)
    for _ in range(3):
        worker.apply()
    with session.transaction():
        session.execute("ALTER TABLE child RENAME COLUMN away TO who")

    assert sum(release(box.client, "s0", "ada")) == 3

    assert states(parent, child, deleted) == ["replayed"] * 3
    assert (box.rows("child"), box.rows("grandchild")) == ([], [])


def test_what_is_released_goes_on_whatever_transaction_its_parents_are_in(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = two_buckets(box)
    paused = [stops.target_of(box.client, name) for name in ("parent", "child", "node")]
    for one in paused:
        stops.pause(box.client, one, "")
    family, nodes, up = [], list[Any](), None
    for n in range(40):
        parent = pipeline.enqueue_insert(db.parent, who=places[n % 2])
        family += [parent, pipeline.enqueue_insert(db.child, who=places[1 - n % 2], up=parent.id)]
    for n in range(10):
        nodes.append(pipeline.enqueue_insert(db.node, who=places[n % 2], up=up))
        up = nodes[-1].id
    box.drain()
    for one in paused:
        stops.resume(box.client, one)
    small = replace(box.client.settings.apply, max_rows=7, buckets=1)
    monkeypatch.setattr(box.client, "settings", replace(box.client.settings, apply=small))

    assert sum(release(box.client, "s0", "ada")) == 90

    assert set(states(*family, *nodes)) == {"replayed"}


def test_an_op_that_waits_for_long_is_looked_at_ever_more_seldom_and_holds_up_nobody(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = buckets_of(box, 3)
    parent = pipeline.enqueue_insert(db.parent, who=first)
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    rests, slept, finish = list[tuple[int, int]](), list[float](), box.log.finish

    def finished(shard: str, marks: dict[int, Any], *, delay_ms: int = 0, **rest: Any) -> Any:
        rests.extend((bucket, delay_ms) for bucket in marks if delay_ms)
        return finish(shard, marks, delay_ms=delay_ms, **rest)

    monkeypatch.setattr(box.log, "finish", finished)
    monkeypatch.setattr(clock, "sleep_s", slept.append)
    look(box, monkeypatch, worker, 30, due=[child.bucket], resting=[parent.bucket])
    other = pipeline.enqueue_insert(db.child, who=third, up=parent.id)
    look(box, monkeypatch, worker, 1, due=[child.bucket, other.bucket], resting=[parent.bucket])

    ever_longer = [min(500, 20 * n) for n in range(1, 31)]  # from the first look on that takes all buckets
    assert [rest_ms for bucket, rest_ms in rests if bucket == child.bucket] == ever_longer
    assert [rest_ms for bucket, rest_ms in rests if bucket == other.bucket] == [20]
    assert set(slept) == {0.02}


def test_a_child_stays_in_its_log_where_its_parent_does(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    paused = stops.target_of(box.client, "parent")
    stops.pause(box.client, paused, "")
    parent = pipeline.enqueue_insert(db.parent, who=first)
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    worker = Applier(
        "s0",
        box.client.nodes.primary("s0"),
        box.log,
        ApplySettings(set_aside=0, early_wait_s=0),
        topology=box.client.topology,
    )
    for _ in range(5):
        box.log.postpone("s0", [parent.bucket, child.bucket], 0)
        outcome = worker.apply()
    assert states(parent, child) == ["queued", "queued"]
    assert "parent is paused" in outcome.waiting

    stops.resume(box.client, paused)
    box.drain()

    assert states(parent, child) == ["applied", "applied"]


def test_a_child_waits_for_as_long_as_the_shard_is_behind_its_parents_definition(db: Any, box: Sandbox) -> None:
    first, second = two_buckets(box)
    session = box.client.nodes.primary("s0")
    with session.transaction():
        session.execute("ALTER TABLE parent DROP COLUMN more")
    parent = pipeline.enqueue_insert(db.parent, who=first, more="x")
    child = pipeline.enqueue_insert(db.child, who=second, up=parent.id)
    worker = Applier("s0", session, box.log, ApplySettings(early_wait_s=0))
    for _ in range(5):
        box.log.postpone("s0", [parent.bucket, child.bucket], 0)
        worker.apply()
    assert states(parent, child) == ["parked", "parked"]
    assert sum(release(box.client, "s0", "ada")) == 0

    with session.transaction():
        session.execute("ALTER TABLE parent ADD COLUMN more")

    assert sum(release(box.client, "s0", "ada")) == 2
    assert states(parent, child) == ["replayed", "replayed"]


def look(
    box: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    worker: Applier,
    times: int,
    *,
    due: list[int],
    resting: list[int] | None = None,
    each_s: float = 0.0,
    from_s: float = 0.0,
) -> None:
    """Let a worker look so often at buckets that are due, while others rest.

    From one look to the next so much time passes; if none, the clock stands still, so that no op has waited. The first
    look is so much later than now.
    """
    real, began_s = clock.mono_s, clock.mono_s()
    with monkeypatch.context() as patched:
        for n in range(times):
            patched.setattr(clock, "mono_s", (lambda n=n: real() + from_s + n * each_s) if each_s else lambda: began_s)
            box.log.postpone("s0", resting or [], 3_600_000)
            box.log.postpone("s0", due, 0)
            worker.apply()


def of_one_host(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all ops be one producer's."""
    producer = box.client.publisher._made(patient=False)
    monkeypatch.setattr(Publisher, "_take", lambda self, patient=False: producer)


def refuse(box: Sandbox) -> None:
    """Let the database refuse events, as a program of its own may: nobody knows what it looks at."""
    says = "BEGIN SELECT RAISE(ABORT, 'never') FROM unknown; END"
    session = box.client.nodes.primary("s0")
    session.execute("CREATE VIEW unknown AS SELECT 1")
    session.execute(f"CREATE TRIGGER refuses BEFORE INSERT ON event WHEN NEW.note LIKE 'never%' {says}")


def waits_and_is_applied(box: Sandbox, monkeypatch: pytest.MonkeyPatch, bucket: int, waiting: Any) -> None:
    """Assert that an op is queued while another bucket rests, and applied once that has gone on."""
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), topology=box.client.topology)
    look(box, monkeypatch, worker, 3, due=[waiting.bucket], resting=[bucket])
    assert waiting.status() == "queued"
    monkeypatch.undo()
    box.log.postpone("s0", [bucket, waiting.bucket], 0)
    box.drain()

    assert waiting.status() == "applied"


def states(*receipts: Any) -> list[str]:
    return [receipt.status() for receipt in receipts]


def two_buckets(box: Sandbox) -> tuple[int, int]:
    """Return two shard keys of different buckets."""
    first, second = buckets_of(box, 2)
    return first, second


def buckets_of(box: Sandbox, count: int) -> list[int]:
    """Return shard keys of different buckets."""
    by_bucket = {box.client.topology.bucket_of("event", who): who for who in range(99, -1, -1)}
    return sorted(by_bucket.values())[:count]


def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what sets the clock by which ops are enqueued to so many ms after now."""
    began_ns = clock.wall_ns()
    return lambda ms: monkeypatch.setattr(clock, "wall_ns", lambda: began_ns + ms * 10**6)


def enqueuing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what enqueues an insert so many ms after now."""
    at = after(monkeypatch)

    def enqueued(after_ms: int, table: Any, **values: Any) -> Any:
        at(after_ms)
        return pipeline.enqueue_insert(table, **values)

    return enqueued
