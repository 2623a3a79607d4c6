"""What breaks real servers: each fault is begun, lasts for a while, and is mended."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support.oracle import nodes
from support.servers.proxy import Proxy
from support.servers.rig import Rig

from pipeline.clock import polls
from pipeline.devcluster import processes

Fault = Callable[[], Iterator[None]]
#: So long does a fault last that lasts, s.
SHORT_S, LONG_S = 0.2, 1.2
#: What makes Redis forget; an op of level `redis` may be told lost after it.
FORGETTING = frozenset({"redis wiped", "stream deleted", "append-only file cut"})


class Nemesis:
    """Breaks one rig.

    Args:
        proxy: between the callers and Redis.
        spools: the files of the callers' hosts.
    """

    def __init__(self, rig: Rig, luck: random.Random, proxy: Proxy, spools: list[Path], owners: list[int]):
        self._rig, self._luck, self._proxy, self._spools, self._owners = rig, luck, proxy, spools, owners
        #: Main processes of workers that were killed on purpose.
        self.faults: dict[str, Callable[[], Any]] = {
            "worker's child killed": self._child_killed,
            "worker killed": lambda: self._killed(self._any_worker()),
            "worker stopped": lambda: self._stopped(self._any_worker()),
            "redis killed": lambda: self._killed("redis"),
            "redis stopped": lambda: self._stopped("redis"),
            "redis wiped": self._redis_wiped,
            "redis full": self._redis_full,
            "append-only file cut": self._file_cut,
            "stream deleted": self._stream_deleted,
            "sender's hash deleted": self._hash_deleted,
            "dirty set deleted": self._dirty_deleted,
            "doorbells lost": self._bells_lost,
            "primary killed": lambda: self._killed(self._any_shard()),
            "primary stopped": lambda: self._stopped(self._any_shard()),
            "primary's connections killed": self._connections_killed,
            "rows locked": self._rows_locked,
            "replica stopped": lambda: self._stopped(f"{self._any_shard()}-r0"),
            "replication stopped": self._replication_stopped,
            "network stalled": self._network_stalled,
            "connections cut": self._connections_cut,
            "answers lost": self._answers_lost,
            "spool locked": self._spool_locked,
        }

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Begin a fault; mend it at the end of the block."""
        with self.faults[name]():
            yield

    def duration_s(self) -> float:
        """Return how long a fault lasts."""
        return self._luck.uniform(SHORT_S, LONG_S)

    # processes ----------------------------------------------------------------------------------------------

    @contextmanager
    def _killed(self, name: str) -> Iterator[None]:
        self._rig.cluster.kill(name)
        try:
            yield
        finally:
            self._rig.cluster.start(name)

    @contextmanager
    def _stopped(self, name: str) -> Iterator[None]:
        self._rig.cluster.stop(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self._rig.cluster.stop(name, signal.SIGCONT)

    @contextmanager
    def _child_killed(self) -> Iterator[None]:
        main = self._rig.pid(self._any_worker())
        children = [one.pid for one in processes.members(main) if one.pid != main]
        if children:
            with suppress(ProcessLookupError):
                os.kill(self._luck.choice(children), signal.SIGKILL)
        yield

    # redis --------------------------------------------------------------------------------------------------

    @contextmanager
    def _redis_wiped(self) -> Iterator[None]:
        self._rig.redis.flushall()
        yield

    @contextmanager
    def _redis_full(self) -> Iterator[None]:
        redis = self._rig.redis
        redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]))
        try:
            yield
        finally:
            redis.config_set("maxmemory", 0)

    @contextmanager
    def _file_cut(self) -> Iterator[None]:
        """Restart Redis with a file that lacks its end, as after a power cut."""
        self._rig.cluster.kill("redis")
        folder = self._rig.cluster.directory / "redis" / "appendonlydir"
        [file] = sorted(folder.glob("*.incr.aof"))[-1:]
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.truncate(max(0, size - self._luck.randrange(200, 20_000)))
        try:
            yield
        finally:
            self._rig.cluster.start("redis")

    @contextmanager
    def _stream_deleted(self) -> Iterator[None]:
        self._rig.redis.delete(self._any_log())
        yield

    @contextmanager
    def _hash_deleted(self) -> Iterator[None]:
        keys = list(self._rig.redis.scan_iter(match=f"{self._rig.client.log.keys.producer(0)[:-1]}*", count=1000))
        if keys:
            self._rig.redis.delete(self._luck.choice(sorted(keys)))
        yield

    @contextmanager
    def _dirty_deleted(self) -> Iterator[None]:
        self._rig.redis.delete(self._rig.client.log.keys.dirty(self._any_shard()))
        yield

    @contextmanager
    def _bells_lost(self) -> Iterator[None]:
        self._rig.broker.flushdb()
        yield

    # databases ----------------------------------------------------------------------------------------------

    @contextmanager
    def _connections_killed(self) -> Iterator[None]:
        with nodes.connection(self._rig.primaries[self._any_shard()]) as made:
            for (id,) in nodes.fetch(
                made,
                "SELECT id FROM information_schema.processlist WHERE command IN ('Sleep', 'Query')"
                " AND id <> CONNECTION_ID()",
            ):
                with suppress(Exception):
                    nodes.fetch(made, f"KILL {id}")
        yield

    @contextmanager
    def _rows_locked(self) -> Iterator[None]:
        owner = self._luck.choice(self._owners)
        topology = self._rig.client.topology
        uri = self._rig.primaries[topology.shard_of(topology.bucket_of("tally", owner))]
        with nodes.connection(uri) as made:
            nodes.fetch(made, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            nodes.fetch(made, "SET SESSION innodb_lock_wait_timeout = 2")
            nodes.fetch(made, "START TRANSACTION")
            with suppress(Exception):
                nodes.fetch(made, f"SELECT id FROM tally WHERE owner = {owner} FOR UPDATE")
            yield

    @contextmanager
    def _replication_stopped(self) -> Iterator[None]:
        uri = self._rig.replicas[self._any_shard()].replace("//reader:", "//root:")
        with nodes.connection(uri) as made:
            nodes.fetch(made, "STOP SLAVE SQL_THREAD")
        try:
            yield
        finally:
            with nodes.connection(uri) as made:
                nodes.fetch(made, "START SLAVE SQL_THREAD")

    # the way to redis, and the spool ------------------------------------------------------------------------

    @contextmanager
    def _network_stalled(self) -> Iterator[None]:
        self._proxy.pause()
        try:
            yield
        finally:
            self._proxy.resume()

    @contextmanager
    def _connections_cut(self) -> Iterator[None]:
        self._proxy.cut()
        yield

    @contextmanager
    def _answers_lost(self) -> Iterator[None]:
        self._proxy.swallow_answers(b"EVALSHA", self._luck.randrange(1, 6))
        try:
            yield
        finally:
            self._proxy.swallow_answers(b"EVALSHA", 0)

    @contextmanager
    def _spool_locked(self) -> Iterator[None]:
        path = self._luck.choice(self._spools)
        if not path.exists():
            yield
            return
        db = sqlite3.connect(path, timeout=2, isolation_level=None)
        try:
            with suppress(sqlite3.Error):
                db.execute("BEGIN IMMEDIATE")
            yield
        finally:
            db.close()

    # parts --------------------------------------------------------------------------------------------------

    def _any_worker(self) -> str:
        return self._luck.choice(sorted(self._rig.workers))

    def _any_shard(self) -> str:
        return self._luck.choice(sorted(self._rig.primaries))

    def _any_log(self) -> str:
        owner = self._luck.choice(self._owners)
        return str(self._rig.client.log.keys.log(self._rig.client.topology.bucket_of("tally", owner)))


def wait_healthy(rig: Rig, timeout_s: float = 30) -> None:
    """Wait until each server answers."""
    for _ in polls(timeout_s):
        with suppress(Exception):
            rig.redis.ping()
            for uri in rig.primaries.values():
                nodes.rows(uri, "SELECT 1")
            return
    raise AssertionError("the servers did not come back")


def sleep_s(seconds: float) -> None:
    """Let a fault last."""
    time.sleep(seconds)
