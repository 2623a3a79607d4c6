"""The op's codec: what is encoded is read back equal, and a person can read it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import NewerOp, NotAnOp
from pipeline.model import COPY, DELETE, GROUP, INSERT, READ, UPDATE, UPSERT, Op, TracedOp, decode, encode, with_trace

PARENT = f"00-{'0a' * 16}-{'0b' * 8}-01"

whole = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | whole | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = scalars | st.lists(whole | st.text(), max_size=3)
trees = st.recursive(
    st.tuples(st.just("c"), st.integers(0, 50)).map(list) | st.tuples(st.just("v"), scalars).map(list),
    lambda part: st.tuples(st.sampled_from("+-*/%"), part, part).map(list),
    max_leaves=5,
)
small = st.integers(0, 100)


@st.composite
def ops(draw: st.DrawFn) -> Op:
    columns = tuple(draw(st.lists(small, unique=True, max_size=5)))
    return Op(
        draw(st.sampled_from([INSERT, UPDATE, DELETE, UPSERT])),
        draw(st.text(min_size=1, max_size=10)),
        draw(st.text("0123456789abcdef", min_size=12, max_size=12)),
        draw(st.integers(0, 2**45)),
        draw(st.none() | st.integers(1, 2**63 - 1)),
        columns,
        tuple(draw(values) for _ in columns),
        draw(st.none() | trees),
        tuple(draw(st.lists(st.tuples(small, trees), max_size=2))),
        tuple(draw(st.lists(small, max_size=2))),
        tuple(draw(st.lists(small, max_size=2))),
        draw(st.none() | st.text(min_size=1, max_size=190)),
    )


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types: to Python 1 is True is 1.0."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(op=ops())
def test_an_op_is_read_back_equal(op: Op):
    found = decode(encode(op))

    assert found == op
    assert same(found.values, op.values)


@given(members=st.lists(ops(), min_size=1, max_size=4))
def test_a_group_is_read_back_with_its_members_in_order(members: list[Op]):
    group = Op(GROUP, members[0].table, members[0].schema, 1, ops=tuple(members))

    assert decode(encode(group)).members == tuple(members)


@given(source=ops(), member=ops())
def test_a_copy_is_read_back_with_its_source_and_names_both_tables(source: Op, member: Op):
    read = msgspec.structs.replace(source, kind=READ)
    copy = Op(COPY, "past", "h", 1, 5, expressions=((1, ["c", 0]),), source=read)
    group = Op(GROUP, "past", "h", 1, ops=(copy, member))

    assert decode(encode(copy)) == copy
    assert decode(encode(group)).named == (copy, read, member)


def test_idempotency_keys_are_the_same_only_byte_by_byte_and_within_a_kind_and_a_table():
    keys = ["k", "k ", " k", "K", "é", "e\u0301", "e", "k\0", "\U0001f600", "\U0001f601", "x" * 190]
    tables = ["purchase", "note"]
    ops = [Op(kind, table, "h", 1, idempotency_key=k) for kind in (INSERT, UPDATE) for table in tables for k in keys]

    assert len({op.scoped_key for op in ops}) == len(ops)
    assert {len(op.scoped_key) for op in ops} == {40}
    assert all(
        Op(op.kind, op.table, "other", 2, 9, idempotency_key=op.idempotency_key).scoped_key == op.scoped_key
        for op in ops
    )
    assert Op(INSERT, "t", "h", 1).scoped_key == ""


def test_a_single_op_is_its_own_member():
    op = Op(INSERT, "t", "h", 1)

    assert op.members == (op,)


def test_an_op_is_json_that_starts_with_what_it_does_to_which_table():
    payload = encode(Op(INSERT, "purchase", "0123456789ab", 5, 2**62, (1, 2), (7, "é")))

    assert json.loads(payload)[:7] == ["insert", "purchase", "0123456789ab", 5, 2**62, [1, 2], [7, "é"]]


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b'["insert"]', b'["insert", 1, "h", 1]', b"\xff"])
def test_bytes_that_are_no_op_are_an_error(payload: bytes):
    with pytest.raises(NotAnOp):
        decode(payload)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (
            b'["merge", "t", "h", 1, null, [], [], null, [], [], [], null, [], null, 5]',
            "version 5, of the kind 'merge';",
        ),
        (
            b'["insert", "t", "h", 1, 5, [], [], null, [], [], [], null, [], null, 5, "x", 1]',
            "version 5, with 17 fields;",
        ),
        (b'["insert", "t", "h", 1, {"new": 1}, [], [], null, [], [], [], null, [], null, 5]', "version 5;"),
    ],
)
def test_an_op_of_a_newer_release_is_told_from_bytes_that_are_no_op(payload: bytes, words: str):
    with pytest.raises(NewerOp, match=f"an op of {words}.* upgrade this worker"):
        decode(payload)


def test_what_no_release_makes_is_no_op_however_it_looks():
    deep = b"[" * 5000 + b"]" * 5000
    for payload in (
        b'["insert", "t", "h", 1, 5, [-1], [1]]',
        b'["insert", "t", "h", 1, 5, [1], [{"a": 1}]]',
        b'["insert", "t", "h", 1, 5, [1], [[[1]]]]',
        b'["insert", "t", "h", 1, 5, [], [], null, [], [], [], null, [], null, 1, "field"]',
        b'["insert", "t", "h", 1, 5, [], [], null, [], [], [], null, [], null, "2"]',
        b'["insert", "t", "h", 1, 5, [], [], null, [], [], [], null, [], null, 2, "a value"]',
        b'["insert", "t", "h", 1, 5, [1], ["\\ud800"]]',
        b'["delete", "t", "h", 1, null, [], [], ' + deep + b"]",
        deep,
    ):
        with pytest.raises(NotAnOp):
            decode(payload)


@given(op=ops())
def test_a_traced_op_is_the_same_op_and_waits_at_workers_that_do_not_know_it(op: Op):
    traced = decode(with_trace(encode(op), PARENT))

    assert isinstance(traced, TracedOp)
    assert traced.traceparent == PARENT
    assert msgspec.structs.astuple(traced)[:-2] == msgspec.structs.astuple(op)[:-1]
    assert traced.version == 2
    assert decode(encode(traced)) == traced
    assert with_trace(encode(traced), PARENT.replace("a", "b")) == encode(traced)


def test_an_op_of_an_older_version_that_lacks_the_last_fields_is_read():
    assert decode(b'["delete", "t", "h", 1, 5]') == Op(DELETE, "t", "h", 1, 5)
    before_copies = b'["insert", "t", "h", 1, 5, [1], ["x"], null, [], [], [], null, []]'
    assert decode(before_copies) == Op(INSERT, "t", "h", 1, 5, (1,), ("x",))
