"""What the contract suite says to a log, in few words."""

from __future__ import annotations

from pipeline.model import START, Entry, Position
from pipeline.oplog import Log
from pipeline.oplog.appends import Append, Appended, Line, Scope
from pipeline.oplog.groups import GroupedLog
from pipeline.oplog.memory.log import MemoryLog
from pipeline.oplog.redis.log import RedisLog

S0 = Scope("s0", ("s0",))
ALL = Scope("*", ("s0", "s1"))
EPOCH = 7
PRODUCER = 2**63 - 1
MINUTE_MS = 60_000


def raise_to(log: Log, scope: Scope, epoch: int) -> bool:
    return log.raise_epoch(scope.name, log.epoch(scope.name)[2], epoch)


def append(
    line: Line,
    *appends: tuple[int, int, list[bytes]],
    scope: Scope = S0,
    epoch: int = EPOCH,
    producer: int = PRODUCER,
    key: str = "",
    row_id: int = 0,
) -> Appended:
    return line.append(scope, epoch, producer, [Append(*one) for one in appends], key, row_id)


def sequences(log: Log, producer: int) -> dict[int, int]:
    """Return the last sequence that the log knows of a producer, by bucket."""
    return {bucket: seq for bucket, (seq, _) in dict(log.senders("s0")).get(producer, {}).items()}


def entries(log: Log, bucket: int, after: Position = START, count: int = 100_000) -> list[Entry]:
    return log.read({bucket: after}, {bucket: count})[bucket]


def server_of(log: RedisLog, bucket: int) -> RedisLog:
    """Return the log over the one Redis that has a bucket's log."""
    return log.at_bucket(bucket) if isinstance(log, GroupedLog) else log


def servers_of(log: RedisLog) -> list[RedisLog]:
    """Return a log over each of the Redis that a log is over."""
    return [*log._logs.values()] if isinstance(log, GroupedLog) else [log]


def cut(log: Log, bucket: int, keep: int = 0) -> None:
    """Let one log forget all but its first entries, while the server lives on."""
    if isinstance(log, MemoryLog):
        log.forget(bucket, keep)
        return
    assert isinstance(log, RedisLog)
    log = server_of(log, bucket)
    name = log.keys.log(bucket)
    kept = log._client.xrange(name, count=keep) if keep else []
    log._client.delete(name)
    for id, fields in kept:
        log._client.xadd(name, dict(zip(fields[::2], fields[1::2], strict=True)), id=id)
