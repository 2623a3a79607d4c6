"""Let web2py's controllers write through the queue and see their own writes, with one line in a model.

    # models/pipeline.py                     web2py runs models in the order of their names: db.py first
    from pipeline.web2py import Pipeline
    pipeline = Pipeline(db)                  # [pipeline] of private/appconfig.ini

    # controllers/default.py
    def buy():
        receipt = pipeline.enqueue_insert(db.purchase, customer=auth.user_id, qty=3)
        redirect(URL("show", args=receipt.id))

Only this module imports gluon.

The ops of a request are sent once every database has committed, or dropped with a ticket. web2py calls
`response.custom_commit` with the adapter of each DAL, which it must commit, and once more with None. On a ticket web2py
calls `response._custom_rollback`. pyDAL swallows a commit's error: here it becomes a ticket, and nothing is sent.
`redirect` and `raise HTTP(...)` are no failures: web2py commits.

The user's session token is kept in web2py's session. A session that is kept in a database is stored *before* web2py
commits, when the positions of the request's ops are not known. The signed token then goes into a cookie of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gluon import current
from gluon.sqlhtml import SQLFORM

from pipeline.attachment.changes import editing
from pipeline.client import Client as Client
from pipeline.dal import real_name
from pipeline.enqueue.held_ops import HeldOps
from pipeline.errors import ConfigError
from pipeline.web import client_for, configuration_of, outbox, warm_up
from pipeline.web.outbox import Outbox
from pipeline.web.request import MODES, Request

__all__ = ["Pipeline"]


class _Request(Request):
    def brought(self) -> Mapping[str, Any]:
        return current.request.vars or {}


class Pipeline:
    """The pipeline of this request: every function of `pipeline`, and what web2py adds to it.

    Make this object in a model, after `db` and its tables. In the scheduler, in cron and in the shell web2py does not
    commit, so ops are sent at once there.

    Args:
        db: the application's DAL; its tables become known.
        configuration: the application's AppConfig, with a section `[pipeline]`. By default what `pipeline.configure`
            has read, else `private/pipeline.toml`, else the section `[pipeline]` of `private/appconfig.ini`.
        redis_conn: web2py's `RConn(...)`, instead of the key `redis`.
        mode: when ops are sent. `on_commit`: after web2py has committed. `outbox`: the same, from a table in *db*, so
            that nothing is lost if the process ends in between. `now`: at the call. By default the section's key
            `mode`, else `on_commit`. In the scheduler, in cron and in the shell always `now`.

    Raises:
        ConfigError: with every fault of the configuration; each names the file and the key.
    """

    def __init__(self, db: Any, configuration: Any = None, *, redis_conn: Any = None, mode: str | None = None):
        web = current.request
        configuration = configuration_of(web.folder, configuration)
        client = client_for(web.folder, db, configuration, redis_conn)
        warm_up(client)
        client.define_tables(db)
        self.db, self.mode = db, _mode(mode, configuration) if _in_request(web) else "now"
        self._reads: str | None = _section(configuration).get("reads")
        self.request = self._begun(client) if _in_request(web) else Request(client)

    def _begun(self, client: Client) -> Request:
        """Return this request's pipeline, begun when first asked for: a model and a controller may both make one."""
        response, web = current.response, current.request
        if response._pipelines is None:
            response._pipelines = {}
        begun: dict[tuple[int, str], Request] = response._pipelines
        made = begun.get((id(client), self.mode))
        if made is None:
            action = f"{web.application}/{web.controller}/{web.function}"
            made = begun[id(client), self.mode] = _Request(client, self._holder(client), recalled, action)
            attend(made, self.db, from_db=self.mode == "outbox")
            outbox.follow_commits(self.db, _begun_here)
        return made

    def _holder(self, client: Client) -> HeldOps | None:
        if self.mode == "now":
            return None
        return client.held() if self.mode == "on_commit" else Outbox(self.db, client)

    def attach(self, table: Any, reads: str | None = None) -> None:
        """Queue what pyDAL and its forms write to a table; an edit form ships what was changed. See `pipeline.attach`.

        Args:
            table: a table of the DAL.
            reads: `own`: a request's reads see its own writes of the table, which are sent and waited for before such a
                read; `next`: the next request's do. By default as the table's settings or the section say, else `next`.

        Raises:
            BadOp: a table that must be written at once, such as `auth_user`, or `own` in mode `outbox`; the message
                says why.
        """
        watch_controllers()
        rules = self.request.client.topology.table(real_name(table))
        self.request.attach(table, reads or rules.reads or self._reads, self.mode)

    def __getattr__(self, name: str) -> Any:
        if name == "request":  # not made yet
            raise AttributeError(name)
        return getattr(self.request, name)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self.request)})


