"""`pipeline healthcheck`, and the sign of life that it reads: local, so that no server that is away makes it red."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery.worker import state
from click.testing import CliRunner, Result

from pipeline import cli
from pipeline.admin import health
from pipeline.admin.health import Beat, Sign, signs, write_sign
from pipeline.clock import mono_s, polls
from pipeline.config.settings import Settings, load
from pipeline.spool import Spool
from workers.process import PoolWatch, SignOfLife, Turns, to_systemd

#: Nobody listens there: Redis, the broker and the database are away.
AWAY = '[redis]\nurl = "redis://127.0.0.1:1/0"\n[shards.s0]\nprimary = "mysql:pymysql://u:p@127.0.0.1:1/shop"\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.toml"
    path.write_text(AWAY)
    return path


@pytest.fixture
def settings(config: Path) -> Settings:
    return load(config)


class Rests:
    """A work that does nothing."""

    def turn(self) -> float:
        return 0.01

    def close(self) -> None: ...


class Ends(Rests):
    """A work that ends its thread: no code of ours does, but an interpreter that is short of memory may."""

    def turn(self) -> float:
        raise SystemExit


class Request:
    """One of Celery's, as far as the watch reads it; weakly referenced there."""

    def __init__(self, name: str):
        self.id = name


@pytest.fixture
def threads() -> Iterator[dict[str, Turns]]:
    started = {"sweeper": Turns("sweeper", Rests())}
    started["sweeper"].start()
    yield started
    for one in started.values():
        one.stop()


@pytest.fixture(autouse=True)
def books() -> Iterator[None]:
    """Celery's own, empty before and after."""
    yield
    state.reset_state()


def life(settings: Settings, threads: dict[str, Turns], pool: PoolWatch | None = None) -> SignOfLife:
    return SignOfLife(settings, "s0.0@here", ("s0",), pool or PoolWatch(), threads)


def check(config: Path, *options: str) -> Result:
    return CliRunner().invoke(cli.pipeline, ["healthcheck", *options, "--config", str(config)])


# workers ---------------------------------------------------------------------------------------------------------


def test_a_worker_is_well_while_redis_and_the_database_are_away(
    config: Path, settings: Settings, threads: dict[str, Turns]
):
    one = life(settings, threads)

    one.turn()

    found = check(config, "worker")
    assert (found.exit_code, found.output) == (0, f"worker s0.0@here ({os.getpid()}) consumes or has nothing to do\n")
    told = json.loads(check(config, "worker", "--shard", "s0", "--json").output)
    assert (told["ok"], [one["shards"] for one in told["workers"]]) == (True, [["s0"]])
    assert check(config, "worker", "--shard", "s1").exit_code == 1
    one.close()


def test_where_no_worker_runs_and_after_one_was_stopped_it_is_red(
    config: Path, settings: Settings, threads: dict[str, Turns]
):
    assert check(config, "worker").exit_code == 1
    one = life(settings, threads)
    one.turn()

    one.close()

    found = check(config, "worker")
    assert found.exit_code == 1
    assert "no worker of this host gives a sign of life" in found.output


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_has_lost_a_thread_is_red_and_says_nothing_more_to_systemd(
    config: Path, settings: Settings, threads: dict[str, Turns], manager: socket.socket
):
    one = life(settings, threads)
    one.turn()
    assert manager.recv(99) == b"WATCHDOG=1"
    threads["prober"] = Turns("prober", Ends())
    threads["prober"].start()
    assert any(not threads["prober"].alive for _ in polls(10))

    one.turn()

    found = check(config, "worker")
    assert (found.exit_code, "has lost its thread prober" in found.output) == (1, True)
    with pytest.raises(BlockingIOError):
        manager.recv(99)
    one.close()


def test_a_pool_that_does_not_take_what_it_is_handed_makes_the_worker_red_until_it_does(
    settings: Settings, threads: dict[str, Turns]
):
    pool, handed, running = PoolWatch(), Request("a"), Request("b")
    state.reserved_requests.update({handed, running})
    state.active_requests.add(running)
    one = life(settings, threads, pool)

    pool.beat()
    one.turn()

    assert any("takes nothing" in health.sickness_of(turned(one, settings), mono_s(), 0.05) for _ in polls(10))
    state.active_requests.add(handed)
    state.all_total_count[0] += 1
    pool.beat()
    assert (pool.taken, pool.untaken_s) == (1, None)
    assert health.sickness_of(turned(one, settings), mono_s(), 5) == ""
    one.close()


def turned(one: SignOfLife, settings: Settings) -> Sign:
    one.turn()
    return signs(settings.spool.path)[0]


class Door:
    """A broker in which so many doorbells wait; None: it does not answer."""

    def __init__(self, *waiting: int | None):
        self._waiting = list(waiting)

    def waiting(self) -> int | None:
        return self._waiting.pop(0)

    def close(self) -> None: ...


