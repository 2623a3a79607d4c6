"""A request's user as a reader: the session that the last request left, opened only when a read or a write needs it."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.client import Pipeline
from pipeline.errors import BadToken, Unavailable
from pipeline.reads.session import Session
from pipeline.reads.token import Token

_log = logging.getLogger("pipeline.web")


class Reader:
    """What one user has written and seen.

    Args:
        text: of the session, as `text` returned it at the end of an earlier request.
    """

    __slots__ = ("_client", "_session", "_text")

    def __init__(self, client: Pipeline, text: str | None = None):
        self._client, self._text = client, text
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The session; a text that is not of this deployment begins a new one."""
        if self._session is None:
            try:
                self._session = self._client.session_token(self._text)
            except BadToken as error:
                _log.warning("the user's session begins anew: %s", error)
                self._session = self._client.session_token()
        return self._session

    @property
    def known(self) -> Token | None:
        """What the user has written and seen; None: nothing. The same object as long as nothing is added."""
        return self.session.token or None if self._text or self._session is not None else None

    def wrote(self, receipts: Any) -> None:
        """Let the next reads see these ops."""
        self.session.wrote(receipts)

    def after(self, asked: Any, fresh: bool) -> Any:
        """Return what a read must see: what the user has seen and written, and what was asked for besides."""
        return self._client.joined(self.session, asked) if fresh else asked

    def text(self) -> str | None:
        """Return the session's text if it has to be kept, None if it is as it came."""
        session = self._session
        if session is None:
            return None
        try:
            text = str(session) if session.token else ""
        except Unavailable as error:  # a page must not fail for what the next one would like to know
            _log.warning("the user's session is not kept: %s", error)
            return None
        return None if text == (self._text or "") else text
