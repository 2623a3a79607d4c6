"""Settings: what is accepted, what is refused and in which words, and that no password is ever shown."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.replica import Load
from pipeline.settings import ReadSettings, RedisSettings, Settings, ShardSettings, TableSettings, load, redact
from pipeline.uris import SHARD_SCHEMES

SECRET = "s3cr3t-pass"
TOML = """
[pipeline]
buckets = 128
[redis]
url = "redis://:${REDIS_PASSWORD}@localhost:6379/0"
[shards.s0]
primary = "mysql:pymysql://app:${DB_PASSWORD}@db0/shop"
replicas = ["mysql:pymysql://reader:${DB_PASSWORD}@db0-r1/shop"]
[shards.s1]
primary = "mysql:pymysql://app:${DB_PASSWORD}@db1/shop"
[tables.purchase]
shard_key = "customer"
unique = [["customer", "day"]]
[tables.country]
reference = true
[reads]
max_lag_s = 2
"""
ENVIRON = {"REDIS_PASSWORD": SECRET, "DB_PASSWORD": SECRET}


def small(**changes: Any) -> dict[str, Any]:
    """Return the smallest configuration, with whole sections replaced."""
    sections = {"redis": {"url": "redis://localhost"}, "shards": {"s0": {"primary": "sqlite://s0.sqlite"}}}
    return {**sections, **changes}


def faults_of(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(small(**changes), {})
    return caught.value.faults


def only_fault_of(**changes: Any) -> str:
    (fault,) = faults_of(**changes)
    return fault


def shard(**keys: Any) -> dict[str, Any]:
    return {"s0": {"primary": "sqlite://s0.sqlite", **keys}}


# where it comes from ------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.toml"
    path.write_text(TOML)
    return path


def test_a_file_is_read_whole_and_filled_in_from_the_environment(file: Path) -> None:
    settings = load(file, ENVIRON)

    assert settings.buckets == 128
    assert settings.redis.url == settings.redis.broker_url == f"redis://:{SECRET}@localhost:6379/0"
    assert list(settings.shards) == ["s0", "s1"]
    assert settings.shards["s0"].replicas == (f"mysql:pymysql://reader:{SECRET}@db0-r1/shop",)
    assert settings.tables["purchase"] == TableSettings("purchase", "customer", unique=(("customer", "day"),))
    assert settings.tables["country"].reference
    assert settings.reads == ReadSettings(max_lag_s=2)
    assert settings.source == str(file)


def test_the_defaults_are_those_of_the_documentation() -> None:
    settings = load(small(), {})

    assert (settings.buckets, settings.redis.prefix, settings.redis.timeout_s) == (256, "pl", 0.25)
    assert settings.reads == ReadSettings(5.0, 0.1, "primary", 0.10)
    apply = settings.apply
    assert (apply.target_ms, apply.max_rows, apply.max_bytes, apply.buckets) == (100, 5_000, 8_000_000, 64)
    assert (settings.tables, settings.source) == ({}, "a dict")


def test_the_dict_form_means_what_the_file_means(file: Path) -> None:
    as_dict = {
        "pipeline": {"buckets": 128},
        "redis": {"url": f"redis://:{SECRET}@localhost:6379/0", "broker_url": None},
        "shards": {
            "s0": {
                "primary": f"mysql:pymysql://app:{SECRET}@db0/shop",
                "replicas": (f"mysql:pymysql://reader:{SECRET}@db0-r1/shop",),
            },
            "s1": {"primary": f"mysql:pymysql://app:{SECRET}@db1/shop", "replicas": None},
        },
        "tables": {
            "purchase": {"shard_key": "customer", "unique": [["customer", "day"]]},
            "country": {"reference": True},
        },
        "reads": {"max_lag_s": 2},
    }

    from_dict, from_file = load(as_dict, {}), load(file, ENVIRON)

    assert (from_dict.shards, from_dict.redis, from_dict.tables) == (
        from_file.shards,
        from_file.redis,
        from_file.tables,
    )
    assert (from_dict.buckets, from_dict.reads, from_dict.apply) == (
        from_file.buckets,
        from_file.reads,
        from_file.apply,
    )


def test_a_path_wins_over_the_environment_and_the_environment_over_the_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, here = tmp_path / "named.toml", tmp_path / "here"
    named.write_text(TOML.replace("128", "64"))
    here.mkdir()
    (here / "pipeline.toml").write_text(TOML.replace("128", "32"))
    monkeypatch.chdir(here)
    environ = {**ENVIRON, "PIPELINE_CONFIG": str(named)}

    assert load(str(file), environ).buckets == 128
    assert load(environ=environ).buckets == 64
    assert load(environ=ENVIRON).buckets == 32


@pytest.mark.parametrize(
    ("environ", "words"),
    [({}, "$PIPELINE_CONFIG is not set, and pipeline.toml"), ({"PIPELINE_CONFIG": "/no/such"}, "names a file, but")],
)
def test_a_missing_file_is_named_with_what_named_it(
    environ: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match="No such file") as caught:
        load(environ=environ)

    assert words in str(caught.value)


@pytest.mark.parametrize("text", [f'url = "{SECRET}', f'url = "{SECRET}"\nurl = "{SECRET}"'.encode("utf-16")])
def test_a_file_that_is_no_toml_is_refused_without_its_text(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ConfigError, match=r"broken\.toml is not") as caught:
        load(path, {})

    error = caught.value
    assert SECRET not in str(error)
    assert error.__context__ is None  # the decoder's error holds the text


def test_each_missing_variable_is_named_with_its_key() -> None:
    faults = faults_of(
        redis={"url": "redis://:${NOT_A}@h"},
        shards=shard(replicas=["sqlite://${NOT_B}.sqlite", "sqlite://${NOT_CLOSED"]),
    )

    assert faults == (
        "[redis] url needs the environment variable NOT_A, which is not set",
        "[shards.s0] replicas needs the environment variable NOT_B, which is not set",
        "[shards.s0] replicas has a '${' without its '}'",
    )


def test_a_variable_s_own_value_is_taken_as_it_is() -> None:
    settings = load(small(redis={"url": "redis://:${A}@h"}), {"A": "x${B}y"})

    assert settings.redis.url == "redis://:x${B}y@h"


# faults ---------------------------------------------------------------------------------------------------------


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
                "reads": {"max_lag_s": float("nan"), "primary_budget": 1.5},
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
        "[reads] primary_budget is 1.5; it must be a number from 0 to 1",
        "[apply] max_rows is 0; it must be a whole number from 1 to 100000",
        "[shards.s3] replicas item 1 is the same database as [shards.s3] primary; each node has a database of its own",
    )


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


# what it is ------------------------------------------------------------------------------------------------------


def test_settings_survive_pickling_and_compare_by_value(file: Path) -> None:
    settings = load(file, ENVIRON)

    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(load(file, ENVIRON)) == hash(settings)
    assert load(file, {**ENVIRON, "DB_PASSWORD": "other"}) != settings


def test_no_password_is_shown_by_repr_or_str(file: Path) -> None:
    settings = load(file, ENVIRON)

    for shown in (repr(settings), str(settings), repr(settings.redis), f"{settings.shards}"):
        assert SECRET not in shown
    assert "mysql:pymysql://app:***@db0/shop" in repr(settings)


@pytest.mark.parametrize("key", ["url", "broker_url", "prefix", "timeout_s", "unknown"])
def test_no_fault_of_redis_repeats_a_text(key: str) -> None:
    faults = faults_of(redis={"url": "redis://h", key: f"cluster+redis://:{SECRET}@h"})

    assert faults
    assert SECRET not in "".join(faults)


@pytest.mark.parametrize("scheme", ["mysql", "mysql:pymsql", "mysql:pymysql", "redis", "", SECRET])
@pytest.mark.parametrize("key", ["primary", "replicas", "buckets"])
def test_no_fault_of_a_shard_repeats_a_text(key: str, scheme: str) -> None:
    uri = f"{scheme}://app:{SECRET}@x@db0/shop"

    faults = faults_of(shards={"s0": {"primary": "sqlite://a", key: [uri] if key == "replicas" else uri}})

    assert faults
    assert SECRET not in "".join(faults)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mysql:pymysql://app:pw@db0/shop?x=1", "mysql:pymysql://app:***@db0/shop?x=1"),
        ("mysql:pymysql://root@127.0.0.1/shop", "mysql:pymysql://root@127.0.0.1/shop"),
        ("mysql:pymysql://app:p@s/s:w@db0/shop", "mysql:pymysql://app:***@db0/shop"),
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
        ("sentinel://:pw@h1;sentinel://:pw@h2/0", "sentinel://:***@h1;sentinel://:***@h2/0"),
        ("oracle://scott/pw@orcl", "oracle://scott:***@orcl"),
        ("sqlite:///var/s0.sqlite", "sqlite:///var/s0.sqlite"),
        ("app:pw@db0/shop", "app:***@db0/shop"),
        ("app:p://w@db0/shop", "app:***@db0/shop"),
    ],
)
def test_redact_hides_the_password_and_nothing_else(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@given(
    st.sampled_from(sorted(SHARD_SCHEMES | {"redis", "rediss", "unix"})),
    st.text(st.characters(exclude_characters=";", codec="utf-8"), min_size=0),
)
def test_redact_hides_any_password(scheme: str, tail: str) -> None:
    password = "Pa55" + tail

    shown = redact(f"{scheme}://app:{password}@host/name")

    assert "Pa55" not in shown
    assert shown == f"{scheme}://app:***@host/name"


def test_a_replica_may_be_written_with_a_weight_and_a_limit() -> None:
    items = ["sqlite://b", {"uri": "sqlite://c", "weight": 2, "limit": 50}, {"uri": "sqlite://d", "weight": 0}]

    settings = load(small(shards={"s0": {"primary": "sqlite://a", "replicas": items}}), {})

    assert settings.shards["s0"].replicas == ("sqlite://b", "sqlite://c", "sqlite://d")
    assert settings.loads() == {"s0-r0": Load(), "s0-r1": Load(2, 50), "s0-r2": Load(0)}


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ({"uri": "sqlite://b", "weight": -1}, "weight is -1; it must be a number from 0 to 1000"),
        ({"uri": "sqlite://b", "weight": "2"}, "weight is a text; it must be a number from 0 to 1000"),
        ({"uri": "sqlite://b", "limit": 0}, "limit is 0; it must be a whole number from 1 to 100000"),
        ({"uri": "sqlite://b", "wieght": 2}, "has an unknown key 'wieght'; did you mean 'weight'?"),
        (7, "is an int; it must be an address, or a table { uri = … }"),
    ],
)
def test_a_replica_that_is_written_wrongly_is_refused_with_a_word_on_what_to_do(item: object, fault: str) -> None:
    faults = faults_of(shards={"s0": {"primary": "sqlite://a", "replicas": [item]}})

    assert f"[shards.s0] replicas item 1 {fault}" in faults


def test_a_replica_without_an_address_is_refused() -> None:
    [fault] = faults_of(shards={"s0": {"primary": "sqlite://a", "replicas": [{"weight": 1}]}})

    assert fault.startswith("[shards.s0] replicas item 1 uri is missing; it must be")
