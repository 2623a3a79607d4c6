"""A replay that is killed at any statement, or beside its commit, has applied each op once or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from uuid import uuid4

import pytest

from pipeline.apply.applier import Applier
from pipeline.apply.replay import Replay
from pipeline.config.settings import ApplySettings
from pipeline.model import INSERT, UPDATE, Op, Position, encode
from pipeline.model.schema import Column, TableSchema
from pipeline.oplog.appends import Append, Scope
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard import NodeSession
from pipeline.shard.columns import own_tables
from pipeline.shard.records import ledger_queries

pytestmark = pytest.mark.mariadb

TALLY = TableSchema("tally", (Column("id", "id"), Column("n", "integer"), Column("mood", "integer")))
#: Two buckets, two rows in each, and so many ops behind each row's insert.
BUCKETS, ROWS, BEHIND = (0, 1), 4, 12
#: A transaction of a replay has fewer steps; small ones, so that there are many.
STEPS, FEW = 50, ApplySettings(max_rows=9)


@pytest.fixture
def uri(mariadb_uri: str) -> str:
    name = f"t{uuid4().hex[:8]}"
    root = NodeSession("root", mariadb_uri)
    root.query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    root.discard()
    return mariadb_uri.replace("/shop", f"/{name}")


@pytest.fixture
def session(uri: str) -> Iterator[NodeSession]:
    session = NodeSession("s0", uri)
    yield session
    session.discard()


def test_a_replay_that_is_killed_anywhere_applies_each_op_once(session: NodeSession, uri: str):
    log = _set_aside(session)
    kills = 0
    for round_ in range(20):
        for step in range(1 + round_ % 2, STEPS, 2):
            if not _heads(session):
                break
            kills += _replay_in_child(session, uri, log, step)
            rows = dict(session.query("SELECT id, n FROM tally"))
            assert rows == _replayed(session, rows), f"killed at step {step}"

    assert not _heads(session)
    assert kills > STEPS // 2
    assert dict(session.query("SELECT id, n FROM tally")) == dict.fromkeys(range(1, ROWS + 1), BEHIND)
    assert session.query("SELECT DISTINCT state FROM pipeline_rejects") == [("replayed",)]
    assert session.query("SELECT DISTINCT state FROM pipeline_watermarks") == [("active",)]
    assert session.query("SELECT * FROM pipeline_held") == []


def _set_aside(session: NodeSession) -> MemoryLog:
    """Let the database refuse the insert of each row, and park the updates behind it; then make it welcome."""
    statements = [sql for _, sql in own_tables("mysql")]
    statements += [
        "CREATE TABLE tally (id BIGINT PRIMARY KEY, n INT, mood INT, CONSTRAINT bad CHECK (mood > 0)) ENGINE=InnoDB",
        ledger_queries.buckets_sql(session.dialect, BUCKETS),
    ]
    for sql in statements:
        with session.transaction():
            session.execute(sql)
    log = MemoryLog()
    log.publish_schemas([("tally", TALLY.hash, TALLY.to_json())])
    log.raise_epoch("s0", log.epoch("s0")[2], 1)
    bump = (1, ["+", ["c", 1], ["v", 1]])
    for bucket in BUCKETS:
        rows = [row for row in range(1, ROWS + 1) if row % 2 == bucket]
        ops = [Op(INSERT, "tally", TALLY.hash, 0, row, (1, 2), (0, 0)) for row in rows]
        ops += [Op(UPDATE, "tally", TALLY.hash, 0, row, expressions=(bump,)) for _ in range(BEHIND) for row in rows]
        line = log.line()
        line.append(Scope("s0", ("s0",)), 1, 77, [Append(bucket, 1, [encode(op) for op in ops])], "", 0)
    worker = Applier("s0", session, log, ApplySettings())
    while log.due("s0", 1):
        worker.apply()
    assert len(_heads(session)) == len(BUCKETS)
    session.query("ALTER TABLE tally DROP CONSTRAINT bad")
    return log


def _replay_in_child(session: NodeSession, uri: str, log: MemoryLog, step: int) -> bool:
    """Replay in a process that kills itself before its step number *step*; return whether it did."""
    heads = _heads(session)
    session.discard()
    if (child := os.fork()) == 0:
        try:
            mine = NodeSession("s0", uri)
            _kill_at(mine, step)
            for _ in Replay("s0", mine, log, FEW, {}).run(heads, "tester"):
                pass
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _kill_at(session: NodeSession, last: int) -> None:
    """Count statements, and the moments before and after each commit, as steps."""
    adapter, steps = session.adapter, 0
    execute, commit = adapter.execute, adapter.commit

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_execute(sql: str) -> object:
        step()
        return execute(sql)

    def counted_commit() -> None:
        step()
        commit()
        step()

    adapter.execute, adapter.commit = counted_execute, counted_commit


def _heads(session: NodeSession) -> dict[int, list[Position]]:
    found: dict[int, list[Position]] = {}
    for bucket, epoch, seq in session.query(
        "SELECT bucket, epoch, seq FROM pipeline_rejects WHERE state IN ('rejected', 'waiting')"
    ):
        found.setdefault(bucket, []).append(Position(epoch, seq))
    return found


def _replayed(session: NodeSession, rows: dict[int, int]) -> dict[int, int]:
    """Return how many updates of each row the shard calls replayed."""
    told = session.query("SELECT op FROM pipeline_rejects WHERE state = 'replayed' AND op LIKE '[\"update\"%'")
    counts = dict.fromkeys(rows, 0)
    for (op,) in told:
        counts[int(op.split(",")[4])] += 1
    return counts
