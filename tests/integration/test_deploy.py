"""Every file in deploy/ is accepted by the tool that will read it, and means what it says."""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pymysql
import pytest
import redis

from pipeline.clock import polls

DEPLOY = Path(__file__).parents[2] / "deploy"
#: mariadbd stands in sbin, which is not on everybody's PATH.
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
STARTUP_S = 60.0
CALL_S = 5.0
ACCESS_DENIED = {1044, 1045, 1142, 1227}
READ_ONLY = 1290


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool, path=PATH) is None, reason=f"{tool} is not installed")


# MariaDB -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    port: int
    socket: Path
    passwords: dict[str, str]

    def connect(self, user: str, password: str | None = None) -> pymysql.Connection:
        where = {"unix_socket": str(self.socket)} if user == "root" else {"host": "127.0.0.1", "port": self.port}
        word = password if password is not None else self.passwords[user]
        return pymysql.connect(user=user, password=word, connect_timeout=5, read_timeout=10, autocommit=True, **where)

    def rows(self, user: str, sql: str) -> tuple[tuple, ...]:
        connection = self.connect(user)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()

    def refuses(self, user: str, sql: str) -> bool:
        """Whether *user* lacks the privilege; any other error is raised."""
        try:
            self.rows(user, sql)
        except pymysql.MySQLError as error:
            if error.args[0] in ACCESS_DENIED:
                return True
            raise
        return False

    def script(self, path: Path) -> None:
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={self.socket}"]
        subprocess.run(client, input=path.read_bytes(), check=True, timeout=60, capture_output=True)


@dataclass(frozen=True)
class Shard:
    primary: Node
    replica: Node


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What prepare.sh makes, with the replica's primary on a port of this machine."""
    target, port = tmp_path_factory.mktemp("prepared"), free_port()
    environ = {"PATH": PATH, "SHARDS": "127.0.0.1", "PRIMARY_PORT": str(port)}
    subprocess.run([DEPLOY / "prepare.sh", target], env=environ, check=True, timeout=30, capture_output=True)
    lines = (target / ".env").read_text().splitlines()
    return SimpleNamespace(target=target, port=port, words=dict(line.split("=", 1) for line in lines))


