"""An application is told what its database refused, and cannot hold up the worker with what it makes of that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline import apply
from pipeline.testing import Drained, Sandbox, sandbox


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("note", length=40, unique=True))
    yield db
    db.close()


@pytest.fixture
def box(db: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr(apply, "_functions", [])
    with sandbox({"event": {"shard_key": "who"}}, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def refused(db: Any) -> pipeline.Receipt:
    pipeline.enqueue_insert(db.event, who=7, note="taken")
    return pipeline.enqueue_insert(db.event, who=7, note="taken")


def test_a_function_is_called_once_for_each_rejection_after_its_commit(db: Any, box: Sandbox):
    told: list[tuple[pipeline.Rejection, str]] = []
    receipt = refused(db)
    pipeline.enqueue_update(db.event.id == receipt.id, note="parked")
    pipeline.on_reject(lambda rejection: told.append((rejection, receipt.status())))

    box.drain()
    box.drain()

    [(rejection, status)] = told
    assert (rejection.shard, rejection.table, rejection.row) == ("s0", "event", str(receipt.id))
    assert rejection.place == f"{receipt.bucket}:{receipt.position}"
    assert "UNIQUE" in rejection.reason
    assert rejection.op is not None
    assert rejection.op.values == (7, "taken")
    assert status == "rejected", "the rejection is committed"


def test_a_function_that_raises_is_logged_and_stops_nothing(db: Any, box: Sandbox, caplog: pytest.LogCaptureFixture):
    told: list[str] = []

    @pipeline.on_reject
    def fail(rejection: pipeline.Rejection) -> None:
        raise RuntimeError("no such address")

    pipeline.on_reject(lambda rejection: told.append(rejection.place))
    refused(db)

    assert box.drain() == Drained(1, 1)

    assert len(told) == 1
    assert "no such address" in caplog.text


def test_a_function_that_hangs_is_left_behind(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(apply, "MOST_S", 0.01)
    free, told = threading.Event(), threading.Event()

    @pipeline.on_reject
    def hang(rejection: pipeline.Rejection) -> None:
        free.wait(30)
        told.set()

    with caplog.at_level(logging.ERROR):
        refused(db)
        assert box.drain() == Drained(1, 1)
        refused(db)
        assert box.drain() == Drained(0, 2)
    free.set()

    assert "on_reject_slow" in caplog.text
    assert "on_reject_busy shard=s0 ops=2" in caplog.text
    assert told.wait(30)


def test_celery_sends_a_signal_for_each_rejection(db: Any, box: Sandbox):
    from workers import signals

    told: list[pipeline.Rejection] = []

    def receive(sender: str, rejection: pipeline.Rejection, **_: Any) -> None:
        told.append(rejection)

    pipeline.on_reject(signals._send)
    signals.op_rejected.connect(receive)
    receipt = refused(db)

    box.drain()

    assert [rejection.place for rejection in told] == [f"{receipt.bucket}:{receipt.position}"]
