"""MariaDB, Redis and its Sentinel with TLS alone, logins of nasty characters, and a real worker: all verified."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pymysql
import pytest
import redis
from pydal import DAL, Field
from support.fixtures import needs_mariadb
from support.servers.certificates import Authority, Certificate
from support.servers.deploying import CALL_S, child, run, within

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.devcluster.processes import free_ports, worker
from pipeline.errors import LogUnavailable, ShardUnavailable
from pipeline.oplog.redis.connection import connect, health_of
from pipeline.shard import brief

PASSWORD = "p@ss/w:ö%rd?#ü"
LOGIN = f"{quote('äpp@', safe='')}:{quote(PASSWORD, safe='')}"


@dataclass
class Servers:
    """Where the servers are, and who has signed their certificates, which are for `localhost` alone."""

    folder: Path
    authority: Authority
    client: Certificate
    database: int
    redis: int
    sentinel: int

    def uri(self, arguments: str = "", host: str = "localhost", login: str = LOGIN) -> str:
        asked = arguments or f"ssl_ca={self.authority.ca}"
        return f"mysql:pymysql://{login}@{host}:{self.database}/shop?{asked}"

    def url(self, arguments: str = "", host: str = "localhost") -> str:
        return f"rediss://{LOGIN}@{host}:{self.redis}/0?{arguments or f'ssl_ca={self.authority.ca}'}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    needs_mariadb()
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder, "ours")
    own = authority.signs("server", ("localhost",))
    made = Servers(folder, authority, authority.signs("client", ("client",)), *free_ports(3))
    with ExitStack() as running:
        running.enter_context(child(_mariadbd(made, own), folder / "mariadbd.log", lambda: _open(made.database)))
        running.enter_context(child(_redis(made, own), folder / "redis.log", lambda: _open(made.redis)))
        running.enter_context(child(_sentinel(made, own), folder / "sentinel.log", lambda: _open(made.sentinel)))
        _accounts(folder / "m.sock")
        yield made


def _mariadbd(made: Servers, own: Certificate) -> list[str]:
    user = ["--user=root"] if os.geteuid() == 0 else []
    data = made.folder / "data"
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db", "--skip-name-resolve"]
    run(*install, "--auth-root-authentication-method=normal", "--innodb-log-file-size=8M", *user)
    return [
        "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={made.folder / 'm.sock'}", "--log-bin=binlog",
        f"--port={made.database}", "--bind-address=127.0.0.1", "--require-secure-transport=ON",
        f"--ssl-cert={own.cert}", f"--ssl-key={own.key}", f"--ssl-ca={made.authority.ca}", *user,
    ]  # fmt: skip


def _tls(made: Servers, own: Certificate, port: int) -> list[str]:
    return [
        "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--dir", str(made.folder),
        "--tls-cert-file", str(own.cert), "--tls-key-file", str(own.key), "--tls-ca-cert-file", str(made.authority.ca),
        "--tls-auth-clients", "no",
    ]  # fmt: skip


def _redis(made: Servers, own: Certificate) -> list[str]:
    (made.folder / "users.acl").write_text(f"user default off\nuser äpp@ on >{PASSWORD} ~* &* +@all\n")
    return ["redis-server", *_tls(made, own, made.redis), "--aclfile", str(made.folder / "users.acl"), "--save", ""]


def _sentinel(made: Servers, own: Certificate) -> list[str]:
    path = made.folder / "sentinel.conf"
    lines = (
        "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n"
        f"sentinel monitor main localhost {made.redis} 1\n"
        f'sentinel auth-user main "äpp@"\nsentinel auth-pass main "{PASSWORD}"\ntls-replication yes\n'
    )
    path.write_text(lines)
    return ["redis-server", str(path), "--sentinel", *_tls(made, own, made.sentinel)]


def _open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=CALL_S).close()
    except OSError:
        return False
    return True


def _accounts(path: Path) -> None:
    root = pymysql.connect(unix_socket=str(path), user="root", charset="utf8mb4", autocommit=True)
    with root, root.cursor() as cursor:
        cursor.execute("CREATE DATABASE shop CHARACTER SET utf8mb4")
        cursor.execute("CREATE USER `äpp@`@'%%' IDENTIFIED BY %s REQUIRE SSL", (PASSWORD,))
        cursor.execute("CREATE USER holder@'%' REQUIRE X509")
        for user in ("`äpp@`", "holder"):
            cursor.execute(f"GRANT ALL ON *.* TO {user}@'%'")


def _cipher(uri: str) -> str:
    with brief("s0", uri) as session:
        return str(session.query("SHOW STATUS LIKE 'Ssl_cipher'")[0][1])


def test_mariadb_is_reached_over_tls_and_only_where_the_certificate_is_right(servers: Servers, tmp_path: Path):
    stranger = Authority(tmp_path, "theirs")

    assert _cipher(servers.uri())
    assert _cipher(servers.uri("ssl_verify=false", host="127.0.0.1"))
    for uri in (
        servers.uri(f"ssl_ca={stranger.ca}"),
        servers.uri("ssl_verify=true"),
        servers.uri(host="127.0.0.1"),
    ):
        with pytest.raises(ShardUnavailable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            _cipher(uri)
        assert "p@ss" not in str(caught.value)


def test_an_account_that_needs_a_certificate_of_its_own_gets_one(servers: Servers):
    own = f"ssl_ca={servers.authority.ca}&ssl_cert={servers.client.cert}&ssl_key={servers.client.key}"

    assert _cipher(servers.uri(own, login="holder"))
    with pytest.raises(ShardUnavailable, match="Access denied"):
        _cipher(servers.uri(login="holder"))


def test_redis_is_reached_over_tls_and_only_where_the_certificate_is_right(servers: Servers, tmp_path: Path):
    stranger = Authority(tmp_path, "theirs")

    assert health_of(servers.url()).role == "master"
    for url in (servers.url(f"ssl_ca={stranger.ca}"), servers.url("ssl_verify=true"), servers.url(host="127.0.0.1")):
        with pytest.raises(LogUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            health_of(url)


def test_a_sentinel_with_tls_leads_to_its_master_with_tls(servers: Servers, tmp_path: Path):
    here = f"sentinel://{LOGIN}@localhost:{servers.sentinel}/main/0?ssl_ca="

    assert within(CALL_S, lambda: bool(_pong(here + str(servers.authority.ca))))
    with pytest.raises(redis.exceptions.ConnectionError):
        connect(here + str(Authority(tmp_path, "theirs").ca), read_s=CALL_S, connect_s=CALL_S).ping()


def _pong(url: str) -> bool:
    try:
        return bool(connect(url, read_s=CALL_S, connect_s=CALL_S).ping())
    except redis.exceptions.ConnectionError:
        return False


def test_an_op_passes_from_the_call_to_its_row_over_tls_alone(servers: Servers):
    path = servers.folder / "pipeline.toml"
    path.write_text(f'[redis]\nurl = "{servers.url()}"\n[shards.s0]\nprimary = "{servers.uri()}"\n', encoding="utf-8")
    client = Client(load(path))
    db = DAL(None)
    db.define_table("note", Field("words", length=40))
    client.define_tables(db)
    migrate(client)
    service = worker(path, 1, 1)
    env = {**os.environ, **service.environment}
    with child(list(service.argv), servers.folder / "worker.log", lambda: True, env):
        receipt = client.enqueue_insert("note", words="grüße")

        assert within(30, lambda: receipt.status() == "applied")
        # a sweeper applies without the broker too
        assert within(30, lambda: "Task pipeline.apply" in (servers.folder / "worker.log").read_text())
    assert client.nodes.primary("s0").query("SELECT words FROM note") == [("grüße",)]
    assert "insecure" not in (servers.folder / "worker.log").read_text()
    client.close()
