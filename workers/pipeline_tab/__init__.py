"""Add the Pipeline tab to Flower: what the whole deployment does, live, from the record that workers publish.

`add_tab` adds pages, templates and an entry in the navigation before Flower makes its application.

Replace two pages of Flower: `/metrics` shows the deployment's too, `/healthcheck` when Flower last heard a worker.
The first asks for the login of Flower's other pages, the second for none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flower.views.monitor import Healthcheck
from flower.views.monitor import Metrics as FlowersMetrics
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from tornado.template import Loader, Template
from tornado.web import StaticFileHandler, authenticated, url

from pipeline import clock
from pipeline.admin.observe.published import read_record
from pipeline.config.settings import load
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.oplog.groups import log_of
from pipeline.oplog.redis.connection import ANSWER_S
from pipeline.per_process import PerProcess
from workers.metrics.port import Tables, metrics_of, of_record
from workers.pipeline_tab.pages import DeadOpPage, DeadPage, HostsPage, Moving, OverviewPage, ShardPage, Stopping

pages_logger = logging.getLogger("pipeline.metrics")
HERE = Path(__file__).parent
#: Where the entry goes: behind Flower's own.
_BEHIND = ">Broker</a>\n        </li>\n"
_ENTRY = """        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'pipeline' %} active{% end %}"
            href="{{ reverse_url('pipeline') }}"
            {% if active_tab == 'pipeline' %}aria-current="page"{% end %}>Pipeline</a>
        </li>
"""
logger = logging.getLogger("pipeline.flower")


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
            pages_logger.warning(Event("metrics_unknown", error=error))
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


class TabLoader(Loader):
    """Loads Flower's templates and ours, and adds the entry to Flower's navigation."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        """Return the name itself: Flower's templates and ours lie flat.

        Args:
            name: of a template.
            parent_path: of the one that names it.
        """
        return name

    def _create_template(self, name: str) -> Template:
        if name.startswith("pipeline_"):
            return Template((HERE / "templates" / name).read_bytes(), name=name, loader=self)
        made = super()._create_template(name)
        if name != "navbar.html":
            return made
        text = Path(self.root, name).read_text("utf-8")
        if _BEHIND not in text:
            logger.warning(Event("tab_not_in_menu", path="/pipeline", why="this Flower has another navigation"))
            return made
        return Template(text.replace(_BEHIND, _BEHIND + _ENTRY, 1), name=name, loader=self)


def add_tab(handlers: list[Any], settings: dict[str, Any]) -> None:
    """Add the tab.

    Args:
        handlers: Flower's own list.
        settings: of Flower's application.
    """
    settings["template_loader"] = TabLoader(settings["template_path"])
    ours = [
        url(r"/pipeline", OverviewPage, name="pipeline"),
        url(r"/pipeline/(live)", OverviewPage),
        url(r"/pipeline/hosts", HostsPage, name="pipeline_hosts"),
        url(r"/pipeline/hosts/(live)", HostsPage),
        url(r"/pipeline/shard/([^/]+)", ShardPage, name="pipeline_shard"),
        url(r"/pipeline/shard/([^/]+)/(live)", ShardPage),
        url(r"/pipeline/dead", DeadPage, name="pipeline_dead"),
        url(r"/pipeline/dead/op/([0-9]+:[0-9]+-[0-9]+)", DeadOpPage, name="pipeline_dead_op"),
        url(r"/pipeline/stop", Stopping, name="pipeline_stop"),
        url(r"/pipeline/move", Moving, name="pipeline_move"),
        url(r"/pipeline/static/(.*)", StaticFileHandler, {"path": str(HERE / "static")}, name="pipeline_static"),
    ]
    handlers[:0] = ours
