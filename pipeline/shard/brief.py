"""Sessions for one errand: they give up early unless told otherwise, and leave no connection behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.shard.session import Session

#: Time-outs of a question that a person is waiting for, s.
CONNECT_S, STATEMENT_S = 2, 3


@contextmanager
def brief(node: str, uri: str, *, read_only: bool = True, statement_s: float = STATEMENT_S) -> Iterator[Session]:
    """Yield a session of a node; its connection is closed at the end."""
    session = Session(node, uri, read_only=read_only, connect_s=CONNECT_S, statement_s=statement_s)
    try:
        yield session
    finally:
        session.discard()
