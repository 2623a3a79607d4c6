"""The sweeper's own decisions: from 70 % of Redis's memory on nothing more is let in, so that draining has room."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.sandbox.configurations import small

from pipeline.config.settings import load
from pipeline.model.op import Entry, Position
from pipeline.oplog.memory.log import MemoryLog
from workers.sweeper import Sweep

LIMIT_BYTES = 1000
SHARDS = {name: {"primary": f"sqlite://{name}.sqlite"} for name in ("s0", "s1")}


class Tasks:
    """Takes the tasks that a sweep hands out; its worker serves the shard s0."""

    amqp = SimpleNamespace(queues=SimpleNamespace(consume_from={"shard.s0"}))

    def send_task(self, name: str, **options: Any) -> None: ...


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    log.limit_bytes = LIMIT_BYTES
    return log


@pytest.fixture
def sweep(log: MemoryLog) -> Sweep:
    sweep: Any = Sweep(load(small(spool={"enabled": False}, shards=SHARDS), {}), Tasks())
    sweep._log.close()
    sweep._log = log
    return sweep


def turn_with(sweep: Sweep, log: MemoryLog, size_bytes: int) -> str | None:
    """Do one turn while the log uses so many bytes; return why it is full."""
    log._server.logs[0] = [Entry(0, Position(1, 0), 1, 1, b"x" * size_bytes)]
    log._server.keys.pop("lease:memory", None)  # this turn is a second after the one before
    sweep.once()
    return log.full()


def test_redis_is_full_above_seventy_percent_of_its_memory_and_no_longer_when_there_is_room(
    sweep: Sweep, log: MemoryLog
):
    assert turn_with(sweep, log, 700) is None

    assert turn_with(sweep, log, 710) == "Redis uses 71% of its memory"

    assert turn_with(sweep, log, 700) is None


def test_a_worker_lets_others_know_which_shards_it_serves(sweep: Sweep, log: MemoryLog):
    sweep.once()

    assert log.waits("s0").alive
    assert not log.waits("s1").alive
