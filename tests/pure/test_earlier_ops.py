"""How long an op waits that came early, and for what.

Only time counts in which this process looks, and nothing older moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, starmap
from typing import Any

import pytest
from msgspec.structs import replace
from pymysql.err import IntegrityError

from pipeline.apply.earlier_ops import LOOK_S, Wait
from pipeline.apply.footprint import Needed, needed_by
from pipeline.model import DELETE, INSERT, UPDATE, UPSERT, Op, Position
from pipeline.model.schema import Column, TableSchema
from pipeline.shard.table_facts import Constraints, Facts, ForeignKey

#: A time, s, the buckets with older ops, and how far each bucket is.
Look = tuple[float, set[int], dict[int, int]]


def waited_s(*looks: Look) -> list[float]:
    """Return how long an op has waited at each look."""
    taken = [(at_s, older, {b: Position(1, seq) for b, seq in marks.items()}) for at_s, older, marks in looks]
    waits = accumulate(taken, lambda wait, look: wait.looked(*look), initial=Wait(looks[0][0], 0, {}))
    return [wait.waited_s for wait in waits][1:]


@pytest.mark.parametrize(
    ("looks", "wanted"),
    [
        ([(0, {1}, {1: 5}), (0.5, {1}, {1: 5}), (1, {1}, {1: 5})], [0, 0.5, 1]),
        ([(0, {1, 2}, {1: 5, 2: 6}), (0.5, {1, 2}, {1: 5, 2: 7}), (1, {1, 2}, {1: 5, 2: 7})], [0, 0, 0.5]),
        ([(0, {1}, {1: 5}), (0.5, set(), {1: 6}), (1, set(), {1: 7})], [0, 0, 0.5]),
        ([(0, {1}, {1: 5, 2: 6}), (0.5, {1}, {1: 5, 2: 7})], [0, 0.5]),
        ([(0, {1}, {1: 5}), (60, {1}, {1: 5})], [0, LOOK_S]),
        ([(n / 2, {1} if n % 2 else set(), {1: 5}) for n in range(5)], [0, 0.5, 1, 1.5, 2]),
    ],
    ids=["stuck", "one moves", "drained", "what has nothing older moves", "a server was away", "it only seems to move"],
)
def test_what_counts(looks: list[Look], wanted: list[float]) -> None:
    assert waited_s(*looks) == wanted


#: A table whose rows refer to `one` by `up`, and to `two` by `off`; and what triggers reach.
COLUMNS = (("id", "id"), ("up", "integer"), ("off", "integer"), ("note", "text"))
TABLE = TableSchema("t", tuple(starmap(Column, COLUMNS)))
KEYS = (ForeignKey(("up",), "One", ("id",)), ForeignKey(("off",), "two", ("id",)))
OTHER_KIND = (ForeignKey(("up",), "one", ("code",)),)
NO_PARENT, DOUBLE, SIGNAL, IS_REFERRED_TO = ((number, "as the server says") for number in (1452, 1062, 1644, 1451))


def needed(op: Op, error: tuple[int, str], **constraints: Any) -> Needed | None:
    """Return what an op may need."""
    facts = Facts(TABLE, Constraints(**{"parents": KEYS} | constraints), (), (), "t")
    return needed_by(op, facts, IntegrityError(*error))


def op(kind: str = INSERT, **values: Any) -> Op:
    """Return an op that sets some columns."""
    numbers = {column.name: number for number, column in enumerate(TABLE.columns)}
    return Op(kind, "t", "h", 0.0, 7, tuple(numbers[name] for name in values), tuple(values.values()))


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        (op(up=5, off=6), {"one": {5}, "two": {6}}),
        (op(up=5, off=None), {"one": {5}}),
        (op(UPDATE, up=5), {"one": {5}}),
        (op(UPSERT, up=5, off=6), {"one": {5}, "two": {6}}),
        (op(up=5), {}),  # the server knows what `off` is by default
        (op(up="5", off=6), {}),
        (replace(op(UPDATE, up=5), expressions=((2, ["c", 1]),)), {}),
        (op(DELETE), {}),
    ],
    ids=str,
)
def test_the_rows_that_an_op_refers_to(what: Op, wanted: Mapping[str, set[int]]) -> None:
    assert needed(what, NO_PARENT) == Needed(wanted)


@pytest.mark.parametrize(
    "constraints",
    [
        {"parents": OTHER_KIND},
        {"reached": frozenset({"two"})},
        {"triggers": (("INSERT", ("log",)),), "writing": ("INSERT",)},
    ],
    ids=["not by id", "a trigger may make it", "what a trigger of its own writes may refer to others"],
)
def test_in_doubt_any_op_may_help(constraints: Mapping[str, Any]) -> None:
    assert needed(op(up=5, off=6), NO_PARENT, **constraints) == Needed()


def test_a_trigger_that_writes_nothing_needs_no_parent() -> None:
    found = needed(op(up=5, off=6), NO_PARENT, triggers=(("INSERT", ("log",)),))

    assert found == Needed({"one": {5}, "two": {6}})


def test_a_taken_value_is_freed_by_ops_on_its_table_and_where_rows_go_with_others_on_any() -> None:
    assert needed(op(up=5, off=6), DOUBLE) == Needed(freed="t", cascades=True)
    assert needed(op(up=5, off=6), DOUBLE, parents=()) == Needed(freed="t")
    assert needed(op(up=5, off=6), DOUBLE, reached=frozenset({"t"})) == Needed()


def test_any_op_may_delete_what_refers_to_a_row() -> None:
    assert needed(op(DELETE), IS_REFERRED_TO) == needed(op(UPDATE, up=5), IS_REFERRED_TO) == Needed()


@pytest.mark.parametrize(
    ("sources", "wanted"),
    [
        ((("INSERT", ()),), None),
        ((("INSERT", ("Log", "two")),), Needed(read={"log", "two"})),
        ((("INSERT", ("@", "log")),), Needed()),
        ((("INSERT", ()), ("DELETE", ("log",))), None),
    ],
    ids=["of its row alone", "that reads others", "that reads a variable", "beside one that is not fired"],
)
@pytest.mark.parametrize("error", [SIGNAL, (30001, "of its own"), (1048, "Column 'n' cannot be null"), (4025, "CHECK")])
def test_what_a_trigger_may_have_refused_waits_for_ops_on_what_the_trigger_reads(
    error: tuple[int, str], sources: Any, wanted: Any
) -> None:
    assert needed(op(up=5, off=6), error, triggers=sources, sources=sources) == wanted


def test_a_signal_of_a_trigger_that_nobody_sees_waits_for_any_op() -> None:
    assert needed(op(up=5, off=6), SIGNAL) == Needed()


@pytest.mark.parametrize("error", [(4025, "a CHECK"), (1048, "Column 'n' cannot be null"), (30001, "of its own")])
def test_what_depends_on_the_op_alone_is_final(error: tuple[int, str]) -> None:
    assert needed(op(up=5, off=6), error) is None
