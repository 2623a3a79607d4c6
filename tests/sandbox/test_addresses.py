"""Whatever the text of a login is: quoted as documented, it reaches the driver exactly, and is never shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from celery import Celery
from hypothesis import example, given
from hypothesis import strategies as st
from pydal import DAL
from pymysql.connections import Connection
from support.sandbox.configurations import small

from pipeline.config.files import own_address
from pipeline.config.settings import Settings, load
from pipeline.config.uris import database_of, redact, with_login_of, with_zone
from pipeline.errors import ConfigError, ShardUnavailable
from pipeline.oplog.doorbell import broker_settings
from pipeline.oplog.redis.connection import connect
from pipeline.shard import NodeSession
from pipeline.shard.nodes import Nodes
from pipeline.web import address_of

#: What a password begins with, so that no other text of an address holds it by chance.
MARK = "Pa55"
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)
NASTY = "@/:%?#&;=+ ,'\"\\[]{}$ü€😀%40%zz;redis://x@y?time_zone=z"
HOSTS = st.sampled_from(["db0", "db-0.example.org", "10.0.0.1", "::1", "fe80::1%eth0", "DB0"])
PORTS = st.integers(1, 65535)


def quoted(text: str) -> str:
    """Quote as docs/configuration.md says."""
    return quote(text, safe="")


def host_in(address: str) -> str:
    return f"[{quoted(address).replace('%3A', ':')}]" if ":" in address else address


@pytest.fixture(scope="module")
def unconnected() -> Iterator[None]:
    """PyMySQL's connections keep their arguments and go nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "connect", lambda self, sock=None: None)
        yield


def given_to_pymysql(uri: str) -> Any:
    session = NodeSession("s0", uri)
    try:
        return session.adapter.connector()
    finally:
        session.db.close()


@given(TEXTS, TEXTS, HOSTS, PORTS, TEXTS)
@example(NASTY, NASTY, "::1", 3307, NASTY)
@example("ü", "100%", "db0", 3306, "shop")
def test_pymysql_gets_exactly_what_was_meant(
    unconnected: None, user: str, password: str, host: str, port: int, database: str
):
    uri = f"mysql:pymysql://{quoted(user)}:{quoted(password)}@{host_in(host)}:{port}/{quoted(database)}"
    shard = load(small(shards={"s0": {"primary": uri, "time_zone": "Europe/Berlin"}}), {}).shards["s0"]

    connection = given_to_pymysql(shard.primary)

    assert (connection.user, connection.password.decode(), connection.db) == (user, password, database)
    assert (connection.host, connection.port, connection.charset) == (host, port, "utf8mb4")


@given(TEXTS, TEXTS, TEXTS)
@example(NASTY, NASTY, NASTY)
def test_a_promoted_replica_gets_exactly_the_login_of_its_primary(
    unconnected: None, user: str, password: str, database: str
):
    primary = f"mysql:pymysql://{quoted(user)}:{quoted(password)}@db0/shop?ssl_cert=/c&ssl_key=/k"
    replica = with_zone(f"mysql:pymysql://ro:x@db1/{quoted(database)}?unix_socket=/s&ssl_cert=/r", "+02:00")

    writing = with_login_of(replica, primary)

    assert writing.startswith(f"mysql:pymysql://{quoted(user)}:{quoted(password)}@db1/{quoted(database)}?")
    assert sorted(writing.partition("?")[2].split("&")) == [
        "ssl_cert=/c", "ssl_key=/k", "time_zone=+02:00", "unix_socket=/s",
    ]  # fmt: skip


@given(st.text(st.characters(exclude_characters="\0:@", codec="utf-8"), min_size=1), TEXTS, TEXTS)
@example("ü/", "100%", "a%20b")
def test_an_applications_own_login_is_read_as_pydal_reads_it(
    unconnected: None, user: str, password: str, database: str
):
    password, database = password.replace("@", "%40"), database.replace("?", "").replace("\n", "") or "x"
    user = user.replace("/", "-").replace("\n", "-")

    for decoded in (False, True):
        uri = f"mysql:pymysql://{quoted(user) if decoded else user}:{quoted(password) if decoded else password}"
        theirs = DAL(
            f"{uri}@db0/{database}", pool_size=0, decode_credentials=decoded, migrate=False
        )._adapter.driver_args
        ours = given_to_pymysql(own_address(f"{uri}@db0/{database}", None, decoded=decoded))

        assert (ours.user, ours.password.decode(), ours.db) == (user, password, database)
        assert (theirs["user"], theirs["passwd"], theirs["db"]) == (user, password, database)


