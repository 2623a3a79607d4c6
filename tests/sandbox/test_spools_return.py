"""Hosts send what they have spooled, at once: their ops come between each other's in all buckets, and none is refused.

A host's ops arrive in the order of its calls. So whatever an op needs has arrived before it, and nothing waits for what
waits for it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field
from support.examples import THOROUGH

import pipeline
from pipeline import clock
from pipeline.apply import transaction
from pipeline.apply.applier import Applier
from pipeline.config.settings import ApplySettings
from pipeline.model.receipt import Receipt
from pipeline.testing import Sandbox, sandbox

TABLES = ("event", "parent", "child")
#: How many ops of each host, of one transaction and of one call, and how many hosts and buckets.
SIZES = [(40, 20, 40, 2, 4), (200, 50, 40, 2, 4), (200, 1000, 40, 2, 4), (60, 7, 10, 3, 8), (300, 100, 300, 3, 4)]
SEEDS = 4 if THOROUGH else 2


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"))
    db.define_table("parent", Field("who", "integer"))
    db.define_table("child", Field("who", "integer"), Field("up", "reference parent"))
    yield db
    db.close()


class Host:
    """A host's calls in order; its clock, its families and its producers."""

    def __init__(self, db: Any, luck: random.Random, places: list[int]):
        self._db, self._luck, self._places, self.at_ms = db, luck, places, luck.uniform(0, 50)
        self._steps: list[Any] = []
        self.producers = deque[Any]()

    def call(self) -> Receipt:
        """Make the next call: of the last family, or an event, or a new family."""
        self.at_ms += self._luck.uniform(0.1, 5)
        if not self._steps:
            self._steps = self._family() if self._luck.random() < 0.2 else [self._event]
        return self._steps.pop(0)()

    def _event(self) -> Receipt:
        return pipeline.enqueue_insert(self._db.event, who=self._luck.choice(self._places))

    def _family(self) -> list[Any]:
        """Return the calls that make a parent and a child, and perhaps delete both, or the parent."""
        db, who, other, end = self._db, *self._luck.choices(self._places, k=2), self._luck.random()
        made: dict[str, Receipt] = {}

        def insert(table: str, **values: Any) -> Receipt:
            made[table] = pipeline.enqueue_insert(db[table], **values)
            return made[table]

        steps = [lambda: insert("parent", who=who), lambda: insert("child", who=other, up=made["parent"].id)]
        if end < 0.4:
            steps.append(lambda: pipeline.enqueue_delete(db.child.id == made["child"].id, shard_key=other))
        if end < 0.6:
            steps.append(lambda: pipeline.enqueue_delete((db.parent.who == who) & (db.parent.id == made["parent"].id)))
        return steps


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(("ops", "rows", "most", "hosts", "buckets"), SIZES)
def test_what_several_hosts_have_spooled_is_applied_whatever_comes_first(
    db: Any, monkeypatch: pytest.MonkeyPatch, seed: int, ops: int, rows: int, most: int, hosts: int, buckets: int
) -> None:
    luck = random.Random(f"{seed} {ops} {rows}")
    monkeypatch.setattr(transaction, "FIRST_ROWS", rows)
    monkeypatch.setattr(clock, "sleep_s", lambda seconds: None)
    with sandbox({name: {"shard_key": "who"} for name in TABLES}, shards=1, buckets=buckets) as box:
        pipeline.define_tables(db)
        receipts = sent(db, box, luck, monkeypatch, [ops] * hosts, most)
        settings = ApplySettings(max_rows=rows, breaker=False)
        workers = [
            Applier("s0", box.client.nodes.primary("s0"), box.log, settings, topology=box.client.topology)
            for _ in range(2)
        ]

        looks = 0
        while box.log.dirty("s0"):
            looks += 1
            box.log.postpone("s0", range(buckets), 0)
            luck.choice(workers).apply()
            assert looks < 20 + hosts * ops  # at worst an op a look

        assert [receipt for receipt in receipts if receipt.status() != "applied"] == []


def sent(
    db: Any, box: Sandbox, luck: random.Random, monkeypatch: pytest.MonkeyPatch, left: list[int], most: int
) -> list[Receipt]:
    """Let hosts send so many ops each, in turn up to so many at once."""
    by_bucket = {box.client.topology.bucket_of("event", who): who for who in range(100)}
    hosts = [Host(db, luck, sorted(by_bucket.values())) for _ in left]
    receipts, now_ns = list[Receipt](), clock.wall_ns()
    while any(left):
        n = luck.choice([n for n, ops in enumerate(left) if ops])
        for _ in range(min(left[n], luck.randint(1, most))):
            left[n] -= 1
            monkeypatch.setattr(box.client.publisher, "idle", hosts[n].producers)
            monkeypatch.setattr(clock, "wall_ns", lambda n=n: now_ns + int(hosts[n].at_ms * 10**6))
            receipts.append(hosts[n].call())
    monkeypatch.setattr(clock, "wall_ns", lambda: now_ns + 10**10)
    return receipts
