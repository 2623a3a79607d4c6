"""Read and write what is stopped on a shard: the whole shard, or a table. A stop outlives every restart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.errors import NotMigrated, PipelineError
from pipeline.model.wait_reason import OF_TABLE, WaitReason
from pipeline.shard import NodeSession
from pipeline.shard.records import text_literal
from pipeline.shard.records.set_aside import ASIDE, WAITING, behind_of

#: The scope of a stop of the whole shard; no table has this name.
WHOLE = "*"
#: Kinds of stops: by an operator; because the database refused too many ops.
PAUSED, BREAKER = "paused", "breaker"
#: The longest reason that is stored, characters.
_REASON = 1000
_COLUMNS = "scope, kind, reason, since_ms, by_whom, definition"
#: MySQL names the next id in a table's definition.
_NEXT_ID = re.compile(r" AUTO_INCREMENT=\d+")


class Stop(NamedTuple):
    """What is stopped, and why.

    Attributes:
        scope: a table's name, or `WHOLE`.
        kind: `PAUSED` or `BREAKER`.
        reason: the operator's words, or the database's.
        since_ms: by the primary's clock, ms since 1970.
        by_whom: who gave the order, or the worker's host.
        definition: of a breaker, the table's definition in the database as it was, see `definition_of`.
    """

    scope: str
    kind: str
    reason: str
    since_ms: int
    by_whom: str
    definition: str = ""

    def reason_on(self, shard: str) -> WaitReason:
        """Return why the ops wait that this stops.

        Args:
            shard: the name of the stop's shard.
        """
        detail = f"by {self.by_whom}: {self.reason}" if self.reason else f"by {self.by_whom}"
        if self.kind == BREAKER:
            detail = self.reason
        return WaitReason(self.kind, shard, shard if self.scope == WHOLE else self.scope, detail, self.since_ms)


def stops_of(session: NodeSession) -> list[Stop]:
    """Return all that is stopped on a shard, the oldest first.

    Args:
        session: of the shard's primary, outside a transaction.

    Raises:
        NotMigrated: the shard has no such table yet.
    """
    found = session.query(f"SELECT {_COLUMNS} FROM pipeline_stops ORDER BY since_ms, scope")
    return [Stop(*row) for row in found]


def stopped_tables(session: NodeSession) -> set[str]:
    """Return the names of the tables that are stopped.

    Args:
        session: of the shard's primary, inside a transaction.
    """
    return {scope for (scope,) in session.rows("SELECT scope FROM pipeline_stops") if scope != WHOLE}


def tables_that_wait(session: NodeSession) -> set[str]:
    """Return the names of the tables that are stopped or have ops set aside; `WHOLE` where the shard is stopped.

    Args:
        session: of the shard's primary, outside a transaction.
    """
    aside = ", ".join(f"'{state}'" for state in ASIDE)
    found = f"SELECT scope FROM pipeline_stops UNION SELECT table_name FROM pipeline_rejects WHERE state IN ({aside})"
    return {name for (name,) in session.query(found)}


def stop_reasons(session: NodeSession, shard: str) -> list[WaitReason]:
    """Return why ops are stopped, or wait for their definition; nothing where the shard's tables are older than this
    process.

    Args:
        session: of the shard's primary.
        shard: the shard's name.
    """
    try:
        return [*(stop.reason_on(shard) for stop in stops_of(session)), *behind_on(session, shard)]
    except NotMigrated:
        return []


def behind_on(session: NodeSession, shard: str) -> list[WaitReason]:
    """Return why ops wait until their table can take them, the first reason of each kind and table.

    Args:
        session: of the shard's primary, outside a transaction.
        shard: the shard's name.

    Raises:
        NotMigrated: the shard has no such table yet.
    """
    return [reason for reason in waiting_on(session, shard) if reason.kind in OF_TABLE]


def waiting_on(session: NodeSession, shard: str) -> list[WaitReason]:
    """Return why ops are set aside that wait behind no other, the first reason of each kind and table.

    Args:
        session: of the shard's primary, outside a transaction.
        shard: the shard's name.

    Raises:
        NotMigrated: the shard has no such table yet.
    """
    found = session.query(
        f"SELECT table_name, reason, MIN(rejected_ms) FROM pipeline_rejects WHERE state = '{WAITING}'"
        " GROUP BY table_name, reason ORDER BY MIN(rejected_ms), table_name"
    )
    first: dict[tuple[str, str], WaitReason] = {}
    for table, why, since_ms in found:
        reason = behind_of(shard, table, why, int(since_ms)) or WaitReason("waiting", shard, table, why)
        first.setdefault((reason.kind, table), reason)
    return [*first.values()]


def give(session: NodeSession, order: Stop) -> None:
    """Stop a scope; committed when this returns. What is stopped already keeps its time and reason.

    Args:
        session: of the shard's primary.
        order: what to stop; its time is the primary's.
    """
    before = ", ".join(map(text_literal, (order.scope, order.kind, order.reason[:_REASON])))
    after = ", ".join(map(text_literal, (order.by_whom[:128], order.definition)))
    with session.translated(), session.transaction():
        session.execute(
            f"INSERT INTO pipeline_stops ({_COLUMNS}) VALUES ({before}, {session.dialect.now_ms}, {after})"
            + session.dialect.on_conflict(["scope", "kind"], [])
        )


def lift(session: NodeSession, scope: str, kind: str) -> bool:
    """Remove a stop; committed when this returns, which says whether there was one.

    Args:
        session: of the shard's primary.
        scope: a table's name, or `WHOLE`.
        kind: `PAUSED` or `BREAKER`.
    """
    with session.translated(), session.transaction():
        return session.execute(f"DELETE FROM pipeline_stops WHERE {_named(scope, kind)}") > 0


def note_definition(session: NodeSession, scope: str, definition: str) -> None:
    """Note under which definition a table was tried last; committed when this returns.

    Args:
        session: of the shard's primary.
        scope: the table's name.
        definition: see `definition_of`.
    """
    with session.translated(), session.transaction():
        session.execute(
            f"UPDATE pipeline_stops SET definition = {text_literal(definition)} WHERE {_named(scope, BREAKER)}"
        )


def definition_of(session: NodeSession, table: str) -> str:
    """Return a digest of a table's columns, constraints and triggers, which changes with these; empty: unknown.

    Args:
        session: of the shard's primary, outside a transaction.
        table: its name in the database.
    """
    try:
        return _digest([session.query(sql) for sql in _definition_sql(session, table)])
    except PipelineError:  # it cannot be read: then its changes are not noticed
        return ""


def definition_now(session: NodeSession, table: str) -> str:
    """Return what `definition_of` returns, inside a transaction. Where that has met the table, it stays so to the end.

    Args:
        session: of the shard's primary.
        table: its name in the database.
    """
    return _digest(session.ask(*_definition_sql(session, table)))


def _definition_sql(session: NodeSession, table: str) -> list[str]:
    name = text_literal(table)
    if session.dialect.name == "sqlite":
        return [f"SELECT sql FROM sqlite_master WHERE tbl_name = {name} ORDER BY name"]
    return [
        f"SHOW CREATE TABLE {session.dialect.quote(table)}",
        "SELECT TRIGGER_NAME, EVENT_MANIPULATION, ACTION_STATEMENT FROM information_schema.TRIGGERS"
        f" WHERE EVENT_OBJECT_SCHEMA = DATABASE() AND EVENT_OBJECT_TABLE = {name} ORDER BY TRIGGER_NAME",
    ]


def _digest(found: Iterable[Iterable[Sequence[object]]]) -> str:
    text = _NEXT_ID.sub("", repr([tuple(map(str, row)) for rows in found for row in rows]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named(scope: str, kind: str) -> str:
    return f"scope = {text_literal(scope)} AND kind = {text_literal(kind)}"
