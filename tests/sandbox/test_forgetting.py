"""I5: whatever Redis forgets while it lives on, later ops are applied once, and what is gone is told lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.admin.upkeep import reconcile
from pipeline.model.op import START
from pipeline.model.receipt import Receipt
from pipeline.oplog.appends import Append
from pipeline.testing import Sandbox

TABLES = {"purchase": {"shard_key": "customer"}}
CUSTOMER = 7


@pytest.fixture
def db(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("purchase", Field("customer", "integer"), Field("n", "integer"))
    pipeline.define_tables(db)
    yield db
    db.close()


def buy(db: Any, *numbers: int) -> list[Receipt]:
    return [pipeline.enqueue_insert(db.purchase, customer=CUSTOMER, n=n) for n in numbers]


def bought(box: Sandbox) -> list[int]:
    return [row["n"] for row in box.rows("purchase")]


def scope_of(box: Sandbox, receipt: Receipt) -> str:
    return box.client.publisher.scope_of(receipt.bucket).name


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_log_that_loses_its_end_costs_what_was_in_it_and_nothing_later(db: Any, box: Sandbox, kept: int):
    applied = buy(db, 0, 1)
    box.drain()
    queued = buy(db, 2, 3, 4)
    box.log.forget(applied[0].bucket, kept)

    later = buy(db, 5, 6, 7, 8)
    box.drain()

    there = max(0, kept - len(applied))
    assert bought(box) == [0, 1, *range(2, 2 + there), 5, 6, 7, 8]
    assert [one.status() for one in queued] == ["applied"] * there + ["lost"] * (len(queued) - there)
    assert {one.status() for one in applied + later} == {"applied"}
    assert min(receipt.position.epoch for receipt in later) > applied[0].position.epoch


def test_another_process_meets_a_log_that_is_gone(db: Any, box: Sandbox):
    before = buy(db, 0, 1, 2)
    box.drain()
    before += buy(db, 3)
    box.client.publisher.close()  # its producers are gone
    box.log.forget(before[0].bucket)

    after = buy(db, 4, 5)
    box.drain()

    assert bought(box) == [0, 1, 2, 4, 5]
    assert [one.status() for one in before + after] == ["applied"] * 3 + ["lost"] + ["applied"] * 2


def test_a_log_that_is_gone_is_found_although_no_op_comes(db: Any, box: Sandbox, caplog: pytest.LogCaptureFixture):
    [gone, *_] = buy(db, 0, 1)
    shard = scope_of(box, gone)
    before = box.log.epoch(shard)[0]
    box.log.forget(gone.bucket)

    reconcile(box.client, shard)

    epoch, current, _ = box.log.epoch(shard)
    assert (epoch > before, current) == (True, True)
    assert f"bucket {gone.bucket} has forgotten entries" in caplog.text
    caplog.clear()
    reconcile(box.client, shard)
    assert box.log.epoch(shard)[0] == epoch, "once is enough"
    assert gone.status() == "lost"


def test_a_server_that_went_back_in_time_without_a_restart_is_found(db: Any, box: Sandbox):
    [first] = buy(db, 0)
    past = box.log.replica()
    buy(db, 1, 2)
    box.drain()
    box.log._server = past  # as a virtual machine that is set back: with the same lineage

    box.client.publisher.close()
    [skipped] = buy(db, 3)  # where the watermark has been
    box.drain()
    reconcile(box.client, scope_of(box, first))
    [after] = buy(db, 4)
    box.drain()

    assert bought(box) == [0, 1, 2, 4]
    assert (skipped.status(), after.status()) == ("lost", "applied")


def test_an_epoch_that_is_forgotten_alone_costs_nothing(db: Any, box: Sandbox):
    [first, _] = buy(db, 0, 1)
    box.drain()
    del box.log._server.epochs[scope_of(box, first)]

    buy(db, 2, 3)
    box.drain()

    assert bought(box) == [0, 1, 2, 3]


@pytest.mark.parametrize("drained", [False, True])
def test_a_producer_that_is_forgotten_alone_costs_nothing(db: Any, box: Sandbox, drained: bool):
    before = buy(db, 0, 1, 2)
    if drained:
        box.drain()
    box.log._server.producers.clear()

    after = buy(db, 3, 4)
    statuses = {receipt.status() for receipt in before + after}
    box.drain()

    assert "lost" not in statuses
    assert [receipt.status() for receipt in before + after] == ["applied"] * 5
    assert bought(box) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("ahead", ["log", "watermark"])
def test_a_bucket_that_another_map_has_sent_on_takes_ops_again(db: Any, box: Sandbox, ahead: str):
    [first] = buy(db, 0)
    box.drain()
    shard = scope_of(box, first)
    epoch, _, _ = box.log.epoch(shard)
    if ahead == "log":  # an op of a process that has the bucket on another shard
        strayed(box, first, epoch + 1000)
    else:
        session = box.client.nodes.primary(shard)
        with session.transaction():
            session.execute(f"UPDATE pipeline_watermarks SET epoch = {epoch + 1000} WHERE bucket = {first.bucket}")
        reconcile(box.client, shard)

    after = buy(db, 1, 2)
    box.drain()

    assert bought(box) == [0, 1, 2]
    assert [receipt.status() for receipt in after] == ["applied"] * 2
    assert after[0].position.epoch > epoch + 1000


def strayed(box: Sandbox, near: Receipt, epoch: int) -> None:
    """Let a process append an op of a bucket under the epoch of another scope."""
    [entry] = box.log.read({near.bucket: START}, {near.bucket: 1})[near.bucket]
    log, scope = box.log, box.client.publisher.scopes[scope_of(box, near)]._replace(name="another")
    log.raise_epoch(scope.name, log.epoch(scope.name)[2], epoch)
    line = log.line()
    line.append(scope, epoch, entry.producer, [Append(near.bucket, 1, [entry.payload])], "", 0)