@pytest.fixture(scope="module")
def shard(secrets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    """A primary and a replica that run with the fragments, set up by the SQL files."""
    words = secrets.words
    passwords = {
        "root": "",
        "app": words["DB_PASSWORD"],
        "reader": words["READER_PASSWORD"],
        "migrate": words["MIGRATE_PASSWORD"],
        "replicator": words["REPLICATION_PASSWORD"],
    }
    with ExitStack() as stack:
        home = tmp_path_factory.mktemp("mariadb")
        primary = stack.enter_context(mariadb_node(home / "p", secrets.port, "primary", 10, passwords))
        primary.script(secrets.target / "secrets" / "accounts.sql")
        replica = stack.enter_context(mariadb_node(home / "r", free_port(), "replica", 11, passwords))
        replica.script(secrets.target / "secrets" / "replicate-127.0.0.1.sql")
        primary.rows("migrate", "CREATE TABLE shop.thing (id BIGINT PRIMARY KEY, label VARCHAR(3)) ENGINE=InnoDB")
        primary.rows("app", "INSERT INTO shop.thing VALUES (1, 'one')")
        assert within(30, lambda: has_row(replica)), "the replica did not replicate"
        yield Shard(primary, replica)


def has_row(replica: Node) -> bool:
    try:
        return replica.rows("reader", "SELECT label FROM shop.thing") == (("one",),)
    except pymysql.MySQLError:
        return False


@contextmanager
def mariadb_node(home: Path, port: int, role: str, server_id: int, passwords: dict[str, str]) -> Iterator[Node]:
    home.mkdir()
    options = home / "my.cnf"
    options.write_text(f"!include {DEPLOY}/mariadb/node.cnf\n!include {DEPLOY}/mariadb/{role}.cnf\n")
    (home / "tmp").mkdir()  # a starting server deletes all temporary tables it finds: not those of another's, in /tmp
    common = [f"--defaults-file={options}", f"--datadir={home}/data", f"--user={getpass.getuser()}"]
    common.append(f"--tmpdir={home}/tmp")
    install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    # As the container image does: else the installation itself is in the binary log, and the replica has it already.
    run(*install, "--skip-log-bin", timeout_s=STARTUP_S)
    sock = Path("/tmp") / f"deploy-test-{port}.sock"  # a socket's path may have 107 characters at most
    own = [f"--socket={sock}", f"--pid-file={home}/pid", f"--server-id={server_id}", "--bind-address=127.0.0.1"]
    small = ["--innodb-buffer-pool-size=32M", "--performance-schema=OFF"]
    node = Node(port, sock, passwords)
    with child(["mariadbd", *common, *own, *small, f"--port={port}"], home / "log", lambda: answers(node)):
        yield node
    sock.unlink(missing_ok=True)


def answers(node: Node) -> bool:
    # Not PyMySQL: where nobody listens yet, it leaves its socket open, and that is a warning.
    ping = ["mariadb-admin", "--no-defaults", "--user=root", f"--socket={node.socket}", "ping"]
    return not subprocess.run(ping, capture_output=True, timeout=CALL_S, check=False).returncode


@pytest.mark.mariadb
@needs("mariadbd")
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_mariadbd_parses_the_fragments(role: str, tmp_path: Path) -> None:
    options = tmp_path / "my.cnf"
    options.write_text(f"!include {DEPLOY}/mariadb/node.cnf\n!include {DEPLOY}/mariadb/{role}.cnf\n")

    done = run("mariadbd", f"--defaults-file={options}", f"--datadir={tmp_path}", "--help", "--verbose")

    shown = dict(line.split(None, 1) for line in done.stdout.splitlines() if len(line.split(None, 1)) == 2)
    assert shown["slave-net-timeout"].strip() == "4"
    assert shown["read-only"].strip() == ("TRUE" if role == "replica" else "FALSE")
    assert "unknown" not in done.stderr.lower()


@pytest.mark.mariadb
@needs("mariadbd")
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_a_running_server_has_every_value_of_the_fragments(role: str, shard: Shard) -> None:
    wanted = {**options_of("node"), **options_of(role)}
    wanted["time_zone"] = wanted.pop("default_time_zone")  # the server's name for it
    node: Node = getattr(shard, role)

    have = dict(node.rows("root", "SHOW GLOBAL VARIABLES"))

    special = {"log_bin": "ON"}  # the server shows whether, and the name elsewhere
    wrong = {
        name: (value, have.get(name))
        for name, value in wanted.items()
        if plain(have.get(name, "")) != plain(special.get(name, value))
    }
    assert len(wanted) > 20
    assert wrong == {}


def options_of(name: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (DEPLOY / "mariadb" / f"{name}.cnf").read_text().splitlines())
    return {key.strip(): value.strip() for key, found, value in (line.partition("=") for line in lines) if found}


def plain(value: str) -> str:
    """Return a server's and a file's spelling of one value alike."""
    if value[:-1].isdigit() and value.endswith("M"):
        return str(int(value[:-1]) << 20)
    return {"ON": "1", "OFF": "0"}.get(value.upper(), value.lower())


@pytest.mark.mariadb
@needs("mariadbd")
def test_the_reader_only_reads(shard: Shard) -> None:
    assert shard.replica.rows("reader", "SELECT COUNT(*) FROM shop.thing") == ((1,),)
    assert shard.replica.rows("reader", "SELECT @@read_only") == ((1,),)
    for sql in ("INSERT INTO shop.thing VALUES (2, 'two')", "DELETE FROM shop.thing", "SELECT * FROM mysql.user"):
        assert shard.primary.refuses("reader", sql), sql
    grants = "SHOW GRANTS FOR reader"  # on the replica read_only answers first, so look at what a promotion would leave
    assert shard.replica.rows("root", grants) == shard.primary.rows("root", grants)


@pytest.mark.mariadb
@needs("mariadbd")
def test_the_application_writes_rows_and_nothing_else(shard: Shard) -> None:
    shard.primary.rows("app", "INSERT INTO shop.thing VALUES (5, 'x')")
    shard.primary.rows("app", "SELECT id FROM shop.thing WHERE id = 5 FOR UPDATE SKIP LOCKED")
    shard.primary.rows("app", "DELETE FROM shop.thing WHERE id = 5")

    for sql in (
        "DROP DATABASE shop",
        "DROP TABLE shop.thing",
        "CREATE TABLE shop.other (id BIGINT)",
        "ALTER TABLE shop.thing ADD x INT",
        "SELECT * FROM mysql.user",
        "SET GLOBAL read_only = 0",
    ):
        assert shard.primary.refuses("app", sql), sql


@pytest.mark.mariadb
@needs("mariadbd")
def test_migrate_makes_and_alters_tables_but_drops_none(shard: Shard) -> None:
    shard.primary.rows("migrate", "CREATE TABLE shop.made (id BIGINT PRIMARY KEY, a INT)")
    shard.primary.rows("migrate", "ALTER TABLE shop.made ADD b INT, ADD INDEX by_b (b)")

    for sql in ("DROP TABLE shop.made", "DROP DATABASE shop", "SELECT * FROM mysql.user", "CREATE DATABASE other"):
        assert shard.primary.refuses("migrate", sql), sql


@pytest.mark.mariadb
@needs("mariadbd")
def test_a_replica_takes_writes_from_its_primary_only(shard: Shard) -> None:
    with pytest.raises(pymysql.MySQLError) as caught:
        shard.replica.rows("app", "INSERT INTO shop.thing VALUES (3, 'x')")

    assert caught.value.args[0] == READ_ONLY


@pytest.mark.mariadb
@needs("mariadbd")
def test_a_value_that_does_not_fit_is_refused(shard: Shard) -> None:
    with pytest.raises(pymysql.MySQLError, match="too long"):
        shard.primary.rows("root", "INSERT INTO shop.thing VALUES (4, 'four')")


@pytest.mark.mariadb
@needs("mariadbd")
def test_the_accounts_can_be_made_twice(shard: Shard, secrets: SimpleNamespace) -> None:
    shard.primary.script(secrets.target / "secrets" / "accounts.sql")

    assert shard.primary.rows("app", "SELECT 1") == ((1,),)


# Redis ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["log", "broker"])
def redis_role(request: pytest.FixtureRequest) -> str:
    return request.param


@contextmanager
def redis_server(role: str, secrets: SimpleNamespace, home: Path) -> Iterator[int]:
    port = free_port()
    acl = secrets.target / "secrets" / f"{role}.acl"
    own = ["--port", str(port), "--dir", str(home), "--aclfile", str(acl), "--bind", "127.0.0.1"]
    command = ["redis-server", str(DEPLOY / "redis" / f"redis-{role}.conf"), *own]
    with child(command, home / "log", lambda: redis_answers(port)):
        yield port


def redis_answers(port: int) -> bool:
    """Ask as compose's health check does."""
    done = subprocess.run(
        ["redis-cli", "-u", f"redis://health:none@127.0.0.1:{port}", "ping"],
        capture_output=True, text=True, timeout=CALL_S, check=False,
    )  # fmt: skip
    return "PONG" in done.stdout


@contextmanager
def redis_client(port: int, user: str, password: str) -> Iterator[redis.Redis]:
    client = redis.Redis(
        port=port, username=user, password=password, socket_timeout=CALL_S, socket_connect_timeout=CALL_S
    )
    try:
        yield client
    finally:
        client.close()


@needs("redis-server")
def test_redis_has_every_value_of_its_file(redis_role: str, secrets: SimpleNamespace, tmp_path: Path) -> None:
    lines = (DEPLOY / "redis" / f"redis-{redis_role}.conf").read_text().splitlines()
    wanted = dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))
    limits = wanted.pop("client-output-buffer-limit", "")
    for given_by_this_test in ("port", "dir", "aclfile", "bind"):
        del wanted[given_by_this_test]

    with (
        redis_server(redis_role, secrets, tmp_path) as port,
        redis_client(port, "admin", secrets.words["REDIS_ADMIN_PASSWORD"]) as client,
    ):
        have = client.config_get("*")

    sizes = {"2gb": str(2 << 30), "256mb": str(256 << 20), '""': ""}
    assert {name: have[name] for name in wanted} == {name: sizes.get(value, value) for name, value in wanted.items()}
    assert have["maxmemory-policy"] == "noeviction"
    assert not limits or f"pubsub {32 << 20} {8 << 20} 60" in have["client-output-buffer-limit"]


