"""A table that is refused again and again halts: its ops wait in order, and everything else goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.admin import stops, upkeep
from pipeline.admin.stops import release
from pipeline.admin.why import why
from pipeline.apply.applier import Applier
from pipeline.apply.grouping import Item
from pipeline.apply.pace import IN_A_ROW, LEAST, WINDOW, Breaker
from pipeline.config.settings import ApplySettings
from pipeline.model import Entry, Op, Position
from pipeline.model.receipt import Receipt
from pipeline.model.sheet import Sheet, SheetEntry
from pipeline.shard.records import Reject
from pipeline.shard.records.stops import Stop, stops_of
from pipeline.testing import Sandbox, sandbox

BAD = "CREATE TRIGGER never BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'not today'); END"


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr("pipeline.apply.pace.READ_EVERY_S", 0.0)
    with sandbox({"event": {"shard_key": "who"}, "other": {"shard_key": "who"}}, shards=1) as box:
        yield box


@pytest.fixture
def event(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("note"))
    db.define_table("other", Field("who", "integer"))
    pipeline.define_tables(db)
    yield db.event
    db.close()


@pytest.fixture
def worker(box: Sandbox) -> Applier:
    return Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings())


def sql(box: Sandbox, text: str) -> None:
    session = box.client.nodes.primary("s0")
    with session.transaction():
        session.execute(text)


def halted(box: Sandbox) -> list[Stop]:
    return stops_of(box.client.nodes.primary("s0"))


def refuse(box: Sandbox, event: Any, worker: Applier) -> list[Receipt]:
    """Let a table halt, and return the receipts of ops that wait for it, one row's in order."""
    sql(box, BAD)
    pipeline.enqueue_bulk_insert(event, [{"who": who} for who in range(IN_A_ROW)])
    worker.apply()
    waiting = [pipeline.enqueue_insert(event, who=7, note="1")]
    waiting += [pipeline.enqueue_update(event.id == waiting[0].id, note=event.note + f"{n}") for n in range(2, 9)]
    worker.apply()
    return waiting


def resume(box: Sandbox) -> list[Stop]:
    lifted = stops.resume(box.client, stops.target_of(box.client, "event"))
    for _ in release(box.client, "s0", "ada"):
        pass
    return lifted


def rejected(box: Sandbox) -> int:
    return int(
        box.client.nodes.primary("s0").query("SELECT COUNT(*) FROM pipeline_rejects WHERE state = 'rejected'")[0][0]
    )


def test_a_table_that_is_refused_again_and_again_halts_and_others_go_on(box: Sandbox, event: Any, worker: Applier):
    waiting = refuse(box, event, worker)
    others = pipeline.enqueue_bulk_insert(event._db.other, [{"who": who} for who in range(40)])
    worker.apply()

    [stop] = halted(box)

    assert (stop.scope, stop.kind) == ("event", "breaker")
    assert {receipt.status() for receipt in waiting} == {"parked"}
    assert {receipt.status() for receipt in others} == {"applied"}
    assert rejected(box) == IN_A_ROW
    [sentence] = why(box.client, str(waiting[3])).sentences
    assert "because event is halted after too many refusals (not today)" in sentence
    assert sentence.endswith("; mend it; then run: pipeline resume event")


def test_a_resume_tries_one_op_and_releases_the_rest_in_order(box: Sandbox, event: Any, worker: Applier):
    waiting = refuse(box, event, worker)
    sql(box, "DROP TRIGGER never")

    [lifted] = resume(box)

    assert lifted.kind == "breaker"
    assert {receipt.status() for receipt in waiting} == {"replayed"}
    assert [row["note"] for row in box.rows(event)] == ["12345678"]
    assert halted(box) == []


def test_a_resume_before_it_is_mended_costs_one_op(box: Sandbox, event: Any, worker: Applier):
    refuse(box, event, worker)

    assert resume(box) == []

    assert [stop.kind for stop in halted(box)] == ["breaker"]
    assert rejected(box) == IN_A_ROW + 1


def test_a_changed_definition_tries_one_op_by_itself(box: Sandbox, event: Any, worker: Applier):
    waiting = refuse(box, event, worker)
    assert upkeep.release_waiting(box.client, "s0") == 0
    assert rejected(box) == IN_A_ROW

    sql(box, "DROP TRIGGER never")
    released = upkeep.release_waiting(box.client, "s0")

    assert released == len(waiting) - 1
    assert {receipt.status() for receipt in waiting} == {"replayed"}
    assert halted(box) == []


def test_a_changed_definition_that_does_not_help_is_tried_once(box: Sandbox, event: Any, worker: Applier):
    refuse(box, event, worker)
    sql(box, "CREATE INDEX more ON event (note)")

    for _ in range(3):
        upkeep.release_waiting(box.client, "s0")

    assert rejected(box) == IN_A_ROW + 1
    assert [stop.kind for stop in halted(box)] == ["breaker"]


def test_after_a_resume_the_table_is_judged_anew(box: Sandbox, event: Any, worker: Applier):
    refuse(box, event, worker)
    sql(box, "DROP TRIGGER never")
    resume(box)
    sql(box, "CREATE UNIQUE INDEX one ON event (note)")

    receipts = [pipeline.enqueue_insert(event, who=7, note="same") for _ in range(LEAST - 1)]
    worker.apply()

    assert [receipt.status() for receipt in receipts].count("rejected") == LEAST - 2
    assert halted(box) == []


def test_a_breaker_that_is_switched_off_halts_nothing(box: Sandbox, event: Any):
    applier = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(breaker=False))

    refuse(box, event, applier)

    assert halted(box) == []


@pytest.mark.parametrize(
    ("good", "bad", "halts"),
    [
        (0, LEAST - 1, False),
        (0, LEAST, True),
        (WINDOW - 50, 50, True),  # the last 50 in a row
        (WINDOW - 49, 49, False),
        (380, LEAST, False),  # 5.0 %
        (379, LEAST, True),  # 5.01 %
    ],
)
def test_a_table_halts_for_its_share_of_refusals(good: int, bad: int, halts: bool):
    breaker = Breaker()
    breaker.learn([item(n) for n in range(good)], [])

    found = breaker.learn([item(n) for n in range(good, good + bad)], [reject(n) for n in range(good, good + bad)])

    assert bool(found) is halts


def test_sheets_that_took_effect_count_in_their_place_beside_those_with_a_refused_op():
    breaker = Breaker()
    apart = [item(110 * n + at) for n in range(60) for at in range(10)]
    sheets = [
        SheetEntry(0, Position(1, 110 * n + 10), 1, 1, Sheet("event", "h", 0, range(1, 101), (), ())) for n in range(60)
    ]

    assert breaker.learn(apart, [reject(110 * n) for n in range(60)], sheets) == []


def item(n: int) -> Item:
    return Item(Entry(0, Position(1, n), 1, n, b""), Op("insert", "event", "h", 0, n))


def reject(n: int) -> Reject:
    return Reject(item(n).entry, "event", "", None, "no")
