"""Two deployments on one database: each takes the other's watermarks for its own. It must not go unheard of."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydal import DAL, Field

from pipeline.admin.upkeep import reconcile
from pipeline.testing import Sandbox


def deployment(folder: Path) -> tuple[Sandbox, DAL]:
    """Return a deployment with a Redis of its own, on the databases in a folder."""
    box = Sandbox(folder, {"sale": {"shard_key": "customer"}}, shards=1, buckets=16)
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("sale", Field("customer", "integer"))
    box.client.define_tables(db)
    return box, db


def test_a_second_redis_that_applies_to_the_same_database_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (ours, our_db), (others, other_db) = deployment(tmp_path), deployment(tmp_path)
    for box, db in ((ours, our_db), (others, other_db), (ours, our_db)):
        box.client.enqueue_insert(db.sale, customer=7)
        box.drain()

    reconcile(ours.client, "s0")

    assert len(ours.rows("sale")) == 2  # the third is taken for applied
    assert "another_deployment shard=s0" in caplog.text
    caplog.clear()
    reconcile(others.client, "s0")
    assert caplog.text == ""


@pytest.mark.parametrize("raised", [False, True])
def test_a_redis_that_lost_its_epochs_is_no_other_deployment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raised: bool
):
    box, db = deployment(tmp_path)
    box.client.enqueue_insert(db.sale, customer=7)
    behind = box.log.replica()
    box.log.restart()
    box.client.enqueue_insert(db.sale, customer=7)  # in a new epoch
    box.drain()
    box.log.fail_over(behind)
    if raised:
        box.client.enqueue_insert(db.sale, customer=8)
    caplog.clear()

    reconcile(box.client, "s0")

    assert "another_deployment" not in caplog.text
