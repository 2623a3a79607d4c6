"""Answer the browsers that look at the Pipeline tab, and at ops that are set aside; do what they order."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

from flower.views import BaseHandler
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, authenticated

from pipeline.admin.dead import Where
from pipeline.errors import PipelineError
from workers.pipeline_tab import acts, overview
from workers.pipeline_tab.acts import Seen, feed

#: The cookie that carries what was done to the next page.
TOLD = "pl_told"
#: What a page may load and run: its own, and Flower's.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'"
)

#: What a filter may name, in the words of `pipeline dead list --where`.
FILTERS = ("table", "shard", "state", "reason", "code", "since")
#: How long a text may be that a cookie carries to the next page.
_MOST_TOLD = 900
_T = TypeVar("_T")


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
        return overview.shard_page(seen, self._name, read_only=self.application.options.read_only)

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


class Acting(TabPage):
    """A page whose answers come from the databases."""

    def parts(self, seen: Any) -> Mapping[str, str]:
        """See `TabPage.parts`; nothing here changes by itself."""
        return {}

    @property
    def by(self) -> str:
        """Who gives the order, for the record of actions: the user of Flower's login, where it has one."""
        user = self.current_user
        if isinstance(user, str):
            return f"{user} in Flower"
        given = self.request.headers.get("Authorization", "")
        return f"{_user_of(given)} in Flower at {self.request.remote_ip}"

    def refuse_if_read_only(self) -> None:
        """End a request that would change something, where Flower runs with `--read_only`."""
        if self.application.options.read_only:
            raise HTTPError(403, "this Flower is read-only")

    async def ask(self, question: partial[_T]) -> _T:
        """Run a question in a thread, and close its connections."""

        def asked() -> _T:
            try:
                return question()
            finally:
                acts.done_with()

        return await asyncio.get_running_loop().run_in_executor(None, asked)

    async def display(self, template: str, **words: Any) -> None:
        """Send a page."""
        self.show(template, await feed().newest(), tab="dead", utc=utc, **words)

    def go(self, path: str, told: str) -> None:
        """Send the browser to a page that says what was done."""
        self.set_secure_cookie(TOLD, told[:_MOST_TOLD], expires_days=None)
        self.redirect(f"{self.prefix}{path}", status=303)

    def given(self, name: str) -> str:
        """Return a text of the request as it was sent, with its blanks; empty where it is missing."""
        return str(super().get_argument(name, "", strip=False, escape=False) or "")

    def filters(self) -> dict[str, str]:
        """Return what the request says of which ops are meant."""
        return {name: text for name in FILTERS if (text := self.given(name).strip())}

    def many(self, name: str) -> list[str]:
        """Return all texts of a name."""
        return list(self.get_arguments(name))


class DeadPage(Acting):
    """The ops that are set aside."""

    @authenticated
    async def get(self) -> None:
        """List them."""
        filters = self.filters()
        words: dict[str, Any] = {"filters": filters, "listed": acts.Listed((), False), "actions": [], "fault": ""}
        shards = tuple(shard.shard for shard in (await feed().newest()).record.shards)
        try:
            where = Where.parse(f"{name}={text}" for name, text in filters.items())
            words["listed"] = await self.ask(partial(acts.listed, where))
            words["actions"] = await self.ask(partial(acts.actions, [where.shard] if where.shard else shards))
        except PipelineError as error:
            words |= {"fault": str(error), "mend": mend_of(error)}
        await self.display("pipeline_dead.html", title="Ops that are set aside", done=None, **words)

    @authenticated
    async def post(self) -> None:
        """Try an order on the chosen ops, or give it."""
        self.refuse_if_read_only()
        filters = self.filters()
        chosen, drop, trial = self.many("op"), self.given("act") == "drop", self.given("sure") != "yes"
        every = self.given("every") == "yes"
        words: dict[str, Any] = {"filters": filters, "listed": acts.Listed((), False), "actions": [], "fault": ""}
        words |= {"chosen": chosen, "every": every, "drop": drop}
        try:
            if not (chosen or every):
                raise PipelineError("no op is chosen: mark some, or choose all that match")
            pairs = [] if chosen else [f"{name}={text}" for name, text in filters.items()]
            where = Where.parse(pairs, chosen)
            done = await self.ask(partial(acts.order, where, drop=drop, trial=trial, by=self.by))
        except PipelineError as error:
            self.go(f"/pipeline/dead?{urlencode(filters)}", f"Nothing was done: {error}")
            return
        if trial:
            title = "What would become of them"
            await self.display("pipeline_dead.html", title=title, done=done, **words)
        else:
            self.go(f"/pipeline/dead?{urlencode(filters)}", done.sentence)


