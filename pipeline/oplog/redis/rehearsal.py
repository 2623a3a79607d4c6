"""Rehearse an append: has this user the rights in Redis that an op needs?"""

from __future__ import annotations

from contextlib import closing

from pipeline.model.op import new_producer
from pipeline.oplog.appends import Append, Scope
from pipeline.oplog.redis.connection import translated
from pipeline.oplog.redis.log import RedisLog

_SCOPE = Scope("check", ("check",))


def rehearse(url: str, prefix: str, read_s: float) -> None:
    """Append an op in both ways to a log under a prefix of its own, and delete all that came of it.

    Args:
        url: of the log's server.
        prefix: of the deployment's keys, whose names begin likewise.
        read_s: how long an answer may take.

    Raises:
        LogUnavailable: the user has not the rights, or Redis does not answer.
    """
    with closing(RedisLog(url, prefix=f"{prefix}:check", read_s=read_s)) as log:
        line, keys, producer = log.line(patient=True), log.keys, new_producer()
        try:
            log.raise_epoch(_SCOPE.name, log.epoch(_SCOPE.name)[2], 1)
            line.append(_SCOPE, 1, producer, [Append(0, 1, (b"",))], "", 0)
            line.append_one(_SCOPE, 1, producer, 0, 2, b"")
        finally:
            line.close()
            left = (keys.log(0), keys.epoch("check"), keys.producer(producer), keys.dirty("check"), keys.bell("check"))
            with translated():
                log._client.delete(*left, keys.wake("check"), keys.room, keys.full)
