"""Leases, the room that is left, and the deployment's secret."""

from __future__ import annotations

import random
from typing import Any

import redis

from pipeline.errors import NoProducerNumber
from pipeline.model.ids import HOSTS, PRODUCERS, SPAN_MS, Lease
from pipeline.oplog.redis.connection import translated
from pipeline.oplog.redis.replies import text_of
from pipeline.oplog.redis.server import Server
from pipeline.oplog.ttls import HOST_LEASE_MS, LEASE_MS


class RedisChores(Server):
    """See `contract.Chores`, `contract.Numbers`, `contract.Admission` and `contract.Secrets`."""

    def claim(self, name: str, for_ms: int) -> bool:
        return bool(self._despite_oom("SET", self.keys.chore(name), "1", "NX", "PX", for_ms))

    def hold(self, name: str, token: str, for_ms: int) -> bool:
        return bool(self._run("hold", [self.keys.chore(name)], [token, for_ms]))

    def release(self, name: str, token: str) -> None:
        self._run("hold", [self.keys.chore(name)], [token, 0])

    def lease_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        return self._lease(token, lease, until_ms, LEASE_MS, PRODUCERS, 0)

    def lease_host_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        return self._lease(token, lease, until_ms, HOST_LEASE_MS, HOSTS, PRODUCERS)

    def _lease(self, token: str, lease: Lease | None, until_ms: int, for_ms: int, numbers: int, base: int) -> Lease:
        held, start = lease.number if lease else -1, random.randrange(numbers)
        arguments = [token, held, until_ms, for_ms, numbers, start, SPAN_MS, base]
        with translated():
            reply = self._soon(lambda redis: self._run("lease_ids", [self.keys.ids], arguments, redis))
        if not reply:
            raise NoProducerNumber
        return Lease(*map(int, reply))

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        if reason is None:
            self._despite_oom("DEL", self.keys.full)
        else:
            self._despite_oom("SET", self.keys.full, reason, "PX", for_ms)

    def full(self) -> str | None:
        with translated():
            found = self._client.get(self.keys.full)
        return text_of(found) if found is not None else None

    def memory_share(self) -> float:
        with translated():
            memory = self._client.info("memory")
        return memory["used_memory"] / memory["maxmemory"] if memory.get("maxmemory") else 0.0

    def secret(self, proposed: str) -> str:
        def first(redis: redis.Redis) -> Any:
            pipe: Any = redis.pipeline(transaction=False)
            pipe.set(self.keys.secret, proposed, nx=True)
            pipe.get(self.keys.secret)
            return pipe.execute()[1]

        with translated():
            return text_of(self._soon(first))
