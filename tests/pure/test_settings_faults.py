"""Settings: each fault is found, all at once, and told in words that say what to change."""

from __future__ import annotations

from typing import Any

import pytest
from support.sandbox.configurations import faults_of, only_fault_of, small

from pipeline.config.settings import ReadSettings, RedisSettings, Settings, ShardSettings, load
from pipeline.errors import ConfigError


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            {
                "pipelines": {},
                "pipeline": {"buckets": 5000, "bucket": 1},
                "redis": {"url": "http://h", "timeout_s": True, "prefix": "a b"},
                "shards": {
                    "s0": {"primary": "mysql://app:pw@db0/shop", "replica": []},
                    "s1": {"replicas": "sqlite://x"},
                    "s2": "sqlite://s2",
                    "s3": {"primary": "sqlite://same", "replicas": ["sqlite://same"]},
                },
                "tables": {"t": {"shard_key": 7, "ids": "databse", "on_reject": "stop", "reference": 1}},
                "reads": {"max_lag_s": float("nan"), "primary_limit": 1.5},
                "apply": {"max_rows": 0},
            },
            {},
        )

    assert caught.value.faults == (
        "[pipelines] is an unknown section; did you mean 'pipeline'?",
        "[pipeline] has an unknown key 'bucket'; did you mean 'buckets'?",
        "[pipeline] buckets is 5000; it must be a whole number from 1 to 1024",
        "[redis] url has an unknown scheme; it must be an address that begins with redis:// or rediss:// or "
        "sentinel:// or unix://",
        "[redis] prefix is a text; it must be at most 32 letters, digits, '.', '-' and '_'",
        "[redis] timeout_s is a bool; it must be a number from 0.01 to 60",
        "[shards.s0] has an unknown key 'replica'; did you mean 'replicas'?",
        "[shards.s0] primary does not name its driver, and an installed mysqlclient would silently win; "
        "write mysql:pymysql://",
        "[shards.s1] primary is missing; it must be a pyDAL address such as "
        "mysql:pymysql://user:password@host:3306/database",
        "[shards.s1] replicas is a text; it must be a list of addresses",
        "[shards.s2] is a text; it must be a section",
        "[tables.t] shard_key is an int; it must be a name of letters, digits and underscores",
        "[tables.t] ids is a text; it must be one of pipeline, database; did you mean 'database'?",
        "[tables.t] on_reject is a text; it must be one of park, skip, halt",
        "[tables.t] reference is an int; it must be true or false",
        "[reads] max_lag_s is nan; it must be a number from 0 to 86400",
        "[reads] primary_limit is 1.5; it must be a whole number from 0 to 100000",
        "[apply] max_rows is 0; it must be a whole number from 1 to 100000",
        "[shards.s3] replicas item 1 is the same database as [shards.s3] primary; each node has a database of its own",
    )


def test_a_key_of_an_older_release_is_unknown_and_the_fault_names_the_one_that_replaces_it() -> None:
    fault = only_fault_of(reads={"primary_budget": 0.1})

    assert fault.startswith("[reads] has an unknown key 'primary_budget'; primary_limit replaces it: ")


def test_an_empty_configuration_says_what_it_needs() -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, {})

    redis, shards = caught.value.faults
    assert redis.startswith("[redis] url is missing; it must be an address")
    assert shards.startswith("[shards] is empty; at least one shard is needed")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+cluster://h", "is a Redis Cluster, over which Celery's transport does not work"),
        ("rediss+cluster://h", "is a Redis Cluster"),
        ("localhost:6379", "without a scheme"),
        ("redi://h", "did you mean 'redis'?"),
        ("", "is an empty text"),
        (6379, "is an int"),
    ],
)
def test_a_redis_address_that_cannot_work_is_refused_with_the_reason(url: object, words: str) -> None:
    fault = only_fault_of(redis={"url": url})

    assert fault.startswith("[redis] url ")
    assert words in fault


def test_a_redis_socket_needs_the_broker_s_own_word_for_it() -> None:
    fault = only_fault_of(redis={"url": "unix:///run/redis.sock"})
    settings = load(small(redis={"url": "unix:///r", "broker_url": "redis+socket:///r?virtual_host=1"}), {})

    assert fault.startswith("[redis] broker_url is a socket")
    assert settings.redis.broker_url == "redis+socket:///r?virtual_host=1"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mysql://a:b@h/d", "write mysql:pymysql://"),
        ("mysql:pymysq://a:b@h/d", "did you mean 'mysql:pymysql'?"),
        ("mysql:pymysql://a:p@ss@h/d", "a password may hold no '@'"),
        ("mysql:pymysql://h/d", "cannot be read"),
        ("mysql:pymysql://a:b@h/d?set_encoding=utf8", "set_encoding=utf8, in which characters are lost; write"),
        ("mysql:pymysql://a:b@h/d?local_infile=1&set_encoding=latin1", "set_encoding=latin1, in which"),
        ("mongodb://h/d", "cannot hold a shard"),
        ("sqlite:memory", "which no other process can see"),
        ("sqlite:memory://", "which no other process can see"),
        ("sqlite://", "without a scheme or an address"),
        ("s0.sqlite", "without a scheme or an address"),
    ],
)
def test_a_shard_address_that_cannot_work_is_refused_with_the_reason(uri: str, words: str) -> None:
    fault = only_fault_of(shards={"s0": {"primary": uri}})

    assert fault.startswith("[shards.s0] primary ")
    assert words in fault


