"""A replay applies what was set aside in the order of its rows, exactly once, in pieces of any size."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples

import pipeline
from pipeline.admin.upkeep import trim
from pipeline.apply.applier import Applier
from pipeline.apply.replay import Replay, Replayed
from pipeline.config.settings import ApplySettings
from pipeline.model import Position
from pipeline.model.receipt import Receipt
from pipeline.shard.records import ledger_queries
from pipeline.testing import Sandbox, sandbox

TABLES = {
    "event": {"shard_key": "who"},
    "strict": {"shard_key": "who", "on_reject": "halt"},
    "loose": {"shard_key": "who", "on_reject": "skip"},
}


@pytest.fixture(scope="module")
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    for name in TABLES:
        db.define_table(name, Field("who", "integer"), Field("n", "integer"), Field("trace", "text", default=""))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with made(db) as box:
        yield box


def made(db: Any) -> Any:
    return sandbox(TABLES, shards=1, buckets=2)


def define(db: Any, box: Sandbox) -> None:
    pipeline.define_tables(db)
    refuse(box, "event", "strict", "loose")


def ask(box: Sandbox, sql: str) -> list[Any]:
    return box.client.nodes.primary("s0").query(sql)


def refuse(box: Sandbox, *tables: str) -> None:
    """Let the database refuse every write with a negative n."""
    for table in tables:
        for moment in ("INSERT", "UPDATE"):
            ask(
                box,
                f"CREATE TRIGGER unlucky_{table}_{moment} BEFORE {moment} ON {table} WHEN NEW.n < 0"
                " BEGIN SELECT RAISE(ABORT, 'unlucky'); END",
            )


def allow(box: Sandbox, *tables: str) -> None:
    for table in tables:
        for moment in ("INSERT", "UPDATE"):
            ask(box, f"DROP TRIGGER IF EXISTS unlucky_{table}_{moment}")


def heads(box: Sandbox) -> dict[int, list[Position]]:
    found: dict[int, list[Position]] = {}
    for bucket, epoch, seq in ask(
        box, "SELECT bucket, epoch, seq FROM pipeline_rejects WHERE state IN ('rejected', 'waiting')"
    ):
        found.setdefault(bucket, []).append(Position(epoch, seq))
    return found


def replay(box: Sandbox, chosen: dict[int, list[Position]] | None = None, **how: Any) -> list[Replayed]:
    limits = {name: how.pop(name) for name in ("max_rows", "max_bytes", "buckets") if name in how}
    worker = Replay("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(**limits), box.client.settings.tables)
    return list(worker.run(heads(box) if chosen is None else chosen, "tester", **how))


def states(box: Sandbox) -> list[str]:
    return [state for (state,) in ask(box, "SELECT state FROM pipeline_rejects ORDER BY bucket, epoch, seq")]


def bucket_states(box: Sandbox) -> set[str]:
    return {mark.state for mark in ledger_queries.marks_of(box.client.nodes.primary("s0")).values()}


def test_a_replayed_head_is_followed_by_all_that_waited_behind_it_in_order(db: Any, box: Sandbox):
    define(db, box)
    row = pipeline.enqueue_insert(db.event, who=7, n=-1)
    box.drain()
    later = [pipeline.enqueue_update(db.event.id == row.id, trace=db.event.trace + f"{i},") for i in range(100)]
    box.drain()
    allow(box, "event")

    done = replay(box, max_rows=30)

    assert [sum(column) for column in zip(*done, strict=True)][:4] == [101, 0, 0, 0]
    assert len(done) == 4
    [found] = box.rows("event")
    assert found["trace"] == "".join(f"{i}," for i in range(100))
    assert {receipt.status() for receipt in (row, *later)} == {"replayed"}
    assert later[0].wait(0.1) == "replayed"
    assert (ask(box, "SELECT * FROM pipeline_held"), bucket_states(box)) == ([], {"active"})


def test_what_a_replay_applies_counts_as_applied_and_a_trial_counts_nothing(db: Any, box: Sandbox):
    define(db, box)
    rows = [pipeline.enqueue_insert(db.event, who=7, n=n) for n in (-1, -2)]
    pipeline.enqueue_update(db.event.id == rows[0].id, trace="x")
    box.drain()
    allow(box, "event")

    def applied() -> dict[str, int]:
        return {name: n for name, n in box.log.counts("s0").items() if name.startswith("applied ")}

    replay(box, trial=True)
    assert applied() == {}
    replay(box)

    assert applied() == {"applied insert event": 2, "applied update event": 1}
    assert box.log.counts("s0")["rejected event"] == 2


def test_what_is_refused_again_stays_a_head_and_what_waits_behind_it_stays_parked(db: Any, box: Sandbox):
    define(db, box)
    rows = [pipeline.enqueue_insert(db.event, who=7, n=n).id for n in (-1, -2)]
    for row in rows:
        pipeline.enqueue_update(db.event.id == row, trace="x")
    box.drain()
    ask(box, "DROP TRIGGER unlucky_event_INSERT")
    ask(
        box,
        "CREATE TRIGGER unlucky_event_INSERT BEFORE INSERT ON event WHEN NEW.n = -2"
        " BEGIN SELECT RAISE(ABORT, 'only two'); END",
    )

    [done] = replay(box)

    # the update of the first row is now refused on its own: its n is negative
    assert done == Replayed(1, 0, 2, 1, 2)
    assert states(box) == ["replayed", "rejected", "rejected", "parked"]
    reasons = ask(box, "SELECT reason FROM pipeline_rejects WHERE state = 'rejected' ORDER BY seq")
    assert reasons == [("only two",), ("unlucky",)]
    assert bucket_states(box) == {"active", "holding"}


def test_a_dropped_head_lets_go_what_waits_behind_it(db: Any, box: Sandbox):
    define(db, box)
    row = pipeline.enqueue_insert(db.event, who=7, n=1).id
    bad = pipeline.enqueue_update(db.event.id == row, n=-1)
    later = pipeline.enqueue_update(db.event.id == row, trace="x")
    box.drain()

    [done] = replay(box, drop=True)

    assert done == Replayed(1, 1, 0, 0, 1)
    assert (bad.status(), later.status()) == ("dropped", "replayed")
    with pytest.raises(pipeline.errors.Rejected, match="dropped by an operator after it was rejected: unlucky"):
        bad.wait(0.1)
    assert [(found["n"], found["trace"]) for found in box.rows("event")] == [(1, "x")]
    assert ask(box, "SELECT who, action, result FROM pipeline_actions") == [("tester", "drop", "dropped")]


@pytest.mark.parametrize("drop", [False, True])
def test_a_halted_bucket_goes_on_after_its_head(db: Any, box: Sandbox, drop: bool):
    define(db, box)
    row = pipeline.enqueue_insert(db.strict, who=7, n=-1).id
    later = pipeline.enqueue_update(db.strict.id == row, trace="x")
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(), tables=box.client.settings.tables)
    worker.apply()
    assert (later.status(), bucket_states(box)) == ("queued", {"active", "halted"})
    allow(box, "strict")

    replay(box, drop=drop)

    assert bucket_states(box) == {"active"}
    for _ in pipeline.clock.polls(10):
        if not worker.apply().left:
            break
    assert later.status() == "applied"
    assert [found["trace"] for found in box.rows("strict")] == ([] if drop else ["x"])


def test_an_op_behind_two_heads_waits_until_both_are_gone(db: Any, box: Sandbox):
    define(db, box)
    rows = [pipeline.enqueue_insert(db.event, who=7, n=-1).id for _ in range(2)]
    with pipeline.atomic():
        for row in rows:
            pipeline.enqueue_update(db.event.id == row, trace="x")
    box.drain()
    allow(box, "event")
    [(bucket, [first, second])] = heads(box).items()

    replay(box, {bucket: [second]})
    assert states(box) == ["rejected", "replayed", "parked"]
    replay(box, {bucket: [first]})

    assert states(box) == ["replayed"] * 3
    assert [row["trace"] for row in box.rows("event")] == ["x", "x"]


def test_an_op_of_a_table_that_skips_is_replayed_after_the_later_ops_of_its_row(db: Any, box: Sandbox):
    define(db, box)
    row = pipeline.enqueue_insert(db.loose, who=7, n=0)
    for n, token in ((-1, "a"), (1, "b")):
        pipeline.enqueue_update(db.loose.id == row.id, n=n, trace=db.loose.trace + token)
    box.drain()
    allow(box, "loose")

    [done] = replay(box)

    assert done == Replayed(1, 0, 0, 0, 1)
    assert [(found["n"], found["trace"]) for found in box.rows("loose")] == [(-1, "ba")]


def redis_forgets_the_keys(box: Sandbox) -> None:
    """Let the log forget idempotency keys, as it does after a day."""
    claims = box.log._server.keys  # type: ignore[attr-defined]
    for name in [name for name in claims if name.startswith("claim:")]:
        del claims[name]


def under_key(db: Any, box: Sandbox, n: int, times: int = 1) -> list[Receipt]:
    receipts = []
    for _ in range(times):
        redis_forgets_the_keys(box)
        receipts.append(box.client.enqueue_insert(db.event, who=3, n=n, trace="once", idempotency_key="form 1"))
    return receipts


@pytest.mark.parametrize("together", [True, False])
def test_an_op_that_was_refused_uses_no_idempotency_key_up(db: Any, box: Sandbox, together: bool):
    define(db, box)
    refused = under_key(db, box, -1, times=2 if together else 1)
    box.drain()
    if not together:
        refused += under_key(db, box, -1)
        box.drain()
    assert [receipt.status() for receipt in refused] == ["rejected", "rejected"], "neither took effect"

    allow(box, "event")
    [taken] = under_key(db, box, -1)
    box.drain()

    assert taken.status() == "applied"
    replay(box)
    assert [row["id"] for row in box.rows("event")] == [taken.id], "a replay doubles nothing"
    assert [receipt.status() for receipt in refused] == ["replayed", "replayed"]


@pytest.mark.parametrize("limits", [{}, {"max_rows": 1}])
def test_of_two_ops_with_one_key_a_replay_takes_one(db: Any, box: Sandbox, limits: dict[str, int]):
    define(db, box)
    under_key(db, box, -1, times=2)
    box.drain()
    allow(box, "event")

    replay(box, **limits)

    assert states(box) == ["replayed", "replayed"]
    assert len(box.rows("event")) == 1
    under_key(db, box, -1)
    box.drain()
    assert len(box.rows("event")) == 1, "the replay has used the key up"


def test_a_dropped_op_uses_no_key_up_and_each_op_of_a_key_is_dropped(db: Any, box: Sandbox):
    define(db, box)
    under_key(db, box, -1, times=2)
    box.drain()

    replay(box, drop=True)

    assert states(box) == ["dropped", "dropped"]
    under_key(db, box, 1)
    box.drain()
    assert len(box.rows("event")) == 1


def test_what_was_settled_a_week_ago_is_forgotten_and_what_is_set_aside_never(db: Any, box: Sandbox):
    define(db, box)
    pipeline.enqueue_insert(db.event, who=7, n=-1)
    dropped = pipeline.enqueue_insert(db.event, who=7, n=-1)
    box.drain()
    replay(box, {dropped.bucket: [dropped.position]}, drop=True)
    session = box.client.nodes.primary("s0")
    with session.transaction():
        session.execute("UPDATE pipeline_rejects SET changed_ms = changed_ms - 8 * 86400000")

    trim(box.client, "s0")

    assert states(box) == ["rejected"]
    assert ask(box, "SELECT action FROM pipeline_actions") == [("drop",)]


@settings(max_examples=examples(40))
@given(st.randoms(use_true_random=False))
def test_ops_reach_each_row_in_their_order_however_they_are_refused_parked_and_replayed(db: Any, luck: Random):
    with made(db) as box:
        define(db, box)
        rows = [pipeline.enqueue_insert(db.event, who=luck.choice((1, 2)), n=0) for _ in range(4)]
        box.drain()
        wanted: dict[int, str] = {row.id: "" for row in rows if row.id}
        refusing = True
        for step in range(luck.randint(5, 40)):
            what = luck.choices(("op", "group", "apply", "replay", "mend"), (8, 2, 2, 2, 1))[0]
            if what in ("op", "group"):
                first = luck.choice(rows)
                mates = [row for row in rows if row.bucket == first.bucket]
                chosen = [first] if what == "op" else luck.sample(mates, min(len(mates), 2))
                with pipeline.atomic():
                    for row in chosen:
                        # an n below zero is refused; the next op of the row makes it well again
                        pipeline.enqueue_update(
                            db.event.id == row.id, n=luck.choice((-1, 1, 1)), trace=db.event.trace + f"{step},"
                        )
                        wanted[row.id] += f"{step},"
            elif what == "apply":
                limits = ApplySettings(max_rows=luck.choice((1, 3, 100)))
                Applier("s0", box.client.nodes.primary("s0"), box.log, limits).apply()
            elif what == "replay":
                every = [(bucket, position) for bucket, own in heads(box).items() for position in own]
                some: dict[int, list[Position]] = {}
                for bucket, position in luck.sample(every, luck.randint(0, len(every))):
                    some.setdefault(bucket, []).append(position)
                replay(box, some, max_rows=luck.choice((1, 2, 100)), buckets=luck.choice((1, 64)))
            else:
                (allow if refusing else refuse)(box, "event")
                refusing = not refusing
            agrees(box, wanted)
        allow(box, "event")
        box.drain()
        replay(box, max_rows=luck.choice((1, 2, 100)))

        assert {row["id"]: row["trace"] for row in box.rows("event")} == wanted
        assert (ask(box, "SELECT * FROM pipeline_held"), bucket_states(box)) == ([], {"active"})
        assert set(states(box)) <= {"replayed"}


def agrees(box: Sandbox, wanted: dict[int, str]) -> None:
    """Assert that each row has had the first ops of its own and no others, and that no op waits behind nothing."""
    for row in box.rows("event"):
        assert wanted[row["id"]].startswith(row["trace"])
    assert not ask(
        box,
        "SELECT * FROM pipeline_rejects AS r WHERE state = 'parked' AND NOT EXISTS (SELECT 1 FROM pipeline_held AS mine"
        " JOIN pipeline_held AS h ON h.bucket = mine.bucket AND h.row_key = mine.row_key AND (h.epoch, h.seq) <"
        " (mine.epoch, mine.seq) WHERE mine.bucket = r.bucket AND mine.epoch = r.epoch AND mine.seq = r.seq)",
    )
    holding = {bucket for (bucket,) in ask(box, "SELECT DISTINCT bucket FROM pipeline_held")}
    marks = ledger_queries.marks_of(box.client.nodes.primary("s0"))
    assert holding == {bucket for bucket, mark in marks.items() if mark.state == "holding"}