@given(TEXTS, TEXTS, HOSTS, PORTS, st.integers(0, 15), st.sampled_from(["redis", "rediss"]))
@example(NASTY, NASTY, "::1", 6380, 3, "rediss")
def test_redis_py_and_kombu_get_exactly_what_was_meant(
    user: str, password: str, host: str, port: int, number: int, scheme: str
):
    url = f"{scheme}://{quoted(user)}:{quoted(password)}@{host_in(host)}:{port}/{number}"
    settings = load(small(redis={"url": url}), {}).redis

    ours = connect(settings.url, read_s=1, connect_s=1).connection_pool.connection_kwargs
    with pool_of_celery(settings.broker_url) as pool:
        theirs = pool.connection_kwargs

    for found, name in ((ours, host), (theirs, host.lower())):  # Celery writes names in small letters
        assert [found[key] for key in ("username", "password", "port", "db")] == [user, password, port, number]
        assert found["host"] == name


@given(TEXTS, TEXTS, TEXTS, st.integers(0, 15))
@example(NASTY, NASTY, NASTY, 3)
def test_a_socket_of_redis_is_reached_with_exactly_what_was_meant(user: str, password: str, name: str, number: int):
    login, path = f"{quoted(user)}:{quoted(password)}", f"/run/{name}".replace("//", "/")
    url, broker = (
        f"unix://{login}@{quote(path)}?db={number}",
        f"redis+socket://{login}@{quote(path)}?virtual_host={number}",
    )
    settings = load(small(redis={"url": url, "broker_url": broker}), {}).redis

    ours = connect(settings.url, read_s=1, connect_s=1).connection_pool.connection_kwargs
    same = connect(settings.broker_url, read_s=1, connect_s=1).connection_pool.connection_kwargs
    with pool_of_celery(settings.broker_url) as pool:
        theirs = pool.connection_kwargs

    for found in (ours, same, theirs):
        assert [found[key] for key in ("username", "password", "path", "db")] == [user, password, path, number]


@given(TEXTS, TEXTS)
@example(NASTY, NASTY)
def test_sentinels_hand_the_master_exactly_what_was_meant(user: str, password: str):
    url = f"sentinel://{quoted(user)}:{quoted(password)}@h1:26380,[::1],h3/main/2"
    settings = load(small(redis={"url": url}), {}).redis

    ours: Any = connect(settings.url, read_s=1, connect_s=1).connection_pool
    with pool_of_celery(settings.broker_url) as theirs:
        for found in (ours, theirs):
            addressed = [one.connection_pool.connection_kwargs for one in found.sentinel_manager.sentinels]
            assert [(one["host"], one["port"]) for one in addressed] == [("h1", 26380), ("::1", 26379), ("h3", 26379)]
            assert (found.service_name, found.connection_kwargs["db"]) == ("main", 2)
            assert [found.connection_kwargs[name] for name in ("username", "password")] == [user, password]


@given(TEXTS, TEXTS, HOSTS, st.booleans())
@example(NASTY, NASTY, "::1", True)
def test_a_connection_of_web2py_is_understood_with_exactly_its_login(user: str, password: str, host: str, verify: bool):
    options: dict[str, Any] = {
        "ssl": True,
        "ssl_ca_certs": "/a b/&?@.pem",
        "ssl_cert_reqs": "required" if verify else "none",
    }
    rconn = redis.StrictRedis(host, 6380, db=3, username=user, password=password, **options)

    ours = connect(address_of(rconn), read_s=1, connect_s=1).connection_pool.connection_kwargs

    assert [ours[key] for key in ("username", "password", "host", "port", "db")] == [user, password, host, 6380, 3]
    assert (ours["ssl_ca_certs"], ours["ssl_check_hostname"]) == ("/a b/&?@.pem", verify)


FORMS = ["toml", "environment", "ini", "ini with replicas", "own of an ini"]


@pytest.mark.parametrize("form", FORMS)
@given(password=TEXTS)
@example(password=NASTY)
def test_each_form_of_a_configuration_gives_the_driver_the_same(
    unconnected: None, tmp_path_factory: pytest.TempPathFactory, form: str, password: str
):
    uri = f"mysql:pymysql://app:{quoted(password)}@db0/shop"
    url = f"redis://app:{quoted(password)}@log/0"

    settings = load(*written(tmp_path_factory.getbasetemp(), form, uri, url, quoted(password)))

    where = settings.shards["s0"].replicas[0] if form == "ini with replicas" else settings.shards["s0"].primary
    assert given_to_pymysql(where).password.decode() == password
    assert connect(settings.redis.url, read_s=1, connect_s=1).connection_pool.connection_kwargs["password"] == password