@needs("redis-server")
def test_the_pipelines_redis_user_has_the_logs_commands_only(secrets: SimpleNamespace, tmp_path: Path) -> None:
    with (
        redis_server("log", secrets, tmp_path) as port,
        redis_client(port, "pipeline", secrets.words["REDIS_PASSWORD"]) as client,
    ):
        client.xadd("pl:log:1", {"op": "x"}, id="5-*")
        digest = client.script_load("return redis.call('XADD', KEYS[1], '5-*', 'op', 'y')")
        assert client.evalsha(digest, 1, "pl:log:1") == b"5-1"
        assert client.eval("return redis.call('ZADD', KEYS[1], 1, 'b')", 1, "pl:dirty:s0") == 1
        assert client.info("memory")["maxmemory_policy"] == "noeviction"
        assert client.info("replication")["master_replid"]
        assert len(client.time()) == 2
        client.hset("pl:watermarks", "1", "5-1")
        client.set("pl:bell", "1", px=1000, nx=True)
        client.xtrim("pl:log:1", minid="5-1")
        assert client.wait(0, 10) == 0

        for command in REFUSED_BY_LOG:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("other", "x")


REFUSED_BY_LOG = (
    "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "KEYS *", "SHUTDOWN",
    "SCRIPT FLUSH", "ACL LIST", "CLIENT KILL TYPE normal", "REPLICAOF NO ONE", "MONITOR",
)  # fmt: skip


