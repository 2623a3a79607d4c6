"""What waits says why, in one sentence with the command that mends it: every reason from its own cause."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from pydal import DAL, Field

import pipeline
from pipeline.admin import stops
from pipeline.admin.why import Answer, why
from pipeline.apply.applier import Applier
from pipeline.cli.inspect import folded
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import BadOp, LogUnavailable, ShardUnavailable, WaitTimeout
from pipeline.oplog.shared_state import ALIVE, ALIVE_TOKEN
from pipeline.shard import NodeSession
from pipeline.testing import Sandbox, sandbox


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr("pipeline.apply.pace.READ_EVERY_S", 0.0)
    with sandbox({"event": {"shard_key": "who"}, "late": {"shard_key": "who"}}, shards=1) as box:
        box.log.hold_lease(ALIVE.format("s0"), ALIVE_TOKEN, 60_000)
        yield box


@pytest.fixture
def event(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("note"))
    pipeline.define_tables(db)
    yield db.event
    db.close()


def worker(box: Sandbox) -> Applier:
    return Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings())


def asked(box: Sandbox, name: object) -> Answer:
    return why(box.client, str(name))


def only(box: Sandbox, name: object, kind: str) -> str:
    """Return the one sentence that is given, and see that it is of a kind."""
    answer = asked(box, name)
    assert [reason.kind for reason in answer.reasons] == [kind]
    [sentence] = answer.sentences
    return sentence


def test_where_nothing_waits_it_says_so(box: Sandbox, event: Any):
    receipt = pipeline.enqueue_insert(event, who=7)
    worker(box).apply()

    assert asked(box, "s0") == Answer("shard s0", "fine", (), ("nothing of shard s0 waits",))
    assert asked(box, "event").sentences == ("nothing of table event waits",)
    assert asked(box, "").sentences == ("nothing of the deployment waits",)
    assert asked(box, receipt).sentences == (
        f"the op at {receipt.bucket}:{receipt.position} does not wait: it is applied",
    )


def test_an_op_that_has_not_had_its_turn_is_queued(box: Sandbox, event: Any):
    for note in "abc":
        receipt = pipeline.enqueue_insert(event, who=7, note=note)

    assert only(box, receipt, "queued").endswith(
        "waits because workers apply what came before (2 ops in its bucket); wait, or start more workers"
    )
    assert "(3 ops are queued)" in only(box, "s0", "queued")
    assert only(box, "", "queued") == only(box, "s0", "queued")


def test_a_paused_shard_is_named_by_its_ops_too(box: Sandbox, event: Any):
    receipt = pipeline.enqueue_insert(event, who=7)
    stops.pause(box.client, stops.target_of(box.client, "s0"), "a swap")

    for name in (receipt, "s0", "event"):
        sentence = only(box, name, "paused")
        assert f"because s0 is paused (by {stops.who()}: a swap); run: pipeline resume s0" in sentence
        assert "waited since 2" in sentence


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_each_sentence_is_seen_to_begin(width: int):
    sentences = ["ops of event on s0 have waited since 2025-11-28 09:30:22 UTC because s0 is behind " * 3, "short"]

    found = list(folded(sentences, width))

    assert max(map(len, found)) <= width
    assert [line[0] == " " for line in found] == [False, *[True] * (len(found) - 2), False]
    assert " ".join(line.strip() for line in found[:-1]) == sentences[0].strip()
    assert list(folded(sentences, 0)) == sentences  # a program reads a sentence a line


def test_a_paused_table_is_named_once_its_op_was_met(box: Sandbox, event: Any):
    receipt = pipeline.enqueue_insert(event, who=7)
    stops.pause(box.client, stops.target_of(box.client, "event"))
    worker(box).apply()

    for name in (receipt, "s0", "event"):
        assert f"event is paused (by {stops.who()}); run: pipeline resume event" in only(box, name, "paused")


def test_a_shard_without_a_worker_is_named(box: Sandbox, event: Any):
    receipt = pipeline.enqueue_insert(event, who=7)
    box.log._server.keys.clear()

    for name in (receipt, "s0"):
        assert only(box, name, "no-worker").endswith(
            "because no worker of s0 runs; run: celery -A workers worker -Q shard.s0"
        )


def test_a_column_that_the_shard_lacks_is_named(box: Sandbox, event: Any):
    db = event._db
    db.define_table("late", Field("who", "integer"))
    pipeline.define_tables(db)
    late = db.define_table("late", Field("who", "integer"), Field("extra"), redefine=True, migrate=False)
    receipt = pipeline.enqueue_insert(late, who=7, extra="x")
    outcome = worker(box).apply()

    for name in (receipt, "s0", "late"):
        sentence = only(box, name, "schema")
        assert "because s0 is behind the schema of late (table late has no column named extra)" in sentence
        assert sentence.endswith("run: pipeline migrate")
    assert "because s0 is behind the schema of late" in outcome.aside


def test_a_missing_right_is_named(box: Sandbox, event: Any, monkeypatch: pytest.MonkeyPatch):
    receipt, real = pipeline.enqueue_insert(event, who=7), NodeSession.execute

    def execute(session: NodeSession, sql: str) -> int:
        if "INTO event" in sql or 'INTO "event"' in sql:
            raise pymysql.err.OperationalError(1142, "INSERT command denied to user 'app'@'db0'")
        return real(session, sql)

    monkeypatch.setattr(NodeSession, "execute", execute)
    worker(box).apply()

    for name in (receipt, "s0", "event"):
        sentence = only(box, name, "right")
        assert (
            "because the account of s0 may not write to event (INSERT command denied to user 'app'@'db0')" in sentence
        )


def test_an_op_that_a_resume_left_is_named_until_it_is_released(box: Sandbox, event: Any):
    receipt = pipeline.enqueue_insert(event, who=7)
    stops.pause(box.client, stops.target_of(box.client, "event"))
    worker(box).apply()
    stops.resume(box.client, stops.target_of(box.client, "event"))

    assert "because it is to be replayed (its table event was stopped)" in only(box, receipt, "waiting")


def test_a_row_that_is_parked_and_a_bucket_that_is_halted_are_named(box: Sandbox, event: Any):
    session = box.client.nodes.primary("s0")
    with session.transaction():
        session.execute("CREATE TRIGGER never BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'no'); END")
    first = pipeline.enqueue_insert(event, who=7)
    parked = pipeline.enqueue_update(event.id == first.id, note="x")
    worker(box).apply()

    assert "because the op at " in only(box, parked, "parked")

    halting = {"event": TableSettings("event", on_reject="halt")}
    pipeline.enqueue_insert(event, who=8)
    behind = pipeline.enqueue_insert(event, who=8)
    applier = Applier("s0", session, box.log, ApplySettings(), tables=halting)
    applier.apply()
    applier.apply()

    place = f"bucket {behind.bucket} is halted: the op at {behind.bucket}:"
    for name in (behind, "s0"):
        assert place in only(box, name, "halted")


def test_a_definition_that_no_process_published_is_named(box: Sandbox, event: Any):
    receipt = pipeline.enqueue_insert(event, who=7)
    box.log._server.schemas.clear()
    box.log._server.newest_schemas.clear()
    worker(box).apply()

    for name in (receipt, "s0"):
        assert "because no process has published the schema of event (its hash is " in only(box, name, "unpublished")


def test_an_error_of_the_database_is_named(box: Sandbox, event: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.clock.sleep_s", lambda seconds: None)
    receipt = pipeline.enqueue_insert(event, who=7)
    applier = worker(box)

    def full(*arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("pipeline.shard.records.lock", full)
    applier.apply()

    for name in (receipt, "s0"):
        sentence = only(box, name, "database")
        assert "because the database of s0 refused their batch (node 's0': database or disk is full)" in sentence
        assert sentence.endswith("workers retry; run: pipeline check")


def test_a_note_of_a_cause_that_is_gone_is_not_repeated(box: Sandbox, event: Any):
    pipeline.enqueue_insert(event, who=7)
    stops.pause(box.client, stops.target_of(box.client, "event"))
    worker(box).apply()
    stops.resume(box.client, stops.target_of(box.client, "event"))
    worker(box).apply()

    pipeline.enqueue_insert(event, who=7)

    assert [reason.kind for reason in asked(box, "s0").reasons] == ["queued"]


def test_a_primary_that_does_not_answer_is_named(box: Sandbox, event: Any, monkeypatch: pytest.MonkeyPatch):
    receipt = pipeline.enqueue_insert(event, who=7)

    def away(*arguments: object) -> None:
        raise ShardUnavailable("s0", "no route")

    monkeypatch.setattr("pipeline.shard.NodeSession.query", away)

    for name in (receipt, "s0"):
        assert "because the primary of s0 does not answer (node 's0': no route)" in only(box, name, "primary-away")


def test_a_redis_that_does_not_answer_is_named(box: Sandbox, event: Any, monkeypatch: pytest.MonkeyPatch):
    receipt = pipeline.enqueue_insert(event, who=7)

    def away(*arguments: object) -> None:
        raise LogUnavailable("connection refused", sent=False)

    monkeypatch.setattr(box.log, "waits", away)

    for name in (receipt, "s0"):
        assert "because Redis does not answer (Redis: connection refused)" in only(box, name, "redis-away")


def test_a_redis_that_is_full_is_named(box: Sandbox, event: Any):
    box.log.set_full("Redis uses 71% of its memory")

    assert "new ops wait because Redis refuses them (Redis uses 71% of its memory)" in only(box, "s0", "redis-full")


def test_the_time_out_of_a_receipt_says_why(box: Sandbox, event: Any):
    receipt = pipeline.enqueue_insert(event, who=7)
    stops.pause(box.client, stops.target_of(box.client, "s0"))

    with pytest.raises(
        WaitTimeout, match=r"was still queued after 0.01 s: it has waited since .* s0 is paused"
    ) as caught:
        receipt.wait(0.01)

    assert caught.value.why.endswith("run: pipeline resume s0")


def test_a_rejected_op_does_not_wait_and_its_reason_is_given(box: Sandbox, event: Any):
    session = box.client.nodes.primary("s0")
    with session.transaction():
        session.execute("CREATE UNIQUE INDEX one ON event (note)")
    pipeline.enqueue_insert(event, who=7, note="a")
    receipt = pipeline.enqueue_insert(event, who=7, note="a")
    worker(box).apply()

    answer = asked(box, receipt)

    assert (answer.state, answer.reasons) == ("rejected", ())
    assert "UNIQUE constraint failed" in answer.sentences[0]


def test_a_name_that_is_nothing_is_refused(box: Sandbox, event: Any):
    with pytest.raises(BadOp, match="is no receipt, and no shard and no published table has the name 'evnt'"):
        asked(box, "evnt")


def test_an_op_that_a_constraint_refuses_waits_for_what_was_enqueued_before_it(box: Sandbox, event: Any):
    box.client.nodes.primary("s0").query("CREATE UNIQUE INDEX one ON event (note)")
    has = pipeline.enqueue_insert(event, who=1, note="a")
    applier = worker(box)
    applier.apply()
    frees = pipeline.enqueue_delete(event, has.id)
    box.log.postpone("s0", [frees.bucket], 60_000)
    other = next(n for n in range(2, 99) if bucket_of(box, n) != has.bucket)
    takes = pipeline.enqueue_insert(event, who=other, note="a")

    for _ in range(2):
        applier.apply()

    assert "because a constraint refuses the op at " in only(box, takes, "early")
    assert takes.status() == "queued"
    box.log.postpone("s0", [frees.bucket, takes.bucket], -1000)
    assert [applier.apply().rejected for _ in range(3)] == [0, 0, 0]
    assert {frees.status(), takes.status()} == {"applied"}


def test_an_op_that_is_refused_while_nothing_older_is_queued_is_rejected_at_once(box: Sandbox, event: Any):
    box.client.nodes.primary("s0").query("CREATE UNIQUE INDEX one ON event (note)")
    for who in (1, 2):
        pipeline.enqueue_insert(event, who=who, note="a")

    outcome = worker(box).apply()

    assert (outcome.applied, outcome.rejected, outcome.waiting) == (1, 1, "")


def bucket_of(box: Sandbox, who: int) -> int:
    return box.client.topology.bucket_of("event", who)