def test_an_idle_worker_by_whose_ear_doorbells_wait_is_deaf_and_a_broker_that_is_away_proves_nothing(
    settings: Settings, threads: dict[str, Turns], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("workers.process.IDLE_S", 0.0)
    one = life(settings, threads)
    one._bell.close()
    one._bell = Door(2, 1, None, 3, 0)  # type: ignore[assignment]
    heard = []

    for _ in range(5):
        one.turn()
        heard.append(signs(settings.spool.path)[0].unheard_s is not None)

    assert heard == [True, True, False, True, False]
    one.close()


def test_a_sign_that_is_no_sign_or_of_another_host_is_passed_over_and_one_of_the_killed_is_deleted(
    settings: Settings, threads: dict[str, Turns], monkeypatch: pytest.MonkeyPatch
):
    spool = settings.spool.path
    mine = Path(f"{spool}.worker-{socket.gethostname()}-")
    Path(f"{mine}1").write_text("{}")
    Path(f"{mine}2").symlink_to(settings.source)
    killed = Sign("w", 2**22 + 1, ("s0",), mono_s(), {"sweeper": Beat(True)})
    write_sign(spool, killed)
    with monkeypatch.context() as there:
        there.setattr(socket, "gethostname", lambda: "elsewhere")
        write_sign(spool, killed)

    assert [one.pid for one in signs(spool)] == [killed.pid]
    life(settings, threads).close()

    assert signs(spool) == []
    assert len(list(Path(spool).parent.glob("*.worker-*"))) == 3


def test_a_folder_that_cannot_be_written_is_said_once_in_the_log_and_ends_no_turn(
    settings: Settings, threads: dict[str, Turns], caplog: pytest.LogCaptureFixture
):
    Path(settings.spool.path).parent.chmod(0o1777)
    one = life(settings, threads)

    one.turn()
    one.turn()

    assert [line.split()[0] for line in caplog.messages] == ["sign_not_written"]
    one.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Systemd's ear."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        yield ear


def test_a_service_manager_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch):
    for place in ("", "@nobody-is-here", "/nobody/is/here"):
        monkeypatch.setenv("NOTIFY_SOCKET", place)
        to_systemd(b"WATCHDOG=1")


def test_a_service_manager_at_an_abstract_address_is_heard(monkeypatch: pytest.MonkeyPatch):
    name = f"pipeline-{uuid4().hex}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0{name}")
        ear.settimeout(30)

        to_systemd(b"WATCHDOG=1")

        assert ear.recv(99) == b"WATCHDOG=1"


# web hosts -------------------------------------------------------------------------------------------------------


def test_a_web_host_is_well_while_redis_is_away_and_its_spool_takes_ops(config: Path, settings: Settings):
    assert check(config, "web").output == "Redis does not answer; the spool is ready and empty\n"

    spool = Spool(Path(settings.spool.path), 256_000_000)
    spool.add({3: [b"a", b"b"]})
    spool.close()

    found = check(config, "web")
    assert (found.exit_code, found.output) == (0, "2 ops wait in the spool: Redis does not answer\n")


@pytest.mark.parametrize(("away", "answers", "leave", "well"), [
    ("", "", False, False),
    ("", "", True, True),
    ("", "the primary of s0 does not answer", False, True),
    ("Redis lets nothing in (full)", "", False, True),
])  # fmt: skip
def test_a_spool_that_nobody_empties_although_all_servers_answer_is_red(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, away: str, answers: str, leave: bool, well: bool
):
    spool = Spool(Path(settings.spool.path), 256_000_000)
    spool.add({3: [b"a"]})
    monkeypatch.setattr(health, "_redis", lambda _: away)
    monkeypatch.setattr(health, "_primaries", lambda _: answers)
    taken = threading.Timer(0.1, lambda: spool.sent(spool.head(), 1))

    if leave:
        taken.start()
    found = health.judge_web(settings, watch_s=20 if leave else 0.1)

    assert found[0] is well, found
    spool.close()


def test_a_spool_that_this_user_cannot_use_is_red(config: Path, settings: Settings):
    Path(settings.spool.path).parent.chmod(0o1777)

    found = check(config, "web")

    assert found.exit_code == 1
    assert "every user of this machine may write in" in found.output


# Flower ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def page() -> Iterator[SimpleNamespace]:
    """A server whose page is `text`."""
    shown = SimpleNamespace(text="OK\nheard_s=1.0\n")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(shown.text.encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shown.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield shown
        server.shutdown()


@pytest.mark.parametrize(("text", "runs", "well"), [
    ("OK\nheard_s=1.0\n", None, True),
    ("OK\nheard_s=31.0\n", True, False),
    ("OK\nheard_s=\n", True, False),
    ("OK\nheard_s=31.0\n", None, True),
    ("OK\nheard_s=31.0\n", False, True),
    ("OK", True, False),
])  # fmt: skip
def test_flower_is_well_where_it_hears_the_workers_that_run(
    settings: Settings, page: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, text: str, runs: bool | None, well: bool
):
    monkeypatch.setattr(health, "_worker_runs", lambda _: runs)
    page.text = text

    assert health.judge_flower(settings, page.url, watch_s=0.0)[0] is well


def test_flower_is_red_where_it_does_not_answer_and_not_because_redis_is_away(config: Path, page: SimpleNamespace):
    page.text = "OK\nheard_s=1.0\n"

    assert check(config, "flower", "--url", page.url).exit_code == 0
    found = check(config, "flower", "--url", "http://127.0.0.1:1")

    assert found.exit_code == 1
    assert found.output == "Flower does not answer at http://127.0.0.1:1: [Errno 111] Connection refused\n"
