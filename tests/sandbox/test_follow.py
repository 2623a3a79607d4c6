"""I15: what a receipt says is true, whatever became of its op."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline import clock
from pipeline.admin.migration import migrate
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.enqueue.receipt_status import REMEMBERED_S
from pipeline.errors import (
    BadToken,
    Lost,
    NotDurable,
    PipelineError,
    Rejected,
    ShardUnavailable,
    UnknownTable,
    WaitTimeout,
)
from pipeline.model import Position
from pipeline.model.schema import schema_of
from pipeline.oplog.appends import Append
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard.records import ledger_queries
from pipeline.testing import Drained, Sandbox, sandbox

TABLES: dict[str, dict[str, Any]] = {
    "purchase": {"shard_key": "customer", "unique": [["customer", "day"]]},
    "legacy": {"shard_key": "customer", "ids": "database"},
    "country": {"reference": True},
}


@pytest.fixture
def db(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("purchase", Field("customer", "integer"), Field("day", "integer"), Field("n", "integer"))
    db.define_table("legacy", Field("customer", "integer"))
    db.define_table("country", Field("code", unique=True))
    pipeline.define_tables(db)
    yield db
    db.close()


def test_an_op_is_queued_until_it_is_applied(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.purchase, customer=7)

    assert receipt.status() == "queued"
    box.drain()
    assert receipt.status() == "applied"
    assert receipt.wait(0) == "applied"


def test_a_printed_receipt_tells_the_same(db: Any, box: Sandbox):
    receipt = pipeline.Receipt.parse(str(pipeline.enqueue_insert(db.purchase, customer=7)))
    assert receipt.status() == "queued"

    box.drain()

    assert receipt.status() == "applied"


def test_a_strangers_receipt_cannot_be_made_by_counting_ones_own_up(db: Any, box: Sandbox):
    box.drain()
    own = str(pipeline.enqueue_insert(db.purchase, customer=7, day=1))
    pipeline.enqueue_insert(db.purchase, customer=7, day=1)  # a stranger's, which is rejected
    box.drain()
    bucket, epoch, seq, producer, number, row, signature = own[1:].split(".")

    for text in (f"r{bucket}.{epoch}.{int(seq) + 1}.{producer}.{int(number) + 1}.{row}.{signature}", own[:-1], "r1"):
        with pytest.raises(BadToken):
            pipeline.Receipt.parse(text)


@pytest.mark.parametrize("letter", ["r", "s"])
def test_a_forged_receipt_of_the_future_makes_no_read_wait(db: Any, box: Sandbox, letter: str):
    own = str(pipeline.enqueue_insert(db.purchase, customer=7, day=1))
    box.drain()
    bucket, epoch, _, producer, *rest = own[1:].split(".")
    place = f"{epoch}.zzzzz." if letter == "r" else ""
    forged = f"{letter}{bucket}.{place}{producer}.{'.'.join(rest[-3:])}"

    assert len(pipeline.select(db.purchase.customer == 7, after=own)) == 1
    for read in (
        lambda: pipeline.get(db.purchase, 1, after=forged),
        lambda: pipeline.select(db.purchase, after=forged),
        lambda: pipeline.count(db.purchase, after=forged),
        lambda: pipeline.read("purchase", shard_key=7, after=forged).__enter__(),
    ):
        with pytest.raises(BadToken):
            read()


def test_a_receipt_that_one_process_prints_is_read_by_another_of_the_same_deployment(db: Any, box: Sandbox):
    text = str(pipeline.enqueue_insert(db.purchase, customer=7))
    other = Client(box.client.settings, log=box.client.log, bell=SilentBell())

    assert other.parse(text).status() == "queued"
    other.close()


def test_a_wait_that_ends_too_early_says_how_long_and_at_which_stage(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.purchase, customer=7)

    with pytest.raises(WaitTimeout, match=r"still queued after 0\.01 s") as raised:
        receipt.wait(0.01)

    assert raised.value.retryable
    assert raised.value.stage == "queued"


def test_a_refused_op_is_rejected_with_the_databases_own_reason(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.purchase, customer=7, day=1)
    twin = pipeline.enqueue_insert(db.purchase, customer=7, day=1)
    later = pipeline.enqueue_insert(db.purchase, customer=7, day=2)

    assert box.drain() == Drained(2, 1)

    assert twin.status() == "rejected"
    assert later.status() == "applied"
    with pytest.raises(Rejected, match="UNIQUE constraint failed") as raised:
        twin.wait(0)
    assert not raised.value.retryable


def test_the_receipts_of_an_atomic_group_share_its_fate(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.purchase, customer=7, day=1)
    with pipeline.atomic():
        good = pipeline.enqueue_insert(db.purchase, customer=7, day=2)
        bad = pipeline.enqueue_insert(db.purchase, customer=7, day=1)

    box.drain()

    assert (good.position, good.status(), bad.status()) == (bad.position, "rejected", "rejected")
    assert [row["day"] for row in box.rows("purchase")] == [1]


def test_an_op_that_redis_lost_is_lost_once_its_producer_has_noticed(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.purchase, customer=7)
    box.log.fail_over()
    assert receipt.status() == "queued", "nobody can know yet"

    pipeline.enqueue_insert(db.purchase, customer=7)

    assert receipt.status() == "lost"
    with pytest.raises(Lost, match="lost by Redis before it was applied"):
        receipt.wait(0)
    box.drain()
    assert receipt.status() == "lost"


def test_the_log_names_as_lost_what_was_not_applied_before(db: Any, box: Sandbox, caplog: pytest.LogCaptureFixture):
    receipts = [pipeline.enqueue_insert(db.purchase, customer=7) for _ in range(2)]
    box.drain()
    receipts += [pipeline.enqueue_insert(db.purchase, customer=7) for _ in range(4)]
    box.log.fail_over()

    pipeline.enqueue_insert(db.purchase, customer=7)
    box.drain()

    assert [receipt.status() for receipt in receipts] == ["applied"] * 2 + ["lost"] * 4
    [said] = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
    assert said.startswith("ops_lost ops=4 ")
    assert said.endswith(" first=3 last=6")


def test_an_op_that_redis_lost_after_it_was_applied_is_applied(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.purchase, customer=7)
    box.drain()
    box.log.fail_over()

    after = pipeline.enqueue_insert(db.purchase, customer=7)
    box.drain()

    assert (receipt.status(), after.status()) == ("applied", "applied")
    assert len(box.rows("purchase")) == 2


def test_an_op_of_a_producer_that_died_is_lost_once_its_epoch_is_over(db: Any, box: Sandbox):
    """Who holds the receipt knows of the op: what it finds is written down, and final."""
    receipt = pipeline.enqueue_insert(db.purchase, customer=7)
    box.client.publisher.idle.clear()
    box.log.fail_over()
    assert receipt.status() == "queued"

    pipeline.enqueue_insert(db.purchase, customer=8)

    assert receipt.status() == "lost"
    assert box.client.nodes.primary("s0").query("SELECT producer, first_seq, last_seq FROM pipeline_lost") == [
        (receipt.producer, 1, 1)
    ]


def test_a_gap_in_the_log_is_recorded_and_tells_the_receipts_in_it(db: Any, box: Sandbox):
    receipts = [pipeline.enqueue_insert(db.purchase, customer=7, n=n) for n in range(5)]
    bucket = receipts[0].bucket
    del box.log._server.logs[bucket][1:3]  # as a stream that lost its middle

    assert box.drain() == Drained(3, 0)

    assert [receipt.status() for receipt in receipts] == ["applied", "lost", "lost", "applied", "applied"]
    session = box.client.nodes.primary(box.client.topology.shard_of(bucket))
    with pytest.raises(Lost, match="2 of 5 ops"):
        pipeline.wait_all(receipts, timeout_s=0)
    recorded = session.query("SELECT bucket, producer, first_seq, last_seq FROM pipeline_lost ORDER BY producer")
    assert recorded == [(bucket, 0, 1, 2), (bucket, receipts[0].producer, 2, 3)], "by position, and by name"
    assert ledger_queries.counts(session)["lost"] == 2


def test_an_op_that_comes_again_under_another_position_is_applied_once(db: Any, box: Sandbox):
    first = pipeline.enqueue_insert(db.purchase, customer=7, day=1, n=1)
    row = first.id
    replica = box.log.replica()
    counted = pipeline.enqueue_update(db.purchase.id == row, n=db.purchase.n + 1)
    box.drain()
    entry = box.log.read({first.bucket: Position(0, -1)}, {first.bucket: 10})[first.bucket][-1]

    box.log.fail_over(replica)
    scope = box.client.publisher.scope_of(first.bucket)
    epoch = box.client.publisher._epochs._authority.raise_epoch(scope)
    line = box.log.line()
    again = line.append(
        scope, epoch, entry.producer, [Append(first.bucket, entry.producer_seq, [entry.payload])], "", 0
    )
    box.drain()

    assert again.placed[0].position != counted.position
    assert [row["n"] for row in box.rows("purchase")] == [2]
    assert counted.status() == "applied"


def test_an_idempotency_key_holds_in_the_shard_after_redis_forgot_it(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.purchase, customer=7, n=1, idempotency_key="order 1")
    box.drain()
    box.log.fail_over()

    pipeline.enqueue_insert(db.purchase, customer=7, n=2, idempotency_key="order 1")
    box.drain()

    assert [row["n"] for row in box.rows("purchase")] == [1]


def test_two_calls_with_one_idempotency_key_are_one_op_with_one_id(db: Any, box: Sandbox):
    first = pipeline.enqueue_insert(db.purchase, customer=7, idempotency_key="order 1")
    second = pipeline.enqueue_insert(db.purchase, customer=7, idempotency_key="order 1")

    assert box.drain() == Drained(1, 0)
    assert first == second
    assert first.id == second.id


def test_an_id_that_the_database_gives_is_told_once_it_is_there(db: Any, box: Sandbox):
    receipts = pipeline.enqueue_bulk_insert(db.legacy, [{"customer": 7}] * 3)
    assert [receipt.id for receipt in receipts] == [None] * 3

    box.drain()

    assert [receipt.id for receipt in receipts] == [row["id"] for row in box.rows(db.legacy)] == [1, 2, 3]


def test_a_reference_row_is_applied_when_every_shard_has_it(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.country, code="fr")
    one, other = box._appliers.values()

    one.apply()
    assert receipt.status() == "queued"
    other.apply()
    assert receipt.status() == "applied"


def test_a_reference_row_that_one_shard_refuses_is_rejected(db: Any, box: Sandbox):
    session = box.client.nodes.primary("s1")
    with session.transaction():
        session.execute("INSERT INTO country (code) VALUES ('fr')")

    receipt = pipeline.enqueue_insert(db.country, code="fr")
    box.drain()

    assert receipt.status() == "rejected"
    with pytest.raises(Rejected, match="UNIQUE"):
        receipt.wait(0)


# many at a time ---------------------------------------------------------------------------------------------------


def test_wait_all_returns_when_all_are_applied_and_needs_none(db: Any, box: Sandbox):
    receipts = pipeline.enqueue_bulk_insert(db.purchase, [{"customer": n} for n in range(50)])

    with pytest.raises(WaitTimeout):
        pipeline.wait_all(receipts, timeout_s=0.01)
    box.drain()

    pipeline.wait_all(receipts, timeout_s=0)
    pipeline.wait_all([], timeout_s=0)


def test_wait_all_raises_for_one_bad_op_among_many(db: Any, box: Sandbox):
    receipts = pipeline.enqueue_bulk_insert(db.purchase, [{"customer": 7, "day": day} for day in (1, 2, 2, 3)])
    box.drain()

    with pytest.raises(Rejected, match=r"1 of 4 ops; the first was rejected: UNIQUE"):
        pipeline.wait_all(receipts, timeout_s=0)


def test_a_barrier_of_a_table_that_nobody_knows_is_refused_at_once_with_the_nearest_name(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.purchase, customer=7)

    with pytest.raises(UnknownTable, match="'purchse' is not defined here; did you mean 'purchase'"):
        pipeline.barrier("purchse")


def test_a_barrier_knows_the_tables_that_other_processes_have_published(db: Any, box: Sandbox):
    other = DAL("sqlite:memory")
    other.define_table("elsewhere", Field("n", "integer"))
    schema = schema_of(other.elsewhere)
    box.log.publish_schemas([(schema.name, schema.hash, schema.to_json())])

    pipeline.barrier("elsewhere", timeout_s=5)

    other.close()


def test_a_barrier_waits_for_all_that_was_enqueued_before(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.purchase, customer=7)

    with pytest.raises(WaitTimeout, match="barrier of 'purchase': 1 buckets"):
        pipeline.barrier("purchase", timeout_s=0.01)
    box.drain()

    pipeline.barrier(db.purchase, timeout_s=0)
    pipeline.barrier(db.country, timeout_s=0)


# how durable ------------------------------------------------------------------------------------------------------


def test_an_op_that_did_not_become_durable_in_time_is_queued_and_says_not_to_send_it_again(db: Any, box: Sandbox):
    box.log.durable = False

    with pytest.raises(NotDurable, match="is queued, but did not become 'replica'-durable") as raised:
        pipeline.enqueue_insert(db.purchase, customer=7, durability="replica")

    assert not raised.value.retryable
    box.drain()
    assert raised.value.receipt.status() == "applied"  # type: ignore[attr-defined]


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[tuple[Client, Path, Path]]:
    primary, replica = tmp_path / "s0.sqlite", tmp_path / "r0.sqlite"
    configuration = {
        "pipeline": {"buckets": 1},
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "shards": {"s0": {"primary": f"sqlite://{primary}", "replicas": [f"sqlite://{replica}"]}},
    }
    client = Client(configuration, log=MemoryLog(), bell=SilentBell())
    yield client, primary, replica
    client.close()


def replicate(primary: Path, replica: Path) -> None:
    with closing(sqlite3.connect(primary)) as source, closing(sqlite3.connect(replica)) as target:
        source.backup(target)


def test_an_applied_op_is_durable_once_every_replica_has_it(db: Any, replicated: tuple[Client, Path, Path]):
    client, primary, replica = replicated
    client.define_tables(db)
    migrate(client)
    replicate(primary, replica)
    receipt = client.enqueue_insert("purchase", customer=7)
    Applier("s0", client.nodes.primary("s0"), client.log, client.settings.apply).apply()

    assert receipt.status() == "applied"
    replicate(primary, replica)
    assert receipt.status() == "durable"


def test_a_shard_that_does_not_answer_is_an_error_and_never_a_guess(db: Any, tmp_path: Path):
    with sandbox(TABLES) as box:
        pipeline.define_tables(db)
        receipt = pipeline.enqueue_insert(db.purchase, customer=7)
        box.drain()
        session = box.client.nodes.primary(box.client.topology.shard_of(receipt.bucket))
        session.discard()
        path = Path(str(session.db._uri).removeprefix("sqlite://"))
        path.write_bytes(b"this is no database" * 1000)

        with pytest.raises(ShardUnavailable):
            receipt.status()


def test_a_receipt_older_than_the_shards_memory_is_not_guessed_at(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    receipt = pipeline.enqueue_insert(db.purchase, customer=7)
    box.drain()
    box.client.publisher.close()
    box.log.fail_over()
    pipeline.enqueue_insert(db.purchase, customer=7)
    box.drain()
    assert box.client.publisher.settle()  # else its thread may judge what the next lines take from the shard
    session = box.client.nodes.primary(box.client.topology.shard_of(receipt.bucket))
    with session.transaction():
        session.execute(f"DELETE FROM pipeline_producers WHERE producer = {receipt.producer}")
    now_ms = clock.wall_ms()
    monkeypatch.setattr(clock, "wall_ms", lambda: now_ms + (REMEMBERED_S + 60) * 1000)

    with pytest.raises(PipelineError, match="older than a week"):
        receipt.status()
