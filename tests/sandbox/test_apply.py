"""Applying in this process: a batch is all or nothing, one bad op stays alone, and what is not understood waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.admin.upkeep import release_waiting, unapplied
from pipeline.apply.applier import LARGE_REST_MS, LARGE_TURN, LARGE_TURN_MS, RING_S, Applier
from pipeline.config.settings import ApplySettings
from pipeline.errors import ShardUnavailable
from pipeline.model import START, Position
from pipeline.oplog.doorbell import SilentBell
from pipeline.shard import MOST_KEPT, NodeSession
from pipeline.shard.dialect import SQLite
from pipeline.shard.records import ledger_queries
from pipeline.testing import Drained, Sandbox, sandbox

STEPS = ("due", "lock", "read", "execute", "statement", "mark", "commit", "committed", "finish")


class Killed(BaseException):
    """The end of a process, as far as a test in this process can tell."""


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("n", "integer", default=0), Field("note", unique=True))
    db.define_table("pair", Field("who", "integer"), Field("n", "integer"), Field("note"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    tables = {"event": {"shard_key": "who"}, "pair": {"shard_key": "who", "unique": [["who", "note"]]}}
    with sandbox(tables, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def applier(box: Sandbox, step: Callable[[str], None] = lambda name: None, **settings: int) -> Applier:
    return Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(**settings), step)


def killed_at(name: str) -> Callable[[str], None]:
    def step(reached: str) -> None:
        if reached == name:
            raise Killed

    return step


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_that_dies_at_any_step_neither_doubles_nor_loses_an_op(db: Any, box: Sandbox, step: str):
    row = pipeline.enqueue_insert(db.event, who=7).id
    for _ in range(3):
        pipeline.enqueue_update(db.event.id == row, n=db.event.n + 1)
    with pipeline.atomic():
        pipeline.enqueue_update(db.event.id == row, n=db.event.n * 10)
        pipeline.enqueue_update(db.event.id == row, n=db.event.n + 5)

    with pytest.raises(Killed):
        applier(box, killed_at(step)).apply()
    box.log.mark_dirty("s0", range(4))  # as the reconcile does after a while
    box.drain()

    assert [row["n"] for row in box.rows("event")] == [35]


@pytest.mark.parametrize("step", STEPS)
def test_rows_and_watermark_move_together(db: Any, box: Sandbox, step: str):
    receipts = [pipeline.enqueue_insert(db.event, who=7, note=f"{n}") for n in range(3)]
    session = box.client.nodes.primary("s0")

    with pytest.raises(Killed):
        applier(box, killed_at(step)).apply()

    mark = ledger_queries.marks_of(session)[receipts[0].bucket].position
    rows = len(box.rows("event"))
    assert (rows, mark) in [(0, START), (3, receipts[-1].position)]
    assert rows == (3 if step in ("committed", "finish") else 0)


@pytest.mark.parametrize("bad", [0, 1, 50, 98, 99])
def test_one_bad_op_is_found_and_the_others_are_applied(db: Any, box: Sandbox, bad: int):
    pipeline.enqueue_insert(db.event, who=7, note="taken")
    box.drain()
    notes = [f"{n}" if n != bad else "taken" for n in range(100)]
    receipts = pipeline.enqueue_bulk_insert(db.event, [{"who": 7, "note": note} for note in notes])

    assert box.drain() == Drained(99, 1)

    assert receipts[bad].status() == "rejected"
    assert {row["note"] for row in box.rows("event")} == {*notes, "taken"}
    [reject] = box.client.nodes.primary("s0").query("SELECT table_name, row_key, state, op FROM pipeline_rejects")
    assert reject[:3] == ("event", str(receipts[bad].id), "rejected")
    assert '"taken"' in reject[3], "the whole op is kept"


def test_an_atomic_group_with_a_bad_op_leaves_nothing_and_stops_nobody(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.event, who=7, note="taken")
    with pipeline.atomic():
        pipeline.enqueue_insert(db.event, who=7, note="x")
        pipeline.enqueue_insert(db.event, who=7, note="taken")
    pipeline.enqueue_insert(db.event, who=7, note="y")

    assert box.drain() == Drained(2, 1)

    assert [row["note"] for row in box.rows("event")] == ["taken", "y"]


def test_a_batch_keeps_to_its_rows_and_goes_on_at_the_next_call(db: Any, box: Sandbox):
    pipeline.enqueue_bulk_insert(db.event, [{"who": 7, "note": f"{n}"} for n in range(25)])
    worker = applier(box, max_rows=10)

    outcomes = [worker.apply() for _ in range(3)]

    assert [outcome.applied for outcome in outcomes] == [10, 10, 5]
    assert [outcome.ring for outcome in outcomes] == [True, True, False]
    assert [row["note"] for row in box.rows("event")] == [f"{n}" for n in range(25)]


def test_a_batch_keeps_to_its_bytes_though_one_op_is_larger_than_they_are(db: Any, box: Sandbox):
    pipeline.enqueue_bulk_insert(db.event, [{"who": 7, "note": f"{n}" * 400} for n in range(4)])
    worker = applier(box, max_bytes=1000)

    applied = []
    while outcome := worker.apply():
        applied.append(outcome.applied)
        if not outcome.left:
            break

    assert sum(applied) == 4
    assert max(applied) < 4


@pytest.mark.parametrize("ahead", [False, True], ids=["large ops", "small ones beside them"])
def test_what_a_worker_reads_is_what_it_applies(db: Any, monkeypatch: pytest.MonkeyPatch, ahead: bool):
    with sandbox({"event": {"shard_key": "who"}}, shards=1, buckets=64) as box:
        db.define_table("text", Field("who", "integer"), Field("body", "text"))
        pipeline.define_tables(db)
        read, at_once, plain = list[int](), list[int](), box.log.read

        def counted(*arguments: Any) -> Any:
            found = plain(*arguments)
            at_once.append(sum(len(entry.payload) for entries in found.values() for entry in entries))
            read.append(at_once[-1])
            return found

        rows = [{"who": who, "body": "x" * 300_000} for who in range(100) for _ in range(2)]
        if ahead:
            rows += [{"who": who, "body": "x"} for who in range(300)]
        pipeline.enqueue_bulk_insert(db.text, rows, shard_key=None)
        monkeypatch.setattr(box.log, "read", counted)
        worker = applier(box, max_bytes=1_000_000)
        applied = 0
        while (outcome := worker.apply()).left or outcome.applied:
            applied += outcome.applied

        assert applied == len(rows)
        assert sum(read) <= 1.2 * sum(len(row["body"]) for row in rows) + 100 * len(rows)
        assert max(at_once) <= 1_000_000 + 300_000 + 64 * 2_048


def test_what_came_behind_large_ops_is_applied_before_them(db: Any):
    with sandbox({"text": {"shard_key": "who"}}, shards=1, buckets=64) as box:
        db.define_table("text", Field("who", "integer"), Field("body", "text"))
        pipeline.define_tables(db)
        large = [pipeline.enqueue_insert(db.text, who=who, body="x" * 200_000) for who in range(10)]
        taken = {receipt.bucket for receipt in large}
        free = next(who for who in range(100) if box.client.topology.bucket_of("text", who) not in taken)
        small = pipeline.enqueue_insert(db.text, who=free, body="x")
        seen = list[str]()

        def step(name: str) -> None:
            if name == "execute":
                seen.append(small.status())

        applier(box, step, max_bytes=100_000).apply()

        assert seen == ["queued", "applied"]
        assert [receipt.status() for receipt in large].count("applied") == 1


def test_while_a_process_of_the_host_applies_large_ops_the_others_apply_small_ones(db: Any):
    with sandbox({"text": {"shard_key": "who"}}, shards=1, buckets=64) as box:
        db.define_table("text", Field("who", "integer"), Field("body", "text"))
        pipeline.define_tables(db)
        large = pipeline.enqueue_insert(db.text, who=0, body="x" * 200_000)
        small = [pipeline.enqueue_insert(db.text, who=who, body="x") for who in range(1, 9)]
        small = [receipt for receipt in small if receipt.bucket != large.bucket]
        worker = applier(box, max_bytes=100_000)
        assert box.log.hold_lease(LARGE_TURN, "another process", LARGE_TURN_MS)

        outcome = worker.apply()

        assert (outcome.applied, large.status()) == (len(small), "queued")
        assert worker.apply().buckets == 0  # it rests, and is not tried at each turn
        box.log.release_lease(LARGE_TURN, "another process")
        box.log.ahead_ms += LARGE_REST_MS
        worker.apply()
        assert large.status() == "applied"
        assert box.log.hold_lease(LARGE_TURN, "another process", LARGE_TURN_MS)  # it is free again


def test_a_statement_that_the_server_cannot_take_is_rejected_alone(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SQLite, "statement_bytes", lambda self, rows: 3024)
    pipeline.enqueue_insert(db.event, who=7, note="before")
    big = pipeline.enqueue_insert(db.event, who=7, note="x" * 400 + "é" * 100)
    for n in range(20):
        pipeline.enqueue_insert(db.event, who=7, note=f"{n}" * 100)
    db.define_table("text", Field("who", "integer"), Field("body", "text"))
    pipeline.define_tables(db)
    huge = pipeline.enqueue_insert(db.text, {"who": 7, "body": "x" * 5000})

    assert box.drain() == Drained(22, 1)

    assert (big.status(), huge.status()) == ("applied", "rejected")


class CountingBell(SilentBell):
    """Notes how many buckets were due, too."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[int] = []

    def ring_now(self, shard: str, ops: int) -> bool:
        self.waiting.append(ops)
        return super().ring_now(shard, ops)


