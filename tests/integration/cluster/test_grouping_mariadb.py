"""I18 on a real MariaDB: its collation, its foreign keys, its strict mode; see `sandbox/test_grouping.py`."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.oracle.families import astray
from support.oracle.grouping import LOUD, MANY, PLAIN, TWO, Database, Maker, difference
from support.oracle.loads import AT_ONCE, insert, loaded
from support.sandbox.sessions import as_user

from pipeline.apply.executor import Executor
from pipeline.model import INSERT, UPDATE, Op

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
    tried, inserted = list[int](), Executor._inserted
    monkeypatch.setattr(
        Executor, "_inserted", lambda self, items, facts: tried.append(len(items)) or inserted(self, items, facts)
    )
    ops = [insert(PLAIN, row, {1: 1, 2: "bad" if row in (15, 40) else "fine"}) for row in range(1, 61)]
    create, drop = f"CREATE TRIGGER picky BEFORE INSERT ON plain FOR EACH ROW BEGIN {does}; END", "DROP TRIGGER picky"

    database.session.query(create)
    try:
        found = database.apply(ops, at_once=AT_ONCE)
    finally:
        database.session.query(drop)

    assert found["rejects"] == [(15,), (40,)]
    assert [row[0] for row in found["plain"]] == [row for row in range(1, 61) if row not in (15, 40)]
    assert tried[-5:] == [9, 1, 8, 9, 6]


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
