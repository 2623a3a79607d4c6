"""The example shop with its servers, and what a test does to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.web2py.running import Shop, in_rotation, running_shop
from pipeline.client import Client
from support.web.web2py_server import tickets


class ShopRig:
    """The shop, a client of its pipeline, and its servers."""

    def __init__(self, shop: Shop):
        self.shop = shop
        self.client: Any = Client(shop.cluster.config)
        self.ports = {process.name: process.port or 0 for process in shop.cluster.processes}

    @property
    def replicas(self) -> list[str]:
        """Their names."""
        return [name for shard in self.client.topology.shards for name in self.client.nodes.replica_names(shard)]

    @contextmanager
    def lagging(self) -> Iterator[None]:
        """Let no replica apply anything in the block; at its end all are in rotation again."""
        for node in self.replicas:
            self.shop.cluster.sql(node, "STOP SLAVE SQL_THREAD")
        try:
            yield
        finally:
            for node in self.replicas:
                self.shop.cluster.sql(node, "START SLAVE")
            in_rotation(self.client)

    def rows(self, table: str, where: str, fields: str = "id") -> list[str]:
        """Return what the primaries hold, a line per row, once everything that was queued is applied."""
        self.client.barrier(table, 30)
        sql = f"SELECT {fields} FROM shop.{table} WHERE {where}"
        found = [self.shop.cluster.sql(shard, sql) for shard in self.client.topology.shards]
        return sorted(line for text in found for line in text.splitlines()[1:])

    def tickets(self) -> list[str]:
        """Return the tracebacks of requests that failed."""
        return tickets(self.shop.folder.parents[1])


@contextmanager
def shop_rig(directory: Path) -> Iterator[ShopRig]:
    """Bring the shop up on MariaDB, and down at the end; then no ticket may be left."""
    with running_shop(directory, "mariadb") as shop:
        rig = ShopRig(shop)
        try:
            yield rig
            assert not (failed := rig.tickets()), "\n".join(failed)
        finally:
            rig.client.close()
