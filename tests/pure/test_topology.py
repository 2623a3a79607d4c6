"""Topology: which shard has which bucket, and which bucket a row."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Topology
from pipeline.config.buckets import format_ranges, numbers, parse_ranges
from pipeline.config.settings import Settings, TableSettings, load
from pipeline.errors import ConfigError
from pipeline.model import SMALLEST


def settings(buckets: int, shards: dict[str, str | None], **tables: dict[str, Any]) -> Settings:
    sections = {name: {"primary": f"sqlite://{name}.sqlite", "buckets": own} for name, own in shards.items()}
    return load({"pipeline": {"buckets": buckets}, "redis": {"url": "redis://h"}, "shards": sections, "tables": tables})


def topology(buckets: int, shards: dict[str, str | None], **tables: dict[str, Any]) -> Topology:
    return Topology(settings(buckets, shards, **tables))


def faults_of(buckets: int, shards: dict[str, str | None]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        settings(buckets, shards)
    return caught.value.faults


@given(st.data(), st.integers(1, 1024))
def test_without_a_word_in_the_file_shards_share_evenly_in_its_order(data: st.DataObject, buckets: int) -> None:
    names = [f"s{n}" for n in range(data.draw(st.integers(1, min(buckets, 12))))]

    made = topology(buckets, dict.fromkeys(names))

    owned = [made.buckets_of(name) for name in names]
    assert [bucket for own in owned for bucket in own] == list(range(buckets))
    sizes = {len(own) for own in owned}
    assert max(sizes) - min(sizes) <= 1
    assert all(made.shard_of(bucket) == name for name, own in zip(names, owned, strict=True) for bucket in own)


def test_the_even_split_never_changes() -> None:
    made = topology(256, dict.fromkeys(["b", "a", "c"]))

    assert made.shards == ("b", "a", "c")
    assert [made.ranges_of(name) for name in made.shards] == ["0-85", "86-170", "171-255"]


def test_the_file_may_say_which_shard_has_which_buckets() -> None:
    made = topology(8, {"s0": "0-2, 7", "s1": "3-6", "new": ""})

    assert made.buckets_of("s0") == (0, 1, 2, 7)
    assert made.ranges_of("s0") == "0-2,7"
    assert [made.shard_of(bucket) for bucket in (2, 3, 7)] == ["s0", "s1", "s0"]
    assert made.buckets_of("new") == ()


def test_every_shard_applies_the_reference_bucket_and_none_owns_it() -> None:
    made = topology(8, {"s0": None, "s1": None}, country={"reference": True})

    assert made.reference_bucket == 8
    assert made.bucket_of("country", object()) == 8
    assert made.shards_of(8) == ("s0", "s1")
    assert made.shards_of(0) == ("s0",)
    assert all(8 not in made.buckets_of(name) for name in made.shards)
    with pytest.raises(ValueError, match="bucket 8 is the reference bucket"):
        made.shard_of(8)


@pytest.mark.parametrize("bucket", [-1, 9])
def test_a_bucket_that_does_not_exist_has_no_shard(bucket: int) -> None:
    with pytest.raises(ValueError, match=f"bucket {bucket} does not exist"):
        topology(8, {"s0": None}).shards_of(bucket)


def test_a_table_follows_its_rule_and_one_without_settings_the_defaults() -> None:
    made = topology(8, {"s0": None}, visit={"rule": "modulo", "shard_key": "n"})

    assert made.bucket_of("visit", 13) == 5
    assert made.table("other") == TableSettings("other")
    assert made.bucket_of("other", (1 << 49) + 6) == 6


def test_a_topology_survives_pickling() -> None:
    made = topology(8, {"s0": None, "s1": None}, visit={"rule": "modulo", "shard_key": "n"})
    made.bucket_of("visit", 1)

    again = pickle.loads(pickle.dumps(made))

    assert (again.shards, again.ranges_of("s1"), again.bucket_of("visit", 13)) == (("s0", "s1"), "4-7", 5)


@pytest.mark.parametrize(
    ("shards", "faults"),
    [
        ({"a": "0-3", "b": None}, ["[shards.b] buckets is missing; give it for every shard, or for none"]),
        ({"a": "0-5", "b": "4-7"}, ["[shards.*] buckets: more than one shard has 4-5; each bucket has one owner"]),
        ({"a": "0,0,1", "b": "3-5,7"}, ["[shards.*] buckets: no shard has 2,6; each bucket needs an owner"]),
        ({"a": "0-7", "b": "8-9"}, ["[shards.b] buckets names 8-9; the buckets are 0-7"]),
        (
            {"a": "0-4", "b": "4-5,9999"},
            [
                "[shards.b] buckets names 9999; the buckets are 0-7",
                "[shards.*] buckets: more than one shard has 4; each bucket has one owner",
                "[shards.*] buckets: no shard has 6-7; each bucket needs an owner",
            ],
        ),
        (
            {"a": "0-4", "b": "7-5"},
            ["[shards.b] buckets is a text; it must be bucket numbers and ranges, such as '0-127,200'"],
        ),
        (
            dict.fromkeys("abcdefghi"),
            ["[pipeline] buckets is 8 for 9 shards; it must be at least one for each shard"],
        ),
    ],
)
def test_a_map_without_exactly_one_owner_for_each_bucket_is_refused(
    shards: dict[str, str | None], faults: list[str]
) -> None:
    assert list(faults_of(8, shards)) == faults


@given(st.sets(st.integers(0, 1024)))
def test_bucket_numbers_survive_being_written_as_ranges(buckets: set[int]) -> None:
    assert numbers(parse_ranges(format_ranges(buckets))) == sorted(buckets)


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1,,2", "5-4", "1;2", "10000", "0-1-2"])
def test_a_text_that_is_no_list_of_ranges_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bucket numbers"):
        parse_ranges(text)


#: How a table's rows are spread; and where an op is that makes a row whose id carries bucket 5, and one of another id.
SPREADS: dict[str, tuple[dict[str, Any], int | None, int | None]] = {
    "by id": ({}, 5, 7),
    "by a key": ({"shard_key": "who"}, 5, None),
    "on all shards": ({"reference": True}, 8, 8),
    "numbered by the database": ({"shard_key": "who", "ids": "database"}, None, None),
    "by a list": ({"shard_key": "who", "rule": "lookup", "lookup": {"1": 2}}, 5, None),
}


@pytest.mark.parametrize("spread", SPREADS)
def test_an_id_tells_where_an_op_is_that_makes_its_row(spread: str) -> None:
    section, made_here, other = SPREADS[spread]
    made = topology(8, {"s0": None}, t=section)

    assert [made.bucket_making("t", row) for row in (SMALLEST + 1024 + 5, 11)] == [made_here, other]
