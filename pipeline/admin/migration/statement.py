"""Run one statement of a migration, online where the server can, once the shard's replicas have caught up.

Wait until the replicas of a shard have caught up, before a statement makes them wait for as long as it ran. Lag is
measured as the prober does: a heartbeat on the primary, and what each replica has of it. The measure needs no worker.

An ALTER waits for the transactions that use its table, and everybody else then waits behind the ALTER. So an ALTER
gives way after a moment and tries again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from pipeline import clock
from pipeline.admin.migration.steps import Step
from pipeline.client import Client
from pipeline.errors import NotMigrated, PipelineError, ShardUnavailable
from pipeline.reads.health import LagMeter, beat, probe
from pipeline.shard import NodeSession, brief
from pipeline.shard.driver_errors import code_of, connection_lost, is_driver_error, sentence_of
from pipeline.shard.table_facts import rows_about

#: Between two probes, s.
AGAIN_S = 0.5
#: A wait is shown after so long, and then so often, s. A healthy replica has the heartbeat before.
SHOW_AFTER_S, SHOW_S = 1.0, 5.0
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


class Behind(NamedTuple):
    """A replica that migrate waits for, or does not.

    Attributes:
        shard: the shard's name.
        node: the replica.
        lag_s: infinite where nothing shows how far behind it is; None where it does not answer.
    """

    shard: str
    node: str
    lag_s: float | None

    def __str__(self) -> str:
        if self.lag_s is None:
            return f"{self.shard}: {self.node} does not answer, and is not waited for"
        far = "not known to have caught up" if math.isinf(self.lag_s) else f"{self.lag_s:.1f} s behind"
        return f"{self.shard}: waits for {self.node}, which is {far}"


class ReplicaLag:
    """The lag of one shard's replicas.

    Args:
        shard: the shard.
        most_s: how far behind a replica may be, seconds.
        primary: a session of its primary, for writing.
        replicas: a session of each other node, for reading.
    """

    def __init__(self, shard: str, most_s: float, primary: NodeSession, replicas: dict[str, NodeSession]):
        self._shard, self._primary, self._replicas = shard, primary, replicas
        self._most_s, self._meter = most_s, LagMeter()
        self._away: set[str] = set()

    def waits(self) -> Iterator[Behind]:
        """Wait while a replica is further behind than `[reads] max_lag_s`; one that is away or unfit does not count.

        Yields the replica that is furthest behind, now and then, and once each that is away.
        """
        shown_s = -SHOW_S
        for waiting in clock.polls(math.inf, first_s=AGAIN_S / 10, most_s=AGAIN_S) if self._replicas else ():
            lags = self.lags()
            away = [one for one in lags if one.lag_s is None and one.node not in self._away]
            self._away |= {one.node for one in away}
            yield from away
            behind = max(lags, key=lambda one: one.lag_s or 0)
            if (behind.lag_s or 0) <= self._most_s:
                return
            if waiting.waited_s >= SHOW_AFTER_S and waiting.waited_s - shown_s >= SHOW_S:
                yield behind
                shown_s = waiting.waited_s

    def lags(self) -> list[Behind]:
        """Return how far behind each replica is, after a heartbeat on the primary."""
        asked_s = clock.mono_s()
        beat(self._primary)
        self._meter.add(self._shard, probe(self._primary), asked_s)
        return [Behind(self._shard, node, self._lag_s(session)) for node, session in self._replicas.items()]

    def _lag_s(self, session: NodeSession) -> float | None:
        try:
            horizon_ms = self._meter.horizon_ms(probe(session))
        except NotMigrated:
            return math.inf  # the tables themselves have not come yet
        except PipelineError:
            return None
        return math.inf if horizon_ms is None else (self._meter.now_ms(clock.mono_s()) - horizon_ms) / 1000


@contextmanager
def lag_of(pipeline: Client, shard: str, primary: NodeSession) -> Iterator[ReplicaLag]:
    """Yield the lag of a shard's replicas; their connections are closed at the end.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        primary: a session of its primary, for writing.
    """
    current = pipeline.nodes.primary_name(shard)
    others = [node for node in pipeline.nodes.names(shard) if node != current and not pipeline.nodes.unfit(node)]
    with ExitStack() as stack:
        sessions = {node: stack.enter_context(brief(node, pipeline.nodes.uri(node))) for node in others}
        yield ReplicaLag(shard, pipeline.settings.reads.max_lag_s, primary, sessions)


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
