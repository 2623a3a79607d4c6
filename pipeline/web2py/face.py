"""The object that a model makes: a request's pipeline, sent after web2py has committed and dropped on a ticket."""

from __future__ import annotations

from typing import Any

from gluon import current

from pipeline.client import Pipeline as Client
from pipeline.enqueue.held_ops import Holder
from pipeline.errors import ConfigError
from pipeline.web import by_hand
from pipeline.web.configuration import client_for
from pipeline.web.outbox import Outbox
from pipeline.web.request import MODES, Request
from pipeline.web.warming import warm_up
from pipeline.web2py import ending, forms, memory


class Pipeline:
    """The pipeline of this request: every function of `pipeline`, and what web2py adds to it.

    Make it in a model, after `db` and its tables. In the scheduler, in cron and in the shell nobody commits for the
    application, so ops are sent at once there.

    Args:
        db: the application's DAL; its tables become known.
        configuration: the application's AppConfig, with a section `[pipeline]`. Without it: `private/pipeline.toml`,
            else what `pipeline.configure` has read.
        redis_conn: web2py's `RConn(...)`, instead of the key `redis`.
        mode: when ops are sent: `on_commit` (after web2py has committed), `outbox` (the same, from a table in *db*,
            so that nothing is lost if the process dies in between) or `now` (at the call). Also a key of the section.

    Raises:
        ConfigError: with every fault; each names the file and the key.
    """

    def __init__(self, db: Any, configuration: Any = None, *, redis_conn: Any = None, mode: str | None = None):
        web = current.request
        client = client_for(web.folder, db, configuration, redis_conn)
        warm_up(client)
        client.define_tables(db)
        self.db, self.mode = db, _mode(mode, configuration) if _in_request(web) else "now"
        self.request = self._begun(client) if _in_request(web) else Request(client)

    def _begun(self, client: Client) -> Request:
        """Return this request's pipeline, begun when first asked for: a model and a controller may both make one."""
        response = current.response
        if response._pipelines is None:
            response._pipelines = {}
        begun: dict[tuple[int, str], Request] = response._pipelines
        made = begun.get((id(client), self.mode))
        if made is None:
            made = begun[id(client), self.mode] = Request(client, self._holder(client), memory.recalled)
            ending.attend(made, self.db, memory.keep, from_db=self.mode == "outbox")
            by_hand.follow(self.db, _begun_here)
        return made

    def _holder(self, client: Client) -> Holder | None:
        if self.mode == "now":
            return None
        return client.held() if self.mode == "on_commit" else Outbox(self.db, client.publisher)

    def attach(self, table: Any) -> None:
        """Queue what pyDAL and its forms write to a table; an edit form ships what was changed. See `pipeline.attach`.

        Raises:
            BadOp: a table that must be written at once, such as `auth_user`; it says why.
        """
        forms.watch()
        self.request.attach(table)

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


def _mode(given: str | None, configuration: Any) -> str:
    section = dict.get(configuration, "pipeline") if isinstance(configuration, dict) else None
    mode = given or (section or {}).get("mode") or "on_commit"
    if mode not in MODES:
        raise ConfigError([f"mode is one of {', '.join(MODES)}; got {mode!r}"])
    return str(mode)
