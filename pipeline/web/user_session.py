"""Keep what a request's user has written and seen: opened only when a read or a write needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from pipeline import clock
from pipeline.client import Client
from pipeline.errors import BadToken, PartialResult, StaleRead, Unavailable
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
