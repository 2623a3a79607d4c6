"""Take the pictures of the documentation: the Pipeline tab of a local cluster while faults happen under load.

`make screenshots` writes them to `docs/img/`; look at them before you commit them.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydal import DAL, Field

from pipeline.admin import stops
from pipeline.admin.dead import Where, dead_ops
from pipeline.admin.migration import migrate
from pipeline.admin.moving import orders
from pipeline.client import Client
from pipeline.devcluster import Cluster
from support.web.chromium import chromium, visitor

TABLES = '[tables.purchase]\nshard_key = "customer"\n[tables.visit]\nshard_key = "customer"\n'
#: What is shown, by the name of its file: the path, the colours, and width and height in CSS pixels.
PICTURES = {
    "flower": ("/pipeline", "light", (1280, 800)),
    "tab-overview-dark": ("/pipeline", "dark", (1280, 800)),
    "tab-overview-phone": ("/pipeline", "light", (360, 800)),
    "tab-shard": ("/pipeline/shard/s0", "light", (1280, 1100)),
    "tab-shard-dark": ("/pipeline/shard/s0", "dark", (1280, 1100)),
    "tab-dead": ("/pipeline/dead", "light", (1280, 800)),
    "tab-dead-dark": ("/pipeline/dead", "dark", (1280, 800)),
    "tab-dead-phone": ("/pipeline/dead", "light", (360, 800)),
    "tab-moves": ("/pipeline#pl-moves", "light", (1280, 1000)),
    "tab-op": ("/pipeline/dead/op/{place}", "light", (1280, 800)),
}


class Storm(threading.Thread):
    """Writes in waves; some writes are refused."""

    def __init__(self, client: Client):
        super().__init__(name="storm", daemon=True)
        self.ended = threading.Event()
        self._client = client

    def run(self) -> None:
        """Write until `ended` is set."""
        db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        define(db)
        earlier: Any = []
        for n in range(1_000_000):
            size = int(80 + 60 * math.sin(n / 40))
            rows = [{"customer": n * 7 + one, "qty": one % 9 + 1} for one in range(size)]
            receipts = self._client.enqueue_bulk_insert(db.purchase, rows)
            for one in range(size // 8):
                self._client.enqueue_insert(db.visit, customer=one, page="/shoes")
            for receipt in earlier[:10]:
                self._client.get(db.purchase, receipt.id)
            earlier = receipts
            if n % 120 == 3:
                for code in ("A-1001", "A-1001", "B-2002", "B-2002"):
                    self._client.enqueue_insert(db.purchase, customer=7, qty=1, code=code)
            if self.ended.wait(0.2):
                return


def define(db: Any) -> None:
    """Define the tables of a small shop."""
    db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer"), Field("code", unique=True))
    db.define_table("visit", Field("customer", "integer"), Field("page"))


def take(folder: Path, seconds: float, wanted: Mapping[str, Any]) -> None:
    """Run the cluster and the storm, and write the pictures.

    Args:
        folder: of the pictures.
        seconds: how long the storm runs before the first picture.
        wanted: pictures, as `PICTURES`.
    """
    with TemporaryDirectory() as home:
        cluster = Cluster.up(home + "/dev", workers=2, flower_port=0, tables=TABLES, owned=True)
        client = Client(cluster.config)
        storm = Storm(client)
        try:
            db = DAL("sqlite:memory", bigint_id=True, migrate=False)
            define(db)
            client.define_tables(db)
            migrate(client)
            storm.start()
            wait(seconds * 0.8)
            stops.pause(client, stops.target_of(client, "visit"), "the report moves to another disk", "maria")
            cluster.stop("s1-r0")
            some = client.topology.buckets_of("s0")[:24]
            orders.order_move(client, some, "s1", "maria", keep_s=600)
            wait(seconds * 0.2)
            port = next(one.port for one in cluster.processes if one.name == "flower")
            photograph(client, f"http://127.0.0.1:{port}", folder, wanted)
        finally:
            storm.ended.set()
            if storm.ident is not None:
                storm.join(30)
            client.close()
            cluster.down()


def photograph(client: Client, base: str, folder: Path, wanted: Mapping[str, Any]) -> None:
    """Write the pictures of a running Flower."""
    dead = next(iter(dead_ops(client, Where.parse(["state=rejected"]), most=1)))
    place = f"{dead.op.entry.bucket}:{dead.op.entry.position}"
    with chromium() as browser:
        for name, (path, scheme, (width, height)) in wanted.items():
            with visitor(browser, viewport={"width": width, "height": height}, color_scheme=scheme) as page:
                page.goto(base + path.format(place=place))
                page.evaluate("document.fonts.ready")
                page.screenshot(path=folder / f"{name}.png")


def wait(seconds: float) -> None:
    """Let the storm run."""
    threading.Event().wait(seconds)


def main() -> int:
    """Take the pictures that the command asks for."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--folder", type=Path, default=Path("docs/img"))
    words.add_argument("--seconds", type=float, default=150.0)
    words.add_argument("names", nargs="*", help="of pictures; default: all")
    given = words.parse_args()
    take(given.folder, given.seconds, {name: PICTURES[name] for name in given.names or PICTURES})
    return 0


if __name__ == "__main__":
    sys.exit(main())
