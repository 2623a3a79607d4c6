"""Let py4web's actions write through the queue and see their own writes, with a fixture.

    # common.py
    from pipeline.py4web import Pipeline
    pipeline = Pipeline(db, os.path.join(settings.APP_FOLDER, "pipeline.toml"), broker=settings.CELERY_BROKER)

    # controllers.py                         pipeline before db: py4web ends fixtures in reverse, so db commits first
    @action("buy", method="POST")
    @action.uses(session, pipeline, db)
    def buy():
        receipt = pipeline.enqueue_insert(db.purchase, customer=7, qty=3)
        redirect(URL("show", receipt.id))

Only this module imports py4web.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from py4web import DAL, request, response
from py4web.core import Fixture, Session
from py4web.utils.form import Form

import pipeline
from pipeline import attachment
from pipeline.calls import Calls
from pipeline.client import Client as Client
from pipeline.config import settings
from pipeline.dal import real_name
from pipeline.enqueue.held_ops import HeldOps
from pipeline.errors import ConfigError
from pipeline.web import client_of, outbox, warm_up
from pipeline.web.request import MODES, Request

#: The key in py4web's session, and the cookie where no session is listed before the pipeline.
KEY = "_pipeline"
#: The scaffold's `SESSION_…` cookies last as long as the browser; so does what one has seen.
COOKIE = {"path": "/", "httponly": True, "samesite": "Lax"}


class _Request(Request):
    def brought(self) -> Mapping[str, Any]:
        posted = request.json
        return {**request.query, **request.forms, **(posted if isinstance(posted, dict) else {})}


class Pipeline(Fixture):  # type: ignore[misc]  # py4web has no types
    """The pipeline of each request that lists it: every function of `pipeline`, sent after *db* has committed.

    Threads may share the fixture: what belongs to a request is in its local. The fixture costs nothing in an action
    that does not use it. Outside of requests, such as in a Celery task, use `client`, which sends at the call.

    Args:
        db: the application's DAL; its tables become known.
        source: the path of a TOML file, or a dict of the same shape; by default what `pipeline.configure` has read.
        broker: the scaffold's `CELERY_BROKER`, the address of the Redis to use where *source* names none.
        mode: when ops are sent. `on_commit`: after db has committed. `outbox`: the same, from a table in *db*, so that
            nothing is lost if the process ends in between. `now`: at the call.

    Raises:
        ConfigError: with every fault of the configuration, or for an unknown mode.
    """

    def __init__(
        self,
        db: Any,
        source: str | Path | Mapping[str, Any] | None = None,
        *,
        broker: str | None = None,
        mode: str = "on_commit",
    ):
        if mode not in MODES:
            raise ConfigError([f"mode is one of {', '.join(MODES)}; got {mode!r}"])
        self.db, self.mode = db, mode
        #: The process's client.
        self.client = _client(source, broker)
        if mode == "outbox":  # at import: what one thread defines in a request, others have not got
            outbox.defined(db)
        #: How many tables are published.
        self._known = 0
        self._watch_commits(db._adapter)
        outbox.follow_commits(db, self._begun_here)

    def on_request(self, context: dict[str, Any]) -> None:
        """Begin a request; the first request publishes the tables. Nothing else is opened before the first call.

        Args:
            context: py4web's; `fixtures` lists those of the action, in order.

        Raises:
            RuntimeError: the order of the fixtures would send ops before the database commits.
        """
        fixtures = context["fixtures"]
        earlier = fixtures[: fixtures.index(self)]
        if any(isinstance(one, DAL) for one in earlier):
            raise RuntimeError(_order(earlier))
        if len(self.db.tables) != self._known:  # those of models.py, which imports db from beside this object
            self._known = len(self.db.tables)
            self.client.define_tables(self.db)
            warm_up(self.client)
        Fixture.local_initialize(self)
        self.local.request = self.local.not_committed = None
        self.local.session = next((one for one in earlier if isinstance(one, Session)), None)
        self.local.commits = any(one is self.db for one in fixtures)

    def on_success(self, context: dict[str, Any]) -> None:
        """Send what the action has queued: db has committed, or nothing of its own was to be committed.

        Args:
            context: py4web's, not used.

        Raises:
            Exception: the database's own, whose commit has failed; nothing is sent then.
            PipelineError: as `pipeline.enqueue_insert`.
        """
        made: Request | None = self.local.request
        if made is not None and self.local.not_committed is not None:
            made.drop()
            raise self.local.not_committed
        if made is not None:
            self._keep(self._finished(made))

    def on_error(self, context: dict[str, Any]) -> None:
        """Drop what the action has queued: db has rolled back, or could not commit.

        Args:
            context: py4web's, not used.
        """
        if self.is_valid() and self.local.request is not None:
            self.local.request.drop()

    @property
    def request(self) -> Request:
        """This request's pipeline, made at its first use.

        Raises:
            RuntimeError: the action does not list the fixture, or there is no request.
        """
        if not self.is_valid():
            raise RuntimeError(
                "the pipeline is not among this action's fixtures: @action.uses(session, pipeline, db); "
                "outside of a request use pipeline.client"
            )
        if self.local.request is None:
            # not in on_request: what db restores for this thread comes after it
            self.client.define_tables(self.db)
            warm_up(self.client)
            self.local.request = _Request(self.client, self._holder(), self._recalled(), _action())
        made: Request = self.local.request
        return made

    def attach(self, table: Any, reads: str | None = None) -> None:
        """Queue what pyDAL writes to a table; once, at import, for all requests. See `pipeline.attach`.

        Args:
            table: a table of *db*.
            reads: `own`: a request's reads see its own writes of the table, which are sent and waited for before such a
                read; `next`: the next request's do. By default as the table's settings say, else `next`.

        Raises:
            BadOp: a table that must be written at once, such as `auth_user`, or `own` in mode `outbox`; the message
                says why.
        """
        own = attachment.reads_own(table, self.client.topology.table(real_name(table)), reads, self.mode)
        attachment.attach(table, self._calls, lambda: self.client, self._before_read, own=own)
        _watch_forms()

    def __getattr__(self, name: str) -> Any:
        # py4web itself asks fixtures for __prerequisites__ and is_hook
        if name.startswith("_") or not hasattr(Request, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.request, name)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *(name for name in dir(Request) if name[0] != "_")})

    def _calls(self) -> Calls:
        """Return who takes the writes of an attached table: this request, or the client outside of any.

        A request that writes must list the fixture: without the fixture its commit would go unnoticed. One that reads
        need not.
        """
        return self.request if self.is_valid() or _in_request() else self.client

    def _before_read(self, reading: attachment.Reading) -> None:
        if self.is_valid():
            self.request.before_read(reading)

    def _begun_here(self) -> list[Request]:
        return [self.local.request] if self.is_valid() and self.local.request is not None else []

    def _holder(self) -> HeldOps | None:
        if self.mode == "now":
            return None
        if self.mode == "on_commit":
            return self.client.held()
        return outbox.Outbox(self.db, self.client, committed=self.local.commits)

    def _finished(self, made: Request) -> str | None:
        """Send what waits; rows of an outbox over a connection of db's pool, since db has given its own back."""
        if self.mode != "outbox" or not made.waiting:
            return made.finish()
        self.db.get_connection_from_pool_or_new()
        try:
            return made.finish()
        finally:
            self.db.recycle_connection_in_pool_or_close("rollback")

    def _watch_commits(self, adapter: Any) -> None:
        """Note a commit that fails: pyDAL swallows it where py4web commits, and the page would say that all is well."""
        own = adapter.commit

        def commit() -> Any:
            failed: Exception | None = None
            try:
                return own()
            except Exception as error:
                failed = error
                raise
            finally:
                if self.is_valid():
                    self.local.not_committed = failed

        adapter.commit = commit

    def _recalled(self) -> str | None:
        """Return the text of the user's session as the last request left it."""
        if self.local.session is not None:
            text: str | None = self.local.session.get(KEY)
            return text
        cookie: str | None = request.get_cookie(_cookie())
        return cookie

    def _keep(self, text: str | None) -> None:
        """Let the user's next request find the text. None: nothing has changed."""
        if text is None:
            return
        if self.local.session is None:  # the text is signed
            age = {} if text else {"max_age": 0}
            response.set_cookie(_cookie(), text, secure=request.url.startswith("https"), **COOKIE, **age)
        elif text:
            self.local.session[KEY] = text
        else:
            del self.local.session[KEY]