def written(folder: Path, form: str, uri: str, url: str, password: str) -> tuple[Path, dict[str, str]]:
    """Write the configuration, and return its path and the environment."""
    toml = f'[redis]\nurl = "{url}"\n[shards.s0]\nprimary = "{uri}"\n'
    keys = {
        "ini": f"shard_s0 = {uri}",
        "ini with replicas": f"shard_s0 = mysql:pymysql://a:b@db9/shop\nreplicas_s0 = {uri}, mysql:pymysql://c@db8/shop",
        "own of an ini": f"shard_s0 = {uri}\n[db]\nuri = {uri}",
    }
    path = folder / ("p.toml" if form in ("toml", "environment") else "appconfig.ini")
    if form == "environment":
        toml = toml.replace(f":{password}@", ":${SECRET}@")
    ini = f"[pipeline]\nredis = {url}\n{keys.get(form, '')}\n".replace("%", "%%")
    path.write_text(toml if path.suffix == ".toml" else ini, encoding="utf-8")
    return path, {"SECRET": password}


@given(TEXTS)
@example(NASTY)
@example("@h/;redis://")
def test_nothing_that_prints_an_address_shows_its_password(unconnected: None, text: str):
    password = MARK + text
    uri = f"mysql:pymysql://app:{quoted(password)}@db0/shop"
    for url in (f"rediss://u:{quoted(password)}@h:6380/0", f"sentinel://u:{quoted(password)}@h1,h2/m/0"):
        settings = load(
            small(redis={"url": url}, shards={"s0": {"primary": uri, "replicas": [uri.replace("db0", "db1")]}}), {}
        )
        shown = [*printed(settings), redact(uri), redact(url), database_of(uri)]

        assert not [one for one in shown if MARK in one]


@given(TEXTS, st.sampled_from(["mysql:pymysql", "redis", "rediss", "sentinel", "unix", "redis+socket", "nonsense"]))
@example("@h/d?x=1", "redis")
@example("h/d", "mysql:pymysql")
def test_no_fault_of_an_address_that_is_not_quoted_shows_it(text: str, scheme: str):
    for address in (f"{scheme}://app:{MARK}{text}@h/d", f"{scheme}://app:{MARK}{text}", f"{scheme}:{MARK}{text}@h/0"):
        shown = [redact(address)]
        for changes in ({"redis": {"url": address}}, {"shards": {"s0": {"primary": address}}}):
            try:
                load(small(**changes), {})
            except ConfigError as error:
                shown.append(str(error))

        assert not [one for one in shown if MARK in one]


def test_a_server_that_is_away_is_named_without_the_password(caplog: pytest.LogCaptureFixture):
    session = NodeSession("s0", f"mysql:pymysql://app:{MARK}%40%2F@127.0.0.1:9/shop", connect_s=1)

    with caplog.at_level(logging.DEBUG), pytest.raises(ShardUnavailable) as caught:
        session.query("SELECT 1")

    assert MARK not in f"{caught.value!r} {caught.value.__cause__!r} {caplog.text} {session.db!r} {session.db._uri}"


def printed(settings: Settings) -> Iterator[str]:
    """Yield whatever in this process shows an address to a person."""
    yield from (repr(settings), str(settings), repr(settings.redis), repr(settings.shards))
    nodes = Nodes(settings)
    for session in (nodes.primary("s0"), *nodes.replicas("s0")):
        yield from (repr(session), repr(session.db), str(session.db._uri), repr(session.db._adapter.driver_args))
        yield repr(session.dialect)
    yield repr(connect(settings.redis.url, read_s=1, connect_s=1))
    app = Celery("test", set_as_current=False)
    app.conf.update(broker_settings(settings.redis.broker_url, "pl", ["s0"]))
    yield from (app.connection().as_uri(), app.conf.humanize(with_defaults=False))


@contextmanager
def pool_of_celery(broker_url: str) -> Iterator[Any]:
    """Yield the pool from which Celery takes connections to the broker; none is made."""
    app = Celery("test", set_as_current=False)
    app.conf.update(broker_settings(broker_url, "pl", ["s0"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.Redis, "ping", lambda self: True)
        with app.connection_for_write() as connection:
            yield connection.channel().pool
