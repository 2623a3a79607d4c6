"""Relay a whole outbox, from outside of any request: what dead processes have left, or what waited for Redis."""

from __future__ import annotations

from typing import NamedTuple

from pipeline import clock
from pipeline.client import Pipeline
from pipeline.shard.brief import brief
from pipeline.web import outbox


class Relayed(NamedTuple):
    """How many rows were sent, and how many were left because they are so old that they might be doubled."""

    sent: int
    left: int


def relay(client: Pipeline, uri: str, *, old: bool = False) -> Relayed:
    """Send and delete all rows of the outbox in a database.

    Args:
        uri: pyDAL's URI of the application's own database.
        old: send also what is so old that log and shard may have forgotten it: what was sent before is doubled then.

    Raises:
        Unavailable: the rows that were not sent stay; call again.
    """
    with brief("the application's database", uri, read_only=False) as session, session.translated():
        table = outbox.defined(session.db)
        limit_ms = clock.wall_ms() - outbox.FORGOTTEN_MS
        query = table.id > 0 if old else table.made_ms > limit_ms
        count = 0
        while rows := outbox.kept_rows(table, query):
            outbox.sent(client.publisher, rows)
            if not outbox.delete(table, rows):
                break
            count += len(rows)
        return Relayed(count, session.db(table).count())
