"""Run the two web2py applications that `benchmarks.web` compares, each in a process of its own, and their primaries."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pydal import DAL
from support.web.shop import Shop, shop_of
from support.web.web2py_server import Site, serving

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
ANSWER_S = 30
COMMITS = 50


class Users:
    """The users of one application; each has a session of its own, and returns with its cookie."""

    def __init__(self, name: str, site: Site):
        self.name, self.site = name, site
        self._cookies: dict[int, str] = {}

    def post(self, user: int) -> None:
        """Send the form as one user, over a connection of its own, and wait for the answer."""
        connection = http.client.HTTPConnection(self.site.url.removeprefix("http://"), timeout=ANSWER_S)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": self._cookies.get(user, "")}
        try:
            connection.request("POST", f"/{self.name}/default/buy", urlencode({"customer": user, "qty": 3}), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200 or text != "bought":
            raise RuntimeError(f"{self.name} answered {answer.status}: {text[:200]}; {self.site.tickets()[:1]}")
        if cookie := answer.headers["Set-Cookie"]:
            self._cookies[user] = cookie.split(";")[0]


@contextmanager
def running(folder: Path) -> Iterator[tuple[Shop, dict[str, Users]]]:
    """Start both applications; the database of both is a shard's primary.

    Each has a process of its own, so neither pays for what the other imports, keeps in memory and does in threads.
    """
    with shop_of(folder) as shop, ExitStack() as servers:
        users = {}
        for name, write in WRITES.items():
            place = Shop(shop.rig, folder / name)
            place.folder.mkdir()
            controllers = {"default": CONTROLLER.format(write=write)}
            application = place.application(name, controllers, PIPELINE if name == "queued" else "", model=MODEL)
            ini = application / "private" / "appconfig.ini"
            ini.write_text(ini.read_text().replace(shop.uri_of(name), shop.rig.primaries["s0"]))
            users[name] = Users(name, servers.enter_context(serving(place.folder)))
        shop.prepare(users["queued"].site, "/queued/default/index")
        users["direct"].site.browser().get("/direct/default/index")
        yield shop, users


@contextmanager
def slow_commits(shop: Shop, by_ms: float) -> Iterator[None]:
    """Delay each commit on a primary by so much."""

    def wait(count: int, usec: int) -> None:
        for shard in shop.rig.primaries:
            shop.ask(shard, f"SET GLOBAL binlog_commit_wait_count={count}, GLOBAL binlog_commit_wait_usec={usec}")

    wait(1000, int(by_ms * 1000))
    try:
        yield
    finally:
        wait(0, 100_000)


def median_commit_ms(shop: Shop) -> float:
    """Return how long a commit takes now, measured outside of web2py."""
    db = DAL(shop.rig.primaries["s0"], migrate=False)
    times = []
    for _ in range(COMMITS):
        db.executesql("DELETE FROM sale WHERE id = 1")
        db.executesql("INSERT INTO sale (id, customer) VALUES (1, 1)")
        started = perf_counter()
        db.commit()
        times.append(perf_counter() - started)
    db.executesql("DELETE FROM sale WHERE id = 1")
    db.commit()
    db.close()
    return sorted(times)[COMMITS // 2] * 1000


def rows_there(shop: Shop) -> int:
    """Return how many rows both primaries hold."""
    return sum(int(shop.ask(shard, "SELECT COUNT(*) FROM shop.sale").split()[-1]) for shard in shop.rig.primaries)
