"""The sweeper lets others know which shards have a worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from support.sandbox.configurations import small

from pipeline.config.settings import load
from pipeline.oplog.memory.log import MemoryLog
from workers.sweeper import Sweep

SHARDS = {name: {"primary": f"sqlite://{name}.sqlite"} for name in ("s0", "s1")}


class Tasks:
    """Takes the tasks that a sweep hands out; its worker serves the shard s0."""

    amqp = SimpleNamespace(queues=SimpleNamespace(consume_from={"shard.s0"}))

    def send_task(self, name: str, **options: Any) -> None: ...


def test_a_worker_lets_others_know_which_shards_it_serves():
    log = MemoryLog()
    sweep: Any = Sweep(load(small(spool={"enabled": False}, shards=SHARDS), {}), Tasks())
    sweep._log.close()
    sweep._log = log

    sweep.once()

    assert log.waits("s0").alive
    assert not log.waits("s1").alive
