"""A real web2py, served over HTTP from a folder of applications, and a browser of few words to ask it.

    with serving(folder) as site:                      # folder/applications/shop/{models,controllers,private}
        ada = site.browser("/shop/default")
        assert ada.post("buy", qty=3).json()["id"]     # a ticket is an AssertionError with its traceback

The server is that of `examples.web2py`; `serving` starts it as a process of its own. `$WEB2PY` is the folder of another
web2py to serve with, such as a checkout of its newest release; behind a `:` may follow that of a pyDAL. web2py needs
the older line of pyDAL. Where the tests run with the other one, so do the commands and the workers beside that web2py.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.cookiejar import CookieJar
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from examples.web2py.server import why_not
from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports
from support.web.web2py_forms import form_fields, multipart

START_S, ANSWER_S = 30, 30
ROOT = Path(__file__).parents[3]
#: A Python with the older line of pyDAL; the Makefile makes it.
CLASSIC = ROOT / ".venv" / "bin" / "python"


def needs_web2py(*, here: bool = False) -> None:
    """Skip the test, with the reason, where web2py cannot run; *here*: in the Python that the tests run with."""
    if (reason := why_not()) and (here or _python() == sys.executable):
        pytest.skip(reason)


def _python() -> str:
    """Return the Python to serve with."""
    other_line = find_spec("pydal.adapters") is None and CLASSIC.exists()
    return str(CLASSIC) if other_line else sys.executable


class Answer(NamedTuple):
    """What the server said; redirects are not followed by themselves."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def location(self) -> str:
        return self.headers["Location"]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class Browser:
    """One user: keeps cookies. Paths are below *base*, or absolute."""

    def __init__(self, url: str, base: str, tickets: bool, folder: Path):
        self.cookies = CookieJar()
        self._url, self._base, self._tickets, self._folder = url, base, tickets, folder
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.cookies), _NoRedirects, urllib.request.ProxyHandler({})
        )

    def get(self, path: str, **query: Any) -> Answer:
        return self._ask(path + (f"?{urllib.parse.urlencode(query, doseq=True)}" if query else ""), None)

    def post(self, path: str, fields: Mapping[str, Any] | None = None, /, **more: Any) -> Answer:
        return self._ask(path, urllib.parse.urlencode({**(fields or {}), **more}, doseq=True).encode())

    def submit(
        self, path: str, fields: Mapping[str, Any], files: Mapping[str, tuple[str, bytes]] | None = None
    ) -> Answer:
        """Open a page and send its form: what its fields hold, changed by *fields*; None is a box not ticked."""
        shown = form_fields(self.get(path).text, next(iter(fields), None))
        sent = {name: value for name, value in {**shown, **fields}.items() if value is not None}
        return self._ask(path, *multipart(sent, files or {}))

    def _ask(self, path: str, body: bytes | None, content_type: str = "application/x-www-form-urlencoded") -> Answer:
        url = self._url + (path if path.startswith("/") else f"{self._base}/{path}")
        asked = urllib.request.Request(url, body, {"Content-Type": content_type} if body else {})
        try:
            with self._opener.open(asked, timeout=ANSWER_S) as reply:
                answer = Answer(reply.status, reply.headers, reply.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                answer = Answer(error.code, error.headers, error.read().decode())
        if answer.status == 500 and not self._tickets:
            raise AssertionError("\n".join(tickets(self._folder) + py4web_tickets(self._folder)) or answer.text)
        return answer


class Site:
    """A running server and its folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int):
        self.folder, self.process = folder, process
        self.url = f"http://127.0.0.1:{port}"

    def browser(self, base: str = "", *, tickets: bool = False) -> Browser:
        """Return a new user's browser.

        Args:
            base: what stands before relative paths: `/shop/default`.
            tickets: let a ticket be an answer like others; who expects one calls `forget_tickets` then.
        """
        return Browser(self.url, base, tickets, self.folder)

    def tickets(self) -> list[str]:
        """Return the tracebacks of all tickets."""
        return tickets(self.folder)

    def forget_tickets(self) -> list[str]:
        """Remove the tickets that were expected, and return their tracebacks."""
        found = self.tickets()
        for path in _ticket_files(self.folder):
            path.unlink()
        return found

    def kill(self) -> None:
        """End the server as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(START_S)


def tickets(folder: Path) -> list[str]:
    """Return the tracebacks in `applications/*/errors`; the HTTP page hides them."""
    return [_Ticket(BytesIO(path.read_bytes())).load()["traceback"] for path in _ticket_files(folder)]


def py4web_tickets(folder: Path) -> list[str]:
    """Return the tickets of every py4web that keeps its service folder somewhere in *folder*."""
    found = []
    for path in folder.rglob("service.storage"):
        with closing(sqlite3.connect(path)) as made:
            found += [text for (text,) in made.execute("SELECT snapshot FROM py4web_error")]
    return found


class _Ticket(pickle.Unpickler):
    """Reads a ticket without web2py: only its text is wanted, not the objects of its snapshot."""

    def find_class(self, module: str, name: str) -> Any:
        return lambda *args: None


def _ticket_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("applications/*/errors/*")) if path.is_file()]


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Site]:
    """Serve `folder/applications` until the end of the block; then no ticket may be left."""
    needs_web2py()
    site = start(folder, **environment)
    try:
        yield site
        assert site.tickets() == []
    finally:
        site.process.terminate()
        site.process.wait(START_S)


def start(folder: Path, **environment: str) -> Site:
    """Start a server and wait until it answers; who calls this ends it."""
    [port] = free_ports(1)
    log = (folder / "server.log").open("ab")
    modules = [os.environ.get("WEB2PY", ""), environment.pop("PYTHONPATH", str(ROOT))]
    process = subprocess.Popen(
        [_python(), "-m", "examples.web2py.server", str(folder), str(port)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, modules))},
        stdout=log,
        stderr=log,
    )
    log.close()
    site = Site(folder, process, port)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in polls(START_S):
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            with opener.open(f"{site.url}/", timeout=ANSWER_S):
                return site
        except urllib.error.HTTPError as error:  # it has no such application, but it answers
            error.close()
            return site
        except OSError:
            continue
    process.kill()
    pytest.fail(f"web2py did not answer within {START_S} s: {(folder / 'server.log').read_text()}")
