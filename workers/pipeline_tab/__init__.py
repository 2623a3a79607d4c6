"""The Pipeline tab of Flower: what the whole deployment does, live, from the record that workers publish.

`add_tab` adds pages, templates and an entry in the navigation before Flower makes its application.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tornado.template import Loader, Template
from tornado.web import StaticFileHandler, url

from pipeline.events import Event
from workers.pipeline_tab.dead import DeadOpPage, DeadPage, Moving, Stopping
from workers.pipeline_tab.pages import HostsPage, OverviewPage, ShardPage

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
