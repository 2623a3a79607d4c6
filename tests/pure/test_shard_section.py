"""One shard more in the text of a configuration."""

from __future__ import annotations

import tomllib

import pytest

from pipeline.config.settings import load
from pipeline.config.shard_section import with_shard
from pipeline.config.topology import Topology
from pipeline.errors import ConfigError

URI = "mysql:pymysql://app:${DB_PASSWORD}@db2/shop"
TEXT = """\
# the shop
[pipeline]
buckets = 64

[redis]
url = "redis://log/0"

[shards.s0]  # the old one
primary = "mysql:pymysql://app:${DB_PASSWORD}@db0/shop"
[shards."s1"]
# bought in May
primary = "mysql:pymysql://app:${DB_PASSWORD}@db1/shop"

[tables.country]
reference = true"""
EVEN = {"s0": "0-31", "s1": "32-63"}


def test_the_shards_keep_their_buckets_and_every_comment_and_variable_stays() -> None:
    made = with_shard(TEXT, "s2", URI, ["mysql:pymysql://r:${R}@db3/shop"], EVEN)

    assert [line for line in TEXT.splitlines() if line not in made.splitlines()] == []
    shards = tomllib.loads(made)["shards"]
    assert {name: section["buckets"] for name, section in shards.items()} == {**EVEN, "s2": ""}
    assert (shards["s2"]["primary"], shards["s2"]["replicas"]) == (URI, ["mysql:pymysql://r:${R}@db3/shop"])
    before, after = (Topology(load(tomllib.loads(one), {"DB_PASSWORD": "x", "R": "y"})) for one in (TEXT, made))
    assert before.fingerprint.shards == after.fingerprint.shards[:2]


def test_buckets_that_the_file_names_stay_as_they_are() -> None:
    named = TEXT.replace("[shards.s0]  # the old one", '[shards.s0]\nbuckets = "0-9"').replace(
        '[shards."s1"]', '[shards.s1]\nbuckets = "10-63"'
    )

    made = with_shard(named, "s2", URI, [], {"s0": "0-9", "s1": "10-63"})

    assert made.startswith(named)
    assert made.removeprefix(named).strip() == f'[shards.s2]\nprimary = "{URI}"\nbuckets = ""'


@pytest.mark.parametrize(
    "shards",
    [
        'shards = { s0 = { primary = "mysql:pymysql://db0/shop" } }',
        '[shards]\ns0.primary = "mysql:pymysql://db0/shop"',
        '[shards.s0]\nprimary = """\n[shards.s0]\n"""',
    ],
)
def test_a_file_that_cannot_be_edited_is_named_with_what_to_write(shards: str) -> None:
    with pytest.raises(ConfigError, match=r'write buckets = "0-63" under \[shards\.s0\], and \[shards\.s2\]'):
        with_shard(shards, "s2", URI, [], {"s0": "0-63"})
