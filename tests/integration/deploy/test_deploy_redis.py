"""The files of deploy/redis, on servers that run with them, and Flower with the broker's user."""

from __future__ import annotations

import base64
import json
import os
import runpy
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from pydal import DAL, Field
from support.servers.deploying import CALL_S, DEPLOY, child, needs, within
from support.servers.shipped import redis_client, redis_server

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.devcluster.processes import free_ports
from pipeline.devcluster.servers import bundled
from pipeline.oplog.doorbell import SilentBell


@pytest.fixture(params=["log", "broker"])
def redis_role(request: pytest.FixtureRequest) -> str:
    return request.param


@needs("redis-server")
def test_redis_has_every_value_of_its_file(redis_role: str, secrets: SimpleNamespace, tmp_path: Path) -> None:
    lines = (DEPLOY / "redis" / f"redis-{redis_role}.conf").read_text().splitlines()
    wanted = dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))
    limits = wanted.pop("client-output-buffer-limit", "")
    for given_by_this_test in ("port", "dir", "aclfile", "bind"):
        del wanted[given_by_this_test]

    with (
        redis_server(redis_role, secrets.target / "secrets", tmp_path) as port,
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
        redis_server("log", secrets.target / "secrets", tmp_path) as port,
        redis_client(port, "worker", secrets.words["REDIS_PASSWORD"]) as client,
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


@pytest.mark.parametrize("user", ["web", "worker"])
def test_an_op_is_on_disk_before_its_receipt_where_the_server_can_say_so(
    secrets: SimpleNamespace, tmp_path: Path, user: str
) -> None:
    password = secrets.words["REDIS_WEB_PASSWORD" if user == "web" else "REDIS_PASSWORD"]
    shard = f"sqlite://{tmp_path}/s0.sqlite"
    with redis_server("log", secrets.target / "secrets", tmp_path, program=bundled()[0]) as port:
        url = f"redis://{user}:{password}@127.0.0.1:{port}/0"
        settings = {"redis": {"url": url}, "shards": {"s0": {"primary": shard}}, "spool": {"enabled": False}}
        with closing(Client(settings, bell=SilentBell())) as client, closing(DAL("sqlite:memory")) as db:
            db.define_table("event", Field("name"))
            client.define_tables(db)
            migrate(client)

            assert client.enqueue_insert(db.event, name="x", durability="fsync").status() == "queued"


@needs("redis-server")
def test_nobody_enters_redis_without_a_password(redis_role: str, secrets: SimpleNamespace, tmp_path: Path) -> None:
    with redis_server(redis_role, secrets.target / "secrets", tmp_path) as port:
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
        port = stack.enter_context(redis_server("broker", secrets.target / "secrets", tmp_path))
        [web], login = free_ports(1), secrets.words["FLOWER_BASIC_AUTH"]
        environ = {
            **os.environ,
            "BROKER": f"redis://pipeline:{secrets.words['BROKER_PASSWORD']}@127.0.0.1:{port}/0",
            "FLOWER_BASIC_AUTH": login,
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