def _begun_here() -> list[Request]:
    response = getattr(current, "response", None)  # a thread of the application's own has none
    begun: dict[Any, Request] | None = response._pipelines if response is not None else None
    return list((begun or {}).values())


def _in_request(web: Any) -> bool:
    """Return whether web2py will commit for the application: only its WSGI entry does."""
    return web.wsgi is not None and not (web.is_shell or web.is_scheduler)


def _section(configuration: Any) -> Mapping[str, Any]:
    section = dict.get(configuration, "pipeline") if isinstance(configuration, dict) else None
    return section or {}


def _mode(given: str | None, configuration: Any) -> str:
    mode = given or _section(configuration).get("mode") or "on_commit"
    if mode not in MODES:
        raise ConfigError([f"mode is one of {', '.join(MODES)}; got {mode!r}"])
    return str(mode)


def attend(request: Request, db: Any, *, from_db: bool = False) -> None:
    """Let a request's pipeline end with the request.

    A function that was in one of the two hooks before is called first; a function that a controller puts into the hook
    afterwards must call ours.

    Args:
        request: the pipeline of this request.
        db: the application's DAL.
        from_db: the ops are rows of a table in *db*, whose connection is used once more after web2py has given it back.
    """
    response = current.response
    commit: Any = response.custom_commit
    rollback: Any = response._custom_rollback

    failed: list[Exception] = []
    known = len(db.tables)

    def committed(adapter: Any) -> None:
        if adapter is not None:
            try:
                commit(adapter) if commit else adapter.commit()
            except Exception as error:  # pyDAL swallows it, and web2py takes the request for a success
                failed.append(error)
                raise
            return
        if commit:
            commit(None)
        if failed:
            request.drop()
            raise failed[0]
        if len(db.tables) != known:  # by models that run after the pipeline's, or by the controller
            request.client.define_tables(db)
        try:
            keep(request.finish())
        finally:
            if from_db:
                db._adapter.close("commit")

    def rolled_back() -> None:
        request.drop()
        if rollback:
            rollback()
        else:
            type(db._adapter).close_all_instances("rollback")

    response.custom_commit, response._custom_rollback = committed, rolled_back


#: Marks the method, so that it is replaced once in a process.
_MARK = "_pipeline_watched"


def watch_controllers() -> None:
    """Let every SQLFORM of this process note which record it shows, since a form hands all its fields to `update`."""
    accepts = SQLFORM.accepts
    if hasattr(accepts, _MARK):
        return

    def accepts_and_tells(self: Any, *args: Any, **options: Any) -> Any:
        with editing(self.table, self.record):
            return accepts(self, *args, **options)

    setattr(accepts_and_tells, _MARK, True)
    SQLFORM.accepts = accepts_and_tells


#: The key in web2py's session, and the cookie's name after the application's.
KEY = "_pipeline"


def recalled() -> str | None:
    """Return the token's text as the user's last request left it."""
    if _in_cookie():
        morsel = current.request.cookies.get(_cookie())
        return morsel.value if morsel is not None else None
    text: str | None = dict.get(current.session, KEY)
    return text


def keep(text: str | None) -> None:
    """Let the user's next request find the text.

    Args:
        text: the user's session as text; empty: forget it; None: nothing has changed.
    """
    if text is None or current.session._forget:
        return
    if _in_cookie():
        _bake(text)
    elif text:
        current.session[KEY] = text
    else:
        current.session.pop(KEY, None)


def _in_cookie() -> bool:
    return bool(current.response.session_storage_type == "db")


def _cookie() -> str:
    return f"{KEY}_{current.request.application}".lstrip("_")


def _bake(text: str) -> None:
    cookies: Any = current.response.cookies
    name = _cookie()
    cookies[name] = text
    cookies[name]["path"] = "/"
    cookies[name]["httponly"] = True
    cookies[name]["samesite"] = "Lax"
    if current.request.is_https:
        cookies[name]["secure"] = True
    if not text:
        cookies[name]["max-age"] = 0
