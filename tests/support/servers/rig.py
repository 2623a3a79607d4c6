"""The rig: a cluster of real servers, a client of it, and configurations that lead through proxies."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.devcluster import Cluster, processes, startup, state
from pipeline.devcluster.startup import wait_ready
from pipeline.oplog.redis.connection import connect
from support.tables import TABLES_TOML, define

#: Long enough that a busy machine does not put an op in doubt where a test does not want that.
PATIENT = "[redis]\ntimeout_s = 5.0\n"
#: What Redis does to a caller shows; a test of the spool has a configuration of its own.
NO_SPOOL = "[spool]\nenabled = false\n"


class Rig:
    """What a module's tests share."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.db = define()
        self._numbers = count(100)
        self._owners = count(1)
        self.config = self.config_through({})
        self.client: Any = Client(self.config)

    def prepare(self) -> None:
        """Create the tables on every shard."""
        self.client.define_tables(self.db)
        migrate(self.client)

    @property
    def log_file(self) -> Path:
        """The file to which Redis appends."""
        [file] = (self.cluster.directory / "redis" / "appendonlydir").glob("*.incr.aof")
        return file

    @cached_property
    def redis(self) -> Any:
        """A plain client of the log server."""
        return connect(self.client.settings.redis.url, read_s=5, connect_s=5)

    @cached_property
    def broker(self) -> Any:
        """A plain client of the broker."""
        return connect(self.client.settings.redis.broker_url, read_s=5, connect_s=5)

    @property
    def primaries(self) -> dict[str, str]:
        """The URI of each shard's primary."""
        return {name: shard.primary for name, shard in self.client.settings.shards.items()}

    @property
    def replicas(self) -> dict[str, str]:
        """The URI of each shard's first replica."""
        return {name: shard.replicas[0] for name, shard in self.client.settings.shards.items() if shard.replicas}

    def port(self, name: str) -> int:
        """Return the port of a process."""
        port = self._process(name).port
        assert port is not None
        return port

    def pid(self, name: str) -> int:
        """Return the id of a process: of a worker, its main process."""
        return self._process(name).pid

    def log_text(self, name: str) -> str:
        """Return what a process has written since it was last started."""
        return processes.log_text(self.cluster.directory, self._process(name))

    def ask_to_stop(self, name: str) -> None:
        """Send SIGTERM, and wait for nothing."""
        processes.send(self._process(name), signal.SIGTERM)

    def wait_gone(self, name: str, timeout_s: float) -> bool:
        """Wait until a process has ended; whether it did in time."""
        return processes.wait_gone(self._process(name), timeout_s)

    def kill_redis(self) -> None:
        """Kill Redis once its file has all: at a slow disk `everysec` keeps back for 2 s what is acknowledged."""
        self.redis.config_set("appendfsync", "always")
        self.cluster.kill("redis")

    def owners(self, count: int) -> list[int]:
        """Return shard keys that no other test has."""
        return [next(self._owners) for _ in range(count)]

    def config_through(self, proxies: Mapping[int, int], spool: str = NO_SPOOL, redis: str = PATIENT) -> Path:
        """Write a configuration in which some ports are others: those of proxies."""
        text = self.cluster.config.read_text().replace("[redis]\n", redis)
        text = re.sub(r"\[spool\]\npath.*\n", spool, text)
        for port, proxy in proxies.items():
            text = re.sub(rf":{port}\b", f":{proxy}", text)
        path = self.cluster.directory / "run" / f"pipeline-{next(self._numbers)}.toml"
        path.write_text(text)
        return path

    @contextmanager
    def worker(
        self, config: Path | None = None, *, concurrency: int = 1, ready: bool = True, **environment: str
    ) -> Iterator[str]:
        """Start a worker of one's own, and wait until it is ready; at the end it is killed and forgotten."""
        directory = self.cluster.directory
        service = processes.worker(config or self.config, next(self._numbers), concurrency)
        service = replace(service, environment={**service.environment, **environment})
        launched = startup.launch(directory, [service])
        if ready:
            wait_ready(directory, launched, lambda sentence: None)
        try:
            yield service.name
        finally:
            self.cluster.kill(service.name)
            state.write(directory, state.read_state(directory).without(service.name))

    @property
    def workers(self) -> list[str]:
        """The names of all workers."""
        kinds = {service.name: service.kind for service in state.read_state(self.cluster.directory).services}
        return [name for name, kind in kinds.items() if kind == "worker"]

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Let processes stand still, their connections open; by default all workers there are now."""
        names = names or tuple(self.workers)
        for name in names:
            self.cluster.stop(name, signal.SIGSTOP)
        try:
            yield
        finally:
            for name in names:
                self.cluster.stop(name, signal.SIGCONT)

    def put_off_reconcile(self, for_s: int = 30) -> None:
        """Let no reconcile come to help for a while; what must not need it shows."""
        for shard in self.primaries:
            self._hold(f"reconcile:{shard}", for_s)

    @contextmanager
    def put_off(self, lease: str, for_s: int = 600) -> Iterator[None]:
        """Let no worker do in a block what it takes a lease for."""
        self._hold(lease, for_s)
        try:
            yield
        finally:
            self.redis.delete(self.client.log.keys.lease(lease))

    def _hold(self, lease: str, for_s: int) -> None:
        """Hold a lease; its text is a lease's, since workers take another text for nobody's."""
        self.redis.set(self.client.log.keys.lease(lease), f"test {for_s * 1000}", px=for_s * 1000)

    def close(self) -> None:
        """Take all down."""
        self.client.close()
        for client in (self.redis, self.broker):
            client.close()
        self.cluster.down(grace_s=0)

    def _process(self, name: str) -> state.Process:
        [process] = [process for process in self.cluster.processes if process.name == name]
        return process


@contextmanager
def rig_of(
    directory: Path, engine: str, before: Callable[[Rig], None] = lambda rig: None, **options: Any
) -> Iterator[Rig]:
    """Bring a cluster up, and down at the end; *before* is called when no table has been made yet."""
    options = {"shards": 2, "replicas": 1, "workers": 2, "buckets": 32, "tables": TABLES_TOML, **options}
    cluster = Cluster.up(directory, engine, owned=True, **options)
    try:
        rig = Rig(cluster)
        before(rig)
        rig.prepare()
        yield rig
        rig.close()
    finally:
        cluster.down(grace_s=0)
