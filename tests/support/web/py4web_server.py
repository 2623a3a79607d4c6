"""A real py4web, served over HTTP by its own threaded server from a folder of applications.

with serving(folder) as site:                      # folder/apps/shop/__init__.py
    ada = site.browser("/shop")
    assert ada.post("buy", qty=3).json()["id"]     # a ticket is an AssertionError
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports
from support.web.web2py_server import ANSWER_S, START_S, Browser


class Site:
    """A running server and its folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int):
        self.folder, self.process = folder, process
        self.url = f"http://127.0.0.1:{port}"
        self._known = 0

    def browser(self, base: str = "", *, tickets: bool = False) -> Browser:
        """Return a new user's browser; *tickets*: a ticket is an answer like others."""
        return Browser(self.url, base, tickets, self.folder)

    @property
    def log(self) -> str:
        """What the server has written: the tracebacks of its tickets, too."""
        return (self.folder / "server.log").read_text()

    def forget_tickets(self) -> list[str]:
        """Return the tracebacks of the tickets since the last call."""
        text = self.log
        # each is there twice: with its time, and as the server writes it
        found = re.split(r"(?m)^\[\S+\]: Traceback ", text[self._known :])[1:]
        self._known = len(text)
        return found


@contextmanager
def serving(folder: Path, python: str = sys.executable) -> Iterator[Site]:
    """Serve `folder/apps` until the end of the block, with the packages of a Python."""
    (folder / "apps" / "__init__.py").touch()
    [port] = free_ports(1)
    command = [python, "-m", "py4web", "run", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--dashboard_mode", "none", "--watch", "off", "apps"],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    site = Site(folder, process, port)
    try:
        _wait(site)
        yield site
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(START_S)


def _wait(site: Site) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in polls(START_S):
        assert site.process.poll() is None, site.log
        try:
            with opener.open(f"{site.url}/", timeout=ANSWER_S):
                return
        except urllib.error.HTTPError as error:  # it has no such application, but it answers
            error.close()
            return
        except OSError:
            continue
    pytest.fail(f"py4web did not answer within {START_S} s: {site.log}")
