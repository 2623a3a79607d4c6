"""A deployment of fakes for the router: two replicas and a primary that do as a test says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from pipeline import clock
from pipeline.config import Topology
from pipeline.config.sections import Load
from pipeline.config.settings import load
from pipeline.errors import ShardUnavailable
from pipeline.model import Position
from pipeline.reads import Need
from pipeline.reads.health import Report
from pipeline.reads.read_place import ReadPlace
from pipeline.reads.routing import Bounds
from pipeline.reads.routing.router import Router

S0 = ReadPlace("s0", None)
BOUNDS = Bounds(max_lag_s=5.0, wait_s=0.03, on_stale="primary")


NEEDS = {3: Need(Position(1, 10), {7: 4})}


HAS, LACKS = {3: Position(1, 10)}, {3: Position(1, 9)}


def lagging(lag_s: float, *, age_s: float = 0.0, **known: Any) -> Report:
    """Return the report of a node that lags so far now, published so long ago."""
    return Report(round(1000 * (lag_s - age_s)), published_s=clock.mono_s() - age_s, **known)


class FakeReader:
    """A node: `marks` is what it has, `away` makes it fail."""

    def __init__(self, node: str):
        self.node, self.marks_now, self.away, self.probes = node, dict(LACKS), False, 0
        self.known: dict[int, Position] = {}
        self.here, self.aside = SimpleNamespace(holding=set()), False
        self.catches_up_after: int | None = None
        self.age_s = 0.0
        self.db: Any = None

    def ready(self) -> None:
        if self.away:
            raise ShardUnavailable(self.node, "it is away")

    def rely(self, needed: bool) -> int | None:
        return None

    def relied(self, before: int | None) -> None:
        pass

    def has(self, needs: Mapping[int, Need]) -> bool:
        return all(need.reached(self.known.get(b, Position(-1, -1)), {}) for b, need in needs.items())

    def probe(self, needs: Mapping[int, Need]) -> bool:
        self.ready()
        self.probes += 1
        if self.probes == self.catches_up_after:
            self.marks_now = dict(HAS)
        self.known = dict(self.marks_now)
        return self.has(needs)

    def waits_aside(self, needs: Mapping[int, Need]) -> bool:
        return self.aside

    def marks(self, buckets: Iterable[int] | None = None) -> dict[int, Position]:
        return dict(self.marks_now)

    def connected_for_s(self) -> float:
        return self.age_s


class Deployment:
    """Two replicas in good health, a primary that has everything and takes two reads at once for the replicas."""

    def __init__(self) -> None:
        self.readers = {node: FakeReader(node) for node in ("s0", "s0-r0", "s0-r1")}
        self.readers["s0"].marks_now = dict(HAS)
        self.published = {"s0-r0": lagging(0.1), "s0-r1": lagging(0.2)}
        self.suspected = 0
        self.reasons: list[tuple[str, str]] = []
        self.loads: dict[str, Load] = {}
        topology = Topology(
            load({"redis": {"url": "redis://fake.invalid/0"}, "shards": {"s0": {"primary": "sqlite://s0.db"}}})
        )
        topology.heard_at_s = math.inf
        self.router = Router(self, self.readers, self, topology, 2, self.loads)  # type: ignore[arg-type]
        self.router._jitter = lambda: 0.5

    def primary_name(self, shard: str) -> str:
        return "s0"

    def replica_names(self, shard: str) -> tuple[str, ...]:
        return tuple(self.published)

    def suspect(self, shard: str) -> None:
        self.suspected += 1

    def reports(self) -> Mapping[str, Report]:
        return self.published

    def report(self, node: str) -> Report:
        return self.published.get(node, Report())

    def counters(self) -> Deployment:
        return self

    def busy(self) -> int:
        """Return how many reads run, and how many of those the primary limits."""
        in_flight = self.router.in_flight()
        return sum(in_flight.by_node.values()) + sum(in_flight.limited.values())

    def count(self, shard: str, kind: str, reason: str) -> None:
        self.reasons.append((kind, reason))

    def read(self, needs: Mapping[int, Need] = {}, bounds: Bounds = BOUNDS, **options: Any) -> Any:
        with self.router.open(S0, needs, bounds, **options) as db:
            return db.read_info
