"""Show this worker's metrics to Prometheus: a small HTTP server in a thread of the main process."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from pipeline.config.settings import MetricsSettings
from pipeline.events import Event
from workers.metrics.counters import Tables, metrics_of
from workers.metrics.tally import Tally

#: How many ports a worker tries, from the configured one on: so many workers of one configuration fit on a host.
PORTS = 16
#: How long one client may take to send its request, or to take the answer, s.
CLIENT_S = 5.0
logger = logging.getLogger("pipeline.metrics")


class Worker:
    """Collects what one worker shows.

    Args:
        tally: of its pool processes.
        name: of the worker, as Celery names it.
    """

    def __init__(self, tally: Tally, name: str):
        self._tally, self._name, self._tables = tally, name, Tables()

    def collect(self) -> Iterator[Metric]:
        """Yield the worker's metrics."""
        yield InfoMetricFamily("pipeline_worker", "The worker that is scraped.", {"worker": self._name})
        yield from metrics_of(self._tally.totals(), "pipeline_worker_", self._tables)


class Port:
    """The server.

    Args:
        settings: the address, and the first port to try.
        tally: of the worker's pool processes.
        name: of the worker.
    """

    def __init__(self, settings: MetricsSettings, tally: Tally, name: str):
        registry = CollectorRegistry()
        registry.register(Worker(tally, name))
        ProcessCollector(registry=registry)
        self._settings, self._registry = settings, registry
        self._server: _Server | None = None

    def start(self) -> None:
        """Serve from now on, where there is a free port; a worker works without one too."""
        self._server = _bound(self._settings, self._registry)
        if self._server is not None:
            threading.Thread(target=self._server.serve_forever, name="pipeline-metrics", daemon=True).start()
            host, port = self._server.server_address[:2]
            logger.info(Event("metrics_served", host=str(host), port=port))

    def close(self) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Request)
        self.registry = registry

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nobody's fault."""


class _Request(BaseHTTPRequestHandler):
    timeout = CLIENT_S
    server: _Server

    def do_GET(self) -> None:
        """Answer a scrape."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception as error:
            logger.exception(Event("metrics_failed", error=error))
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no scrape: they come every few seconds."""


def _bound(settings: MetricsSettings, registry: CollectorRegistry) -> _Server | None:
    """Return a server on the first free port, or None."""
    last = min(settings.port + PORTS, 65536)
    for port in range(settings.port, last):
        try:
            return _Server((settings.host, port), registry)
        except OSError as error:
            failure = error
    logger.error(
        Event(
            "metrics_not_served",
            host=settings.host,
            port=settings.port,
            last=last - 1,
            why=failure.strerror,
        )
    )
    return None
