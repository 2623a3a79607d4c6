"""The outbox: rows in the request's own transaction, sent after it, in order and once, by whoever comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline import clock
from pipeline.errors import BadOp, LogUnavailable
from pipeline.testing import Sandbox
from pipeline.web.outbox import ABANDONED_MS, FORGOTTEN_MS, Outbox, defined, delete, follow_commits, resend_outbox
from pipeline.web.request import Request

TABLES = {"tally": {"shard_key": "owner"}}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/web.sqlite"


@pytest.fixture
def db(box: Sandbox, uri: str) -> Iterator[Any]:
    db = DAL(uri, bigint_id=True)
    db.define_table("tally", Field("owner", "integer"), Field("trace", "text", default=""), migrate=False)
    box.client.define_tables(db)
    yield db
    db.close()


def request_of(box: Sandbox, db: Any) -> Request:
    return Request(box.client, Outbox(db, box.client))


def note(request: Request, db: Any, letter: str) -> None:
    request.enqueue_update(db.tally.owner == 7, trace=db.tally.trace + letter)


def died(box: Sandbox, db: Any, *letters: str) -> None:
    """Commit a request's ops, and end before they are sent."""
    request = request_of(box, db)
    for letter in letters:
        note(request, db, letter)
    db.commit()
    request.drop()


def trace(box: Sandbox) -> str:
    box.drain()
    return str(box.rows("tally")[0]["trace"])


def held(db: Any) -> int:
    count = int(db(defined(db)).count())
    db.commit()
    return count


@pytest.fixture
def row(box: Sandbox, db: Any) -> None:
    box.client.enqueue_insert(db.tally, owner=7)
    box.drain()


def test_ops_are_sent_after_the_commit_and_their_rows_deleted(box: Sandbox, db: Any):
    request = request_of(box, db)

    receipt = request.enqueue_insert(db.tally, owner=7, trace="a")
    note(request, db, "b")

    assert (box.enqueued(), held(db)) == ([], 2)
    text = request.finish()
    assert held(db) == 0
    assert trace(box) == "ab"
    assert receipt.status() == "applied"
    assert text


@pytest.mark.usefixtures("row")
def test_ops_go_with_the_transaction_that_holds_their_rows(box: Sandbox, db: Any):
    request = request_of(box, db)

    note(request, db, "a")
    db.rollback()
    note(request, db, "b")
    db.commit()
    request.finish()

    assert trace(box) == "b"
    assert held(db) == 0


def test_a_commit_by_hand_sends_the_rows_and_the_users_next_page_waits_for_them(box: Sandbox, db: Any):
    request = request_of(box, db)
    follow_commits(db, [request].copy)
    receipt = request.enqueue_insert(db.tally, owner=7, trace="a")

    db.commit()
    note(request, db, "b")
    db.rollback()
    note(request, db, "c")
    db.commit()

    assert receipt.position is not None
    assert request.finish()
    assert trace(box) == "ac"
    assert db(defined(db)).count() == 0


@pytest.mark.usefixtures("row")
def test_what_a_dead_process_left_goes_before_the_next_ops_of_its_bucket(box: Sandbox, db: Any):
    died(box, db, "a", "b")
    died(box, db, "c")

    request = request_of(box, db)
    note(request, db, "d")
    db.commit()
    request.finish()

    assert trace(box) == "abcd"
    assert held(db) == 0


@pytest.mark.usefixtures("row")
def test_a_row_that_was_sent_but_not_deleted_is_applied_once(
    box: Sandbox, db: Any, uri: str, monkeypatch: pytest.MonkeyPatch
):
    request = request_of(box, db)
    note(request, db, "a")
    note(request, db, "b")
    db.commit()
    with monkeypatch.context() as dying:
        dying.setattr("pipeline.web.outbox.delete", lambda table, rows: None)
        request.finish()
    assert held(db) == 2

    assert resend_outbox(box.client, uri) == (2, 0)

    assert trace(box) == "ab"
    assert held(db) == 0


@pytest.mark.usefixtures("row")
def test_half_a_request_that_was_deleted_is_no_loss(box: Sandbox, db: Any, uri: str):
    request = request_of(box, db)
    note(request, db, "a")
    note(request, db, "b")
    [first, _] = [kept for _, kept in request._held._waiting]  # type: ignore[union-attr]
    db.commit()
    box.client.publisher.resend(first.producer, {first.bucket: _run(first)})
    delete(defined(db), [first])

    resend_outbox(box.client, uri)

    assert trace(box) == "ab"


def _run(kept: Any) -> Any:
    from pipeline.enqueue.producer import Run

    return Run(kept.seq, [kept.payload])


@pytest.mark.usefixtures("row")
def test_while_redis_takes_nothing_ops_stay_and_the_request_succeeds(box: Sandbox, db: Any):
    request = request_of(box, db)
    note(request, db, "a")
    db.commit()

    box.log.set_full("too many ops")
    assert request.finish() is None
    box.log.set_full(None)

    assert held(db) == 1
    died(box, db, "b")
    request = request_of(box, db)
    note(request, db, "c")
    db.commit()
    request.finish()
    assert trace(box) == "abc"


@pytest.mark.usefixtures("row")
@pytest.mark.parametrize("later_ms", [ABANDONED_MS + 1, -3_600_000])  # or the clock was set back
def test_rows_of_other_buckets_are_sent_once_they_are_abandoned(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch, later_ms: int
):
    died(box, db, "a")

    def other() -> None:
        request = request_of(box, db)
        request.enqueue_insert(db.tally, owner=next(_elsewhere(box)))
        db.commit()
        request.finish()

    other()
    assert held(db) == 1
    now_ms = clock.wall_ms()
    monkeypatch.setattr("pipeline.clock.wall_ms", lambda: now_ms + later_ms)
    other()

    assert held(db) == 0
    assert trace(box) == "a"