def test_work_that_no_batch_takes_at_once_calls_for_another_worker(db: Any, box: Sandbox):
    for who in range(40):
        pipeline.enqueue_insert(db.event, who=who)
    bell = CountingBell()

    outcome = applier(box, buckets=1).apply(bell)

    assert (bell.rung, bell.waiting) == (["s0"], [2])
    assert outcome.buckets == 1


def test_while_work_is_left_another_worker_is_called_for_now_and_then(db: Any, box: Sandbox):
    for who in range(40):
        pipeline.enqueue_insert(db.event, who=who)
    bell, worker = CountingBell(), applier(box, buckets=1, max_rows=1)

    for _ in range(3):
        worker.apply(bell)
    rung = list(bell.rung)
    worker._rung_s -= RING_S
    worker.apply(bell)

    assert (rung, bell.rung) == (["s0"], ["s0", "s0"])


def test_an_op_whose_definition_nobody_knows_waits_and_nothing_passes_it(db: Any, box: Sandbox):
    first = pipeline.enqueue_insert(db.event, who=7, note="1")
    box.log._server.schemas.clear()

    outcome = applier(box).apply()

    assert "because no process has published the schema of" in outcome.waiting
    assert (outcome.applied, outcome.rejected, outcome.ring) == (0, 0, False)
    assert first.status() == "queued"
    assert box.log.due("s0", 9) == {}, "it rests for a while"


