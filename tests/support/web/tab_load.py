"""Measure the Pipeline tab of a large deployment: 64 shards, a million queued ops, 100,000 refused ones.

    make tab

What workers publish is simulated: this process publishes a record of all shards each second, with a history of a day.
Flower is a real one. Printed are the time of the overview's page, the processor time of Flower by open browser, and the
Largest Contentful Paint in a real browser; a picture of a screen of 3,840 pixels is written.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import clock_gettime, perf_counter

from pipeline import clock
from pipeline.admin.observe import DAY_S, RECENT_S, Spans
from pipeline.admin.observe.published import publish, summary
from pipeline.admin.observe.record import (
    BatchRecord,
    BucketRecord,
    HostRecord,
    NodeRecord,
    Record,
    RedisRecord,
    ShardRecord,
    TableRecord,
)
from pipeline.config.settings import load
from pipeline.devcluster import Cluster
from pipeline.oplog.groups import log_of
from pipeline.reads.health import NodeState
from support.web.chromium import chromium, visitor

SHARDS, QUEUED, REFUSED = 64, 1_000_000, 100_000
#: A page, how long processor time is taken with so many browsers open, s, and how many paints.
PAGES, LOOK_S, BROWSERS, PAINTS = 200, 20.0, 20, 10
#: Asked of the browser before the page is loaded: the last paint of the largest thing so far.
PAINT = """() => new Promise((found) => new PerformanceObserver(
    (list) => found(list.getEntries().at(-1).startTime)).observe({type: "largest-contentful-paint", buffered: true}))"""


class Workers(threading.Thread):
    """Publishes what the workers of 64 busy shards would."""

    def __init__(self, cluster: Cluster):
        super().__init__(name="workers", daemon=True)
        self.ended = threading.Event()
        self._log = log_of(load(cluster.config), read_s=5.0)
        self._random = random.Random(14)

    def prepare(self) -> None:
        """Fill the histories, as after a day."""
        at_ms = clock.wall_ms()
        for step_s, whole_s, slot in ((DAY_S, 86_400, 1), (RECENT_S, 900, 0)):
            for n in range(int(whole_s / step_s), 0, -1):
                spans, record = Spans(-1e9), self._record(at_ms - int(1000 * n * step_s))
                points = {shard: both[0] for shard, both in spans.add(record, 0.0).items()}
                none = dict.fromkeys(points, (None, None))
                kept = {s: (p, None) if slot == 0 else (None, summary([p])) for s, p in points.items() if p}
                publish(self._log, record, none | kept)

    def run(self) -> None:
        """Publish a record a second until `ended` is set."""
        spans = Spans(clock.mono_s())
        while not self.ended.wait(1.0):
            record = self._record(clock.wall_ms())
            publish(self._log, record, spans.add(record, clock.mono_s()))
        self._log.close()

    def _record(self, at_ms: int) -> Record:
        rows = tuple(self._shard(f"s{n}", at_ms) for n in range(SHARDS))
        hosts = tuple(HostRecord(f"web-{n}", "web", at_ms, n % 3, 4_096, 1_000) for n in range(20))
        redis = RedisRecord(0.4, 3_000_000_000)
        return Record(at_ms, redis, rows, (), "workers", "shop", 1024, hosts)

    def _shard(self, name: str, at_ms: int) -> ShardRecord:
        some = self._random.uniform
        depth = int(QUEUED / SHARDS * some(0.8, 1.2))
        tables = tuple(TableRecord(f"table_{n}", some(0, 900), n) for n in range(20))
        buckets = tuple(BucketRecord(n, depth // 20) for n in range(16))
        replica = NodeRecord(
            f"{name}-r0", state=NodeState.IN, lag_ops=int(some(0, 900)), lag_ms=int(some(0, 900)), reading_ms=40,
            age_ms=300, reads_per_s=some(0, 500), reads_share=0.5,
        )  # fmt: skip
        return ShardRecord(
            name, at_ms, depth=depth, oldest_ms=int(some(500, 30_000)), dirty=16, rate=some(800, 1_200),
            enqueue_rate=some(800, 1_200), rejected=REFUSED // SHARDS, parked=40, lost=0, forged=0, given_up=0,
            batch=BatchRecord(some(5, 12), some(80, 120), some(40, 60), some(90, 140)), tables=tables, buckets=buckets,
            nodes=(NodeRecord(name, "primary", reads_share=0.5), replica), owned=16,
        )  # fmt: skip


@contextmanager
def deployment() -> Iterator[tuple[str, int]]:
    """Run Redis, Flower and what workers publish; yield Flower's address and its process."""
    with TemporaryDirectory() as home, ExitStack() as stack:
        cluster = Cluster.up(
            Path(home) / "dev", shards=SHARDS, replicas=0, workers=0, buckets=1024, flower_port=0, owned=True
        )
        stack.callback(cluster.down)
        workers = Workers(cluster)
        workers.prepare()
        workers.start()
        stack.callback(workers.join)
        stack.callback(workers.ended.set)
        [flower] = [one for one in cluster.processes if one.name == "flower"]
        yield f"http://127.0.0.1:{flower.port}", flower.pid