def _elsewhere(box: Sandbox) -> Iterator[int]:
    of = box.client.topology.bucket_of
    return (owner for owner in range(8, 1000) if of("tally", owner) != of("tally", 7))


@pytest.mark.usefixtures("row")
def test_what_might_be_doubled_is_left_until_somebody_says_so(
    box: Sandbox, db: Any, uri: str, monkeypatch: pytest.MonkeyPatch
):
    died(box, db, "a")
    now_ms = clock.wall_ms()
    monkeypatch.setattr("pipeline.clock.wall_ms", lambda: now_ms + FORGOTTEN_MS + 1)

    assert resend_outbox(box.client, uri) == (0, 1)
    assert resend_outbox(box.client, uri, old=True) == (1, 0)

    assert trace(box) == "a"


def test_a_second_request_with_an_idempotency_key_knows_the_first_ones_row(box: Sandbox, db: Any):
    def requested() -> Any:
        request = request_of(box, db)
        receipt = request.enqueue_insert(db.tally, {"owner": 7}, idempotency_key="form 1")
        db.commit()
        request.finish()
        return receipt.id

    first, second = requested(), requested()

    assert first == second
    box.drain()
    assert [row["id"] for row in box.rows("tally")] == [first]


@pytest.mark.parametrize("ticket", [False, True])
def test_of_two_requests_in_flight_with_one_key_both_know_the_id_of_the_row(box: Sandbox, uri: str, ticket: bool):
    dals = [DAL(uri, bigint_id=True) for _ in range(2)]
    for db in dals:
        db.define_table("tally", Field("owner", "integer"), Field("trace", "text", default=""), migrate=False)
    box.client.define_tables(dals[0])
    first, second = (request_of(box, db) for db in dals)
    receipts = []
    for request, db, trace in ((first, dals[0], "first"), (second, dals[1], "second")):
        receipts.append(request.enqueue_insert(db.tally, {"owner": 7, "trace": trace}, idempotency_key="form 1").id)
        (db.rollback if ticket and request is first else db.commit)()
    for request in (second, first):
        request.finish()

    box.drain()

    [row] = box.rows("tally")
    assert receipts == [row["id"]] * 2
    assert row["trace"] == ("second" if ticket else "first")  # rows of a bucket go in the order of their commits
    for db in dals:
        db.close()


def test_redis_learns_the_id_under_a_key_with_the_rows_if_it_was_away_at_the_call(box: Sandbox, db: Any):
    request, claim_key = request_of(box, db), box.log.claim_key

    def away(*arguments: Any) -> int:
        raise LogUnavailable("away on purpose", sent=False)

    box.log.claim_key = away  # type: ignore[method-assign]  # our own double
    first = request.enqueue_insert(db.tally, {"owner": 7}, idempotency_key="form 1").id
    box.log.claim_key = claim_key  # type: ignore[method-assign]
    db.commit()
    request.finish()

    second = request_of(box, db).enqueue_insert(db.tally, {"owner": 7}, idempotency_key="form 1").id

    assert first == second


def test_a_durability_that_only_a_sender_has_is_refused(box: Sandbox, db: Any):
    request = request_of(box, db)

    with pytest.raises(BadOp, match="for mode now"):
        request.enqueue_insert(db.tally, {"owner": 7}, durability="fsync")

    assert held(db) == 0


@pytest.mark.parametrize("there", [False, True])
def test_an_application_that_takes_its_tables_for_made_gets_the_outbox_all_the_same(
    box: Sandbox, uri: str, tmp_path: Path, there: bool
):
    if there:  # made by another host, whose files this one has not
        (tmp_path / "other").mkdir()
        other = DAL(uri, folder=str(tmp_path / "other"), bigint_id=True)
        defined(other)
        other.commit()
        other.close()
    db = DAL(uri, folder=str(tmp_path), bigint_id=True, fake_migrate_all=True)
    db.define_table("tally", Field("owner", "integer"), Field("trace", "text", default=""))

    request = request_of(box, db)
    request.enqueue_insert(db.tally, owner=7)
    db.commit()
    request.finish()

    assert box.drain().applied == 1
    assert held(db) == 0
    assert db._fake_migrate_all
    db.close()


def test_an_application_that_may_not_make_tables_learns_which_one_is_missing(box: Sandbox, uri: str):
    db = DAL(uri, bigint_id=True, migrate_enabled=False)
    db.define_table("tally", Field("owner", "integer"), Field("trace", "text", default=""))
    request = request_of(box, db)

    with pytest.raises(BadOp, match=r"db has no table pipeline_outbox: start once with migrate_enabled=True"):
        request.enqueue_insert(db.tally, owner=7)
    request.drop()
    db.close()


def counted(box: Sandbox) -> dict[str, int]:
    box.bell.flush()
    every = {name: n for shard in box.client.topology.shards for name, n in box.log.counts(shard).items()}
    return {name: n for name, n in every.items() if name.startswith("enqueued outbox ")}


def test_a_requests_ops_count_as_enqueued_by_way_of_the_outbox_when_their_rows_are_sent(box: Sandbox, db: Any):
    request = request_of(box, db)
    request.enqueue_insert(db.tally, owner=7, trace="a")
    note(request, db, "b")
    assert counted(box) == {}

    request.finish()

    assert counted(box) == {"enqueued outbox insert tally": 1, "enqueued outbox update tally": 1}


@pytest.mark.usefixtures("row")
def test_what_is_relayed_counts_as_enqueued_once(box: Sandbox, db: Any, uri: str):
    died(box, db, "a", "b")

    for _ in range(2):
        resend_outbox(box.client, uri)

    assert counted(box) == {"enqueued outbox update tally": 2}
