"""Settings: where they come from, and what they are once read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from support.sandbox.configurations import SECRET, faults_of, shard, small

from pipeline.config.settings import ReadSettings, TableSettings, load
from pipeline.errors import ConfigError

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
    assert settings.reads == ReadSettings(5.0, 0.1, "primary", 0)
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
