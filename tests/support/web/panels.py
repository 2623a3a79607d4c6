"""Ask a real Prometheus each expression of `deploy/grafana/pipeline.json` while a load runs on a local cluster.

`make panels` prints what each gives, and exits with 1 if one gives nothing that must give something then.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydal import DAL

from pipeline.admin import stops
from pipeline.admin.migration import migrate
from pipeline.admin.moving import orders
from pipeline.client import Client
from pipeline.devcluster import Cluster
from support.web.screenshots import TABLES, Storm, define

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "pipeline.json"
#: What Grafana puts in; a window is as short as the run.
PUT_IN = {"$shard": ".*", "$__rate_interval": "20s", "[1h]": "[30s]"}
#: Nothing waits for an early op here, and a move that has just begun has counted nothing yet.
MAY_BE_EMPTY = ("pipeline_buckets_held_total", "pipeline_move_rows_known")


def expressions(panels: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield title and expression of each query."""
    for panel in panels:
        yield from expressions(panel.get("panels", ()))
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def values(port: int, expression: str) -> list[str]:
    """Return what an expression gives now, without numbers that are none."""
    for what, instead in PUT_IN.items():
        expression = expression.replace(what, instead)
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=10) as answer:
        found = [series["value"][1] for series in json.load(answer)["data"]["result"]]
    return [value for value in found if value != "NaN"]


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def prometheus(home: str, targets: Sequence[int]) -> Iterator[int]:
    """Run a Prometheus that scrapes ports of this machine every two seconds; yield its own port."""
    port = free_port()
    jobs = [{"job_name": f"at_{one}", "static_configs": [{"targets": [f"127.0.0.1:{one}"]}]} for one in targets]
    config = Path(home, "prometheus.yml")
    config.write_text(json.dumps({"global": {"scrape_interval": "2s"}, "scrape_configs": jobs}))
    words = ["--log.level=error", f"--config.file={config}", f"--storage.tsdb.path={home}/tsdb"]
    server = subprocess.Popen(["prometheus", *words, f"--web.listen-address=127.0.0.1:{port}"])
    try:
        yield port
    finally:
        server.terminate()
        server.wait()


def asked(home: str) -> Iterator[tuple[str, str, list[str]]]:
    """Run the load; yield title, expression and values of each query of the dashboard."""
    of_workers = free_port()
    tables = f"{TABLES}[metrics]\nport = {of_workers}\n"
    cluster = Cluster.up(home + "/dev", workers=2, flower_port=0, tables=tables, owned=True)
    client = Client(cluster.config)
    storm = Storm(client)
    try:
        db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        define(db)
        client.define_tables(db)
        migrate(client)
        flower = next(one.port for one in cluster.processes if one.name == "flower")
        with prometheus(home, [int(flower or 0), of_workers, of_workers + 1]) as port:
            storm.start()
            time.sleep(25)
            stops.pause(client, stops.target_of(client, "visit"), "a look at the panels", "maria")
            orders.order_move(client, client.topology.buckets_of("s0")[:8], "s1", "maria", keep_s=600)
            time.sleep(20)
            for title, expression in expressions(json.loads(DASHBOARD.read_text())["panels"]):
                yield title, expression, values(port, expression)
    finally:
        storm.ended.set()
        if storm.ident is not None:
            storm.join(30)
        client.close()
        cluster.down()


def main() -> int:
    """Print what each query gives."""
    empty = 0
    with TemporaryDirectory() as home:
        for title, expression, found in asked(home):
            wrong = not found and not any(name in expression for name in MAY_BE_EMPTY)
            empty += wrong
            print(f"{'EMPTY' if wrong else 'ok':5} {title}: {len(found)} series {found[:3]}  {expression}")
    print(f"{empty} queries without data")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