@needs("redis-server")
def test_nobody_enters_redis_without_a_password(redis_role: str, secrets: SimpleNamespace, tmp_path: Path) -> None:
    with redis_server(redis_role, secrets, tmp_path) as port:
        with redis_client(port, "health", "none") as health:
            assert health.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                health.get("pl:x")
        with redis_client(port, "default", "") as nobody, pytest.raises(redis.exceptions.AuthenticationError):
            nobody.ping()


# Flower and the broker's user ------------------------------------------------------------------------------------

APP = """
import os
from celery import Celery
app = Celery("demo", broker=os.environ["BROKER"])
app.conf.update(worker_send_task_events=True, task_ignore_result=True, broker_connection_retry_on_startup=True)

@app.task(name="pipeline.apply")
def apply(shard, ops):
    return {"applied": ops, "rejected": 0, "ms": 41}
"""


@needs("redis-server")
def test_celery_and_flower_work_with_the_brokers_user(secrets: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "demoapp.py").write_text(APP)
    with ExitStack() as stack:
        port = stack.enter_context(redis_server("broker", secrets, tmp_path))
        web, login = free_port(), secrets.words["FLOWER_BASIC_AUTH"]
        environ = {
            **os.environ,
            "BROKER": f"redis://pipeline:{secrets.words['BROKER_PASSWORD']}@127.0.0.1:{port}/0",
            "FLOWER_BASIC_AUTH": login,
            "REMAP_SIGTERM": "SIGQUIT",
        }
        celery = [sys.executable, "-m", "celery", "-A", "demoapp"]
        config = f"--conf={DEPLOY / 'flowerconfig.py'}"
        at = [config, "--address=127.0.0.1", f"--port={web}"]
        start = {"cwd": tmp_path, "env": environ}
        stack.enter_context(
            child(
                [*celery, "flower", *at], tmp_path / "flower", lambda: get(web, "/healthcheck") == (200, "OK"), **start
            )
        )
        worker = [*celery, "worker", "-Q", "shard.s0", "-n", "s0.%i@%h", "-c", "1", "-E", "-l", "INFO"]
        seen = tmp_path / "worker"
        stack.enter_context(child(worker, seen, lambda: " ready." in seen.read_text(), **start))

        kwargs = json.dumps({"shard": "s0", "ops": 498})
        call = [*celery, "call", "pipeline.apply", "--queue=shard.s0", f"--kwargs={kwargs}"]
        subprocess.run(call, check=True, timeout=60, capture_output=True, **start)

        assert within(30, lambda: "498" in get(web, "/api/tasks?state=SUCCESS", login)[1])
        (task,) = json.loads(get(web, "/api/tasks", login)[1]).values()
        assert task["worker"].startswith("s0.0@")
        assert task["result"] == "{'applied': 498, 'rejected': 0, 'ms': 41}"
        assert get(web, "/tasks")[0] == 401
        assert "NOPERM" not in seen.read_text() + (tmp_path / "flower").read_text()


def get(port: int, path: str, login: str = "") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=CALL_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except OSError:
        return 0, ""


def test_flower_cuts_long_texts_and_leaves_short_ones() -> None:
    format_task = runpy.run_path(str(DEPLOY / "flowerconfig.py"))["format_task"]

    task = format_task(SimpleNamespace(kwargs="{'shard': 's0'}", result="x" * 5000, exception=None))

    assert task.kwargs == "{'shard': 's0'}"
    assert len(task.result) == 200
    assert task.exception is None