class DeadOpPage(Acting):
    """One op that is set aside."""

    @authenticated
    async def get(self, place: str) -> None:
        """Show it beside the row as it is now.

        Args:
            place: of the op.
        """
        shard = self.given("shard") or None
        try:
            op = await self.ask(partial(acts.look_at, place, shard))
        except PipelineError as error:
            self.go("/pipeline/dead", f"{error}; {mend_of(error)}" if lacks_a_right(error) else str(error))
            return
        await self.display("pipeline_dead_op.html", title=f"Op {place}", op=op, place=place, text=edit_text)

    @authenticated
    async def post(self, place: str) -> None:
        """Change values of it.

        Args:
            place: of the op.
        """
        self.refuse_if_read_only()
        shard = self.given("shard") or None
        member = int(self.given("member") or 0)
        texts = {name: self.given(f"new:{name}") for name in self.many("field")}
        texts = {name: text for name, text in texts.items() if text != self.given(f"old:{name}")}
        try:
            if not texts:
                raise PipelineError("no value was changed")
            await self.ask(partial(acts.change, place, shard, texts, member, self.by))
            told = f"changed: {', '.join(texts)}; the op is applied once it is replayed"
        except PipelineError as error:
            told = f"Nothing was changed: {error}"
        self.go(f"/pipeline/dead/op/{place}?{urlencode({'shard': shard or ''})}", told)


class Stopping(Acting):
    """Pauses and resumes."""

    @authenticated
    async def post(self) -> None:
        """Do it, and go back to the page that asked."""
        self.refuse_if_read_only()
        resume, back = self.given("resume"), self.given("shard")
        name = resume or self.given("name")
        pause, reason = not resume and self.given("act") == "pause", self.given("reason")
        try:
            told = await self.ask(partial(acts.stop, name, pause=pause, reason=reason, by=self.by))
        except PipelineError as error:
            told = f"Nothing was done: {error}"
        self.go(f"/pipeline/shard/{back}", told)


class Moving(Acting):
    """Gives up moves, and sends buckets back."""

    @authenticated
    async def post(self) -> None:
        """Do it, and go back to the page that asked."""
        self.refuse_if_read_only()
        try:
            does = acts.send_back if self.given("act") == "back" else acts.give_up
            told = await self.ask(partial(does, self.given("buckets"), self.by))
        except PipelineError as error:
            told = f"Nothing was done: {error}"
        self.go(f"/pipeline/shard/{self.given('shard')}", told)


def lacks_a_right(error: PipelineError) -> bool:
    """Return whether a database or Redis has denied something to Flower's account.

    Args:
        error: what the account met.
    """
    return any(words in str(error) for words in ("denied", "NOPERM", "no permissions"))


def mend_of(error: PipelineError) -> str:
    """Return what lets Flower answer.

    Args:
        error: why it could not.
    """
    if lacks_a_right(error):
        return (
            "the account of Flower lacks this right: deploy/mariadb/web.sql and deploy/redis/log.acl have what it needs"
        )
    return "load the page again once it answers"


def utc(at_ms: int) -> str:
    """Return a time for people.

    Args:
        at_ms: ms since 1970.
    """
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def edit_text(value: Any) -> str:
    """Return a value of a row as an edit would spell it.

    Args:
        value: from the database.
    """
    if value is None:
        return "null"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _user_of(authorization: str) -> str:
    """Return the user of basic authentication, which Flower has checked; `somebody` without a login."""
    try:
        return b64decode(authorization.split()[1]).decode().partition(":")[0] or "somebody"
    except (ValueError, IndexError):
        return "somebody"
