"""web2py from PyPI as a web server: `python -m examples.web2py.server FOLDER PORT` serves `FOLDER/applications`.

The wheel of web2py-gluon 2.26.1 is the framework without the files that a checkout has beside it; what is missing is
put there first. It needs Python 3.11: it imports `imp`, which Python 3.12 no longer has.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

#: Request threads; web2py's own server keeps its threads too, and thread-locals outlive a request in both.
THREADS = 8


def why_not() -> str | None:
    """Say why web2py cannot run here, and what to change; None where it can."""
    if sys.version_info >= (3, 12):
        return "web2py-gluon 2.26.1 needs Python < 3.12: it imports `imp`"
    if find_spec("gluon") is None:
        return "web2py-gluon is not installed: pip install -e '.[dev]'"
    if find_spec("pydal.adapters") is None:
        return "web2py-gluon 2.26.1 needs the older pyDAL line: it imports pydal.adapters"
    return None


def wsgi_application(folder: Path) -> Any:
    """Return web2py's WSGI application, serving `folder/applications`."""
    os.environ["web2py_path"] = str(folder)  # noqa: SIM112 - its name; read when gluon.settings is imported
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    # the wheel lacks what a checkout has beside its applications
    (folder / "VERSION").write_text("Version 2.26.1-stable+timestamp.2023.11.15.00.00.00\n")
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "applications").mkdir(exist_ok=True)
    (folder / "applications" / "__init__.py").touch()
    _fit_pydal()
    from gluon.settings import global_settings

    global_settings.web2py_runtime_handler = True  # neither its own server, nor a window, nor cron
    import gluon.main

    return gluon.main.wsgibase


def _fit_pydal() -> None:
    """Give gluon.tools what it still asks of pyDAL, and pyDAL has let go or renamed since."""
    import pydal._compat
    from pydal.objects import Table

    if not hasattr(pydal._compat, "FancyURLopener"):  # gone since 20251012
        pydal._compat.FancyURLopener = object  # type: ignore[attr-defined]
    inner = Table._filter_fields
    if "id" not in inspect.signature(inner).parameters:  # renamed to allow_id in 2026; a login calls it with id=True

        def _filter_fields(self: Any, record: Any, allow_id: bool = False, *args: Any, **options: Any) -> Any:
            return inner(self, record, options.pop("id", allow_id), *args, **options)

        Table._filter_fields = _filter_fields


class Server(WSGIServer):
    """Answers requests by a fixed set of threads."""

    request_queue_size = 128

    def __init__(self, *args: Any):
        self._threads = ThreadPoolExecutor(THREADS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a thread answer."""
        self._threads.submit(self._answer, request, client_address)

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)


class _Quiet(WSGIRequestHandler):
    #: A client that says nothing would hold a thread for ever.
    timeout = 30

    def log_message(self, *args: Any) -> None:
        pass


def serve(folder: Path, port: int) -> None:
    """Serve for ever; SIGTERM ends the process at once."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who has started this
    with make_server("127.0.0.1", port, wsgi_application(folder), Server, _Quiet) as server:
        server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
