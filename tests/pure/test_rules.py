"""Rules: which bucket a key has, today and for ever."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.buckets import Rule, compile_rule
from pipeline.config.settings import TableSettings
from pipeline.errors import ConfigError, ShardKeyError
from pipeline.model import END, SMALLEST, ids_of

BUCKETS = st.integers(1, 1024)
KEYS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.text(),
    st.binary(),
    st.dates(),
    st.datetimes(),
    st.decimals(allow_nan=False, allow_infinity=False),
)


def rule_of(buckets: int = 256, **table: Any) -> Rule:
    return compile_rule(TableSettings("t", "k", **table), buckets)


#: Rows stand by these. A change here is a change of where existing rows are looked for: never edit, only add.
VECTORS = [
    (0, 33),
    (7, 130),
    (-1, 42),
    (2**49 - 1, 165),
    (2**49 + (5 << 10) + 77, 77),
    (str(2**49 + (5 << 10) + 77), 77),
    (2**53 - 1, 255),
    (2**53, 161),
    (2**63, 79),
    ("", 0),
    ("N14228", 110),
    ("Zürich", 62),
    (b"\x00\xff", 114),
    (date(2013, 1, 31), 158),
    (datetime(2013, 1, 31, 6, 30), 182),
    (Decimal("12.50"), 241),
]


@pytest.mark.parametrize(("key", "bucket"), VECTORS)
def test_the_hash_of_a_key_never_changes(key: object, bucket: int) -> None:
    assert rule_of()(key) == bucket


@given(KEYS, BUCKETS)
def test_any_key_has_one_bucket_that_exists(key: object, buckets: int) -> None:
    bucket = rule_of(buckets)(key)

    assert type(bucket) is int
    assert 0 <= bucket < buckets
    assert rule_of(buckets)(key) == bucket


@given(st.data(), BUCKETS, st.integers(2**39, 2**43 - 1))
def test_a_row_that_refers_to_an_id_shares_its_bucket(data: st.DataObject, buckets: int, counter: int) -> None:
    bucket = data.draw(st.integers(0, buckets - 1))
    [id] = ids_of(bucket, range(counter, counter + 1))

    assert SMALLEST <= id < END
    assert rule_of(buckets)(id) == bucket


@given(st.integers(-(2**70), 2**70) | st.integers(SMALLEST, END - 1), BUCKETS)
def test_an_int_its_digits_and_its_subclasses_share_a_bucket(key: int, buckets: int) -> None:
    class Reference(int):
        """What pyDAL gives for the value of a reference field."""

    rule = rule_of(buckets)

    assert {rule(key), rule(str(key)), rule(str(key).encode()), rule(Decimal(key)), rule(Reference(key))} == {rule(key)}


def test_a_text_of_digits_that_no_int_prints_is_a_text() -> None:
    id = SMALLEST + 9

    assert rule_of()(f"0{id}") == rule_of()(f"0{id}".encode()) != 9


@pytest.mark.parametrize("keys", [range(100_000), [f"customer-{n}" for n in range(100_000)]], ids=["ints", "texts"])
def test_keys_spread_evenly(keys: Any) -> None:
    rule = rule_of(64)

    sizes = Counter(map(rule, keys))

    assert len(sizes) == 64
    mean = 100_000 / 64
    assert max(sizes.values()) < 1.2 * mean
    assert min(sizes.values()) > 0.8 * mean


@pytest.mark.parametrize("key", [True, None, 1.5, [1], Decimal("NaN"), "\ud800"], ids=repr)
@pytest.mark.parametrize("table", [{}, {"rule": "lookup", "lookup": {"*": 1}}], ids=["hash", "lookup"])
def test_a_key_with_no_text_of_its_own_is_refused_by_table_and_column(key: object, table: dict[str, Any]) -> None:
    with pytest.raises(ShardKeyError, match=r"table 't': the shard key 'k' is "):
        rule_of(**table)(key)


@given(st.integers(-(2**70), 2**70), BUCKETS)
def test_modulo_is_the_remainder_and_never_negative(key: int, buckets: int) -> None:
    bucket = rule_of(buckets, rule="modulo")(key)

    assert 0 <= bucket < buckets
    assert (key - bucket) % buckets == 0


@pytest.mark.parametrize("key", ["7", True, None, 7.0])
def test_modulo_takes_ints_only(key: object) -> None:
    with pytest.raises(ShardKeyError, match="rule = 'modulo'"):
        rule_of(rule="modulo")(key)


@pytest.mark.parametrize(("key", "bucket"), [(-5, 0), (9, 0), (10, 1), (19, 1), (20, 2), (10**30, 2)])
def test_a_bound_is_the_first_key_of_the_next_bucket(key: int, bucket: int) -> None:
    assert rule_of(3, rule="range", bounds=(10, 20))(key) == bucket


def test_a_range_of_texts_takes_texts_and_a_range_of_ints_takes_ints() -> None:
    texts, ints = rule_of(rule="range", bounds=("h", "p")), rule_of(rule="range", bounds=(10,))

    assert [texts("a"), texts("h"), texts("z")] == [0, 1, 2]
    with pytest.raises(ShardKeyError, match="type int; it must be of the bounds' type, str"):
        texts(1)
    for key in ("a", True, None):
        with pytest.raises(ShardKeyError, match="of the bounds' type, int"):
            ints(key)


def test_lookup_finds_a_key_by_its_text_whatever_its_type() -> None:
    rule = rule_of(rule="lookup", lookup={"7": 3, "berlin": 4})

    assert [rule(7), rule("7"), rule("berlin")] == [3, 3, 4]


def test_a_key_that_is_not_in_the_lookup_is_refused_unless_there_is_a_star() -> None:
    closed, open_ = rule_of(rule="lookup", lookup={"a": 1}), rule_of(rule="lookup", lookup={"a": 1, "*": 2})

    assert open_("secret") == open_("*") == 2
    with pytest.raises(ShardKeyError, match=r"table 't': the shard key 'k' \(str\) is not in its lookup") as caught:
        closed("secret")
    assert "secret" not in str(caught.value)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("own_rules")
    monkeypatch.setitem(sys.modules, "own_rules", module)
    return module


def test_an_own_function_is_imported_at_its_first_key(own: ModuleType) -> None:
    rule = rule_of(16, rule="own_rules:by_length")
    own.by_length = lambda key, buckets: len(key) % buckets  # type: ignore[attr-defined]

    assert rule("abc") == 3


@pytest.mark.parametrize("answer", [-1, 16, True, "3", None, 3.0])
def test_an_own_function_must_return_a_bucket(own: ModuleType, answer: object) -> None:
    own.wrong = lambda key, buckets: answer  # type: ignore[attr-defined]

    with pytest.raises(ShardKeyError, match="from own_rules:wrong"):
        rule_of(16, rule="own_rules:wrong")("abc")


@pytest.mark.parametrize(("rule", "words"), [("no_such_module:f", "No module"), ("math:pi", "is no function")])
def test_an_own_function_that_cannot_be_had_is_a_fault_of_the_configuration(rule: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rule_of(rule=rule)("abc")