@pytest.mark.parametrize(("value", "logins"), [(None, None), ("", None), ("a:1,b:2", ["a:1", "b:2"])])
def test_flower_asks_for_a_login_only_where_one_is_set(
    value: str | None, logins: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    if value is not None:
        monkeypatch.setenv("FLOWER_BASIC_AUTH", value)

    assert runpy.run_path(str(DEPLOY / "flowerconfig.py")).get("basic_auth") == logins


# systemd, compose, the configuration --------------------------------------------------------------------------------

UNITS = ("pipeline-worker@s0.service", "pipeline-worker.service", "pipeline-flower.service")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies of the units whose program exists here."""
    for file in (DEPLOY / "systemd").glob("pipeline*.[st]*"):
        (tmp_path / file.name).write_text(file.read_text().replace("/opt/pipeline/bin/celery", "/bin/true"))
    return tmp_path


@needs("systemd-analyze")
def test_systemd_accepts_the_units(units: Path) -> None:
    files = [str(units / name) for name in (*UNITS, "pipeline.target")]

    done = run("systemd-analyze", "verify", "--man=no", *files)

    assert done.stdout + done.stderr == ""


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS)
def test_the_units_are_locked_in(unit: str, units: Path) -> None:
    # 100 is a service that may do everything; systemd calls anything below 20 OK.
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(units / unit))


def compose() -> list[str] | None:
    """Return the compose command of this machine: the plug-in, else the stand-alone program."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False).returncode
        ):
            return command
    return None


def test_compose_accepts_the_compose_file(secrets: SimpleNamespace) -> None:
    command = compose()
    if command is None:
        pytest.skip("neither the docker compose plug-in nor docker-compose is installed")
    config = [*command, "-f", str(DEPLOY / "compose.yaml"), "--env-file"]

    good = subprocess.run([*config, secrets.target / ".env", "config", "-q"], timeout=60, check=False)
    bad = subprocess.run([*config, "/dev/null", "config", "-q"], timeout=60, check=False, capture_output=True)

    assert good.returncode == 0
    assert bad.returncode != 0, "a missing password must stop compose"


def test_prepare_never_overwrites_a_password(secrets: SimpleNamespace) -> None:
    before = (secrets.target / ".env").read_bytes()

    again = subprocess.run([DEPLOY / "prepare.sh", secrets.target], capture_output=True, timeout=30, check=False)

    assert again.returncode == 1
    assert (secrets.target / ".env").read_bytes() == before
    assert (secrets.target / ".env").stat().st_mode & 0o077 == 0
    assert (secrets.target / "secrets").stat().st_mode & 0o077 == 0
    assert "${" not in "".join(file.read_text() for file in (secrets.target / "secrets").iterdir())


def test_the_example_configuration_is_toml_with_the_sections_of_the_manual() -> None:
    example = tomllib.loads((DEPLOY / "pipeline.example.toml").read_text())

    assert set(example) == {"pipeline", "redis", "shards", "tables", "reads", "apply", "spool"}


def test_the_example_configuration_is_accepted_and_shows_every_key(secrets: SimpleNamespace) -> None:
    settings = pytest.importorskip("pipeline.settings")
    path = DEPLOY / "pipeline.example.toml"

    loaded = settings.load(path, environ=secrets.words)

    shown = set(re.findall(r"^(?:# )?([a-z_]+) = ", path.read_text(), re.MULTILINE))
    records = (settings.RedisSettings, settings.ShardSettings, settings.TableSettings, settings.ReadSettings)
    more = (settings.ApplySettings, settings.SpoolSettings)
    # a replica's load is written beside its address
    keys = {field.name for record in (*records, *more) for field in fields(record)} - {"name", "loads"}
    assert shown == keys
    assert list(loaded.shards) == ["s0", "s1"]


# children ------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, "PATH": PATH}
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def within(timeout_s: float, holds: Callable[[], bool]) -> bool:
    return any(holds() for _ in polls(timeout_s, most_s=0.2))


@contextmanager
def child(
    command: list[str], log: Path, ready: Callable[[], bool], env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[None]:
    """Run *command* until the end of the block; enter when it is ready."""
    environ = {**(env or os.environ), "PATH": PATH}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environ, cwd=cwd)
    try:
        up = within(STARTUP_S, lambda: process.poll() is not None or ready())
        assert up, f"{command[0]} was not ready in {STARTUP_S} s"
        assert process.poll() is None, f"{command[0]} did not start:\n{log.read_text()[-4000:]}"
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
