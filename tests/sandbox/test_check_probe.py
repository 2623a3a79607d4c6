"""`pipeline check` sends an op to each shard, changes nothing, and says where the op is not taken or not applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from pydal import DAL, Field

from pipeline.admin import stops
from pipeline.admin.check import evidence
from pipeline.admin.migration import migrate
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.model.schema import schema_of
from pipeline.oplog.doorbell import SilentBell


class Deployment:
    """A shard in SQLite, whose log is on a real Redis."""

    def __init__(self, url: str, folder: Path):
        prefix = f"t{uuid4().hex[:12]}"
        shard = {"primary": f"sqlite://{folder}/s0.sqlite"}
        self.settings = load(
            {"redis": {"url": url, "prefix": prefix}, "pipeline": {"buckets": 16}, "shards": {"s0": shard}}
        )
        self.client = Client(self.settings, bell=SilentBell())
        self.db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        self.db.define_table("event", Field("name"))
        self.client.define_tables(self.db)
        migrate(self.client)
        self.client.enqueue_insert(self.db.event, id=1, name="kept")

    def failed(self) -> dict[str, str]:
        return evidence.failed_probes(self.settings, [schema_of(self.db.event)], ["s0"])

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Apply what comes."""
        ended = Event()

        def work() -> None:
            applier = Applier("s0", self.client.nodes.primary("s0"), self.client.log, self.settings.apply)
            while not ended.wait(0.01):
                applier.apply()

        thread = Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def rows(self) -> list[Any]:
        return self.client.nodes.primary("s0").query("SELECT id, name FROM event")

    def close(self) -> None:
        self.client.close()
        self.db.close()


@pytest.fixture
def here(log_server: Callable[[str], Any], tmp_path: Path) -> Iterator[Deployment]:
    with closing(Deployment(log_server("redis").url, tmp_path)) as made:
        yield made


def test_where_an_op_goes_all_the_way_nothing_is_said_and_no_row_is_touched(here: Deployment):
    with here.worker():
        assert here.failed() == {}

    assert here.rows() == [(1, "kept")]


def test_where_no_worker_applies_the_op_that_is_said(here: Deployment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evidence, "APPLIED_S", 0.1)

    assert here.failed()["s0"].startswith("an op is taken, but not applied after 0.1 s")


def test_where_redis_takes_no_op_its_own_words_are_said(here: Deployment):
    redis = here.client.log._client
    redis.set(here.client.log.keys.full, "no room on purpose", px=20_000)

    assert here.failed()["s0"].startswith("an op is not taken: the pipeline is full: no room on purpose")


def test_where_all_tables_are_stopped_no_op_is_sent(here: Deployment):
    stops.pause(here.client, stops.target_of(here.client, "shard:s0"), "a test")
    before = here.client.log.tails(range(16))

    assert here.failed() == {}
    assert here.client.log.tails(range(16)) == before
