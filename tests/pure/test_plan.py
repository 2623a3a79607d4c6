"""The planner's statements: what is grouped, and what keeps its order. That order is right is `test_grouping`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.apply.grouping import Item, grouped
from pipeline.model import COPY, DELETE, GROUP, INSERT, READ, UPDATE, UPSERT, Entry, Op, Position
from pipeline.model.schema import Column, TableSchema
from pipeline.shard.table_facts import Constraints, Facts, ForeignKey

ID = Column("id", "id")
ONE = TableSchema("one", (ID, Column("n", "integer"), Column("t", "string", 20)))
OTHER = TableSchema("other", (ID, Column("n", "integer")))
CHILD = TableSchema("child", (ID, Column("up", "reference one")))
FREE = Constraints()
UNIQUE_N = Constraints(unique=(("n",),))
UNIQUE_T = Constraints(unique=(("t",),))
OF_ONE = Constraints(parents=(ForeignKey(("up",), "one"),))


def sizes(ops: Sequence[Op], **constraints: Constraints) -> list[tuple[str, int]]:
    """Return kind and size of each group that is planned."""
    known = {schema.hash: facts(schema, constraints.get(schema.name, FREE)) for schema in (ONE, OTHER, CHILD)}
    items = [Item(Entry(0, Position(1, n), 1, n, b""), op) for n, op in enumerate(ops)]
    groups = grouped(items, known)
    assert sorted(item for group in groups for item in group.items) == sorted(items)
    return [(group.kind, len(group.items)) for group in groups]


def facts(schema: TableSchema, constraints: Constraints) -> Facts:
    return Facts(schema, constraints, (), (), schema.name)


def insert(row: int | None, schema: TableSchema = ONE, **values: Any) -> Op:
    columns = tuple(schema.index[name] for name in values)
    return Op(INSERT, schema.name, schema.hash, 0, row, columns, tuple(values.values()))


def update(row: int | None, **values: Any) -> Op:
    columns = tuple(ONE.index[name] for name in values)
    where = None if row is not None else ["=", 1, 7]
    return Op(UPDATE, "one", ONE.hash, 0, row, columns, tuple(values.values()), where)


def delete(row: int | None, schema: TableSchema = ONE) -> Op:
    return Op(DELETE, schema.name, schema.hash, 0, row, where=None if row is not None else ["=", 1, 7])


def copy(row: int, of: int | None, into: TableSchema = OTHER) -> Op:
    read = Op(READ, "one", ONE.hash, 0, of, where=None if of is not None else ["=", 1, 7])
    return Op(COPY, into.name, into.hash, 0, row, expressions=((1, ["c", 1]),), source=read)


def upsert(row: int, n: int) -> Op:
    return Op(UPSERT, "one", ONE.hash, 0, row, (1, 2), (n, "x"), key=(1,), renew=(2,))


def test_ops_of_one_shape_are_one_statement_whatever_lies_between():
    ops = [
        op
        for n in range(100)
        for op in (insert(n, n=n), insert(n, OTHER, n=n), update(1000 + n, n=1), delete(2000 + n))
    ]

    assert sizes(ops) == [("insert", 100), ("insert", 100), ("update", 100), ("delete", 100)]


def test_ops_on_one_row_keep_their_order():
    ops = [insert(1, n=1), update(1, n=2), update(1, n=3), delete(1), insert(1, n=4)]

    assert sizes(ops) == [("insert", 1), ("update", 1), ("update", 1), ("delete", 1), ("insert", 1)]


def test_inserts_with_other_columns_are_other_statements():
    assert sizes([insert(1, n=1), insert(2, t="x"), insert(3, n=1)]) == [("insert", 2), ("insert", 1)]


def test_an_op_by_condition_parts_what_comes_before_from_what_comes_after():
    for between in (update(None, n=1), delete(None)):
        assert sizes([insert(1), between, insert(2)]) == [("insert", 1), (between.kind, 1), ("insert", 1)]
    assert sizes([insert(1, OTHER), update(None, n=1), insert(2, OTHER)]) == [("insert", 2), ("update", 1)]


def test_equal_values_of_a_unique_index_keep_their_order_and_others_group():
    assert sizes([insert(1, n=1), insert(2, n=2), insert(3, n=2)], one=UNIQUE_N) == [("insert", 2), ("insert", 1)]
    assert sizes([insert(1, n=None), insert(2, n=None)], one=UNIQUE_N) == [("insert", 2)]


def test_texts_that_may_be_equal_to_the_database_keep_their_order():
    for first, second in (("a", "A"), ("a", "ä"), ("a", "a "), ("ß", "ss"), ("\u212b", "å")):
        assert sizes([insert(1, t=first), insert(2, t=second)], one=UNIQUE_T) == [("insert", 1), ("insert", 1)]


def test_inserts_of_two_shapes_never_swap_on_a_unique_text_since_only_the_collation_knows_what_is_equal():
    ops = [insert(1, t="x"), insert(2, n=1, t="\U0001f600"), insert(3, t="\U0001f601")]

    assert sizes(ops, one=UNIQUE_T) == [("insert", 1), ("insert", 1), ("insert", 1)]
    assert sizes(ops) == [("insert", 2), ("insert", 1)]


def test_a_list_may_be_a_unique_value():
    assert sizes([insert(1, t=["a", "b"]), insert(2, t=["A", "b"]), insert(3, t=["c"])], one=UNIQUE_T) == [
        ("insert", 1),
        ("insert", 2),
    ]


def test_a_delete_frees_a_unique_value_that_nobody_knows():
    ops = [delete(1), insert(2, n=1), delete(3), insert(4, n=2)]

    assert sizes(ops, one=UNIQUE_N) == [("delete", 1), ("insert", 1), ("delete", 1), ("insert", 1)]
    assert sizes(ops) == [("delete", 2), ("insert", 2)]


def test_an_update_of_a_unique_column_stands_alone_and_of_another_column_groups():
    assert sizes([update(1, n=1), update(2, n=2)], one=UNIQUE_N) == [("update", 1), ("update", 1)]
    assert sizes([update(1, t="x"), update(2, t="y")], one=UNIQUE_N) == [("update", 2)]


def test_a_copy_is_passed_by_what_it_does_not_touch_only():
    passing = [insert(1), copy(10, of=1), insert(2)]
    of_its_source = [update(1, n=1), copy(10, of=1), update(1, n=2)]
    of_its_row = [update(2, n=1), delete(10, OTHER), copy(10, of=1), delete(10, OTHER)]
    unknown = [insert(1), update(None, n=1), copy(10, of=1), insert(2)]
    by_query = [insert(1), copy(10, of=None), insert(2)]

    assert sizes(passing) == [("insert", 2), ("copy", 1)]
    assert sizes(of_its_source) == [("update", 1), ("copy", 1), ("update", 1)]
    assert sizes(of_its_row) == [("update", 1), ("delete", 1), ("copy", 1), ("delete", 1)]
    assert sizes(unknown) == [("insert", 1), ("update", 1), ("copy", 1), ("insert", 1)]
    assert sizes(by_query) == [("insert", 1), ("copy", 1), ("insert", 1)]


def test_a_copy_in_an_atomic_group_holds_its_source_too():
    group = Op(GROUP, "other", OTHER.hash, 0, ops=(copy(10, of=1), insert(20, OTHER)))
    ops = [update(2, n=1), group, update(1, n=2), update(3, n=1)]

    # 3 joins 2, before the group: the first statement of its shape
    assert sizes(ops) == [("update", 2), ("group", 1), ("update", 1)]


def test_the_value_that_a_copy_brings_into_a_unique_index_is_not_known():
    ops = [insert(1, OTHER, n=1), copy(10, of=1), insert(2, OTHER, n=2)]

    assert sizes(ops, other=UNIQUE_N) == [("insert", 1), ("copy", 1), ("insert", 1)]
    assert sizes(ops) == [("insert", 2), ("copy", 1)]


def test_an_index_on_columns_that_the_definition_lacks_makes_every_insert_stand_alone():
    hidden = Constraints(unique=(("secret",),))

    assert sizes([insert(1), insert(2)], one=hidden) == [("insert", 1), ("insert", 1)]


def test_a_child_waits_for_its_own_parent_only():
    ops = [insert(1), insert(10, CHILD, up=1), insert(2), insert(11, CHILD, up=2), insert(12, CHILD, up=99)]

    assert sizes(ops, one=Constraints(children=("child",)), child=OF_ONE) == [
        ("insert", 1), ("insert", 1), ("insert", 1), ("insert", 2)
    ] or sizes(ops, one=Constraints(children=("child",)), child=OF_ONE) == [("insert", 2), ("insert", 3)]  # fmt: skip


def test_a_parents_delete_waits_for_its_children_and_they_for_it():
    ops = [delete(10, CHILD), delete(1), delete(11, CHILD)]

    assert sizes(ops, one=Constraints(children=("child",)), child=OF_ONE) == [("delete", 1)] * 3


def test_upserts_of_one_row_are_one_statement_which_takes_its_rows_in_order():
    assert sizes([upsert(1, 5), upsert(2, 6), upsert(3, 5), upsert(4, 6)], one=UNIQUE_N) == [("upsert", 4)]


def test_upserts_of_two_shapes_join_what_they_may_and_keep_their_order_on_one_row():
    def other(row: int, n: int) -> Op:
        return Op(UPSERT, "one", ONE.hash, 0, row, (1, 2), (n, "x"), key=(1,))

    ops = [upsert(1, 5), other(2, 6), upsert(3, 7), other(4, 8)]
    of_one_row = [upsert(1, 5), other(2, 5), upsert(3, 5), other(4, 6), upsert(5, 7)]

    assert sizes(ops, one=UNIQUE_N) == [("upsert", 2), ("upsert", 2)]
    assert sizes(of_one_row, one=UNIQUE_N) == [("upsert", 2), ("upsert", 2), ("upsert", 1)]


def test_upserts_never_pass_an_insert():
    assert sizes([upsert(1, 5), insert(2, n=5), upsert(3, 6)], one=UNIQUE_N) == [
        ("upsert", 1),
        ("insert", 1),
        ("upsert", 1),
    ]


def group(*members: Op) -> Op:
    return Op(GROUP, "one", ONE.hash, 0, ops=members)


def test_an_atomic_group_is_no_statement_with_others_and_holds_back_only_what_it_touches():
    ops = [insert(1), group(insert(2), update(1, n=1)), insert(3), insert(2)]

    assert sizes(ops) == [("insert", 2), ("group", 1), ("insert", 1)]


def test_atomic_groups_are_executed_together_also_where_they_touch_one_row():
    ops = [group(insert(n), update(1, n=n), insert(n, OTHER)) for n in range(2, 9)]

    assert sizes(ops) == [("group", 7)]


def test_an_atomic_group_joins_the_first_run_behind_or_in_which_is_what_it_conflicts_with():
    first, second, third = (group(insert(n, OTHER), insert(n)) for n in (2, 3, 4))
    again = group(update(2, n=1), update(3, n=1))

    assert sizes([first, update(2, n=1), second]) == [("group", 2), ("update", 1)]
    assert sizes([first, update(2, n=1), again, third]) == [("group", 2), ("update", 1), ("group", 1)]
    assert sizes([update(2, n=1), again, first]) == [("update", 1), ("group", 2)]
    assert sizes([first, update(None, n=1), second]) == [("group", 1), ("update", 1), ("group", 1)]


def test_rows_that_the_database_numbers_keep_their_order_also_in_atomic_groups():
    numbered = group(insert(None, n=2), insert(4, OTHER))

    assert sizes([group(insert(2, OTHER)), insert(None, n=1), numbered]) == [
        ("group", 1), ("insert", 1), ("group", 1)
    ]  # fmt: skip


def test_so_many_atomic_groups_run_together_as_are_worth_executing_twice():
    assert sizes([group(insert(n)) for n in range(250)]) == [("group", 100), ("group", 100), ("group", 50)]
    assert sizes([update(900, n=1), *(group(insert(n)) for n in range(150))]) == [
        ("update", 1), ("group", 100), ("group", 50)
    ]  # fmt: skip


def test_an_op_never_changes_places_with_one_that_it_conflicts_with():
    ops = [update(1, n=1), insert(5), delete(5), update(1, t="x"), update(5, n=2), insert(6), update(6, n=3)]
    known = {ONE.hash: facts(ONE, FREE)}
    items = [Item(Entry(0, Position(1, n), 1, n, b""), op) for n, op in enumerate(ops)]

    order = [item.op for group in grouped(items, known) for item in group.items]

    for row in (1, 5, 6):
        assert [op for op in order if op.id == row] == [op for op in ops if op.id == row]


def test_rows_that_are_written_again_and_again_share_their_statements():
    rows, times = range(1, 6), range(3)

    assert sizes([update(row, n=n) for row in rows for n in times]) == [("update", len(rows))] * len(times)


def test_rows_that_the_database_numbers_keep_their_order_though_one_of_them_has_to_wait():
    first, double, last = (insert(None, n=n) for n in (1, 1, 2))

    assert sizes([first, double, last], one=UNIQUE_N) == [("insert", 1), ("insert", 2)]


def versioned(made: int, row: int, into: TableSchema = OTHER, *, narrowed: bool = False, **values: Any) -> Op:
    condition = ["and", ["=", 0, row], ["=", 1, 7]] if narrowed else None
    named = None if narrowed else row
    keep = Op(READ, "one", ONE.hash, 0, where=["and", condition or ["=", 0, row], ["not", ["same", 1, 3]]])
    kept = Op(COPY, into.name, into.hash, 0, made, expressions=((1, ["c", 0]),), source=keep)
    columns = tuple(ONE.index[name] for name in values)
    changed = Op(UPDATE, "one", ONE.hash, 0, named, columns, tuple(values.values()), condition)
    return Op(GROUP, kept.table, kept.schema, 0, ops=(kept, changed))


def test_versioned_updates_of_different_rows_are_executed_together_also_where_a_filter_narrows_them():
    assert sizes([versioned(900 + row, row, n=row) for row in range(50)]) == [("group", 50)]
    assert sizes([versioned(900 + row, row, narrowed=True, n=row) for row in range(50)]) == [("group", 50)]


def test_a_row_that_is_updated_again_begins_a_new_run_so_that_each_of_its_states_is_kept():
    ops = [versioned(901, 1, n=1), versioned(902, 2, n=1), versioned(903, 1, n=2), versioned(904, 3, n=1)]

    assert sizes(ops) == [("group", 3), ("group", 1)]


def test_a_versioned_update_passes_no_other_write_of_its_row():
    assert sizes([versioned(901, 1, n=1), update(2, n=5), versioned(902, 2, n=6)]) == [
        ("group", 1), ("update", 1), ("group", 1)
    ]  # fmt: skip
    assert sizes([versioned(901, 1, n=1), update(2, n=5), versioned(902, 3, n=6)]) == [("group", 2), ("update", 1)]
    assert sizes([versioned(901, 1, n=1), update(None, n=5), versioned(902, 3, n=6)]) == [
        ("group", 1), ("update", 1), ("group", 1)
    ]  # fmt: skip


def test_a_foreign_key_of_the_archive_to_its_row_keeps_no_versions_apart():
    ops = [versioned(901, 1, CHILD, n=1), versioned(902, 2, CHILD, n=1)]

    assert sizes(ops, child=OF_ONE) == [("group", 2)]
    assert sizes([ops[0], delete(2), ops[1]], child=OF_ONE) == [("group", 1), ("delete", 1), ("group", 1)]


def test_versions_with_a_unique_value_stand_alone():
    ops = [versioned(901, 1, n=1), versioned(902, 2, n=1)]

    assert sizes(ops, other=UNIQUE_N) == [("group", 1), ("group", 1)]
    assert sizes(ops, one=UNIQUE_N) == [("group", 1), ("group", 1)]
