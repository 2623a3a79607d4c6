"""A real uWSGI: no request fails or is lost while Redis or a primary hangs; one without threads is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from support.oracle import nodes
from support.servers.proxy import Proxy
from support.servers.rig import Rig

from pipeline.admin.check.evidence import servers_without_threads
from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports

TESTS = Path(__file__).parents[1]
UWSGI = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
needs_uwsgi = pytest.mark.skipif(UWSGI is None, reason="pyuwsgi is not installed")
#: How long uWSGI lets its workers end, s; its own default is a minute.
MERCY = ("--reload-mercy", "1", "--worker-reload-mercy", "1")
SPOOL = '[spool]\npath = "{}"\n'


class Served:
    """Two processes of uWSGI whose Redis is behind a proxy."""

    def __init__(self, rig: Rig, folder: Path, *options: str):
        self.rig, self.proxy = rig, Proxy(rig.port("redis"))
        spool = SPOOL.format(folder / "host.spool")
        self.config = rig.config_through({rig.port("redis"): self.proxy.port}, spool, "[redis]\ntimeout_s = 0.25\n")
        [self.owner], self.address = rig.owners(1), f"127.0.0.1:{free_ports(1)[0]}"
        self.bodies: list[str] = []
        self._log = (folder / "uwsgi.log").open("w+")
        where = ["--http", self.address, "--wsgi-file", str(TESTS / "support/servers/uwsgi_app.py")]
        self._process = subprocess.Popen(
            [str(UWSGI), *where, "--master", "--lazy-apps", "--processes", "2", "--die-on-term", *MERCY, *options],
            env={**os.environ, "PIPELINE_CONFIG": str(self.config), "PYTHONPATH": str(TESTS)},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def post(self, times: int) -> list[bool]:
        """Make requests; return whether each one's op was sent."""
        return [self._post() for _ in range(times)]

    def _post(self) -> bool:
        self.bodies.append(str(len(self.bodies)))
        url = f"http://{self.address}/?owner={self.owner}&body={self.bodies[-1]}"
        for _ in polls(30):  # it takes a moment to come up
            with suppress(ConnectionError, urllib.error.URLError):
                answer: dict[str, Any] = json.load(urllib.request.urlopen(url, timeout=30))
                return bool(answer["sent"])
        raise AssertionError(self.said())

    def refuses(self) -> bool:
        """Make a request; return whether the application has raised, in which case uWSGI answers nothing."""
        with suppress(ConnectionError, urllib.error.URLError):
            urllib.request.urlopen(f"http://{self.address}/?owner={self.owner}&body=0", timeout=30)
        return "ConfigError" in self.said()

    def sends_again(self) -> bool:
        """Whether requests reach Redis again after a while: what waited has gone before them."""
        return any(all(self.post(2)) for _ in polls(30, first_s=0.2, most_s=0.5))

    def forget_epochs(self) -> None:
        """Let Redis be as another server, which has never given out an epoch."""
        self.rig.redis.delete(*self.rig.redis.scan_iter(match=f"{self.rig.client.log.keys.epoch('')}*"))

    def rows(self) -> list[str]:
        found: list[str] = []
        for primary in self.rig.primaries.values():
            with nodes.connection(primary) as made:
                found += [row[0] for row in nodes.fetch(made, f"SELECT body FROM event WHERE owner = {self.owner}")]
        return found

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        self.proxy.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._log.close()


@pytest.fixture
def served(valkey: Rig, tmp_path: Path) -> Iterator[Served]:
    with closing(Served(valkey, tmp_path, "--enable-threads")) as made:
        yield made


@needs_uwsgi
def test_under_uwsgi_no_request_fails_and_no_op_is_lost_or_doubled(served: Served) -> None:
    assert served.sends_again()

    served.proxy.pause()
    assert served.post(6) == [False] * 6
    served.proxy.resume()
    served.proxy.cut()
    assert served.sends_again()

    with served.rig.worker(served.config):
        served.forget_epochs()
        served.post(4)
        assert served.sends_again()

        assert any(len(served.rows()) == len(served.bodies) for _ in polls(30))
    assert sorted(served.rows(), key=int) == served.bodies, served.said()


@needs_uwsgi
def test_a_uwsgi_without_threads_is_told_which_line_to_add_and_nothing_is_queued(valkey: Rig, tmp_path: Path) -> None:
    with closing(Served(valkey, tmp_path)) as served:
        assert any(served.refuses() for _ in polls(30))

        assert "add `enable-threads = true` to its ini file, or --enable-threads" in served.said()
        assert served.rows() == []
        assert any(served.address in command for command in servers_without_threads())


@needs_uwsgi
def test_check_sees_no_fault_in_a_uwsgi_that_runs_threads(served: Served) -> None:
    assert served.sends_again()

    assert not any(served.address in command for command in servers_without_threads())
