"""What an application means by its configuration, and web2py's own Redis connection as an address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

import pipeline
from pipeline.errors import ConfigError
from pipeline.testing import sandbox
from pipeline.web import clients
from pipeline.web.clients import address_of, client_for

DB = SimpleNamespace(_uri="sqlite://storage.sqlite")


@pytest.fixture(autouse=True)
def _no_client_is_left() -> Iterator[None]:
    yield
    pipeline.close()
    clients.close_clients()


def folder(tmp_path: Path) -> str:
    (tmp_path / "private").mkdir()
    return str(tmp_path)


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        (redis.StrictRedis("log", 6380, db=3), "redis://log:6380/3"),
        (redis.StrictRedis("log", password="p@ss", username="u"), "redis://u:p%40ss@log:6379/0"),
        (redis.StrictRedis("log", ssl=True), "rediss://log:6379/0"),
        (redis.StrictRedis(unix_socket_path="/run/redis.sock", db=2), "unix:///run/redis.sock?db=2"),
    ],
)
def test_a_connection_is_understood_as_its_address(connection: Any, address: str):
    assert address_of(connection) == address


def test_what_is_no_connection_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="write the address as the key redis"):
        address_of("redis://localhost")


def test_each_configuration_has_one_client_and_the_first_answers_for_the_package(tmp_path: Path):
    where, section = folder(tmp_path), {"redis": "redis://log:6379/0"}

    first = client_for(where, DB, {"pipeline": section})
    same = client_for(where, DB, {"pipeline": dict(section)})
    other = client_for(where, DB, {"pipeline": {**section, "prefix": "other"}})

    assert first is same is pipeline.current()
    assert other is not first
    assert first.settings.shards["s0"].primary == DB._uri


def test_a_connection_alone_is_enough_for_one_database(tmp_path: Path):
    client = client_for(folder(tmp_path), DB, redis_conn=redis.StrictRedis("log"))

    assert client.settings.redis.url == "redis://log:6379/0"
    assert client.settings.shards["s0"].primary == DB._uri


def test_without_a_configuration_the_file_beside_the_application_is_meant(tmp_path: Path):
    where = folder(tmp_path)
    text = '[redis]\nurl = "redis://log"\n[shards.s0]\nprimary = "sqlite:///tmp/nowhere.sqlite"\n'
    (tmp_path / "private" / "pipeline.toml").write_text(text)

    assert client_for(where, DB).settings.source == str(tmp_path / "private" / "pipeline.toml")


def test_without_a_configuration_a_configured_pipeline_is_used(tmp_path: Path):
    with sandbox() as box:
        assert client_for(folder(tmp_path), DB) is box.client


def test_a_fault_is_named_by_the_key_of_the_ini_file(tmp_path: Path):
    where = folder(tmp_path)

    with pytest.raises(ConfigError) as caught:
        client_for(where, DB, {"pipeline": {"redis": "http://log", "shard_s0": "mysql://app:secret@db/shop"}})

    assert f"{where}/private/appconfig.ini: [pipeline] redis has" in str(caught.value)
    assert "[pipeline] shard_s0 does not name its driver" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_two_addresses_of_redis_are_one_too_many(tmp_path: Path):
    with pytest.raises(ConfigError, match="leave redis_conn= out"):
        client_for(folder(tmp_path), DB, {"pipeline": {"config": "pipeline.toml"}}, redis.StrictRedis("log"))


def test_a_section_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"appconfig.ini has no section \[pipeline\]"):
        client_for(folder(tmp_path), DB, {"db": {}})