@pytest.mark.parametrize(
    "uri",
    [
        "mysql:pymysql://root@127.0.0.1:3307/shop?set_encoding=utf8mb4",
        "mysql:pymysql://a:p:w/x%40@[::1]:3306/shop",
        "postgres:psycopg2://a:b@h/d",
        "sqlite:///var/lib/s0.sqlite",
    ],
)
def test_the_usual_addresses_are_accepted(uri: str) -> None:
    assert load(small(shards={"s0": {"primary": uri}}), {}).shards["s0"].primary == uri


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mysql:pymysql://a:b@h/shop", "mysql:MySQLdb://c:d@H:3306/shop?set_encoding=utf8mb4"),
        ("postgres://a:b@h/shop", "postgres2:psycopg2://c@h:5432/shop"),
        ("sqlite://s.sqlite", "sqlite://s.sqlite"),
    ],
)
def test_two_shards_in_one_database_are_refused(one: str, other: str) -> None:
    fault = only_fault_of(shards={"s0": {"primary": one}, "s1": {"primary": other}})

    assert fault.startswith("[shards.s1] primary is the same database as [shards.s0] primary")


def test_two_databases_of_one_server_are_two_shards() -> None:
    uris = ["mysql:pymysql://a:b@h/shop0", "mysql:pymysql://a:b@h/shop1", "mysql:pymysql://a:b@h:3307/shop0"]

    settings = load(small(shards={f"s{at}": {"primary": uri} for at, uri in enumerate(uris)}), {})

    assert [one.primary for one in settings.shards.values()] == uris


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"rule": "modulus"}, "rule is a text; it must be hash, modulo, range, lookup or module:function"),
        ({"rule": "range", "shard_key": "k"}, "bounds is missing or empty"),
        ({"rule": "lookup", "shard_key": "k"}, "lookup is missing or empty"),
        ({"bounds": [1]}, "only rule = 'range' reads it"),
        ({"lookup": {"a": 1}}, "only rule = 'lookup' reads it"),
        ({"rule": "range", "shard_key": "k", "bounds": [1, 1]}, "bounds is not in order"),
        ({"rule": "range", "shard_key": "k", "bounds": [1, "a"]}, "bounds mixes types"),
        ({"rule": "range", "shard_key": "k", "bounds": [False, True]}, "bounds mixes types"),
        ({"rule": "range", "shard_key": "k", "bounds": list(range(256))}, "bounds has 256 items; 256 buckets take 255"),
        ({"rule": "lookup", "shard_key": "k", "lookup": {"a": True}}, "each bucket a whole number"),
        ({"rule": "lookup", "shard_key": "k", "lookup": {"a": 256}}, "lookup names a bucket above 255"),
        ({"rule": "modulo"}, "rule needs a shard_key"),
        ({"ids": "database"}, "ids = 'database' needs a shard_key"),
        ({"ids": "database", "reference": True}, "would number each shard's copy differently"),
        ({"shard_key": "k", "reference": True}, "reference = true puts every row on every shard"),
        ({"unique": ["email"]}, "unique item 1 is a text; it must be a list of column names"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(table: dict[str, Any], words: str) -> None:
    fault = only_fault_of(tables={"t": table})

    assert fault.startswith("[tables.t] ")
    assert words in fault


@pytest.mark.parametrize(
    ("section", "raw"), [("shards", {"s 0": {"primary": "sqlite://x"}}), ("tables", {"a-b": {}}), ("reads", [])]
)
def test_a_section_of_the_wrong_name_or_shape_is_a_fault_of_that_section(section: str, raw: object) -> None:
    assert only_fault_of(**{section: raw}).startswith(f"[{section}")


def test_a_value_is_checked_where_it_is_made_too() -> None:
    with pytest.raises(ConfigError, match=r"\[reads\] on_stale is a text"):
        ReadSettings(on_stale="retry")
    with pytest.raises(ConfigError, match=r"\[shards\] is empty"):
        Settings(redis=RedisSettings("redis://h"), shards={})
    with pytest.raises(ConfigError, match=r"\[pipeline\] buckets is 0"):
        Settings(redis=RedisSettings("redis://h"), shards={"a": ShardSettings("a", "sqlite://a")}, buckets=0)


def test_what_follows_a_rejected_op_is_to_park_later_ops_of_its_row_by_default() -> None:
    assert load(small(tables={"sale": {}}), {}).tables["sale"].on_reject == "park"


def test_a_shard_names_a_redis_that_has_a_section() -> None:
    fault = only_fault_of(redis={"url": "redis://h/0", "two": {"url": "redis://h/1"}}, shards=shards_in("tow"))

    assert fault == "[shards.s0] redis names no section [redis.NAME]; did you mean 'two'?"


def test_two_names_of_one_redis_are_refused() -> None:
    fault = only_fault_of(redis={"url": "redis://h/0", "two": {"url": "redis://:x@h/0"}}, shards=shards_in("two"))

    assert fault.startswith("[redis.two] url is the Redis of [redis]: ")


def test_a_redis_of_a_group_has_an_address_and_nothing_else() -> None:
    unknown, without = faults_of(redis={"url": "redis://h/0", "two": {"url": "h/1", "prefix": "x"}})

    assert unknown.startswith("[redis.two] has an unknown key 'prefix'")
    assert without.startswith("[redis.two] url ")


def shards_in(group: str) -> dict[str, dict[str, str]]:
    return {"s0": {"primary": "sqlite://s0.sqlite", "redis": group}}
