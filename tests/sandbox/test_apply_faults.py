"""What a database refuses: the op alone, whatever the error; what it lacks: the ops of that schema alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline import clock
from pipeline.admin import upkeep
from pipeline.apply import judge
from pipeline.apply.applier import Applier
from pipeline.apply.pace import FEW_ROWS, MORE_ROWS
from pipeline.config.settings import ApplySettings
from pipeline.shard import NodeSession
from pipeline.shard.statements import MAX_ROWS
from pipeline.testing import Sandbox, sandbox

OTHERS = 60
#: Fails at each insert that fires it, with words that no list has: "malformed JSON", an OperationalError.
UNHEARD_OF = """CREATE TRIGGER odd BEFORE INSERT ON event WHEN NEW.note LIKE 'odd%'
BEGIN SELECT json(NEW.note); END"""


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("note"))
    db.define_table("pair", Field("who", "integer"), Field("note"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    tables = {
        "event": {"shard_key": "who"},
        "pair": {"shard_key": "who", "unique": [["who", "note"]]},
        "plain": {"shard_key": "who"},
    }
    with sandbox(tables, shards=1, buckets=32) as box:
        pipeline.define_tables(db)
        yield box


def change(box: Sandbox, *statements: str) -> None:
    session = box.client.nodes.primary("s0")
    with session.transaction():
        for sql in statements:
            session.execute(sql)


def applier(box: Sandbox) -> Applier:
    return Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings())


def ahead(db: Any, name: str) -> Any:
    """Return a table whose model has a column that the database lacks."""
    db.define_table(name, Field("who", "integer"))
    pipeline.define_tables(db)
    return db.define_table(name, Field("who", "integer"), Field("extra"), redefine=True, migrate=False)


def test_an_op_with_an_error_that_no_list_names_is_set_aside_alone(db: Any, box: Sandbox):
    change(box, UNHEARD_OF)
    bad = pipeline.enqueue_insert(db.event, who=7, note="odd")
    good = [pipeline.enqueue_insert(db.event, who=who, note=f"{who}") for who in range(OTHERS)]

    outcome = applier(box).apply()

    assert (outcome.applied, outcome.rejected, outcome.left) == (OTHERS, 1, 0)
    assert bad.status() == "rejected"
    assert {receipt.status() for receipt in good} == {"applied"}
    [reason] = box.client.nodes.primary("s0").query("SELECT reason FROM pipeline_rejects")
    assert "malformed JSON" in reason[0]


def test_an_error_that_stayed_once_is_believed_at_once(db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    change(box, UNHEARD_OF)
    worker, slept = applier(box), []
    monkeypatch.setattr("pipeline.clock.sleep_s", slept.append)
    pipeline.enqueue_insert(db.event, who=7, note="odd")
    worker.apply()
    assert len(slept) == 2

    pipeline.enqueue_bulk_insert(db.event, [{"who": 7, "note": f"odd {n}"} for n in range(50)])
    outcome = worker.apply()

    assert outcome.rejected == 50
    assert len(slept) == 2


def test_an_error_that_goes_away_rejects_nothing(db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    change(box, UNHEARD_OF)
    pipeline.enqueue_insert(db.event, who=7, note="odd")
    monkeypatch.setattr("pipeline.clock.sleep_s", lambda for_s: change(box, "DROP TRIGGER IF EXISTS odd"))

    assert applier(box).apply().applied == 1
    assert [row["note"] for row in box.rows("event")] == ["odd"]


@pytest.mark.parametrize("grouped", [False, True], ids=["single ops", "in an atomic group"])
def test_an_error_that_no_list_names_and_that_undoes_the_transaction_takes_no_other_op_with_it(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, grouped: bool
):
    real = NodeSession.execute

    def execute(session: NodeSession, sql: str) -> int:
        if "'odd'" in sql and "INSERT INTO" in sql and "pipeline_" not in sql:
            session.adapter.connection.rollback()
            raise sqlite3.OperationalError("malformed JSON")
        return real(session, sql)

    monkeypatch.setattr(NodeSession, "execute", execute)
    monkeypatch.setattr("pipeline.clock.sleep_s", lambda for_s: None)
    good = [pipeline.enqueue_insert(db.event, who=who, note=f"{who}") for who in range(OTHERS)]
    if grouped:
        with pipeline.atomic():
            bad = pipeline.enqueue_insert(db.event, who=7, note="odd")
            pipeline.enqueue_insert(db.pair, who=7, note="beside")
    else:
        bad = pipeline.enqueue_insert(db.event, who=7, note="odd")
    good += [pipeline.enqueue_insert(db.event, who=who, note=f"{who} again") for who in range(OTHERS)]

    for _ in range(20):
        box.log.ahead_ms += 60_000
        applier(box).apply()

    assert {receipt.status() for receipt in good} == {"applied"}
    assert bad.status() == "rejected"
    assert len(box.rows("event")) == 2 * OTHERS
    assert box.rows("pair") == []
    [[reason]] = box.client.nodes.primary("s0").query("SELECT reason FROM pipeline_rejects")
    assert "poison" in reason


def test_another_worker_suspects_nothing_while_an_error_that_no_list_names_is_tried_again(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    change(box, UNHEARD_OF)
    bad = pipeline.enqueue_insert(db.event, who=7, note="odd")
    good = [pipeline.enqueue_insert(db.event, who=who, note=f"{who}") for who in range(OTHERS)]
    others, alone, real = [applier(box)], list[int](), Applier._alone

    def spy(worker: Applier, bucket: int, *arguments: Any, **more: Any) -> Any:
        alone.append(bucket)
        return real(worker, bucket, *arguments, **more)

    monkeypatch.setattr(Applier, "_alone", spy)
    monkeypatch.setattr("pipeline.clock.sleep_s", lambda for_s: others and others.pop().apply())
    applier(box).apply()

    assert alone == []
    assert {receipt.status() for receipt in good} == {"applied"}
    assert bad.status() == "rejected"


def test_deadlocks_before_it_do_not_make_an_error_believed_sooner(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    change(box, UNHEARD_OF)
    pipeline.enqueue_insert(db.event, who=7, note="odd")
    locked, slept = [1, 2], []

    def step(name: str) -> None:
        if name == "execute" and locked:
            locked.pop()
            raise sqlite3.OperationalError("database is locked")

    def sleep_s(for_s: float) -> None:
        slept.append(for_s)
        if len(slept) == 3:  # after both locks, and the first time that the error is met
            change(box, "DROP TRIGGER odd")

    monkeypatch.setattr("pipeline.clock.sleep_s", sleep_s)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), step)

    assert worker.apply().applied == 1


def test_many_tables_that_the_shard_is_behind_stop_no_other(db: Any, box: Sandbox):
    waiting = [pipeline.enqueue_insert(ahead(db, f"other{n}"), {"who": 1, "extra": "x"}) for n in range(6)]
    good = [pipeline.enqueue_insert(db.event, who=who, note=f"{who}") for who in range(2 * OTHERS)]
    assert {receipt.bucket for receipt in good} & {receipt.bucket for receipt in waiting}

    outcome = applier(box).apply()

    assert outcome.rejected == 0
    assert {receipt.status() for receipt in good} == {"applied"}
    assert {receipt.status() for receipt in waiting} == {"parked"}


def test_ops_of_one_definition_wait_in_order_and_only_as_many_as_may_be_set_aside(db: Any, box: Sandbox):
    late = ahead(db, "late")
    rows = [pipeline.enqueue_insert(late, {"who": who, "extra": "x"}) for who in range(OTHERS)]
    first = next(row for row in rows if rows.count(row) == 1)
    behind = pipeline.enqueue_update(late.id == first.id, extra="y")
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(set_aside=OTHERS))
    for _ in range(3):
        worker.apply()
    more = pipeline.enqueue_insert(late, {"who": 1, "extra": "x"})
    for _ in range(3):
        box.log.ahead_ms += 10_000
        worker.apply()
    states = {receipt.status() for receipt in (*rows, behind, more)}
    assert states == {"parked", "queued"}

    assert upkeep.release_waiting(box.client, "s0") == 0
    change(box, "ALTER TABLE late ADD COLUMN extra CHAR(512)")
    for _ in range(5):
        upkeep.release_waiting(box.client, "s0")
        box.log.ahead_ms += 10_000
        box.drain()

    assert {receipt.status() for receipt in (*rows, behind, more)} <= {"applied", "replayed"}
    assert sorted(row["extra"] for row in box.rows("late")) == ["x"] * OTHERS + ["y"]


def test_beside_an_op_that_waits_for_its_definition_other_rows_go_on_and_what_may_mean_its_row_does_not(
    db: Any, box: Sandbox
):
    newer = DAL("sqlite:memory", migrate=False)
    old = db.define_table("plain", Field("who", "integer"), Field("n", "integer"))
    pipeline.define_tables(db)
    plain = newer.define_table("plain", Field("who", "integer"), Field("n", "integer"), Field("extra"))
    row = pipeline.enqueue_insert(plain, {"who": 1, "extra": "x"})
    other, third = (pipeline.enqueue_insert(old, {"who": 1}) for _ in range(2))
    of_row = pipeline.enqueue_update(old.id == row.id, n=2)
    any_row = pipeline.enqueue_update(old.who == 1, n=3)
    behind = pipeline.enqueue_update(old.id == other.id, n=4)
    applier(box).apply()
    assert len({one.bucket for one in (row, other, third, of_row, any_row, behind)}) == 1
    assert [one.status() for one in (other, third)] == ["applied", "applied"]
    assert [one.status() for one in (row, of_row, any_row, behind)] == ["parked"] * 4

    change(box, "ALTER TABLE plain ADD COLUMN extra CHAR(512)")
    upkeep.release_waiting(box.client, "s0")
    newer.close()

    assert [one.status() for one in (row, of_row, any_row, behind)] == ["replayed"] * 4
    found = {one["id"]: one["n"] for one in box.rows("plain")}
    assert [found[one.id] for one in (row, other, third)] == [3, 4, 3]


def test_of_two_that_want_one_value_the_first_has_it_though_it_waits_for_its_definition(db: Any, box: Sandbox):
    newer = DAL("sqlite:memory", migrate=False)
    newer.define_table("event", Field("who", "integer"), Field("note", unique=True), Field("extra"))
    first = pipeline.enqueue_insert(newer.event, who=7, note="a", extra="x")
    second = pipeline.enqueue_insert(db.event, who=7, note="a")
    newer.close()
    assert first.bucket == second.bucket
    applier(box).apply()
    assert [receipt.status() for receipt in (first, second)] == ["parked", "parked"]

    change(box, "ALTER TABLE event ADD COLUMN extra CHAR(512)")
    upkeep.release_waiting(box.client, "s0")

    assert [receipt.status() for receipt in (first, second)] == ["replayed", "rejected"]


def test_what_others_have_set_aside_for_a_definition_takes_room_too(db: Any, box: Sandbox):
    late = ahead(db, "late")
    aside = [pipeline.enqueue_insert(late, {"who": who, "extra": "x"}) for who in range(3)]
    applier(box).apply()
    assert {receipt.status() for receipt in aside} == {"parked"}

    more = pipeline.enqueue_insert(late, {"who": 3, "extra": "x"})
    Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(set_aside=3)).apply()

    assert more.status() == "queued"


def test_what_wants_a_value_that_an_op_frees_which_waits_for_its_definition_is_not_refused(db: Any, box: Sandbox):
    newer = DAL("sqlite:memory", migrate=False)
    newer.define_table("event", Field("who", "integer"), Field("note", unique=True), Field("extra"))
    taken = pipeline.enqueue_insert(db.event, who=7, note="a")
    box.drain()
    frees = pipeline.enqueue_update(newer.event.id == taken.id, note="b", extra="x")
    applier(box).apply()
    wants = pipeline.enqueue_insert(db.event, who=8, note="a")
    bad = pipeline.enqueue_insert(db.event, who=9, note="a")
    for _ in range(3):
        box.log.ahead_ms += 10_000
        applier(box).apply()
    assert [receipt.status() for receipt in (frees, wants, bad)] == ["parked"] * 3

    change(box, "ALTER TABLE event ADD COLUMN extra CHAR(512)")
    upkeep.release_waiting(box.client, "s0")
    newer.close()

    assert [receipt.status() for receipt in (frees, wants, bad)] == ["replayed", "replayed", "rejected"]


def test_ops_of_an_older_schema_of_the_same_table_do_not_wait_for_the_newer(db: Any, box: Sandbox):
    old = [pipeline.enqueue_insert(db.event, who=who, note=f"{who}") for who in range(OTHERS)]
    newer = DAL("sqlite:memory", migrate=False)
    newer.define_table("event", Field("who", "integer"), Field("note"), Field("extra"))
    waits = pipeline.enqueue_insert(newer.event, who=1000, note="new", extra="x")
    newer.close()

    outcome = applier(box).apply()

    assert "behind the schema of event" in outcome.aside
    assert waits.status() == "parked"
    assert {r.status() for r in old} == {"applied"}


@pytest.mark.parametrize("checked", [False, True], ids=["at the first refusal", "a moment after others"])
def test_a_unique_index_that_comes_while_a_worker_runs_rejects_nothing_that_one_by_one_would_take(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, checked: bool
):
    worker = applier(box)
    warm = pipeline.enqueue_insert(db.event, who=7, note="warm")
    worker.apply()
    began_s = clock.mono_s()
    monkeypatch.setattr(clock, "mono_s", lambda: began_s)
    if checked:
        pipeline.enqueue_insert(db.event, id=warm.id, who=7, note="double")
        assert worker.apply().rejected == 1
    change(box, "CREATE UNIQUE INDEX event_note ON event (note)")
    first = pipeline.enqueue_insert(db.event, who=7, note="x")
    pipeline.enqueue_delete(db.event.id == first.id)
    pipeline.enqueue_insert(db.event, who=7, note="x")

    outcome = worker.apply()

    assert (outcome.applied, outcome.rejected) == (3, 0)
    assert sorted(row["note"] for row in box.rows("event")) == ["warm", "x"]


def test_all_constraints_are_read_once_a_second_where_the_tables_definition_is_the_same(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    worker, read, times = applier(box), judge.constraints_of, list[str]()
    monkeypatch.setattr(judge, "constraints_of", lambda session, table: times.append(table) or read(session, table))
    taken = [pipeline.enqueue_insert(db.event, who=7, note="taken").id for _ in range(10)]
    worker.apply()
    now_s = clock.mono_s()

    def refused(after_s: float) -> int:
        """Return how often all constraints are read where an op is refused then."""
        times.clear()
        monkeypatch.setattr(clock, "mono_s", lambda: now_s + after_s)
        pipeline.enqueue_insert(db.event, id=taken.pop(), who=7, note="double")
        assert worker.apply().rejected == 1
        return len(times)

    assert [refused(0.1 * n) for n in range(4)] == [1, 0, 0, 0]
    assert refused(1.1) == 1
    change(box, "CREATE TRIGGER quiet AFTER DELETE ON event BEGIN SELECT 1; END")
    assert [refused(1.2), refused(1.3)] == [2, 0]  # what is new is grouped by in the second try


def test_an_upsert_waits_while_the_index_of_its_key_is_away(db: Any, box: Sandbox):
    worker = applier(box)
    pipeline.enqueue_upsert(db.pair, key=["who", "note"], who=7, note="x")
    worker.apply()
    session = box.client.nodes.primary("s0")
    [[name, sql]] = session.query("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'pair'")
    change(box, f'DROP INDEX "{name}"')
    waits = pipeline.enqueue_upsert(db.pair, key=["who", "note"], who=7, note="y")

    outcome = worker.apply()

    assert "UNIQUE index on (who, note)" in outcome.aside
    assert waits.status() == "parked"
    assert upkeep.release_waiting(box.client, "s0") == 0
    change(box, sql)
    assert upkeep.release_waiting(box.client, "s0") == 1
    assert sorted(row["note"] for row in box.rows("pair")) == ["x", "y"]


def test_workers_that_are_newer_than_the_pipelines_own_tables_wait_for_migrate_and_reject_nothing(
    db: Any, box: Sandbox
):
    change(box, UNHEARD_OF, "ALTER TABLE pipeline_rejects RENAME COLUMN changed_ms TO of_an_older_release")
    bad = pipeline.enqueue_insert(db.event, who=7, note="odd")
    good = [pipeline.enqueue_insert(db.event, who=who, note=f"{who}") for who in range(OTHERS)]
    worker = applier(box)
    for _ in range(20):
        assert "run: pipeline migrate" in worker.apply().waiting
        box.log.ahead_ms += 10_000

    change(box, "ALTER TABLE pipeline_rejects RENAME COLUMN of_an_older_release TO changed_ms")
    worker.apply()

    assert bad.status() == "rejected"
    assert {receipt.status() for receipt in good} == {"applied"}


def test_statements_are_short_after_one_with_a_bad_op_and_grow_again(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    change(
        box, "CREATE TRIGGER never BEFORE INSERT ON event WHEN NEW.note = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    worker, rows = applier(box), []
    session = box.client.nodes.primary("s0")
    execute = session.execute
    monkeypatch.setattr(session, "execute", lambda sql: rows.append(sql.count("'good")) or execute(sql))

    def apply(notes: list[str]) -> list[int]:
        rows.clear()
        for note in notes:
            pipeline.enqueue_insert(db.event, who=7, note=note)
        while worker.apply().left:
            pass
        return [count for count in rows if count]

    assert max(apply(["good"] * (MAX_ROWS + 1))) == MAX_ROWS
    apply(["bad", "good"])
    assert apply(["good"] * 120)[:3] == [FEW_ROWS, FEW_ROWS + MORE_ROWS, 120 - 2 * FEW_ROWS - MORE_ROWS]
