"""Read and write what is stopped on a shard: the whole shard, or a table. A stop outlives every restart."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import NotMigrated
from pipeline.model.wait_reason import WaitReason
from pipeline.shard.ledger import text_literal
from pipeline.shard.session import NodeSession

#: The scope of a stop of the whole shard; no table has this name.
WHOLE = "*"
#: The longest reason that is stored, characters.
_REASON = 1000


class Stop(NamedTuple):
    """What is stopped, and why.

    Attributes:
        scope: a table's name, or `WHOLE`.
        kind: `paused` by an operator, or `breaker`.
        reason: the operator's words, or the database's.
        since_ms: by the primary's clock, ms since 1970.
        by_whom: who gave the order.
    """

    scope: str
    kind: str
    reason: str
    since_ms: int
    by_whom: str

    def reason_on(self, shard: str) -> WaitReason:
        """Return why the ops wait that this stops.

        Args:
            shard: the name of the stop's shard.
        """
        detail = f"by {self.by_whom}: {self.reason}" if self.reason else f"by {self.by_whom}"
        return WaitReason(self.kind, shard, shard if self.scope == WHOLE else self.scope, detail, self.since_ms)


def stops_of(session: NodeSession) -> list[Stop]:
    """Return all that is stopped on a shard, the oldest first.

    Args:
        session: of the shard's primary.

    Raises:
        NotMigrated: the shard has no such table yet.
    """
    found = session.query("SELECT scope, kind, reason, since_ms, by_whom FROM pipeline_stops ORDER BY since_ms, scope")
    return [Stop(*row) for row in found]


def stop_reasons(session: NodeSession, shard: str) -> list[WaitReason]:
    """Return why ops wait because of what is stopped; nothing where the shard's tables are older than this process.

    Args:
        session: of the shard's primary.
        shard: the shard's name.
    """
    try:
        return [stop.reason_on(shard) for stop in stops_of(session)]
    except NotMigrated:
        return []


def stop(session: NodeSession, scope: str, kind: str, reason: str, by_whom: str) -> None:
    """Stop a scope; committed when this returns. What is stopped already keeps its time and reason.

    Args:
        session: of the shard's primary.
        scope: a table's name, or `WHOLE`.
        kind: `paused` or `breaker`.
        reason: why.
        by_whom: who gives the order.
    """
    texts = ", ".join(map(text_literal, (scope, kind, reason[:_REASON])))
    who = text_literal(by_whom[:128])
    with session.translated(), session.transaction():
        session.execute(
            "INSERT INTO pipeline_stops (scope, kind, reason, since_ms, by_whom)"
            f" VALUES ({texts}, {session.dialect.now_ms}, {who}){session.dialect.on_conflict(['scope', 'kind'], [])}"
        )


def lift(session: NodeSession, scope: str, kind: str) -> bool:
    """Remove a stop; committed when this returns, which says whether there was one.

    Args:
        session: of the shard's primary.
        scope: a table's name, or `WHOLE`.
        kind: `paused` or `breaker`.
    """
    where = f"scope = {text_literal(scope)} AND kind = {text_literal(kind)}"
    with session.translated(), session.transaction():
        return session.execute(f"DELETE FROM pipeline_stops WHERE {where}") > 0
