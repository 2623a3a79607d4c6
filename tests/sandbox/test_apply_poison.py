"""An op that ends its worker, its server or its time is rejected; a locked one waits; no other is stopped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pymysql
import pytest
from pydal import DAL, Field

import pipeline
from pipeline.admin import stops, upkeep
from pipeline.admin.observe.readings import Queues
from pipeline.admin.why import why
from pipeline.apply.applier import Applier
from pipeline.apply.judge import MOST_DEATHS
from pipeline.apply.transaction import BRIEF_S, TOGETHER_S, Outcome
from pipeline.config.settings import ApplySettings
from pipeline.errors import LogUnavailable
from pipeline.model.receipt import Receipt
from pipeline.oplog.shared_state import ALIVE, ALIVE_TOKEN
from pipeline.shard import NodeSession
from pipeline.shard.records import ledger_queries
from pipeline.testing import Sandbox, sandbox

OTHERS = 60
#: More than a bucket rests.
LATER_MS = 10_000
Meet = Callable[[str, Callable[[], BaseException]], None]


class Died(BaseException):
    """Ends the worker's process in the middle of a statement, as SIGKILL does."""


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("note"))
    db.define_table("other", Field("who", "integer"), Field("note"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    tables = {"event": {"shard_key": "who"}, "other": {"shard_key": "who"}}
    with sandbox(tables, shards=1, buckets=32) as box:
        pipeline.define_tables(db)
        yield box


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Meet:
    """Return a function by which each statement with some words in it meets an error; the empty text ends that."""
    met: dict[str, Callable[[], BaseException]] = {}
    real = NodeSession.execute

    def execute(session: NodeSession, sql: str) -> int:
        for word, error in met.items():
            if re.search(word, sql) and ("INTO pipeline_" not in sql or "pipeline_" in word):
                raise error()
        return real(session, sql)

    monkeypatch.setattr(NodeSession, "execute", execute)
    monkeypatch.setattr("pipeline.clock.sleep_s", lambda for_s: None)

    def meet(word: str, error: Callable[[], BaseException]) -> None:
        met.clear()
        if word:
            met[word] = error

    return meet


def mysql_error(code: int) -> Callable[[], BaseException]:
    return lambda: pymysql.err.OperationalError(code, "the server's words")


def applier(box: Sandbox, **settings: int) -> Applier:
    """Return an applier as a new process has it."""
    return Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings(**settings))


def queue(db: Any, bad_note: str) -> tuple[Receipt, list[Receipt], list[Receipt]]:
    """Queue an op among others; return its receipt, and those of ops in other buckets and behind it in its own."""
    many = [pipeline.enqueue_insert(db.event, who=who, note=f"{who}") for who in range(OTHERS)]
    bad = pipeline.enqueue_insert(db.event, who=7, note=bad_note)
    behind = [pipeline.enqueue_insert(db.event, who=7, note="behind") for _ in range(9)]
    many += [pipeline.enqueue_insert(db.event, who=who, note="more") for who in range(OTHERS)]
    own = [receipt for receipt in many if receipt.bucket == bad.bucket]
    return bad, [receipt for receipt in many if receipt.bucket != bad.bucket], behind + own


def turns(box: Sandbox, most: int, **settings: int) -> int:
    """Apply until nothing is dirty, with a new process after each death; return the number of deaths."""
    worker, deaths = applier(box, **settings), 0
    for _ in range(most):
        try:
            worker.apply()
        except Died:
            worker, deaths = applier(box, **settings), deaths + 1
        box.log.ahead_ms += LATER_MS
        if not box.log.dirty("s0"):
            break
    assert not box.log.dirty("s0")
    return deaths


def reasons(box: Sandbox, receipt: Receipt) -> list[str]:
    """Return the kinds of reasons for which an op waits."""
    box.log.hold_lease(ALIVE.format("s0"), ALIVE_TOKEN, 60_000)
    return [reason.kind for reason in why(box.client, str(receipt)).reasons]


def states(receipts: list[Receipt]) -> set[str]:
    return {receipt.status() for receipt in receipts}


def test_an_op_that_kills_its_worker_is_rejected_and_all_others_are_applied(db: Any, box: Sandbox, meet: Meet):
    bad, others, behind = queue(db, "poison")
    meet("poison", Died)

    deaths = turns(box, most=20)

    assert bad.status() == "rejected"
    assert states(others + behind) == {"applied"}
    assert 3 < deaths <= 8
    [[reason]] = box.client.nodes.primary("s0").query("SELECT reason FROM pipeline_rejects")
    assert reason.startswith("poison: alone, it ended the worker")


def test_a_worker_that_suspects_a_bucket_learns_what_another_has_met_there_since(db: Any, box: Sandbox, meet: Meet):
    bad, others, behind = queue(db, "poison")
    meet("poison", Died)
    deaths = 0
    with suppress(Died):
        applier(box).apply()

    for _ in range(20):
        late, other = applier(box), applier(box)
        alone = late._alone

        def after_another(*told: Any, other: Applier = other, alone: Callable[..., Any] = alone, **more: Any) -> Any:
            nonlocal deaths
            if told[0] == bad.bucket:
                box.log.ahead_ms += LATER_MS
                try:
                    other.apply()
                except Died:
                    deaths += 1
            return alone(*told, **more)

        late._alone = after_another  # type: ignore[method-assign]
        box.log.ahead_ms += LATER_MS
        try:
            late.apply()
        except Died:
            deaths += 1
        if not box.log.dirty("s0"):
            break

    assert bad.status() == "rejected"
    assert states(others + behind) == {"applied"}
    assert 3 < deaths <= 7


@pytest.mark.parametrize("first", [1969, 1205])
def test_a_death_counts_after_a_try_that_took_too_long_or_waited_for_a_lock(
    db: Any, box: Sandbox, meet: Meet, first: int
):
    bad, others, behind = queue(db, "poison")
    meet("poison", mysql_error(first))
    for _ in range(10):
        applier(box).apply()
        box.log.ahead_ms += LATER_MS
        if box.log.attempts("s0").get(bad.bucket, "").endswith(" 1"):
            break
    meet("poison", Died)

    deaths = turns(box, most=20)

    assert bad.status() == "rejected"
    assert states(others + behind) == {"applied"}
    assert 1 <= deaths <= MOST_DEATHS


def test_a_commit_that_is_published_late_hides_no_death_of_the_worker_behind_it(
    db: Any, box: Sandbox, meet: Meet, monkeypatch: pytest.MonkeyPatch
):
    """The first of two workers commits what was before the bad op, and publishes that when the second is dead."""
    first = pipeline.enqueue_insert(db.event, who=7, note="first")
    slow, other = applier(box), applier(box)
    finish = box.log.finish

    def late(*told: Any, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(box.log, "finish", finish)
            pipeline.enqueue_insert(db.event, who=7, note="poison")
            meet("poison", Died)
            with pytest.raises(Died):
                other.apply()
        return finish(*told, **more)

    with monkeypatch.context() as patch:
        patch.setattr(box.log, "finish", late)
        slow.apply()

    assert first.status() == "applied"
    assert list(box.log.attempts("s0")) == [first.bucket]


def test_the_record_names_the_bucket_under_test(db: Any, box: Sandbox, meet: Meet):
    bad, _, _ = queue(db, "poison")
    meet("poison", Died)
    found = []

    for _ in range(20):
        with suppress(Died):
            applier(box).apply()
        box.log.ahead_ms += LATER_MS
        marks = ledger_queries.standing(box.client.nodes.primary("s0")).marks
        positions = {bucket: mark.position for bucket, mark in marks.items()}
        found += Queues(box.log).queue("s0", positions).poison

    assert {one.bucket for one in found} == {bad.bucket}
    assert max(one.attempts for one in found) == 2
    assert Queues(box.log).queue("s0", positions).poison == ()


def test_an_op_that_kills_its_replay_is_rejected_as_poison_and_the_others_are_replayed(
    db: Any, box: Sandbox, meet: Meet
):
    bad, others, behind = queue(db, "deadly")
    stops.pause(box.client, stops.target_of(box.client, "event"))
    turns(box, most=3)
    with box.client.nodes.primary("s0").transaction() as session:
        session.execute("DELETE FROM pipeline_stops")
    meet("deadly", Died)

    deaths = 0
    for _ in range(20):
        try:
            upkeep.release_waiting(box.client, "s0")
            break
        except Died:
            deaths += 1

    assert 3 < deaths <= 8
    assert states(others + behind) == {"replayed"}
    assert bad.status() == "rejected"
    [[reason]] = box.client.nodes.primary("s0").query("SELECT reason FROM pipeline_rejects WHERE state = 'rejected'")
    assert reason.startswith("poison: alone, it ended the worker")
    assert not box.log.attempts("s0:replay")


def test_an_op_under_test_is_named_as_such(db: Any, box: Sandbox, meet: Meet):
    bad, _, _ = queue(db, "poison")
    meet("poison", Died)
    given = []
    for _ in range(6):
        with pytest.raises(Died):
            applier(box).apply()
        box.log.ahead_ms += LATER_MS
        given += reasons(box, bad)

    assert given[-1] == "testing"
    assert "is tried alone (2 of 3 tries have failed)" in why(box.client, str(bad)).sentences[0]


def test_two_deaths_are_enough_to_leave_the_other_buckets_in_peace(db: Any, box: Sandbox, meet: Meet):
    """The first one tells that something is wrong with one of many buckets, the second one with which."""
    bad, others, _ = queue(db, "poison")
    meet("poison", Died)
    for _ in range(3):
        with pytest.raises(Died):
            applier(box).apply()

    assert states(others) == {"applied"}
    assert bad.status() == "queued"


def test_a_worker_that_died_for_another_reason_rejects_nothing(db: Any, box: Sandbox, meet: Meet):
    bad, others, behind = queue(db, "poison")
    meet("poison", Died)
    for _ in range(3):
        with pytest.raises(Died):
            applier(box).apply()
    meet("", Died)

    assert turns(box, most=20) == 0

    assert states([bad, *others, *behind]) == {"applied"}
    assert box.log.attempts("s0") == {}


def test_an_op_that_always_takes_too_long_is_rejected_and_never_delays_the_others(db: Any, box: Sandbox, meet: Meet):
    bad, others, behind = queue(db, "slow")
    meet("slow", mysql_error(1969))

    outcome = applier(box).apply()

    assert states(others) == {"applied"}
    assert "because their statement takes too long (the server's words)" in outcome.waiting
    assert reasons(box, bad) == ["overtime"]
    assert bad.status() == "queued"
    assert turns(box, most=20) == 0
    assert bad.status() == "rejected"
    assert states(behind) == {"applied"}


@pytest.mark.parametrize("code", [1969, 1205])
def test_what_is_not_of_the_statement_that_waits_is_applied_at_once_and_together(
    db: Any, box: Sandbox, meet: Meet, monkeypatch: pytest.MonkeyPatch, code: int
):
    alone, real = list[int](), Applier._alone

    def spy(worker: Applier, bucket: int, *rest: Any, **more: Any) -> Any:
        alone.append(bucket)
        return real(worker, bucket, *rest, **more)

    monkeypatch.setattr(Applier, "_alone", spy)
    row = pipeline.enqueue_insert(db.event, who=7, note="row")
    applier(box).apply()
    bad = pipeline.enqueue_update(db.event.id == row.id, note="locked")
    others = [pipeline.enqueue_insert(db.event, who=who, note=f"{who}") for who in range(OTHERS)]
    meet("locked", mysql_error(code))

    applier(box).apply()

    assert alone == [bad.bucket]
    assert states([one for one in others if one.bucket != bad.bucket]) == {"applied"}
    assert bad.status() == "queued"


def test_others_are_applied_before_a_bucket_gets_a_long_statement_alone(
    db: Any, box: Sandbox, meet: Meet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.apply.turns.TURN_S", 60.0)  # a busy machine may take longer than a turn
    _, others, _ = queue(db, "slow")
    meet("slow", mysql_error(1969))
    seen = list[tuple[float, set[str]]]()
    monkeypatch.setattr(NodeSession, "limit_statements", lambda session, most_s: seen.append((most_s, states(others))))

    applier(box).apply()

    longest_s = ApplySettings().statement_s
    assert {most_s for most_s, _ in seen} == {TOGETHER_S, BRIEF_S, longest_s}
    assert [found for most_s, found in seen if most_s == longest_s][-1] == {"applied"}


def test_an_op_whose_statement_ends_the_server_is_rejected_and_each_time_counts(db: Any, box: Sandbox, meet: Meet):
    bad, others, behind = queue(db, "crash")
    crashes: list[int] = []
    lost = mysql_error(2013)

    def crash() -> BaseException:  # the server is there again before the worker tries again
        crashes.append(1)
        return lost()

    meet("crash", crash)

    turns(box, most=30)

    assert bad.status() == "rejected"
    assert states(others + behind) == {"applied"}
    # together, alone, and then the op alone
    assert 3 < len(crashes) <= 6


def test_an_op_alone_in_its_bucket_is_known_after_one_death_beside_others(db: Any, box: Sandbox, meet: Meet):
    pipeline.enqueue_insert(db.event, who=1, note="good")
    bad = pipeline.enqueue_insert(db.event, who=7, note="poison")
    meet("poison", Died)

    deaths = turns(box, most=20)

    assert bad.status() == "rejected"
    assert deaths == 1 + MOST_DEATHS


@pytest.mark.parametrize("full", ["INSERT", "INSERT|INTO pipeline_rejects"])
def test_a_server_that_is_full_is_no_fault_of_any_op(db: Any, box: Sandbox, meet: Meet, full: str):
    bad, others, behind = queue(db, "full")
    meet(full, mysql_error(1114))
    worker = applier(box)
    for _ in range(20):
        assert worker.apply().applied == 0
        box.log.ahead_ms += LATER_MS
    meet("", Died)

    upkeep.release_waiting(box.client, "s0")
    turns(box, most=3)

    assert states([bad, *others, *behind]) <= {"applied", "replayed"}


@pytest.mark.parametrize("code", [1114, 1814, 175])
def test_a_table_that_cannot_be_written_stops_its_own_ops_alone_which_wait_in_order(
    db: Any, box: Sandbox, meet: Meet, code: int
):
    good, others, behind_it = queue(db, "good")
    full = [pipeline.enqueue_insert(db.other, who=who, note="first") for who in range(4)]
    behind = [pipeline.enqueue_update(db.other.id == one.id, note=db.other.note + ", second") for one in full]
    meet('INTO "other"', mysql_error(code))
    worker = applier(box)
    for _ in range(3):
        worker.apply()
        box.log.ahead_ms += LATER_MS
        assert upkeep.release_waiting(box.client, "s0") == 0

    assert states([good, *others, *behind_it]) == {"applied"}
    assert states([*full, *behind]) == {"parked"}
    assert reasons(box, full[0]) == ["unwritable"]

    meet("", Died)
    upkeep.release_waiting(box.client, "s0")
    assert states([*full, *behind]) == {"replayed"}
    assert {row["note"] for row in box.rows("other")} == {"first, second"}


def test_where_there_is_no_room_to_set_ops_aside_their_buckets_wait_and_no_other_does(
    db: Any, box: Sandbox, meet: Meet
):
    good, others, behind_it = queue(db, "good")
    full = [pipeline.enqueue_insert(db.other, who=who, note="first") for who in range(4)]
    behind = [pipeline.enqueue_update(db.other.id == one.id, note=db.other.note + ", second") for one in full]
    held = {one.bucket for one in full}
    meet('INTO "other"|INTO pipeline_rejects', mysql_error(1114))
    worker = applier(box)
    for _ in range(20):
        worker.apply()
        box.log.ahead_ms += LATER_MS

    assert states([one for one in (good, *others, *behind_it) if one.bucket not in held]) == {"applied"}
    assert states([*full, *behind]) == {"queued"}
    assert reasons(box, full[0]) == ["unwritable"]

    meet("", Died)
    turns(box, most=3)
    upkeep.release_waiting(box.client, "s0")
    assert states([good, *others, *behind_it, *full, *behind]) <= {"applied", "replayed"}
    assert {row["note"] for row in box.rows("other")} == {"first, second"}


def test_an_op_whose_statement_needs_too_much_memory_is_rejected_and_stops_no_other(db: Any, box: Sandbox, meet: Meet):
    bad, others, behind = queue(db, "sorted")
    meet("sorted", mysql_error(1038))

    turns(box, most=20)

    assert bad.status() == "rejected"
    assert states(others + behind) == {"applied"}


@pytest.mark.parametrize("code", [1037, 1041])
@pytest.mark.parametrize("others_get_on", [True, False])
def test_an_op_for_which_a_server_has_no_memory_is_rejected_only_while_others_get_on(
    db: Any, box: Sandbox, meet: Meet, code: int, others_get_on: bool
):
    bad, others, behind = queue(db, "large")
    meet("large" if others_get_on else "INSERT", mysql_error(code))
    worker = applier(box)

    for _ in range(30):
        if others_get_on:
            others.append(pipeline.enqueue_insert(db.event, who=8, note="later"))
        worker.apply()
        box.log.ahead_ms += LATER_MS

    assert bad.status() == ("rejected" if others_get_on else "queued")
    assert states(others + behind) == {"applied" if others_get_on else "queued"}
    meet("", Died)
    turns(box, most=30)
    assert states([*others, *behind, *([] if others_get_on else [bad])]) == {"applied"}


def test_a_redis_that_goes_away_again_and_again_is_no_fault_of_any_op(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    good, worker = pipeline.enqueue_insert(db.event, who=7, note="good"), applier(box)

    def away(hash: str) -> str:
        raise LogUnavailable("it went away after the attempt was noted")

    monkeypatch.setattr(box.log, "schema", away)
    for _ in range(10):
        worker.apply()
        box.log.ahead_ms += LATER_MS
    monkeypatch.undo()
    worker.apply()

    assert good.status() == "applied"


def test_a_turn_in_which_redis_went_away_forgets_nothing_that_others_have_noted(
    db: Any, box: Sandbox, meet: Meet, monkeypatch: pytest.MonkeyPatch
):
    bad, others, behind = queue(db, "poison")
    meet("poison", Died)
    cut_short, deaths = applier(box), 0

    def away(*told: Any, **more: Any) -> None:
        raise LogUnavailable("it went away")

    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(box.log, "read_noted", away)
            cut_short.apply()
        for worker in (applier(box), cut_short):
            box.log.ahead_ms += LATER_MS
            try:
                worker.apply()
            except Died:
                deaths += 1
        if not box.log.dirty("s0"):
            break

    assert bad.status() == "rejected"
    assert states(others + behind) == {"applied"}
    assert 3 < deaths <= 7


def test_an_op_that_waits_for_a_lock_delays_its_own_bucket_alone_and_is_applied_in_the_end(
    db: Any, box: Sandbox, meet: Meet
):
    bad, others, behind = queue(db, "locked")
    meet("locked", mysql_error(1205))
    worker = applier(box)

    outcome: Outcome = worker.apply()

    assert states(others) == {"applied"}
    assert "because another transaction holds what they need (the server's words)" in outcome.waiting
    assert reasons(box, bad) == ["locked"]
    for _ in range(50):
        box.log.ahead_ms += LATER_MS
        worker.apply()
    assert bad.status() == "queued"
    meet("", Died)
    turns(box, most=3)
    assert states([bad, *behind]) == {"applied"}


def test_an_op_that_waits_for_a_lock_for_longer_than_allowed_is_rejected(db: Any, box: Sandbox, meet: Meet):
    bad, others, behind = queue(db, "locked")
    meet("locked", mysql_error(1205))

    turns(box, most=20, lock_wait_s=20)

    assert bad.status() == "rejected"
    assert states(others + behind) == {"applied"}
    [[reason]] = box.client.nodes.primary("s0").query("SELECT reason FROM pipeline_rejects")
    assert "lock_wait_s = 20" in reason


def test_an_error_of_our_own_stops_its_own_op_alone(db: Any, box: Sandbox, meet: Meet):
    bad, others, behind = queue(db, "bug")
    meet("bug", lambda: RuntimeError("a bug"))
    worker, raised = applier(box), 0

    for _ in range(20):
        try:
            worker.apply()
        except RuntimeError:
            raised += 1

    assert raised > 3
    assert bad.status() == "rejected"
    assert states(others + behind) == {"applied"}
