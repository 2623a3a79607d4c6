"""Send the ops of one producer to several Redis: each shard's to that of its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.topology import Topology
from pipeline.model.op import Position
from pipeline.oplog.appends import EVERYWHERE, Append, Appended, Scope
from pipeline.oplog.redis.line import RedisLine
from pipeline.oplog.redis.log import RedisLog


class GroupedLine:
    """A `appends.Line` with a connection to each Redis that its producer sends to, made when it is first needed.

    Args:
        topology: in which group a shard's logs are.
        logs: by name of a group, the log over its Redis.
        patient: as for `Appends.line`.
    """

    def __init__(self, topology: Topology, logs: Mapping[str, RedisLog], patient: bool):
        self._topology, self._logs, self._patient = topology, logs, patient
        self._lines: dict[str, RedisLine] = {}
        #: By name of a scope, its line: an append of one op finds it in one step.
        self._of_scope: dict[str, RedisLine] = {}
        self._last: RedisLine | None = None

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        """See `appends.Line.append`."""
        self._last = line = self._of_scope.get(scope.name) or self._to(scope.name)
        return line.append(scope, epoch, producer, appends, idempotency_key, row_id)

    def append_one(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        """See `appends.Line.append_one`."""
        self._last = line = self._of_scope.get(scope.name) or self._to(scope.name)
        return line.append_one(scope, epoch, producer, bucket, seq, payload)

    def replicated(self, *, fsync: bool, timeout_s: float) -> bool:
        """See `appends.Line.replicated`. One call of a publisher appends to one scope: the last Redis is asked."""
        return self._last is None or self._last.replicated(fsync=fsync, timeout_s=timeout_s)

    def connect(self) -> None:
        """See `appends.Line.connect`."""
        for shard in self._topology.shards:
            self._to(shard).connect()

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """See `appends.Line.pass_hole`."""
        shared = bucket == self._topology.reference_bucket
        scope = EVERYWHERE if shared else self._topology.shard_of(bucket)
        return self._to(scope).pass_hole(producer, bucket, seen, last)

    def close(self) -> None:
        """Give the connections back."""
        for line in self._lines.values():
            line.close()

    def _to(self, scope: str) -> RedisLine:
        group = self._topology.group_of(scope)
        if group not in self._lines:
            self._lines[group] = self._logs[group].line(patient=self._patient)
        line = self._of_scope[scope] = self._lines[group]
        return line
