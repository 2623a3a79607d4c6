"""Add the deployment's metrics to Flower's `/metrics`, and ask there for the login of Flower's other pages.

Flower's `/healthcheck`, which needs no login, says how long ago Flower heard a worker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from flower.views.monitor import Healthcheck
from flower.views.monitor import Metrics as FlowersMetrics
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from tornado.web import authenticated

from pipeline import clock
from pipeline.admin.observe.published import read_record
from pipeline.config.settings import load
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.oplog.groups import log_of
from pipeline.oplog.redis.server_info import ANSWER_S
from pipeline.per_process import PerProcess
from workers.metrics.counters import Tables, metrics_of
from workers.metrics.deployment import of_record

logger = logging.getLogger("pipeline.metrics")


class Deployment:
    """Collects what the deployment's workers have published; nothing where Redis does not answer."""

    def __init__(self) -> None:
        settings = load()
        self._shards = tuple(settings.shards)
        self._log, self._tables = log_of(settings, read_s=ANSWER_S), Tables()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the newest record, and all counters."""
        try:
            newest = read_record(self._log, self._shards)
            counts = {shard: self._log.counts(shard) for shard in self._shards}
        except PipelineError as error:
            logger.warning(Event("metrics_unknown", error=error))
            return
        if newest is not None:
            yield from of_record(newest)
        yield from metrics_of(counts, "pipeline_", self._tables)

    def text(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)


deployment = PerProcess(Deployment)


class MetricsPage(FlowersMetrics):
    """Flower's own page, with the deployment's metrics behind Flower's."""

    @authenticated
    async def get(self) -> None:
        """Answer a scrape. What Redis does not answer in time holds up no other page."""
        ours = await self.application.io_loop.run_in_executor(None, lambda: deployment().text())
        await super().get()
        self.write(ours)


class HealthPage(Healthcheck):
    """Flower's own page, with a second line: `heard_s=1.2`, or nothing behind the sign where it has heard no worker."""

    async def get(self) -> None:
        """Answer a check."""
        workers = list(self.application.events.state.workers.values())
        heard_s = max((worker.heartbeats[-1] for worker in workers if worker.heartbeats), default=None)
        ago = "" if heard_s is None else f"{max(0.0, clock.wall_ms() / 1000 - heard_s):.1f}"
        self.write(f"OK\nheard_s={ago}\n")
