"""What an application means by its configuration, and web2py's own Redis connection as an address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

import pipeline
from pipeline.config.settings import load
from pipeline.errors import ConfigError
from pipeline.testing import sandbox
from pipeline.web import address_of, client_for, close_clients, configuration_of

DB = SimpleNamespace(_uri="sqlite://storage.sqlite")
INI = "/private/appconfig.ini"
OWN_INI = "[db]\nuri = mysql://app:secret@db0/shop?set_encoding=utf8\n[pipeline]\nredis = redis://log:6379/0\n"


@pytest.fixture(autouse=True)
def _no_client_is_left() -> Iterator[None]:
    yield
    pipeline.close()
    close_clients()


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


def written(where: Path, text: str) -> str:
    """Write an application's ini file, and return the application's folder."""
    made = folder(where)
    (where / "private" / "appconfig.ini").write_text(text)
    return made


def meant(where: str, db: Any = DB) -> Any:
    """Return the client of an application whose model has no AppConfig: `Pipeline(db)`."""
    return client_for(where, db, configuration_of(where))


def test_a_model_without_an_appconfig_means_the_section_of_its_ini_file(tmp_path: Path):
    where = written(tmp_path, "[pipeline]\nredis = redis://log:6379/0\nshard_s0 = sqlite:///tmp/nowhere.sqlite\n")

    client = meant(where)

    assert client is meant(where)
    assert client.settings.redis.url == "redis://log:6379/0"
    assert client.settings.shards["s0"].primary == "sqlite:///tmp/nowhere.sqlite"


def test_each_application_of_a_process_means_its_own_files(tmp_path: Path):
    where = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        text = f"[pipeline]\nredis = redis://log\nprefix = {name}\nshard_s0 = sqlite:///tmp/nowhere.sqlite\n"
        where.append(written(tmp_path / name, text))

    assert [meant(one).settings.redis.prefix for one in where] == ["one", "two"]


def test_web_processes_workers_and_commands_read_the_same_from_one_ini_file(tmp_path: Path):
    where = written(tmp_path, OWN_INI)
    db = SimpleNamespace(_uri="mysql://app:secret@db0/shop?set_encoding=utf8")

    web, workers = meant(where, db).settings, load(where + INI, {})

    assert web == workers
    assert web.shards["s0"].primary == "mysql:pymysql://app:secret@db0/shop?set_encoding=utf8mb4"
    assert (web.spool.enabled, web.spool.path) == (True, str(tmp_path / "private" / "appconfig.spool"))


def test_a_file_of_sqlite_is_the_applications_own_for_all(tmp_path: Path):
    where = written(tmp_path, "[db]\nuri = sqlite://storage.sqlite\n[pipeline]\nredis = redis://log:6379/0\n")
    db = SimpleNamespace(_uri="sqlite://storage.sqlite", _folder=str(tmp_path / "databases"))

    web, workers = meant(where, db).settings, load(where + INI, {})

    assert web.shards["s0"].primary == workers.shards["s0"].primary == f"sqlite://{tmp_path}/databases/storage.sqlite"


def test_an_address_that_only_the_model_has_is_asked_for_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    where = written(tmp_path, "[pipeline]\nredis = redis://log:6379/0\n")

    client = meant(where, SimpleNamespace(_uri="mysql://app:secret@db0/shop"))

    assert client.settings.shards["s0"].primary == "mysql:pymysql://app:secret@db0/shop"
    assert client is meant(where, SimpleNamespace(_uri="mysql://app:secret@db0/shop"))
    [said] = caplog.messages
    assert "write the address that the model gives to DAL(...) as shard_s0 = mysql:pymysql://" in said
    with pytest.raises(ConfigError, match=r"shard_s0 = mysql:pymysql://user:password@host/database"):
        load(where + INI, {})


def test_an_address_that_the_file_and_the_model_do_not_share_is_refused(tmp_path: Path):
    where = written(tmp_path, OWN_INI)

    with pytest.raises(ConfigError, match=r"appconfig.ini \[db\] uri names another database than db"):
        meant(where, SimpleNamespace(_uri="mysql://app:secret@db1/shop"))


def test_an_own_database_that_cannot_be_a_shard_is_named_as_it_is_written(tmp_path: Path):
    where = written(tmp_path, "[db]\nuri = mongodb://db0/shop\n[pipeline]\nredis = redis://log:6379/0\n")

    for read in (lambda: meant(where, SimpleNamespace(_uri="mongodb://db0/shop")), lambda: load(where + INI, {})):
        with pytest.raises(ConfigError) as caught:
            read()
        assert f"{where}{INI} [db] uri, the one shard as there is no shard_…, has a scheme" in str(caught.value)
        assert "primary" not in str(caught.value)


def test_an_application_without_any_configuration_learns_where_to_write_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    where = folder(tmp_path)
    monkeypatch.delenv("PIPELINE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=r"neither \[pipeline\] in .*appconfig.ini nor .*pipeline.toml"):
        meant(where)
