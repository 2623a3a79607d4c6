"""I18 on a real MariaDB: its collation, its foreign keys, its strict mode; see `sandbox/test_grouping.py`."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.oracle import nodes
from support.oracle.families import astray
from support.oracle.grouping import (
    BUCKETS,
    EPOCH,
    LOUD,
    MANY,
    PLAIN,
    PRODUCER,
    SCOPE,
    TWO,
    Database,
    Maker,
    difference,
)
from support.oracle.loads import AT_ONCE, insert, loaded
from support.sandbox.sessions import as_user

from pipeline.apply import pace
from pipeline.apply.applier import Applier
from pipeline.apply.executor import CHECKED_ROWS, Executor
from pipeline.apply.transaction import ApplyTransaction
from pipeline.config.settings import ApplySettings
from pipeline.model import INSERT, UPDATE, Op, encode
from pipeline.model.schema import Column, TableSchema
from pipeline.oplog.appends import Append
from pipeline.shard import NodeSession

pytestmark = pytest.mark.mariadb


@pytest.fixture(scope="module")
def database(mariadb_uri: str) -> Iterator[Database]:
    database = Database(mariadb_uri)
    yield database
    database.close()


# InnoDB burns a number for each row of a statement that failed, so ids that the database gives are left out
@settings(max_examples=examples(40), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_grouped_equals_one_by_one(database: Database, seed: int):
    ops = Maker(Random(seed), numbered=False).ops()

    assert difference(database, ops) == ""


@settings(max_examples=examples(40), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_versioned_updates_together_equal_one_by_one(database: Database, seed: int):
    ops = Maker(Random(seed), numbered=False, versioned=True).ops()

    assert difference(database, ops) == ""


@settings(max_examples=examples(20), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_families_in_several_buckets_become_what_they_become_in_one(database: Database, seed: int):
    assert astray(database, Random(seed)) == ""


@settings(max_examples=examples(20), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_sheets_equal_their_ops_one_by_one(database: Database, seed: int):
    ops = loaded(Random(seed))

    assert database.apply(ops, at_once=AT_ONCE) == database.apply(ops, at_once=1)


@settings(max_examples=examples(20), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_sheets_in_short_statements_equal_their_ops_one_by_one(database: Database, seed: int):
    random = Random(seed)
    ops = loaded(random)
    refuses = "IF NEW.n % 5 = 3 THEN SIGNAL SQLSTATE '45000'; END IF"
    fires = random.random() < 0.5

    with pytest.MonkeyPatch.context() as patch:
        for name, rows in (("SHORT_ROWS", random.randint(1, 6)), ("MARKED_EACH", random.randint(1, 4))):
            patch.setattr(pace, name, rows)
        if fires:
            database.session.query(f"CREATE TRIGGER picky BEFORE INSERT ON plain FOR EACH ROW BEGIN {refuses}; END")
        try:
            assert database.apply(ops, at_once=AT_ONCE) == database.apply(ops, at_once=1)
        finally:
            database.session.query("DROP TRIGGER IF EXISTS picky")


@pytest.mark.parametrize(
    ("bad", "most"),
    [
        (Op(INSERT, "plain", PLAIN.hash, 0, 999, (1,), (9,)), 6),  # what a CHECK refuses
        (Op(INSERT, "plain", PLAIN.hash, 0, 1, (1,), (1,)), 7),  # a duplicate: tried again, it may have been early
        (Op(UPDATE, "plain", PLAIN.hash, 0, 77, (1,), (9,)), 10),
    ],
    ids=("a check", "a duplicate key", "an update"),
)
def test_an_op_that_is_refused_among_hundreds_takes_few_statements(
    database: Database, monkeypatch: pytest.MonkeyPatch, bad: Op, most: int
):
    ops = [Op(INSERT, "plain", PLAIN.hash, 0, n, (1,), (1,)) for n in range(1, 250)]
    updates = [Op(UPDATE, "plain", PLAIN.hash, 0, n, (1,), (n % 7,)) for n in range(60, 90) if n != bad.id]
    ops = [*ops[:200], bad, *ops[200:]] if bad.kind == INSERT else [*ops, *updates, bad]
    sent, execute = [], database.session.execute
    monkeypatch.setattr(database.session, "execute", lambda sql: sent.append(sql) or execute(sql))

    found = database.apply(ops, at_once=MANY, settled=1)

    assert len(found["rejects"]) == 1
    assert sum(" `plain`" in sql for sql in sent[-40:]) <= most


def test_a_row_of_a_sheet_that_a_trigger_refuses_is_found_by_its_mark(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    does = "IF NEW.t = 'bad' THEN SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001; END IF"
    tried, failed = list[int](), Executor._failed

    def noted(self: Executor, parts: Any, *rest: Any, **options: Any) -> Any:
        tried.extend(map(len, parts))
        return failed(self, parts, *rest, **options)

    monkeypatch.setattr(Executor, "_failed", noted)
    ops = [insert(PLAIN, row, {1: 1, 2: "bad" if row in (15, 40) else "fine"}) for row in range(1, 61)]
    create, drop = f"CREATE TRIGGER picky BEFORE INSERT ON plain FOR EACH ROW BEGIN {does}; END", "DROP TRIGGER picky"

    database.session.query(create)
    try:
        found = database.apply(ops, at_once=AT_ONCE)
    finally:
        database.session.query(drop)

    assert found["rejects"] == [(15,), (40,)]
    assert [row[0] for row in found["plain"]] == [row for row in range(1, 61) if row not in (15, 40)]
    assert tried[-8:] == [9, *(4 * [1]), 5, 9, 6]  # 37 to 40 are behind the last mark


def test_rows_of_sheets_that_are_refused_are_left_out_by_the_statement_that_inserts_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    sent, ask, each = list[str](), NodeSession.ask, NodeSession.execute_each
    monkeypatch.setattr(NodeSession, "ask", lambda self, *some: sent.extend(some) or ask(self, *some))
    monkeypatch.setattr(NodeSession, "execute_each", lambda self, some: sent.extend(some) or each(self, some))
    bad, ops = (15, 95), [insert(PLAIN, row, {1: 1}) for row in range(1, 101)]
    ops = [op if op.id not in bad else insert(PLAIN, op.id, {1: 9}) for op in ops]  # which a CHECK refuses

    found = database.apply(ops, at_once=MANY, settled=1)

    assert found["rejects"] == [(row,) for row in bad]
    assert [row[0] for row in found["plain"]] == [row for row in range(1, 101) if row not in bad]
    counted = [(sql.split(" INTO")[0], sql.count("), (") + 1) for sql in sent if "INTO `plain`" in sql]
    assert counted[-3:] == [("INSERT IGNORE", 99), ("INSERT", 1), ("INSERT", 1)]


@pytest.mark.parametrize("rows", [60, CHECKED_ROWS])
@pytest.mark.parametrize("then", ["before", "within"])
def test_a_number_stays_a_text_where_its_column_becomes_a_choice_of_texts(
    database: Database, mariadb_uri: str, monkeypatch: pytest.MonkeyPatch, rows: int, then: str
):
    schema = TableSchema("choosing", (Column("id", "id"), Column("n", "bigint"), Column("m", "bigint")))
    log, execute = database._begun(), ApplyTransaction._execute
    line, worker = log.line(), Applier("s0", database.session, log, ApplySettings(max_rows=10_000, breaker=False))
    log.publish_schemas([(schema.name, schema.hash, schema.to_json())])
    values, changes = ("2", "1", "0"), list[str]()

    def load(first: int) -> None:
        ops = [insert(schema, row, {1: row % 3, 2: row}) for row in range(first, first + rows)]
        for bucket in range(2):
            append = Append(bucket, first // 2, [encode(op) for op in ops if op.id % 2 == bucket])
            line.append(SCOPE, EPOCH, PRODUCER, [append], "", 0)
        while log.due("s0", 1):
            worker.apply()

    def changed(*given: Any, **how: Any) -> Executor:
        with nodes.connection(mariadb_uri) as other:
            while changes:
                nodes.fetch(other, changes.pop())
        return execute(*given, **how)

    with nodes.connection(mariadb_uri) as other:
        nodes.fetch(other, "DROP TABLE IF EXISTS choosing")
        nodes.fetch(other, "CREATE TABLE choosing (id BIGINT PRIMARY KEY, n BIGINT, m BIGINT)")
        load(2)
        nodes.fetch(other, "DELETE FROM choosing")  # the server would take a number for an index, too
        changes.append(f"ALTER TABLE choosing MODIFY n ENUM{values}")
        if then == "before":
            nodes.fetch(other, changes.pop())
        monkeypatch.setattr(ApplyTransaction, "_execute", changed)
        load(2 + rows)

    found = dict(database.session.query("SELECT id, n FROM choosing"))
    assert found == {row: str(row % 3) for row in range(2 + rows, 2 + 2 * rows)}
    assert database.session.query("SELECT COUNT(*) FROM pipeline_rejects") == [(0,)]


@pytest.mark.parametrize("together", [True, False], ids=("one round trip", "one by one"))
def test_only_the_bucket_whose_row_another_program_has_locked_is_tried_alone(
    database: Database, mariadb_uri: str, monkeypatch: pytest.MonkeyPatch, together: bool
):
    log, alone, real, guessed = database._begun(), list[int](), Applier._alone, list[int]()
    line, worker = log.line(), Applier("s0", database.session, log, ApplySettings())
    ask = NodeSession.ask

    def append(first: int, ops: dict[int, list[Op]]) -> None:
        appends = [Append(bucket, first, list(map(encode, of))) for bucket, of in ops.items()]
        line.append(SCOPE, EPOCH, PRODUCER, appends, "", 0)

    def spy(self: Applier, bucket: int, *rest: Any, **more: Any) -> Any:
        alone.append(bucket)
        return real(self, bucket, *rest, **more)

    monkeypatch.setattr(Applier, "_alone", spy)
    monkeypatch.setattr("pipeline.apply.turns.TURN_S", 60.0)  # on a busy machine the others would have the next turn
    monkeypatch.setattr(ApplyTransaction, "guesses", together)
    append(1, {bucket: [insert(PLAIN, 1 + bucket, {1: 1})] for bucket in range(BUCKETS)})
    while worker.apply().applied:
        pass
    rows = range(11, 11 + BUCKETS)
    ops = {bucket: [insert(PLAIN, row, {1: 2})] for bucket, row in enumerate(rows)}
    ops[2] = [Op(UPDATE, "plain", PLAIN.hash, 0, 3, (1,), (5,))]
    append(2, ops)
    monkeypatch.setattr(NodeSession, "ask", lambda self, *some: guessed.append(len(some)) or ask(self, *some))

    with nodes.connection(mariadb_uri) as other:
        other.begin()
        nodes.fetch(other, "SELECT id FROM plain WHERE id = 3 FOR UPDATE")
        worker.apply()
        other.rollback()

    assert alone == [2]
    assert (max(guessed, default=0) > 3) == together
    found = {row for (row,) in database.session.query("SELECT id FROM plain WHERE id > 10")}
    assert found == {*rows} - {13}


@pytest.mark.parametrize(("first", "second"), [("\U0001f600", "\U0001f601"), ("a\x01", "a"), ("あ", "ア")])
def test_texts_that_only_the_collation_finds_equal_keep_their_order(database: Database, first: str, second: str):
    ops = [
        Op(INSERT, "two", TWO.hash, 0, 1, (1, 3), ("another", 1)),
        Op(INSERT, "two", TWO.hash, 0, 2, (1, 2, 3), (first, 1, 2)),
        Op(INSERT, "two", TWO.hash, 0, 3, (1, 3), (second, 3)),
    ]

    found = database.apply(ops, at_once=MANY)

    assert [row[0] for row in found["two"]] == [1, 2]
    assert found["rejects"] == [(3,)]


def test_a_worker_that_may_not_see_triggers_passes_no_op_that_one_changes(
    database: Database, mariadb_uri: str, monkeypatch: pytest.MonkeyPatch
):
    ops = [Op(INSERT, "loud", LOUD.hash, 0, 1, (1,), (4,)), Op(INSERT, "plain", PLAIN.hash, 0, 5, (1,), (0,))]
    ops += [Op(UPDATE, "plain", PLAIN.hash, 0, 5, (1,), (1,)), Op(INSERT, "loud", LOUD.hash, 0, 2, (1,), (5,))]
    ops += [Op(UPDATE, "plain", PLAIN.hash, 0, 5, (1,), (4,)), Op(INSERT, "loud", LOUD.hash, 0, 3, (1,), (5,))]

    with as_user(database.session, mariadb_uri, "SELECT, INSERT, UPDATE, DELETE") as worker:
        monkeypatch.setattr(database, "session", worker)
        found = database.apply(ops, at_once=MANY)

    assert found["plain"] == [(5, 5, None)]


def test_updates_and_deletes_fire_triggers_in_the_order_of_their_ops_and_still_share_statements(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    rows = [Op(INSERT, "loud", LOUD.hash, 0, n, (1,), (None,)) for n in range(1, 8)]
    ops = [Op(INSERT, "plain", PLAIN.hash, 0, 5, (1,), (1,)), *rows]
    ops += [Op(UPDATE, "loud", LOUD.hash, 0, n, (1,), (4,)) for n in (6, 1, 4, 3)]
    sent, execute = [], database.session.execute
    monkeypatch.setattr(database.session, "execute", lambda sql: sent.append(sql) or execute(sql))

    found = database.apply(ops, at_once=MANY)

    assert found["plain"] == [(5, (((1 * 2 + 0) * 2 + 1) * 2 + 0) * 2 + 1, None)]
    assert sum(sql.startswith("UPDATE `loud`") for sql in sent) == 1
