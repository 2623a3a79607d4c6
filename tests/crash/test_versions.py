"""The history of a row is the sequence of its states, each once, whenever the worker that keeps it is killed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL
from support.chance import SOAK
from support.oracle import nodes
from support.oracle.trial import Trial

from pipeline.attachment import attach
from pipeline.clock import polls

pytestmark = pytest.mark.mariadb

#: What Celery writes about a killed child.
KILLED = "signal 9 (SIGKILL)"


@pytest.fixture
def db(trial: Trial) -> Iterator[Any]:
    """An application's DAL whose table keeps versions as pyDAL has it, attached."""
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    own = [field.clone() for field in trial.rig.db.tally if field.name != "id"]
    db.define_table("tally", *own)
    db.tally._enable_record_versioning()
    client = lambda: trial.rig.client  # noqa: E731
    attach(db.tally, client, client)
    yield db
    db.close()


@pytest.mark.parametrize("step", ["statement", "commit", "committed"])
def test_a_killed_worker_neither_loses_a_version_nor_keeps_it_twice(trial: Trial, step: str) -> None:
    rig = trial.rig
    with rig.frozen("worker-1"), rig.worker(PIPELINE_CRASH_AT=f"{step}:0.3") as fragile:
        load = trial.load(weights={"insert": 1, "version": 8, "bump": 1, "delete": 0.3})
        for _ in polls(60):
            rig.put_off_reconcile()
            trial.send(load, 25)
            rig.client.bell.flush()
            trial.settle(15)
            if rig.log_text(fragile).count(KILLED) >= 2 * SOAK:
                break
        assert rig.log_text(fragile).count(KILLED) >= 2 * SOAK
    trial.holds()


def test_the_history_of_an_attached_row_is_every_state_it_had_in_order(trial: Trial, db: Any) -> None:
    rig, [owner] = trial.rig, trial.choose_owners(1)
    tally, updates = db.tally, 0
    row_id = tally.insert(owner=owner, name="history")
    with rig.frozen("worker-1"), rig.worker(PIPELINE_CRASH_AT="statement:0.4") as fragile:
        for _ in polls(60):
            rig.put_off_reconcile()
            for _ in range(20):
                updates += 1
                db(tally.id == row_id).update(n=updates, trace=f"{updates}")
            rig.client.bell.flush()
            rig.client.barrier("tally", 60)
            if rig.log_text(fragile).count(KILLED) >= 2 * SOAK:
                break
        assert rig.log_text(fragile).count(KILLED) >= 2 * SOAK

    uri = rig.primaries[rig.client.topology.shard_of(rig.client.topology.bucket_of("tally", owner))]
    kept = nodes.rows(uri, f"SELECT n FROM tally_archive WHERE current_record = {row_id} ORDER BY id")
    assert [n for (n,) in kept] == list(range(updates))
    assert nodes.rows(uri, f"SELECT n FROM tally WHERE id = {row_id}") == [(updates,)]
