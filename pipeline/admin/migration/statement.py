"""Run one statement of a migration: online where the server can, and never long in front of the table's other users.

An ALTER waits for the transactions that use its table, and everybody else then waits behind the ALTER. So it gives way
after a moment and tries again.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline import clock
from pipeline.admin.migration.steps import Step
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.shard.driver_errors import code_of, connection_lost, is_driver_error, sentence_of
from pipeline.shard.session import NodeSession
from pipeline.shard.table_facts import rows_about

#: How long an ALTER waits for a table, s, and how long it is tried again.
TABLE_WAIT_S, TRY_S = 2, 60
#: Lock wait timeout: somebody's transaction uses the table.
_IN_USE = 1205
#: The server cannot do this change with the algorithm or the lock that was asked for.
_NOT_THIS_WAY = {1800, 1801, 1845, 1846}
#: Behind an ALTER TABLE: no rows are written, or they are while others write. CREATE and DROP INDEX take no commas.
_ONLINE_ALTER = (", ALGORITHM=INSTANT", ", ALGORITHM=INPLACE, LOCK=NONE")
_ADDS_KEY = " ADD FOREIGN KEY "
_ONLINE_INDEX = (" ALGORITHM=INPLACE LOCK=NONE",)


class StatementRefused(PipelineError):
    """The server refused one statement; others may succeed."""


def prepare(session: NodeSession) -> None:
    """Let no statement of a session wait long for a table.

    Args:
        session: of the primary.
    """
    if session.dialect.name == "mysql":
        session.query(f"SET SESSION lock_wait_timeout={TABLE_WAIT_S}")


def run(session: NodeSession, step: Step, *, offline: bool) -> None:
    """Run a step's statement.

    Args:
        session: of the primary; see `prepare`.
        step: the statement.
        offline: whether writes to the table may wait while the server copies it.

    Raises:
        StatementRefused: what the server said, or what the statement needs.
        ShardUnavailable: the primary went away.
    """
    refused: StatementRefused | None = None
    if session.dialect.name == "mysql":
        # a key is added while others write only if the server reads no row for it: of these rows none refers yet
        session.query(f"SET SESSION foreign_key_checks = {int(not (step.table and _ADDS_KEY in step.sql))}")
    for sql in _ways(session, step, offline):
        try:
            _patiently(session, sql)
        except StatementRefused as error:
            if code_of(error.__cause__ or error) not in _NOT_THIS_WAY:
                raise
            refused = error
        else:
            return
    raise StatementRefused(
        f"the server can do this only by copying the table (about {_rows(session, step.table)} rows), and writes wait "
        f"that long: run pipeline migrate --offline when they may ({refused})"
    ) from refused


def online_text(step: Step) -> str:
    """Return how a step runs on a table that stands, for a plan; empty where no table is altered.

    Args:
        step: the step.
    """
    if not step.table:
        return ""
    tails = _ONLINE_ALTER if step.sql.startswith("ALTER") else _ONLINE_INDEX
    return f"tried with {' then '.join(tail.lstrip(', ') for tail in tails)}; else it needs --offline"


def _ways(session: NodeSession, step: Step, offline: bool) -> Iterator[str]:
    if not step.table or session.dialect.name != "mysql":
        yield step.sql
        return
    for tail in _ONLINE_ALTER if step.sql.startswith("ALTER") else _ONLINE_INDEX:
        yield step.sql + tail
    if offline:
        yield step.sql


def _patiently(session: NodeSession, sql: str) -> None:
    """Run a statement, again and again while others use its table."""
    for waiting in clock.polls(TRY_S, first_s=0.5, most_s=2.0):
        try:
            with session.transaction():
                session.execute(sql)
        except Exception as error:
            if not is_driver_error(error):
                raise
            if code_of(error) == _IN_USE and not waiting.passed:
                continue
            if connection_lost(error):
                raise ShardUnavailable(session.node, sentence_of(error)) from error
            why = f"a transaction has used the table for {TRY_S} s (SHOW PROCESSLIST): end it, and run migrate again"
            raise StatementRefused(why if code_of(error) == _IN_USE else sentence_of(error)) from error
        return


def _rows(session: NodeSession, table: str) -> str:
    where = rows_about([table.strip("`")])
    found = session.query(f"SELECT table_rows FROM information_schema.tables WHERE {where}")
    return f"{int(found[0][0]):,}" if found and found[0][0] is not None else "all"