def page_times(base: str) -> list[float]:
    """Return how long the overview's page takes, s."""
    times = []
    for _ in range(PAGES):
        began = perf_counter()
        with urllib.request.urlopen(f"{base}/pipeline", timeout=20) as answer:
            assert answer.read().count(b'class="pl-spark"') == 2 * SHARDS
        times.append(perf_counter() - began)
        clock.sleep_s(0.05)
    return sorted(times)


@contextmanager
def open_browsers(base: str, count: int) -> Iterator[None]:
    """Follow the overview as so many browsers do."""
    address = base.removeprefix("http://")
    with ExitStack() as stack:
        for _ in range(count):
            host, _, port = address.partition(":")
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            sock.sendall(f"GET /pipeline/live HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
            threading.Thread(target=_drain, args=(sock,), daemon=True).start()
        yield


def _drain(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 16):
            pass
    except OSError:
        return


def processor_share(pid: int) -> float:
    """Return the share of a core that a process takes within `LOOK_S`."""
    before, began = _processor_s(pid), perf_counter()
    clock.sleep_s(LOOK_S)
    return (_processor_s(pid) - before) / (perf_counter() - began)


def _processor_s(pid: int) -> float:
    return clock_gettime((~pid << 3) | 2)  # the process's own clock, as clock_getcpuclockid(3) makes it: to the µs


def paints(base: str, picture: Path) -> list[float]:
    """Return the Largest Contentful Paint of the overview for browsers that come anew, s; write the wide picture."""
    found = []
    with chromium() as browser:
        for _ in range(PAINTS):
            with visitor(browser, viewport={"width": 1280, "height": 720}) as page:
                page.goto(f"{base}/pipeline")
                found.append(page.evaluate(PAINT) / 1000)
        with visitor(browser, viewport={"width": 3840, "height": 2160}) as page:
            page.goto(f"{base}/pipeline")
            page.wait_for_selector("body[data-pl-told]")
            page.screenshot(path=picture)
            assert page.evaluate("document.documentElement.scrollWidth") <= 3840
    return sorted(found)


def main() -> int:
    """Measure, and print."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--picture", type=Path, default=Path("tab-3840.png"))
    given = words.parse_args()
    with deployment() as (base, pid):
        page_times(base)  # the first pages compile templates
        times = page_times(base)
        print(f"overview: p50 {median(times):.3f} s, p95 {times[int(0.95 * PAGES)]:.3f} s (≤ 0.200)", flush=True)
        shares = {}
        for count in (0, 1, BROWSERS):
            with open_browsers(base, count):
                clock.sleep_s(3)
                shares[count] = processor_share(pid)
        more = (shares[BROWSERS] - shares[1]) / (BROWSERS - 1)
        print(
            f"Flower takes {shares[0]:.2%} of a core with no browser, {shares[1]:.2%} with one, {shares[BROWSERS]:.2%} "
            f"with {BROWSERS}: {(shares[BROWSERS] - shares[0]) / BROWSERS:.2%} a browser, each more {more:.2%} (≤ 1 %)",
            flush=True,
        )
        shown = paints(base, given.picture)
        print(f"Largest Contentful Paint: p50 {median(shown):.3f} s, most {shown[-1]:.3f} s (≤ 1)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
