"""A worker whose pool stands still is red; one whose servers are away is not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.servers.rig import Rig

from pipeline import cli
from pipeline.clock import Deadline, polls

pytestmark = pytest.mark.mariadb

#: More than one turn of any thread takes while all servers are away: each I/O has a time-out of 3 s or less.
WITHIN_S = 10


def told(rig: Rig, worker: str) -> dict[str, Any]:
    """Return what the check says of one worker."""
    options = ["--within", str(WITHIN_S), "--json", "--config", str(rig.config)]
    found = json.loads(CliRunner().invoke(cli.pipeline, ["healthcheck", "worker", *options]).output)
    return next((one for one in found["workers"] if one["pid"] == rig.pid(worker)), {"ok": False, "why": "no sign"})


@contextmanager
def stopped(pool: list[int]) -> Iterator[None]:
    """Let a worker's pool processes stand still, and no other process."""
    for child in pool:
        os.kill(child, signal.SIGSTOP)
    try:
        yield
    finally:
        for child in pool:
            os.kill(child, signal.SIGCONT)


def pool_of(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_worker_whose_pool_is_stopped_is_red_and_one_whose_servers_are_away_is_not(mariadb: Rig) -> None:
    others = mariadb.workers
    with mariadb.worker(mariadb.config) as worker:
        assert any(told(mariadb, worker)["ok"] for _ in polls(20))
        pool = pool_of(mariadb.pid(worker))

        with mariadb.frozen(*others) if others else stopped([]), stopped(pool):
            mariadb.client.enqueue_insert(mariadb.db.event, owner=1, body="x")
            assert any("takes nothing" in told(mariadb, worker)["why"] for _ in polls(60, most_s=0.5))
        assert pool
        assert any(told(mariadb, worker)["ok"] for _ in polls(60, most_s=0.5))

        with mariadb.frozen("redis", *mariadb.primaries):
            away = Deadline(WITHIN_S + 2)
            while not away.passed:
                now = told(mariadb, worker)
                assert now["ok"], now["why"]
