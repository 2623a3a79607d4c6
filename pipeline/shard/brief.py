"""Sessions for one short question: they give up early, and leave no connection behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.shard.session import Session

#: Time-outs of a question that a person is waiting for, s. The read-only ones of a whole deployment run side by side.
CONNECT_S, STATEMENT_S = 2, 3


@contextmanager
def brief(node: str, uri: str, *, read_only: bool = True) -> Iterator[Session]:
    """Yield a session of a node; its connection is closed at the end."""
    session = Session(node, uri, read_only=read_only, connect_s=CONNECT_S, statement_s=STATEMENT_S)
    try:
        yield session
    finally:
        session.discard()
