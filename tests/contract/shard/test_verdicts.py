"""What a shard says of ops that Redis may have lost: nothing while a worker may apply them, and then the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.sandbox.logs import S0, append, raise_to
from support.sandbox.sessions import PRODUCER, both, mariadb

from pipeline.enqueue.epochs import Authority
from pipeline.model import Position
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard import NodeSession, records
from pipeline.shard.columns import own_tables

#: Nine ops in bucket 3, acknowledged under epoch 7.
ACKED = {(3, PRODUCER): (9, 7)}


def authority(session: NodeSession, log: MemoryLog, replicas: Sequence[NodeSession] = ()) -> Authority:
    nodes: Any = SimpleNamespace(
        primary=lambda shard: session, replicas=lambda shard: replicas, unfit=lambda node: node == "unfit"
    )
    unused: Any = None
    return Authority(log, nodes, unused, unused, unused)


def emptied() -> MemoryLog:
    """Return a log that has forgotten epoch 7, and gives out 8."""
    log = MemoryLog()
    raise_to(log, S0, 8)
    return log


def lost(session: NodeSession) -> list[tuple[int, ...]]:
    return session.query("SELECT bucket, producer, first_seq, last_seq FROM pipeline_lost")


@mariadb
def test_nothing_is_told_lost_while_an_open_transaction_may_apply_it(shard: NodeSession, other: NodeSession):
    judge = authority(other, emptied())

    with shard.transaction():
        records.lock(shard, [3], 1)
        assert judge.settle(S0, 8, ACKED) == set()
        records.remember(shard, {(3, PRODUCER): 9})
        records.move(shard, {3: Position(7, 8)})

    assert judge.settle(S0, 8, ACKED) == {(3, PRODUCER)}
    assert lost(shard) == []


@both
def test_what_a_shard_has_applied_is_not_lost_and_the_rest_is_named_and_final(shard: NodeSession):
    judge = authority(shard, emptied())
    with shard.transaction():
        records.remember(shard, {(3, PRODUCER): 4})
        records.move(shard, {3: Position(7, 3)})

    judge.settle(S0, 8, ACKED)

    assert lost(shard) == [(3, PRODUCER, 5, 9)]
    with shard.transaction():
        assert records.seen(shard, [(3, PRODUCER)]) == {(3, PRODUCER): 9}, "a worker drops what comes after all"
    assert judge.settle(S0, 8, ACKED) == {(3, PRODUCER)}
    assert len(lost(shard)) == 1


@both
def test_what_is_still_in_the_log_is_judged_once_it_is_applied(shard: NodeSession):
    log = MemoryLog()
    raise_to(log, S0, 7)
    append(log.line(), (3, 1, [b"a", b"b"]))
    raise_to(log, S0, 8)
    judge = authority(shard, log)

    assert judge.settle(S0, 8, ACKED) == set()
    assert lost(shard) == []
    with shard.transaction():
        records.remember(shard, {(3, PRODUCER): 2})
        records.move(shard, {3: Position(7, 1)})
    judge.settle(S0, 8, ACKED)

    assert lost(shard) == [(3, PRODUCER, 3, 9)]


@both
def test_nothing_is_judged_by_a_server_whose_epoch_is_not_known_or_not_over(shard: NodeSession):
    log = emptied()
    judge = authority(shard, log)

    assert judge.settle(S0, 0, ACKED) == set()
    assert judge.settle(S0, 9, ACKED) == set(), "it has become another meanwhile"
    assert judge.settle(S0, 7, ACKED) == set()
    assert lost(shard) == []


@both
def test_what_a_replica_lacks_stays_in_mind(shard: NodeSession, tmp_path: Path):
    """The primary may die with it, while Redis has forgotten it; one that was away too long is never promoted."""
    behind, unfit = (NodeSession(name, f"sqlite://{tmp_path}/{name}.sqlite") for name in ("behind", "unfit"))
    for _, sql in own_tables("sqlite"):
        behind.query(sql)
    with shard.transaction():
        records.remember(shard, {(3, PRODUCER): 9})

    assert authority(shard, emptied(), [unfit]).settle(S0, 8, ACKED) == {(3, PRODUCER)}
    assert authority(shard, emptied(), [behind, unfit]).settle(S0, 8, ACKED) == set()
    with behind.transaction():
        records.remember(behind, {(3, PRODUCER): 9})
    assert authority(shard, emptied(), [behind]).settle(S0, 8, ACKED) == {(3, PRODUCER)}
    behind.discard()
