"""Bring the shop up on this machine: a cluster, its tables, a few customers, py4web. Ctrl-C takes all down.

python examples/py4web/run.py [--engine mariadb|embedded] [--port 8000] [--no-open]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path
from types import FrameType

from pydal import DAL

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.devcluster import Cluster
from pipeline.reads.health import NodeState

HERE = Path(__file__).parent
START_S = 30
CUSTOMERS = {
    "Ada Lovelace": "London",
    "Grace Hopper": "Arlington",
    "Katherine Johnson": "Hampton",
    "Zoë Bäcker": "Köln",
}


def main() -> int:
    """Run until interrupted."""
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="pipeline-shop-") as name:
        folder = Path(name)
        cluster = Cluster.up(
            folder / "cluster",
            options.engine,
            shards=2,
            replicas=1,
            workers=2,
            tables=_tables(),
            report=_say,
            owned=True,
        )
        try:
            prepare(cluster.config)
            return serve(cluster.config, folder, options.port, options.open)
        except KeyboardInterrupt:
            return 0
        finally:
            _say("taking all down …")
            cluster.down()


def prepare(config: Path) -> None:
    """Create the tables on every shard, and the first customers."""
    sys.path.insert(0, str(HERE / "shop"))
    from tables import PRODUCTS, define_tables

    db = DAL(None, migrate=False)
    define_tables(db)
    client = Client(config)
    try:
        client.define_tables(db)
        migrate(client)
        for number, (name, city) in enumerate(CUSTOMERS.items()):
            customer = client.enqueue_insert(db.customer, name=name, city=city).id
            product, price = list(PRODUCTS.items())[number]
            client.enqueue_insert(
                db.purchase, customer=customer, product=product, price=price, placed_at="2026-01-01 09:00:00"
            )
        client.barrier("purchase", START_S)
        _say("waiting until every replica is in rotation: a new one has to prove itself first …")
        replicas = [node for shard in client.topology.shards for node in client.nodes.replica_names(shard)]
        for _ in polls(START_S):
            reports = [client.health.report(node) for node in replicas]
            if all(report.state is NodeState.IN for report in reports):
                break
    finally:
        client.close()


def serve(config: Path, folder: Path, port: int, open_: bool) -> int:
    """Run py4web on a copy of the application until it ends."""
    apps = folder / "apps"
    shutil.copytree(HERE / "shop", apps / "shop", ignore=shutil.ignore_patterns("__pycache__", "databases"))
    (apps / "__init__.py").touch()
    command = [sys.executable, "-m", "py4web", "run", "-Q", "--port", str(port), "--dashboard_mode", "none"]
    environment = {**os.environ, "PIPELINE_CONFIG": str(config)}
    server = subprocess.Popen([*command, "--watch", "off", str(apps)], env=environment, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/shop/index"
        if not _answers(url, server):
            return 1
        print(f"\n  The shop is open: {url}\n  Ctrl-C closes it.\n", flush=True)
        if open_:
            webbrowser.open(url)
        return server.wait()
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()


def _answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=START_S) as reply:
                return reply.status == 200
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            time.sleep(0.1)
    return False


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found = "mariadb" if shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin") else "embedded"
    parser.add_argument("--engine", choices=["mariadb", "embedded"], default=found, help=f"default here: {found}")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--no-open", dest="open", action="store_false", help="open no browser")
    return parser.parse_args()


def _tables() -> str:
    sys.path.insert(0, str(HERE / "shop"))
    from tables import TABLES_TOML

    return TABLES_TOML


def _say(sentence: str) -> None:
    print(f"  {sentence}", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