def test_a_definition_that_redis_forgot_is_found_in_the_shard(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.event, who=7, note="1")
    schemas = {hash: ("event", text) for hash, text in box.log._server.schemas.items()}
    ledger_queries.keep_schemas(box.client.nodes.primary("s0"), schemas)
    box.log._server.schemas.clear()

    assert applier(box).apply().applied == 1


def test_an_op_that_the_database_is_behind_waits_and_others_do_not(db: Any, box: Sandbox):
    """I17: drift defers and never rejects."""
    db.define_table("other", Field("who", "integer"))
    pipeline.define_tables(db)
    ahead = db.define_table(
        "event", *(Field(f.name, f.type, default=f.default) for f in db.event if f.name != "id"), Field("extra"),
        redefine=True, migrate=False,
    )  # fmt: skip
    waits = pipeline.enqueue_insert(ahead, who=7, extra="x")
    goes = pipeline.enqueue_insert(db.other, {"who": 1})
    worker = applier(box)

    outcome = worker.apply()

    assert "behind the schema of event" in outcome.aside
    assert (outcome.applied, outcome.rejected) == (1, 0)
    assert (waits.status(), goes.status()) == ("parked", "applied")
    session = box.client.nodes.primary("s0")
    with session.transaction():
        session.execute("ALTER TABLE event ADD COLUMN extra CHAR(512)")
    assert release_waiting(box.client, "s0") == 1
    assert waits.status() == "replayed"


