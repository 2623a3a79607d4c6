"""The shop and all that it needs, running on this machine: a cluster, workers, web2py. At the end nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.devcluster import Cluster
from pipeline.devcluster.processes import free_ports
from pipeline.reads.health import NodeState

HERE = Path(__file__).parent
APPLICATION = HERE / "shop"
START_S, ANSWER_S, APPLIED_S = 60, 60, 60
#: A purchase is where its customer is: one node can show both.
TABLES_TOML = """\
[tables.purchase]
shard_key = "customer"

[tables.item]
reference = true
"""
Report = Callable[[str], None]


class Shop(NamedTuple):
    """What runs."""

    cluster: Cluster
    #: The application's folder; web2py keeps errors, sessions and uploads in it.
    folder: Path
    url: str
    server: subprocess.Popen[bytes]

    @property
    def errors(self) -> list[Path]:
        """The tickets of requests that failed."""
        return [path for path in sorted((self.folder / "errors").glob("*")) if path.is_file()]


@contextmanager
def running_shop(
    directory: Path, engine: str, *, port: int = 0, workers: int = 1, report: Report = lambda sentence: None
) -> Iterator[Shop]:
    """Bring everything up in an empty directory, and down at the end of the block, also on Ctrl-C.

    Args:
        engine: `mariadb` (installed servers) or `embedded` (SQLite and the bundled Valkey).
        port: web2py's; 0 for a free one.
    """
    cluster = Cluster.up(directory / "cluster", engine, workers=workers, tables=TABLES_TOML, report=report, owned=True)
    try:
        folder = install(directory / "site", cluster)
        port = port or free_ports(1)[0]
        report("web2py")
        server = _start(directory / "site", port)
        try:
            shop = Shop(cluster, folder, f"http://127.0.0.1:{port}/shop", server)
            _await(shop, directory / "site" / "server.log")
            report("the tables on every shard")
            _fill(shop)
            yield shop
        finally:
            server.terminate()
            server.wait(START_S)
    finally:
        cluster.down()


def install(site: Path, cluster: Cluster) -> Path:
    """Put the application where web2py looks for it; its own database is the first shard's. Return its folder."""
    folder = site / "applications" / "shop"
    shutil.copytree(APPLICATION, folder)
    with closing(Client(cluster.config)) as client:
        uri = client.settings.shards["s0"].primary
    (folder / "private").mkdir(exist_ok=True)
    text = f"[db]\nuri = {uri}\n\n[pipeline]\nconfig = {cluster.config}\n"
    (folder / "private" / "appconfig.ini").write_text(text)
    return folder


def ask(url: str) -> str:
    """Return a page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=ANSWER_S) as answer:
        return str(answer.read().decode())


def _start(site: Path, port: int) -> subprocess.Popen[bytes]:
    with (site / "server.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "examples.web2py.server", str(site), str(port)],
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
            stdout=log,
            stderr=log,
        )


def _await(shop: Shop, log: Path) -> None:
    for _ in polls(START_S):
        if shop.server.poll() is not None:
            break
        try:
            ask(f"{shop.url}/setup/tables")
            return
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{shop.url} answers {error.code}: {error.read().decode()[:2000]}") from error
        except OSError:
            continue
    raise RuntimeError(f"web2py did not answer within {START_S} s: {log.read_text()[-2000:]}")


def _fill(shop: Shop) -> None:
    """Create the tables that the application has made known, and let it fill them."""
    with closing(Client(shop.cluster.config)) as client:
        migrate(client)
        ask(f"{shop.url}/setup/fill")
        for table in ("item", "customer", "purchase"):
            client.barrier(table, APPLIED_S)
        in_rotation(client)


def in_rotation(client: Client) -> None:
    """Wait until every replica may serve reads."""
    nodes = [name for shard in client.topology.shards for name in client.nodes.replica_names(shard)]
    for _ in polls(START_S):
        reports = [client.health.report(node) for node in nodes]
        if all(report.state is NodeState.IN and (report.lag_s or 0) < 3 for report in reports):
            return
    raise RuntimeError(f"the replicas are not in rotation after {START_S} s: {reports}")
