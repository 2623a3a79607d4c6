"""I5: whatever Redis forgets while it lives on, later ops are applied once, and what is gone is told lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples

import pipeline
from pipeline.admin.upkeep import reconcile
from pipeline.model import START
from pipeline.model.receipt import Receipt
from pipeline.oplog.appends import Append
from pipeline.testing import Sandbox, sandbox

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
    assert f'bucket={gone.bucket} why="has forgotten entries"' in caplog.text
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


def test_an_epoch_never_goes_back_with_its_server(db: Any, box: Sandbox):
    [first] = buy(db, 0)
    box.drain()
    past = box.log.replica()
    box.log._server.epochs.clear()
    [under_another] = buy(db, 1)
    box.log._server = past

    after = buy(db, 2, 3)
    box.drain()

    assert (under_another.status(), bought(box)) == ("lost", [0, 2, 3])
    assert min(receipt.position.epoch for receipt in after) > under_another.position.epoch > first.position.epoch


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


class Run:
    """A deployment to which anything may happen, and what its callers were told."""

    def __init__(self, box: Sandbox, db: Any):
        self.box, self.db = box, db
        self.sent: list[Receipt] = []
        self.told: dict[int, str] = {}
        self._past = box.log.replica()

    def buy(self, count: int) -> None:
        for _ in range(count):
            n = len(self.sent)
            self.sent.append(self.box.client.enqueue_insert(self.db.purchase, customer=n % 3, n=n))

    def forget_log(self, bucket: int, keep: int) -> None:
        self.box.log.forget(bucket, keep)

    def drain(self) -> None:
        self.box.drain()
        self._past = self.box.log.replica()

    def reconcile(self) -> None:
        reconcile(self.box.client, "s0")

    def forget_producers(self) -> None:
        self.box.log._server.producers.clear()

    def forget_epochs(self) -> None:
        self.box.log._server.epochs.clear()

    def restart(self) -> None:
        self.box.log.restart()

    def set_back(self) -> None:
        self.box.log._server = self._past
        self._past = self.box.log.replica()

    def change_process(self) -> None:
        self.box.client.publisher.close()

    def ask(self) -> None:
        """Ask every receipt: what was told before stays true."""
        now = {n: receipt.status() for n, receipt in enumerate(self.sent)}
        final = {n: state for n, state in self.told.items() if state != "queued"}
        assert {n: now[n] for n in final} == final
        self.told = now


STEPS = st.one_of(
    st.tuples(st.just("buy"), st.integers(1, 4)),
    st.tuples(st.just("forget_log"), st.integers(0, 1), st.integers(0, 4)),
    *(st.just((name,)) for name in ("drain", "reconcile", "forget_producers", "forget_epochs", "restart")),
    *(st.just((name,)) for name in ("set_back", "change_process", "ask")),
)
ENDING = [("drain",), ("reconcile",), ("buy", 6), ("drain",), ("ask",)]


@settings(max_examples=examples(160), deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_whatever_is_forgotten_in_whatever_order_what_is_told_is_true_and_final(steps: list[tuple[Any, ...]]):
    with sandbox(TABLES, buckets=2, shards=1) as box:
        db = DAL("sqlite:memory")
        db.define_table("purchase", Field("customer", "integer"), Field("n", "integer"))
        box.client.define_tables(db)
        run = Run(box, db)

        for name, *arguments in [*steps, *ENDING]:
            getattr(run, name)(*arguments)

        assert set(run.told.values()) <= {"applied", "lost"}
        assert sorted(bought(box)) == [n for n, state in run.told.items() if state == "applied"]
        db.close()


def strayed(box: Sandbox, near: Receipt, epoch: int) -> None:
    """Let a process append an op of a bucket under the epoch of another scope."""
    [entry] = box.log.read({near.bucket: START}, {near.bucket: 1})[near.bucket]
    log, scope = box.log, box.client.publisher.scopes[scope_of(box, near)]._replace(name="another")
    log.raise_epoch(scope.name, log.epoch(scope.name)[2], epoch)
    line = log.line()
    line.append(scope, epoch, entry.producer, [Append(near.bucket, 1, [entry.payload])], "", 0)
