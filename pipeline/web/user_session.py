"""Keep what a request's user has written and seen, and refuse what a visitor may have put into a write.

A keyword does not tell who has named it, the code or the request: `**request.vars` may bring options among the fields.
So in a web request options go with fields in a mapping: there every key is a field. A field with `writable=False`, and
the id, have no value that the request brought.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from pipeline import clock
from pipeline.client import Client
from pipeline.dal.objects import kind_of, query_of, tables_in
from pipeline.enqueue.final_values import Final
from pipeline.errors import BadOp, BadToken, PartialResult, StaleRead, Unavailable
from pipeline.events import Event
from pipeline.reads.session import ReadSession, Token

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
#: How long a page waits until its user's own ops are applied, s. A replica is waited for as the settings say: then the
#: primary answers, which does not help while the op is still in the queue.
QUEUED_S = 2.0
logger = logging.getLogger("pipeline.web")


class UserSession:
    """What one user has written and seen.

    Args:
        text: of the session, as `text` returned it at the end of an earlier request; or what returns it, asked once.
    """

    __slots__ = ("_client", "_recall", "_session", "_text", "_unread")

    def __init__(self, client: Client, text: str | Callable[[], str | None] | None = None):
        self._client, self._recall = client, text
        self._text: str | None = None
        self._session: ReadSession | None = None
        self._unread = False

    @property
    def session(self) -> ReadSession:
        """The session; a text that is not of this deployment begins a new one."""
        if self._session is None:
            self._text = self._recall() if callable(self._recall) else self._recall
            try:
                self._session = self._client.session_token(self._text)
            except BadToken as error:
                logger.warning(Event("session_begins_anew", error=error))
                self._session = self._client.session_token()
            except Unavailable as error:  # a page must not fail for it; what it cannot read it must not replace
                logger.warning(Event("session_not_read", error=error))
                self._session, self._unread = self._client.session_token(), True
        return self._session

    @property
    def known(self) -> Token | None:
        """What the user has written and seen; None: nothing. The same object as long as nothing is added."""
        return self.session.token or None

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until the primaries have it, by default as long as a page waits; whether they have.

        Raises:
            ShardUnavailable, LogUnavailable: it is unknown whether they have it.
        """
        return self._client.reads.settle(self.session, QUEUED_S if timeout_s is None else timeout_s)

    def wrote(self, receipts: Any) -> None:
        """Let the next reads see the ops of *receipts*."""
        self.session.wrote(receipts)

    def text(self) -> str | None:
        """Return the session's text if it has to be kept, None if it is as it came."""
        session = self._session
        if session is None or self._unread:
            return None
        try:
            text = str(session) if session.token else ""
        except Unavailable as error:  # a page must not fail for what the next one would like to know
            logger.warning(Event("session_not_kept", error=error))
            return None
        return None if text == (self._text or "") else text


def patient(call: Callable[Concatenate[Any, _Given], _Result]) -> Callable[Concatenate[Any, _Given], _Result]:
    """Let a read of a request wait while an op of its user is still queued, unless the caller says how long to wait.

    Args:
        call: a method that reads, with what the user has written and seen unless `fresh=False`.
    """

    @wraps(call)
    def read(self: Any, /, *args: _Given.args, **options: _Given.kwargs) -> _Result:
        if options.get("fresh", True):
            self.before_call(args, options)
        if not options.get("fresh", True) or "wait_s" in options or "on_stale" in options:
            return call(self, *args, **options)
        for deadline in clock.polls(QUEUED_S):
            try:
                return call(self, *args, **options)
            except (StaleRead, PartialResult) as error:
                if deadline.passed or not _still_queued(error):
                    raise
        raise AssertionError("the last poll returns or raises")

    return read


def _still_queued(error: BaseException) -> bool:
    if isinstance(error, PartialResult):
        return any(map(_still_queued, error.missing.values()))
    return isinstance(error, StaleRead) and error.stage == "queued"


_OPTIONS = ("shard_key", "idempotency_key", "durability", "again")
#: Types of what a request brings. Others, such as pyDAL's expressions, have an `==` of their own.
_PLAIN = (str, bytes, int, float, list, dict)


def from_code(call: Callable[Concatenate[Any, _Given], _Result]) -> Callable[Concatenate[Any, _Given], _Result]:
    """Let a write of a request take options beside a mapping only, and protected fields from the code only.

    Args:
        call: a method that takes fields as a mapping or as keywords.
    """

    @wraps(call)
    def write(self: Any, /, *args: _Given.args, **named: _Given.kwargs) -> _Result:
        values = next((one for one in args[1:] if isinstance(one, Mapping)), None)
        fields = {name: value for name, value in named.items() if name not in _OPTIONS and name != "key"}
        options = [name for name in _OPTIONS if name in named]
        if options and (values is None or fields):
            raise BadOp(_keyword_form(call.__name__, options[0]))
        # of validated fields pyDAL's own rule holds: an error by field; and a Final is made by the application's code
        if call.__name__ != "enqueue_validated_insert" and not isinstance(values, Final):
            _refuse_protected(self, args[0] if args else None, {**(values or {}), **fields})
        return call(self, *args, **named)

    return write


def rows_from_code(request: Any, table: Any, rows: Any) -> Any:
    """Yield the rows of a bulk call, each with its protected fields from the code only; what is no rows as it is.

    Args:
        request: whose call it is.
        table: pyDAL's, or its name.
        rows: a mapping of fields each.
    """

    def checked() -> Iterator[Any]:
        for row in rows:
            if isinstance(row, Mapping):
                _refuse_protected(request, table, row)
            yield row

    return checked() if isinstance(rows, Iterable) else rows


def _keyword_form(call: str, option: str) -> str:
    return (
        f"in a web request {call} takes {option} beside a mapping only, since a visitor can name options in "
        f"**request.vars: {call}(…, {{'field': value}}, {option}=…)"
    )


def _refuse_protected(request: Any, target: Any, values: Mapping[str, Any]) -> None:
    """Raise if a request brought the value of a field that only code may give."""
    table = request.client.op_builder.table(target) if isinstance(target, str) else target
    if kind_of(table) != "Table":
        table = next(tables_in(query_of(target)), None)
    protected = [name for name in values if _is_protected(table, name)]
    brought = request.brought() if protected else {}
    for name in protected:
        if isinstance(values[name], _PLAIN) and name in brought and brought[name] == values[name]:
            raise BadOp(
                f"the request brought the value of {name!r}, which only code may give (the id, or writable=False): "
                "pass the fields that a visitor may fill by name, or use enqueue_validated_insert"
            )


def _is_protected(table: Any, name: str) -> bool:
    field = getattr(table, name, None) if isinstance(name, str) else None
    return field is not None and (getattr(field, "type", "") == "id" or getattr(field, "writable", True) is False)