def _in_request() -> bool:
    # the thread that imported py4web has an environment that is nobody's; one that has never served has none
    return "REQUEST_METHOD" in (request.environ or {})


def _action() -> str:
    """Return the rule of the request's route: what one action answers, whatever its arguments."""
    route = getattr((request.environ or {}).get("ombott.route"), "route", None)
    return str(getattr(route, "rule", request.path))


def _watch_forms() -> None:
    """Let every form of this process note which record it shows: it hands all its fields to `update_record`."""
    own = Form.update_or_insert
    if hasattr(own, "_pipeline_watched"):
        return

    def update_or_insert(self: Any, validated_vars: Any) -> Any:
        with attachment.editing(self.table, self.record):
            return own(self, validated_vars)

    update_or_insert._pipeline_watched = True  # type: ignore[attr-defined]  # a mark: replaced once
    Form.update_or_insert = update_or_insert


def _cookie() -> str:
    return f"{request.app_name}{KEY}"


def _client(source: str | Path | Mapping[str, Any] | None, broker: str | None) -> Client:
    if source is None and broker is None:
        return pipeline.current()
    key = json.dumps(source, sort_keys=True, default=str) if isinstance(source, Mapping) else str(source)
    return client_of(("py4web", key, broker), lambda: settings.with_redis(source, broker))


def _order(earlier: list[Any]) -> str:
    stored = any(isinstance(one, Session) and any(isinstance(p, DAL) for p in one.__prerequisites__) for one in earlier)
    why = "a session that is stored in db brings db with it. " if stored else ""
    first = "@action.uses(pipeline, session, db)" if stored else "@action.uses(session, pipeline, db)"
    return (
        f"list the pipeline before db: {why}py4web ends fixtures in reverse, so as listed now ops would be sent "
        f"before db commits, also where the commit then fails. Write {first}, and auth or auth.user behind"
    )
