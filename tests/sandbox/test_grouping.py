"""I18: ops applied in groups leave the same rows, the same rejects and the same ids as one by one."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.oracle.families import astray
from support.oracle.grouping import CHILD, DAY, LOUD, MANY, PARENT, PLAIN, TWO, Database, Maker, difference

from pipeline.apply.earlier_ops import EarlierOps
from pipeline.model import DELETE, GROUP, INSERT, UPDATE, UPSERT, Op
from pipeline.model.schema import TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.dialect import SQLite


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with pytest.MonkeyPatch.context() as patch:
        # these files need not outlive a power cut
        patch.setattr(SQLite, "session", lambda self, read_only: ["PRAGMA synchronous=OFF"])
        database = Database(f"sqlite://{tmp_path_factory.mktemp('grouping') / 'shop.sqlite'}")
        yield database
        database.close()


@settings(max_examples=examples(100), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_grouped_equals_one_by_one(database: Database, seed: int):
    ops = Maker(Random(seed), numbered=True).ops()

    assert difference(database, ops) == ""


@settings(max_examples=examples(100), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_versioned_updates_together_equal_one_by_one(database: Database, seed: int):
    ops = Maker(Random(seed), numbered=True, versioned=True).ops()

    assert difference(database, ops) == ""


@settings(max_examples=examples(100), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_a_server_that_names_wrong_rows_changes_no_result(database: Database, seed: int):
    random = Random(seed)
    ops = Maker(random, numbered=True).ops()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NodeSession, "bad_row", lambda self, error: random.choice((None, 0, 1, 2, 3, 40)))
        assert difference(database, ops) == ""


@settings(max_examples=examples(100), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_families_in_several_buckets_become_what_they_become_in_one(database: Database, seed: int):
    assert astray(database, Random(seed)) == ""


@pytest.mark.parametrize("kind", ["rows", "atomic groups"])
def test_the_half_that_must_have_the_bad_op_is_split_without_a_try(
    database: Database, monkeypatch: pytest.MonkeyPatch, kind: str
):
    ops = [insert(PLAIN, n, {1: 9 if n == 32 else 1}) for n in range(1, 33)]  # a CHECK refuses the last
    if kind == "atomic groups":
        ops = [Op(GROUP, "plain", PLAIN.hash, 0, ops=(op,)) for op in ops]
    sent, execute = [], database.session.execute
    monkeypatch.setattr(database.session, "execute", lambda sql: sent.append(sql) or execute(sql))

    found = database.apply(ops, at_once=MANY)

    assert len(found["rejects"]) == 1
    # all, as if none were bad; all; the good halves of 32, 16, 8, 4 and 2; and the bad one
    assert sum(sql.startswith('INSERT INTO "plain"') for sql in sent) == 1 + 1 + 5 + 1


def test_an_update_that_computes_a_reference_stays_before_the_parent_that_it_lacks(database: Database):
    found = database.apply(
        [
            insert(PARENT, 1, {1: "a"}),
            insert(CHILD, 1, {1: 1, 2: 0}),
            Op(UPDATE, "child", CHILD.hash, 0, 1, expressions=((1, ["+", ["c", 1], ["v", 1]]),)),
            insert(PARENT, 2, {1: "b"}),
        ],
        at_once=MANY,
    )

    assert found["child"] == [(1, 1, 0)]
    assert found["rejects"] == [(3,)]


def test_rows_that_the_database_numbers_keep_the_order_of_their_ops(database: Database):
    ops = [
        insert(TWO, None, {}),
        insert(TWO, None, {3: 1}),
        Op(GROUP, "two", TWO.hash, 0, ops=(insert(TWO, None, {}), insert(TWO, None, {3: 2}))),
        insert(TWO, 9, {3: 3}),
        insert(TWO, None, {3: 4}),
        insert(TWO, None, {}),
    ]

    found = database.apply(ops, at_once=MANY)

    assert [(row[0], row[3]) for row in found["two"]] == [
        (1, None), (2, 1), (3, None), (4, 2), (9, 3), (10, 4), (11, None)
    ]  # fmt: skip
    assert found["ids"] == [(1, 1), (2, 2), (5, 10), (6, 11)]


def test_an_op_never_passes_one_whose_trigger_writes_its_row(database: Database):
    def update(n: int) -> Op:
        return Op(UPDATE, "plain", PLAIN.hash, 0, 5, (1,), (n,))

    ops = [insert(LOUD, 1, {1: 4}), insert(PLAIN, 5, {1: 0}), update(1), insert(LOUD, 2, {1: 5}), update(4)]
    ops += [insert(LOUD, 3, {1: 5}), Op(DELETE, "loud", LOUD.hash, 0, 9)]

    found = database.apply(ops, at_once=MANY)

    assert found["plain"] == [(5, 5, None)]


def test_atomic_groups_run_under_few_savepoints_though_they_are_of_one_row(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    counter = Op(UPDATE, "plain", PLAIN.hash, 0, 500, expressions=((1, ["-", ["c", 1], ["v", 1]]),))
    ops = [insert(PLAIN, 500, {1: 0}), *(group(insert(PLAIN, row, {1: 1}), counter) for row in range(1, 41))]
    sent = statements(database, monkeypatch)

    found = database.apply(ops, at_once=MANY)

    assert found["plain"][-1] == (500, -40, None)
    assert found["rejects"] == []
    assert sum(sql.startswith("SAVEPOINT") for sql in sent) == 1
    assert sum(sql.startswith('INSERT INTO "plain"') for sql in sent) == 2


def test_a_bad_atomic_group_among_many_is_found_by_halves_and_leaves_nothing_behind(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    numbers = {row: 9 if row == 7 else 1 for row in range(1, 65)}
    ops = [group(insert(PLAIN, row, {1: 1}), insert(PLAIN, 100 + row, {1: n})) for row, n in numbers.items()]
    sent = statements(database, monkeypatch)

    found = database.apply(ops, at_once=MANY)

    kept = [row for row in numbers if row != 7]
    assert [row for row, *_ in found["plain"]] == [*kept, *(100 + row for row in kept)]
    assert found["aside"] == [(7, "rejected", "CHECK constraint failed: n <> 9")]
    assert sum(sql.startswith("SAVEPOINT") for sql in sent) <= 13


def test_of_atomic_groups_only_those_wait_for_older_ops_that_delete_a_row_with_children(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Op] = []
    monkeypatch.setattr(EarlierOps, "awaited_by", lambda self, item, **_: asked.append(item.op))
    deletes = group(insert(PLAIN, 2, {1: 1}), Op(DELETE, "parent", PARENT.hash, 0, 1))
    ops = [group(insert(PLAIN, 1, {1: 1})), deletes, group(insert(PLAIN, 3, {1: 1}))]

    database.apply(ops, at_once=MANY)

    assert asked == [deletes]


def test_what_follows_a_refused_upsert_of_its_row_in_one_statement_is_parked_behind_it(database: Database):
    def upsert(row: int, who: str, n: int) -> Op:
        return Op(UPSERT, "day", DAY.hash, 0, row, (1, 2, 3), (who, 1, n), key=(1, 2), renew=(3,))

    ops = [upsert(1, "a", 1), upsert(2, "b", 2**70), upsert(3, "a", 3), upsert(4, "b", 4), upsert(5, "a", 5)]

    found = database.apply(ops, at_once=MANY)

    assert found["day"] == [(1, "a", 1, 5)]
    assert [(number, state) for number, state, _ in found["aside"]] == [(2, "rejected"), (4, "parked")]


def statements(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that the statements of the session are added to."""
    sent: list[str] = []
    adapter = database.session.adapter
    execute = adapter.execute
    monkeypatch.setattr(adapter, "execute", lambda sql: sent.append(sql) or execute(sql))
    return sent


def group(*members: Op) -> Op:
    return Op(GROUP, members[0].table, members[0].schema, 0, ops=members)


def insert(schema: TableSchema, row: int | None, values: dict[int, Any]) -> Op:
    return Op(INSERT, schema.name, schema.hash, 0, row, tuple(values), tuple(values.values()))
