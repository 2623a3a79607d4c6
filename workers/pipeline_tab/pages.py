"""Answer the browsers that look at the Pipeline tab: pages, and what has changed on them once a second or two."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from flower.views import BaseHandler
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, authenticated

from workers.pipeline_tab import one_shard, overview
from workers.pipeline_tab.feed import Seen, feed

#: The cookie that carries what was done to the next page.
TOLD = "pl_told"
#: What a page may load and run: its own, and Flower's.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'"
)


class TabPage(BaseHandler):
    """A page of the tab. Its parts that change are sent again as they change."""

    def set_default_headers(self) -> None:
        """Forbid what no page here needs: scripts of others, and frames in other sites."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", f"{POLICY}; frame-ancestors 'none'")
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """Ask for the token also where Flower asks for no login: any site could send a browser here."""
        RequestHandler.check_xsrf_cookie(self)

    @property
    def prefix(self) -> str:
        """What all addresses begin with."""
        given: str = self.application.options.url_prefix or ""
        return f"/{given.strip('/')}" if given else ""

    def parts(self, seen: Seen) -> Mapping[str, str]:
        """Return the parts of the page that change, by their ids.

        Args:
            seen: what is shown.
        """
        raise NotImplementedError

    def show(self, template: str, seen: Seen, **words: Any) -> None:
        """Send the page.

        Args:
            template: its name.
            seen: what is shown.
            words: what else the template names.
        """
        record, read_only = seen.record, self.application.options.read_only
        told = self.get_secure_cookie(TOLD)
        if told:
            self.clear_cookie(TOLD)
        words |= {"now": f"{datetime.now(UTC):%H:%M:%S}", "told": (told or b"").decode()}
        self.render(template, parts=self.parts(seen), record=record, prefix=self.prefix, read_only=read_only, **words)

    async def stream(self) -> None:
        """Send the parts that change, as they change, until the browser goes."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        told: Mapping[str, str] = {}
        try:
            while True:
                parts = self.parts(await feed().newest())
                changed = {part: html for part, html in parts.items() if told.get(part) != html}
                told = parts
                self.write(f"data: {json.dumps(changed)}\n\n")
                await self.flush()
                await asyncio.sleep(feed().every_s)
        except StreamClosedError:
            return


class OverviewPage(TabPage):
    """All shards. All browsers share what is made of one reading."""

    _made: ClassVar[tuple[int, Mapping[str, str]]] = (-1, {})

    def parts(self, seen: Seen) -> Mapping[str, str]:
        """See `TabPage.parts`."""
        if self._made[0] != seen.number:
            OverviewPage._made = seen.number, overview.overview(seen)
        return self._made[1]

    @authenticated
    async def get(self, live: str | None = None) -> None:
        """Answer a browser.

        Args:
            live: whether it is to be told what changes.
        """
        await (self.stream() if live else self._page())

    async def _page(self) -> None:
        self.show("pipeline_overview.html", await feed().newest(), title="Overview", tab="overview")


class ShardPage(TabPage):
    """One shard."""

    _name = ""

    def parts(self, seen: Seen) -> Mapping[str, str]:
        """See `TabPage.parts`."""
        return one_shard.shard_page(seen, self._name, read_only=self.application.options.read_only)

    @authenticated
    async def get(self, name: str, live: str | None = None) -> None:
        """Answer a browser.

        Args:
            name: the shard's.
            live: whether it is to be told what changes.
        """
        seen = await feed().newest()
        if name not in {shard.shard for shard in seen.record.shards}:
            raise HTTPError(404, "no such shard")
        self._name = name
        if live:
            await self.stream()
        else:
            self.show("pipeline_shard.html", seen, title=f"Shard {name}", tab="shard", name=name)


class HostsPage(TabPage):
    """The spools of all hosts."""

    def parts(self, seen: Seen) -> Mapping[str, str]:
        """See `TabPage.parts`."""
        return overview.hosts(seen)

    @authenticated
    async def get(self, live: str | None = None) -> None:
        """Answer a browser.

        Args:
            live: whether it is to be told what changes.
        """
        if live:
            await self.stream()
        else:
            self.show("pipeline_hosts.html", await feed().newest(), title="Hosts and spools", tab="hosts")
