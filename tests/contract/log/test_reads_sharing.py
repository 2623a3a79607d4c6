"""What processes share of their reads through the log: views of what the prober tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline import clock
from pipeline.devcluster.processes import free_ports
from pipeline.model import Position
from pipeline.oplog import Log
from pipeline.oplog.memory.log import MemoryLog
from pipeline.oplog.redis.log import RedisLog
from pipeline.reads.health import NodeState, Report
from pipeline.reads.routing.replicas import HealthCache


@pytest.fixture
def away() -> Iterator[RedisLog]:
    [port] = free_ports(1)
    made = RedisLog(f"redis://127.0.0.1:{port}/0")
    yield made
    made.close()


def test_a_view_is_what_was_told_grown_older(log: Log) -> None:
    marks = {3: Position(9, 4)}
    log.publish_health({"s0-r0": Report(1500, False, False, marks=marks).to_json()}, 60_000)
    health = HealthCache(log)

    first = health.report("s0-r0")
    lag_s = first.lag_s  # as it is now: it grows with time

    assert lag_s is not None
    assert lag_s >= 1.5
    assert first.marks == marks
    assert first.takes_writes is False
    assert any((health.report("s0-r0").lag_s or 0) > lag_s for _ in clock.polls(5))
    assert health.report("s9").lag_s is None
    health.close()


def test_news_reaches_a_process_that_goes_on_looking(log: Log) -> None:
    health = HealthCache(log)
    assert health.report("s0-r0").lag_s is None

    log.publish_health({"s0-r0": Report(0, True, None, "connection refused").to_json()}, 60_000)

    assert any(health.report("s0-r0").out for _ in clock.polls(10))
    health.close()


def test_a_report_is_no_younger_for_a_clock_that_was_set_back() -> None:
    """Of a prober that has gone: the report is not renewed."""
    log = MemoryLog()
    log.publish_health({"s0-r0": Report(0).to_json()}, 60_000)
    log.ahead_ms += 10_000
    before, fresh = HealthCache(log), HealthCache(log)
    assert (before.report("s0-r0").lag_s or 0) >= 10

    for back_ms in (8_000, 3_600_000):
        log.ahead_ms -= back_ms
        before._fetch(before._here())
        assert (before.report("s0-r0").lag_s or 60) >= 10
    fresh._fetch(fresh._here())
    assert fresh.report("s0-r0").lag_s is None
    before.close()
    fresh.close()


def test_without_redis_a_view_is_no_reading(away: RedisLog) -> None:
    health = HealthCache(away)

    assert health.report("s0-r0") == health.report("s0")
    assert health.report("s0-r0").state is NodeState.NO_READING
    assert health.report("s0-r0").lag_s is None
    health.close()
