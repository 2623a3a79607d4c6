"""A real uWSGI, with and without threads: no request fails or is lost while Redis or a primary hangs."""

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

from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports

TESTS = Path(__file__).parents[1]
UWSGI = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
SPOOL = '[spool]\npath = "{}"\n'


class Served:
    """Two processes of uWSGI whose Redis is behind a proxy."""

    def __init__(self, rig: Rig, folder: Path, *options: str):
        self.rig, self.proxy = rig, Proxy(rig.port("redis"))
        spool = SPOOL.format(folder / "host.spool")
        self.config = rig.config_through({rig.port("redis"): self.proxy.port}, spool, "[redis]\ntimeout_s = 0.25\n")
        [self.owner], [self._port] = rig.owners(1), free_ports(1)
        self.bodies: list[str] = []
        self._log = (folder / "uwsgi.log").open("w+")
        where = ["--http", f"127.0.0.1:{self._port}", "--wsgi-file", str(TESTS / "support/servers/uwsgi_app.py")]
        self._process = subprocess.Popen(
            [str(UWSGI), *where, "--master", "--lazy-apps", "--processes", "2", "--die-on-term", *options],
            env={**os.environ, "PIPELINE_CONFIG": str(self.config), "PYTHONPATH": str(TESTS)},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def post(self, times: int) -> list[bool]:
        """Make requests; return whether each one's op was sent."""
        return [self._post() for _ in range(times)]

    def _post(self) -> bool:
        self.bodies.append(str(len(self.bodies)))
        url = f"http://127.0.0.1:{self._port}/?owner={self.owner}&body={self.bodies[-1]}"
        for _ in polls(30):  # it takes a moment to come up
            with suppress(ConnectionError, urllib.error.URLError):
                answer: dict[str, Any] = json.load(urllib.request.urlopen(url, timeout=30))
                return bool(answer["sent"])
        raise AssertionError(self.said())

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
        self._log.close()


@pytest.fixture(params=[(), ("--enable-threads",)], ids=["no threads", "threads"])
def served(valkey: Rig, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    with closing(Served(valkey, tmp_path, *request.param)) as made:
        yield made


@pytest.mark.skipif(UWSGI is None, reason="pyuwsgi is not installed")
def test_under_uwsgi_no_request_fails_and_no_op_is_lost_or_doubled(served: Served) -> None:
    with served.rig.worker(served.config):
        assert served.sends_again()  # without threads a worker has to raise the first epochs

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
