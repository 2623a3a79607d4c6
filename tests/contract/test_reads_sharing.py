"""What processes share of their reads through the log: views of what the prober tells, the primaries' budgets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline import clock
from pipeline.devcluster.processes import free_ports
from pipeline.model.op import Position
from pipeline.oplog.contract import Log
from pipeline.oplog.redis.log import RedisLog
from pipeline.reads.health.shard_health import Report, encode
from pipeline.reads.routing.accounting import MOST, Budget
from pipeline.reads.routing.health_cache import Readings

READS = 2000


@pytest.fixture
def away() -> Iterator[RedisLog]:
    [port] = free_ports(1)
    made = RedisLog(f"redis://127.0.0.1:{port}/0")
    yield made
    made.close()


def test_a_view_is_what_was_told_grown_older(log: Log) -> None:
    marks = {3: Position(9, 4)}
    log.publish_health({"s0-r0": encode(Report(1500, False, False, marks=marks))}, 60_000)
    readings = Readings(log)

    first = readings.view("s0-r0")

    assert first.lag_s is not None
    assert first.lag_s >= 1.5
    assert first.marks == marks
    assert first.primary is False
    assert any((readings.view("s0-r0").lag_s or 0) > first.lag_s for _ in clock.polls(5))
    assert readings.view("s9").lag_s is None
    readings.close()


def test_news_reaches_a_process_that_goes_on_looking(log: Log) -> None:
    readings = Readings(log)
    assert readings.view("s0-r0").lag_s is None

    log.publish_health({"s0-r0": encode(Report(0, True, None, "connection refused"))}, 60_000)

    assert any(readings.view("s0-r0").out for _ in clock.polls(10))
    readings.close()


def test_without_redis_a_view_is_no_reading(away: RedisLog) -> None:
    readings = Readings(away)

    assert readings.view("s0-r0") == readings.view("s0")
    assert readings.view("s0-r0").lag_s is None
    readings.close()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_primary_takes_its_share_of_the_reads_of_all_processes_and_no_more(log: Log, share: float) -> None:
    budgets = [Budget(log, share) for _ in range(4)]
    taken: list[int] = []

    def read(budget: Budget) -> None:
        taken.append(sum(budget.take("s0") for _ in range(READS // len(budgets))))

    threads = [threading.Thread(target=read, args=(budget,)) for budget in budgets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert READS * share - 1 <= sum(taken) <= READS * share + MOST


def test_reads_that_replicas_served_earn_what_another_process_may_use(log: Log) -> None:
    serving, wanting = Budget(log, 0.1), Budget(log, 0.1)
    while wanting.take("s0"):
        pass
    for _ in range(50):
        serving.note("s0")
    serving.take("s0")  # brings what was noted along

    assert [wanting.take("s0") for _ in range(3)] == [True, True, True]


def test_while_redis_is_away_each_process_keeps_to_the_share_by_itself(away: RedisLog) -> None:
    budget = Budget(away, 0.1)

    taken = sum(budget.take("s0") for _ in range(READS))

    assert READS * 0.1 - 1 <= taken <= READS * 0.1 + MOST


def test_the_budgets_of_shards_are_apart(log: Log) -> None:
    budget = Budget(log, 0.1)
    while budget.take("s0"):
        pass

    assert budget.take("s1")