def test_a_shard_that_does_not_answer_puts_its_buckets_off_and_raises_nothing(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    receipt = pipeline.enqueue_insert(db.event, who=7)
    worker = applier(box)

    def refuse(*_: Any) -> None:
        raise ShardUnavailable("s0", "connection refused")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shard.NodeSession._open", refuse)
        outcome = worker.apply()

    assert "connection refused" in outcome.waiting
    assert (outcome.left, outcome.ring) == (1, False)
    assert box.log.due("s0", 9) == {}
    assert receipt.status() == "queued"


def test_a_bucket_that_moved_away_is_left_alone(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.event, who=7)
    session = box.client.nodes.primary("s0")
    with session.transaction():
        session.execute(f"UPDATE pipeline_watermarks SET state = 'moved' WHERE bucket = {receipt.bucket}")

    assert applier(box).apply().applied == 0

    assert box.rows("event") == []


def test_the_truth_of_what_is_unapplied_is_tail_beyond_watermark(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.event, who=7)
    session = box.client.nodes.primary("s0")

    def behind() -> list[int]:
        marks = {bucket: mark.position for bucket, mark in ledger_queries.marks_of(session).items()}
        return unapplied(marks, box.log.tails(marks))

    assert behind() == [receipt.bucket]
    box.drain()
    assert behind() == []


def test_a_summary_shows_what_a_person_wants_to_see_and_no_noughts(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.event, who=7)

    summary = applier(box).apply().summary()

    assert list(summary) == ["applied", "rejected", "ms", "buckets"]
    assert (summary["applied"], summary["rejected"], summary["buckets"]) == (1, 0, 1)


def test_what_is_applied_and_refused_is_counted_by_kind_and_table(db: Any, box: Sandbox):
    first = pipeline.enqueue_insert(db.event, who=7, note="same")
    for note in ("a", "b", "same"):
        pipeline.enqueue_insert(db.event, who=7, note=note)
    pipeline.enqueue_update(db.event, first.id, {"n": 3}, shard_key=7)
    applier(box).apply()

    counts = box.log.counts("s0")

    assert {name: n for name, n in counts.items() if not name.startswith(("batch", "commit"))} == {
        "applied insert event": 3,
        "applied update event": 1,
        "rejected event": 1,
    }
    assert counts["batches"] == sum(n for name, n in counts.items() if name.startswith("batch_ms ")) == 1
    assert counts["batches"] == sum(n for name, n in counts.items() if name.startswith("commit_ms "))
    assert 0 < counts["commit_sum_us"] < 1000 * (counts["batch_sum_ms"] + 1)
    assert applier(box).apply().applied == 0
    assert box.log.counts("s0") == counts


def together(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Return the statements that are sent together from now on, one entry for each round trip."""
    sent, ask = list[tuple[str, ...]](), NodeSession.ask

    def spy(session: NodeSession, *statements: str) -> Any:
        sent.append(statements)
        return ask(session, *statements)

    monkeypatch.setattr(NodeSession, "ask", spy)
    return sent


def test_a_small_batch_needs_one_round_trip_between_its_lock_and_its_commit(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    pipeline.enqueue_insert(db.event, who=6)
    worker = applier(box)
    worker.apply()  # learns the constraints
    first = pipeline.enqueue_insert(db.event, who=7).id
    pipeline.enqueue_update(db.event.id == first, n=5)
    executed, execute = list[str](), worker._session.adapter.execute
    sent = together(monkeypatch)
    monkeypatch.setattr(worker._session.adapter, "execute", lambda sql: executed.append(sql) or execute(sql))
    worker.apply()

    [lock], [seen, insert, update, producers, marks] = sent
    assert "pipeline_watermarks" in lock
    assert "pipeline_producers" in seen
    assert insert.startswith("INSERT INTO")
    assert update.startswith("UPDATE")
    assert "pipeline_producers" in producers
    assert "pipeline_watermarks" in marks
    assert executed == [SQLite.begin, lock, seen, insert, update, producers, marks]


def appended_again(box: Sandbox, bucket: int) -> None:
    """Let the last op of a log stand there once more, as what a producer sends again after a failover."""
    [entries] = box.log.read({bucket: START}, {bucket: 10}).values()
    epoch, seq = entries[-1].position
    box.log._server.logs[bucket].append(entries[-1]._replace(position=Position(epoch, seq + 1)))
    box.log._server.last[bucket] = Position(epoch, seq + 1)


def test_of_a_small_batch_an_op_that_the_shard_has_seen_elsewhere_is_left_out(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    row = pipeline.enqueue_insert(db.event, who=7)
    pipeline.enqueue_update(db.event.id == row.id, n=db.event.n + 1)
    worker = applier(box)
    worker.apply()
    appended_again(box, row.bucket)
    pipeline.enqueue_update(db.event.id == row.id, n=db.event.n + 10)
    sent = together(monkeypatch)
    outcome = worker.apply()

    assert (outcome.applied, outcome.seen) == (1, 1)
    assert [row["n"] for row in box.rows("event")] == [11]
    assert [len(statements) for statements in sent] == [1, 5, 1, 1, 2]  # the guess, and then step by step

    pipeline.enqueue_update(db.event.id == row.id, n=db.event.n + 100)
    worker.apply()
    assert [len(statements) for statements in sent[5:]] == [1, 4]  # one wrong guess ends none


def test_a_small_batch_needs_one_round_trip_beside_what_is_set_aside_unless_it_is_behind_that(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    pipeline.enqueue_insert(db.event, who=6, note="a")
    refused = pipeline.enqueue_insert(db.event, who=7, note="a")
    worker = applier(box)
    worker.apply()
    assert refused.status() == "rejected"
    other = pipeline.enqueue_insert(db.event, who=7, note="b")
    sent = together(monkeypatch)
    worker.apply()

    assert other.status() == "applied"
    [lock], [guessed, *others] = sent
    assert "pipeline_watermarks" in lock
    assert "pipeline_producers" in guessed
    assert "pipeline_held" in guessed
    assert len(others) == 3

    behind = pipeline.enqueue_update(db.event.id == refused.id, n=5)
    worker.apply()

    assert behind.status() == "parked"
    assert [len(statements) for statements in sent[2:]] == [1, 4, 1, 1, 4]  # the guess, and then step by step


def test_what_the_shard_has_seen_is_left_out_though_it_could_not_be_applied_any_more(db: Any, box: Sandbox):
    row = pipeline.enqueue_upsert(db.pair, key=["who", "note"], who=7, note="a", n=1)
    applier(box).apply()
    appended_again(box, row.bucket)
    box.log.mark_dirty("s0", [row.bucket])
    session = box.client.nodes.primary("s0")
    with session.transaction():
        for [name] in session.rows(
            "SELECT name FROM sqlite_master WHERE tbl_name = 'pair' AND sql LIKE 'CREATE UNIQUE%'"
        ):
            session.execute(f'DROP INDEX "{name}"')
    outcome = applier(box).apply()

    assert (outcome.seen, outcome.left) == (1, 0)


def test_a_batch_of_many_statements_is_not_sent_together(db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    first = pipeline.enqueue_insert(db.event, who=7).id
    worker = applier(box)
    worker.apply()
    for n in range(MOST_KEPT):
        pipeline.enqueue_update(db.event.id == first, **({"n": n} if n % 2 else {"note": f"{n}"}))
    sent = together(monkeypatch)
    outcome = worker.apply()

    assert outcome.applied == MOST_KEPT
    *before, record = map(len, sent)
    assert (set(before), record) == ({1}, 2)


def test_an_op_that_stands_twice_in_a_small_batch_is_applied_once(db: Any, box: Sandbox):
    row = pipeline.enqueue_insert(db.event, who=7)
    worker = applier(box)
    worker.apply()
    pipeline.enqueue_update(db.event.id == row.id, n=db.event.n + 1)
    appended_again(box, row.bucket)
    outcome = worker.apply()

    assert (outcome.applied, outcome.seen) == (1, 1)
    assert [row["n"] for row in box.rows("event")] == [1]


def test_of_a_small_batch_an_op_that_a_constraint_refuses_is_found_step_by_step(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    pipeline.enqueue_insert(db.event, who=6, note="a")
    worker = applier(box)
    worker.apply()
    good, bad = (pipeline.enqueue_insert(db.event, who=7, note=note) for note in ("b", "a"))
    sent = together(monkeypatch)
    outcome = worker.apply()

    assert (outcome.applied, outcome.rejected) == (1, 1)
    assert (good.status(), bad.status()) == ("applied", "rejected")
    # before a constraint's word counts: the table's definition, and what is queued
    assert [len(statements) for statements in sent] == [1, 4, 1, 1, 1, 1, 5]
