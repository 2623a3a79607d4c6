"""One shard more in the text of a configuration."""

from __future__ import annotations

import tomllib

import pytest

from pipeline.config import Topology
from pipeline.config.files import with_shard, without_shard
from pipeline.config.settings import load
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


def test_a_section_goes_and_the_others_get_what_they_own() -> None:
    named = TEXT.replace("primary =", 'buckets = "0-31"  # half\nprimary =', 1)

    for text in (TEXT, named):
        made = without_shard(text, "s1", {"s0": "0-63"})

        gone = ['[shards."s1"]', "# bought in May", 'primary = "mysql:pymysql://app:${DB_PASSWORD}@db1/shop"']
        kept = [line for line in text.splitlines() if line not in gone and "buckets =" not in line]
        assert [line for line in made.splitlines() if line in kept] == kept
        assert tomllib.loads(made)["shards"] == {
            "s0": {"primary": "mysql:pymysql://app:${DB_PASSWORD}@db0/shop"} | {"buckets": "0-63"}
        }
    assert '"0-63"  # half' in made


def test_comments_above_the_section_that_follows_stay() -> None:
    made = without_shard(TEXT.replace("[tables", "# what all have\n[tables"), "s1", {"s0": "0-63"})

    assert made.endswith("\n# what all have\n[tables.country]\nreference = true")
    assert "bought" not in made


def test_a_file_whose_section_cannot_be_taken_out_is_named_with_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r'take out \[shards.s1\], write buckets = "0-63" under \[shards\.s0\]'):
        without_shard('[shards]\ns0.primary = "a"\ns1.primary = "b"', "s1", {"s0": "0-63"})
