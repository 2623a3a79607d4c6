"""A POST that writes through the pipeline against the same POST with a pyDAL insert + commit: real web2py over HTTP.

    python -m benchmarks.web [--rounds 2000] [--commit-ms 5]

The primaries take 5 ms for each commit, as one does that waits for a disk or for a semi-synchronous replica: MariaDB
itself holds a commit back for others to join it (`binlog_commit_wait_usec`), and nothing else. Workers wait alike.

Two applications have the same tables and the same action but for its one line. Each client asks them in turn, request
by request, so that whatever else the machine does meets both alike. Exit code 1: the pipeline was slower, or rows are
missing.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pydal import DAL
from support.shop import Shop, shop_of
from support.web2py_server import Site, serving

from benchmarks.figure import percentile_figures

MODEL = """\
from gluon.contrib.appconfig import AppConfig

configuration = AppConfig()
db = DAL(configuration.take("db.uri"), pool_size=8, migrate_enabled=False, bigint_id=True, check_reserved=None)
db.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer"), Field("name", length=40))
"""
PIPELINE = "from pipeline.web2py import Pipeline\n\npipeline = Pipeline(db, configuration)\n"
CONTROLLER = """\
def index():
    return "ready"

def buy():
    fields = dict(customer=int(request.post_vars.customer), qty=int(request.post_vars.qty), name="a name")
    {write}
    return "bought"
"""
#: By the application's name.
WRITES = {"queued": "pipeline.enqueue_insert(db.sale, **fields)", "direct": "db.sale.insert(**fields)"}
#: The shop's other clients: alone, and as many as web2py has threads.
CLIENTS = (1, 8)
WARM_UP = 20
ANSWER_S, APPLIED_S = 30, 120
Times = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="POSTs to each application, for each row")
    parser.add_argument("--commit-ms", type=float, default=5.0, help="how long a primary takes for a commit")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="one row for each")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as folder, running(Path(folder)) as (shop, site):
        alone_ms = median_commit_ms(shop)
        with slow_commits(shop, given.commit_ms):
            print(f"a commit on a primary takes {median_commit_ms(shop):.1f} ms, {alone_ms:.1f} ms without the wait\n")
            print("| clients | through the pipeline p50 / p99 ms | insert + commit p50 / p99 ms | p50, p99 | goal |")
            print("|---|---|---|---|---|")
            sent, well = 0, True
            for clients in given.clients:
                times = post_in_turn(site, clients, given.rounds)
                sent += sum(map(len, times.values())) + len(WRITES) * WARM_UP * clients
                well = report(clients, times) and well
        shop.rig.client.barrier("sale", APPLIED_S)
        there = sum(int(shop.ask(shard, "SELECT COUNT(*) FROM shop.sale").split()[-1]) for shard in shop.rig.primaries)
    print(f"\n{there} of {sent} rows are there")
    sys.exit(0 if well and there == sent else 1)


@contextmanager
def running(folder: Path) -> Iterator[tuple[Shop, Site]]:
    """Bring both applications up; the database of both is a shard's primary."""
    with shop_of(folder) as shop:
        for name, write in WRITES.items():
            controllers = {"default": CONTROLLER.format(write=write)}
            application = shop.application(name, controllers, PIPELINE if name == "queued" else "", model=MODEL)
            ini = application / "private" / "appconfig.ini"
            ini.write_text(ini.read_text().replace(shop.uri_of(name), shop.rig.primaries["s0"]))
        with serving(shop.folder) as site:
            shop.prepare(site, "/queued/default/index")
            site.browser().get("/direct/default/index")
            yield shop, site


@contextmanager
def slow_commits(shop: Shop, by_ms: float) -> Iterator[None]:
    """Let each commit on a primary take so much longer."""

    def wait(count: int, usec: int) -> None:
        for shard in shop.rig.primaries:
            shop.ask(shard, f"SET GLOBAL binlog_commit_wait_count={count}, GLOBAL binlog_commit_wait_usec={usec}")

    wait(1000, int(by_ms * 1000))
    try:
        yield
    finally:
        wait(0, 100_000)


def median_commit_ms(shop: Shop, count: int = 50) -> float:
    """Return how long a commit takes now, from outside of web2py."""
    db = DAL(shop.rig.primaries["s0"], migrate=False)
    times = []
    for _ in range(count):
        db.executesql("DELETE FROM sale WHERE id = 1")
        db.executesql("INSERT INTO sale (id, customer) VALUES (1, 1)")
        times.append(timed(db.commit))
    db.executesql("DELETE FROM sale WHERE id = 1")
    db.commit()
    db.close()
    return sorted(times)[count // 2] * 1000


def post_in_turn(site: Site, clients: int, rounds: int) -> Times:
    """Return how long each POST took, by application; every client asks both in turn."""
    times: Times = {name: [] for name in WRITES}
    faults: list[BaseException] = []

    def ask(number: int) -> None:
        cookies: dict[str, str] = {}
        try:
            for turn in range(WARM_UP + rounds // clients):
                for name in WRITES:
                    spent = timed(lambda name=name, turn=turn: post(site, name, number * 100_000 + turn, cookies))
                    if turn >= WARM_UP:
                        times[name].append(spent)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return times


def post(site: Site, name: str, customer: int, cookies: dict[str, str]) -> None:
    """Send the form, as one user: the session's cookie comes back."""
    connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=ANSWER_S)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": cookies.get(name, "")}
    try:
        connection.request("POST", f"/{name}/default/buy", urlencode({"customer": customer, "qty": 3}), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200 or text != "bought":
        raise RuntimeError(f"{name} answered {answer.status}: {text[:200]}; tickets: {site.tickets()[:1]}")
    if cookie := answer.headers["Set-Cookie"]:
        cookies[name] = cookie.split(";")[0]


def timed(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started


def report(clients: int, times: Times) -> bool:
    """Print a row; return whether the pipeline was faster at p50 and at p99."""
    ours, beside = ([figure.value for figure in percentile_figures(name, times[name], "")] for name in WRITES)
    ratios = [mine / other for mine, other in zip(ours, beside, strict=True)]
    shown = (f"{ours[0]:.1f} / {ours[1]:.1f}", f"{beside[0]:.1f} / {beside[1]:.1f}")
    print(f"| {clients} | {shown[0]} | {shown[1]} | {ratios[0]:.2f} ×, {ratios[1]:.2f} × | < 1 × both |", flush=True)
    return max(ratios) < 1


if __name__ == "__main__":
    main()
