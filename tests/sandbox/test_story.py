"""`pipeline trace` tells one op's story from what is kept, and says of the rest that nobody keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydal import DAL, Field

import pipeline
from pipeline import clock
from pipeline.admin import dead
from pipeline.admin.dead import Where
from pipeline.admin.stops import who
from pipeline.cli.inspect import trace_command
from pipeline.errors import LogUnavailable
from pipeline.model.receipt import Receipt
from pipeline.oplog.shared_state import ALIVE, ALIVE_TOKEN
from pipeline.testing import Drained, Sandbox, sandbox

SECRET = "planted-value-7731"
TABLES = {"sale": {"shard_key": "customer"}, "country": {"reference": True}}


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("sale", Field("customer", "integer"), Field("code", length=40, unique=True), Field("note"))
    db.define_table("country", Field("code", unique=True))
    yield db
    db.close()


@pytest.fixture
def box(db: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with sandbox(TABLES, buckets=4) as box:
        pipeline.define_tables(db)
        for shard in box.client.topology.shards:
            box.log.hold_lease(ALIVE.format(shard), ALIVE_TOKEN, 60_000)
        monkeypatch.setattr("pipeline.cli.inspect.opened", lambda config: nullcontext(box.client))
        yield box


def run(*words: str) -> Result:
    result = CliRunner().invoke(trace_command, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def told(receipt: Receipt) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(str(receipt), "--json").output)
    assert found["version"] == 1
    return found


def on_shard(receipt: Receipt) -> dict[str, Any]:
    [shard] = told(receipt)["shards"]
    return dict(shard)


def test_a_queued_op_says_who_enqueued_it_where_it_is_and_why_it_waits(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.sale, customer=7)
    receipt = pipeline.enqueue_insert(db.sale, customer=7, note=SECRET)

    found, text = told(receipt), run(str(receipt))

    call = found["enqueued"]
    assert (found["status"], call["kind"], call["table"], call["way"]) == ("queued", "insert", "sale", "direct")
    assert (call["producer"], call["producer_seq"]) == (receipt.producer, 2)
    assert call["by"].endswith(f":{os.getpid()}")
    assert found["place"]["position"] == str(receipt.position)
    assert found["place"]["there"] is True
    assert found["shards"][0]["state"] == "queued"
    assert "1 ops in its bucket" in found["waits"]
    assert text.exit_code == 0
    assert found["waits"] in text.output
    assert SECRET not in text.output + json.dumps(found)


def test_an_applied_op_names_the_commit_that_its_watermark_proves(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()

    found = on_shard(receipt)

    [[committed_ms]] = (
        box.client.nodes.primary(found["shard"])
        .query(f"SELECT committed_ms FROM pipeline_watermarks WHERE bucket = {receipt.bucket}")
    )  # fmt: skip
    assert (found["state"], found["committed_ms"], found["before_ms"]) == ("applied", committed_ms, None)


def test_a_batch_of_late_names_its_worker_and_its_time_though_others_followed(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()
    pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()

    found = on_shard(receipt)

    assert found["worker"].endswith(f":{os.getpid()}")
    assert found["committed_ms"] <= clock.wall_ms()
    assert f"by {found['worker']}" in run(str(receipt)).output


def test_what_nobody_keeps_is_null_and_said_to_be_so(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()
    pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()
    box.log._server.batches.clear()
    box.log._server.logs[receipt.bucket].clear()  # as upkeep trims what every node has

    found, text = told(receipt), run(str(receipt)).output

    assert found["status"] in ("applied", "durable")
    assert (found["enqueued"]["at_ms"], found["enqueued"]["table"]) == (None, None)
    assert found["place"]["there"] is False
    assert "when is not kept" in text
    assert "the log has no entry of it now" in text


def test_a_refused_op_says_why_and_what_an_operator_did(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.sale, customer=7, code="A1")
    receipt = pipeline.enqueue_insert(db.sale, customer=7, code="A1", note=SECRET)
    assert box.drain() == Drained(1, 1)

    refused, text = on_shard(receipt), run(str(receipt))
    assert (refused["state"], refused["actions"]) == ("rejected", [])
    assert "UNIQUE" in refused["reason"]
    assert refused["committed_ms"] == refused["aside_ms"]
    assert text.exit_code == 1
    assert "set aside at " in text.output
    assert f"pipeline dead show {receipt.bucket}:{receipt.position}" in text.output

    place = (receipt.bucket, receipt.position)
    list(dead.replay(box.client, dead.chosen(box.client, Where((place,)), dead.HEADS), drop=True))

    dropped = on_shard(receipt)
    assert dropped["state"] == "dropped"
    assert [(one["who"], one["action"], one["result"]) for one in dropped["actions"]] == [(who(), "drop", "dropped")]
    assert f"drop by {who()}" in run(str(receipt)).output
    assert SECRET not in run(str(receipt)).output


def test_an_op_of_a_reference_table_is_told_of_every_shard(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.country, code="at")
    box.drain()

    assert [(one["shard"], one["state"]) for one in told(receipt)["shards"]] == [("s0", "applied"), ("s1", "applied")]


def test_without_redis_and_without_a_primary_it_tells_what_is_left(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    receipt = pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()
    text = str(receipt)

    def away(*_: object, **__: object) -> None:
        raise LogUnavailable("gone")

    monkeypatch.setattr(box.log, "read", away)

    found = json.loads(run(text, "--json").output)
    assert found["place"]["there"] is None
    assert found["shards"][0]["state"] == "applied"


def test_a_text_that_is_no_receipt_is_refused(box: Sandbox):
    result = CliRunner().invoke(trace_command, ["r1.2.3"])

    assert result.exit_code != 0
    assert "receipt" in str(result.exception)
