"""Flower's `/metrics`: Flower's numbers and the deployment's, behind the login that all pages have."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import flower.urls
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port
from tornado.web import Application

from pipeline.admin.observe.published import publish
from pipeline.admin.observe.record import Record, RedisRecord, ShardRecord
from pipeline.errors import LogUnavailable
from pipeline.oplog.memory.log import MemoryLog
from workers import pipeline_tab
from workers.metrics.port import Tables
from workers.signals import put_ours

SHARD = ShardRecord("s0", depth=30, oldest_ms=2500)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MemoryLog:
    """What Flower reads."""
    log = MemoryLog()
    shown = object.__new__(pipeline_tab.Deployment)
    shown._log, shown._shards, shown._tables = log, ("s0",), Tables()  # type: ignore[assignment]
    monkeypatch.setattr(pipeline_tab, "deployment", lambda: shown)
    return log


class Page:
    """Flower's list of pages, served with Flower's options."""

    def __init__(self) -> None:
        handlers = list(flower.urls.handlers)
        put_ours(handlers)
        [pages] = [[one] for one in handlers if not hasattr(one, "regex") and one[0] == "/metrics"]
        self.app: Any = Application(pages, login_url="/login", cookie_secret="x")
        self.app.options = SimpleNamespace(basic_auth=[], auth="")
        self.app.purge_offline_worker_metrics = lambda: None

    def get(self, **headers: str) -> tuple[int, str]:
        async def ask() -> tuple[int, str]:
            self.app.io_loop = IOLoop.current()
            socket, port = bind_unused_port()
            server = HTTPServer(self.app)
            server.add_socket(socket)
            url = f"http://127.0.0.1:{port}/metrics"
            client = AsyncHTTPClient(force_instance=True)
            answer = await client.fetch(url, headers=headers, raise_error=False, follow_redirects=False)
            client.close()
            server.stop()
            await server.close_all_connections()
            return answer.code, answer.body.decode()

        return IOLoop(make_current=False).run_sync(ask)


@pytest.fixture
def page(log: MemoryLog) -> Iterator[Page]:
    return Page()


def names(text: str) -> set[str]:
    return {family.name for family in text_string_to_metric_families(text)}


def login(words: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(words.encode()).decode()}


def test_the_page_has_flowers_numbers_and_the_deployments(page: Page, log: MemoryLog):
    publish(log, Record(0, RedisRecord(0.5), (SHARD,)), {})
    log.finish("s0", {}, counts={"applied insert t": 3})

    code, text = page.get()

    assert code == 200
    assert 'pipeline_ops_applied_total{kind="insert",shard="s0",table="t"} 3.0' in text
    assert 'pipeline_queue_ops{shard="s0"} 30.0' in text
    assert {"pipeline_queue_oldest_seconds", "python_info"} <= names(text)


def test_what_processes_enqueue_is_shown_by_way(page: Page, log: MemoryLog):
    counts = {"enqueued spool insert my table": 2, "enqueue_ms spool 0.5": 1, "enqueue_ms spool 5": 2}
    log.finish("s0", {}, counts={**counts, "enqueue_sum_us spool": 7_400, "enqueue_ms direct inf": 1})

    _, text = page.get()

    assert 'pipeline_ops_enqueued_total{kind="insert",shard="s0",table="my table",way="spool"} 2.0' in text
    assert 'pipeline_enqueue_seconds_bucket{le="0.0005",shard="s0",way="spool"} 1.0' in text
    assert 'pipeline_enqueue_seconds_bucket{le="+Inf",shard="s0",way="spool"} 3.0' in text
    assert 'pipeline_enqueue_seconds_sum{shard="s0",way="spool"} 0.0074' in text
    assert 'pipeline_enqueue_seconds_count{shard="s0",way="direct"} 1.0' in text


def test_where_a_login_is_asked_for_the_metrics_need_it_too(page: Page, log: MemoryLog):
    publish(log, Record(0, RedisRecord(0.5), (SHARD,)), {})
    page.app.options.basic_auth = ["ann:secret"]

    assert page.get() == (401, "Access denied")
    assert page.get(**login("ann:wrong"))[0] == 401
    assert "pipeline_queue_ops" in page.get(**login("ann:secret"))[1]


def test_with_a_login_at_somebody_elses_the_page_is_no_way_around_it(page: Page):
    page.app.options.auth = ".*@example.org"

    assert page.get()[0] == 302


def test_where_no_worker_publishes_flowers_own_numbers_are_there(page: Page):
    code, text = page.get()

    assert code == 200
    assert "python_info" in names(text)
    assert "pipeline_record_age_seconds" not in names(text)


def test_a_redis_that_is_away_takes_nothing_from_flowers_page(
    page: Page, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
):
    def away(names: object) -> None:
        raise LogUnavailable("it is away")

    monkeypatch.setattr(log, "records", away)

    code, text = page.get()

    assert code == 200
    assert "python_info" in names(text)
