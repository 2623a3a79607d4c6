"""A rig for reads: two shards of MariaDB with two replicas each, whose replication a test may slow down or stop."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydal import DAL, Field

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.devcluster import Cluster
from pipeline.reads.health import NodeState

TABLES_TOML = """\
[tables.sale]
shard_key = "customer"
on_reject = "skip"

[tables.line]
shard_key = "customer"

[tables.memo]
shard_key = "customer"
ids = "database"

[tables.country]
reference = true
"""
#: Long enough that a busy machine does not put an op in doubt.
PATIENT = "[redis]\ntimeout_s = 5.0\n"


def define() -> Any:
    """Return a DAL that only holds the definitions."""
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table(
        "sale",
        Field("customer", "integer", notnull=True),
        Field("qty", "integer"),
        Field("price", "decimal(10,2)"),
        Field("weight", "double"),
        Field("name", length=40),
        Field("remark", "text"),
        Field("day", "date"),
        Field("paid", "boolean"),
    )
    db.define_table("line", Field("customer", "integer", notnull=True), Field("sale", "bigint"), Field("text", "text"))
    db.define_table("memo", Field("customer", "integer", notnull=True), Field("text", length=100))
    db.define_table("country", Field("name", length=60), Field("inhabitants", "bigint"))
    return db


class ReadRig:
    """A cluster, and a client of it."""

    def __init__(self, cluster: Cluster):
        self.cluster, self.db = cluster, define()
        self.config = cluster.directory / "patient.toml"
        self.config.write_text(cluster.config.read_text().replace("[redis]\n", PATIENT))
        self.client = self.new_client()
        migrate(self.client)

    def new_client(self, loads: Mapping[str, Mapping[str, Any]] = {}, reads: Mapping[str, Any] | None = None) -> Client:
        """Return another client, as another process would have it; loads of replicas and `[reads]` may be others."""
        config = tomllib.loads(self.config.read_text())
        config["reads"] = {**config.get("reads", {}), **(reads or {})}
        for name, shard in config["shards"].items():
            uris = enumerate(shard["replicas"])
            shard["replicas"] = [{"uri": uri, **loads.get(f"{name}-r{i}", {})} for i, uri in uris]
        client = Client(config)
        client.define_tables(self.db)
        return client

    def port(self, node: str) -> int:
        """Return the port of a process."""
        [port] = [process.port for process in self.cluster.processes if process.name == node]
        assert port is not None
        return port

    def ask(self, node: str, sql: str) -> str:
        """Run statements on a node as root."""
        return self.cluster.sql(node, sql)

    def replicas(self, shard: str) -> list[str]:
        """Return the names of a shard's replicas, as they were at first."""
        return [f"{shard}-r{at}" for at, _ in enumerate(self.client.settings.shards[shard].replicas)]

    @property
    def all_replicas(self) -> list[str]:
        """Return the names of all replicas."""
        return [name for shard in self.client.topology.shards for name in self.replicas(shard)]

    def shard_of(self, customer: int) -> str:
        """Return the shard of a customer's rows."""
        return self.client.topology.shard_of(self.client.topology.bucket_of("sale", customer))

    def customer_on(self, shard: str, start: int = 1) -> int:
        """Return a customer of a shard."""
        return next(number for number in range(start, start + 10_000) if self.shard_of(number) == shard)

    def settle(self, timeout_s: float = 60) -> None:
        """Wait until every replica replicates, has all, and is in rotation."""
        for _ in polls(timeout_s):
            self.client.barrier("sale", 30)
            reports = [self.client.health.report(node) for node in self.all_replicas]
            if all(r.state is NodeState.IN and (r.lag_s or 0) < 3 for r in reports) and self._even():
                return
        raise AssertionError(f"the replicas do not come back: {reports}")

    @contextmanager
    def stopped(self, *nodes: str) -> Iterator[None]:
        """Let replicas apply nothing."""
        for node in nodes:
            self.ask(node, "STOP SLAVE SQL_THREAD")
        try:
            yield
        finally:
            for node in nodes:
                self.ask(node, "START SLAVE")

    @contextmanager
    def delayed(self, seconds: int, *nodes: str) -> Iterator[None]:
        """Let replicas apply everything so much later."""
        self._delay(seconds, nodes)
        try:
            yield
        finally:
            self._delay(0, nodes)

    def close(self) -> None:
        """Take all down."""
        self.client.close()
        self.cluster.down(grace_s=0)

    def _delay(self, seconds: int, nodes: tuple[str, ...]) -> None:
        for node in nodes:
            self.ask(node, f"STOP SLAVE; CHANGE MASTER TO MASTER_DELAY={seconds}; START SLAVE")

    def _even(self) -> bool:
        query = "SELECT bucket, epoch, seq FROM shop.pipeline_watermarks ORDER BY bucket"
        return all(
            self.ask(shard, query) == self.ask(node, query)
            for shard in self.client.topology.shards
            for node in self.replicas(shard)
        )


@contextmanager
def read_rig(directory: Path, **options: Any) -> Iterator[ReadRig]:
    """Bring a rig up, and down at the end; `more` is text for its configuration."""
    tables = TABLES_TOML + options.pop("more", "")
    options = {"shards": 2, "replicas": 2, "workers": 1, "buckets": 32, "tables": tables, **options}
    cluster = Cluster.up(directory, "mariadb", owned=True, **options)
    try:
        rig = ReadRig(cluster)
        rig.settle()
        yield rig
        rig.client.close()
    finally:
        cluster.down(grace_s=0)
