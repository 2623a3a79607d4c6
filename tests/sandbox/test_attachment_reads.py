"""Reads of an attached table through the application's own DAL, where that stands on the one shard's primary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline import clock
from pipeline.attachment.forms import editing
from pipeline.testing import Sandbox, sandbox
from pipeline.web import user_session
from pipeline.web.request import Request


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_session, "QUEUED_S", 0.01)


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox(shards=1) as made:
        yield made


@pytest.fixture
def db(box: Sandbox, tmp_path: Any) -> Iterator[Any]:
    db = DAL(box.client.nodes.uri(box.client.nodes.primary_name("s0")), folder=str(tmp_path), bigint_id=True)
    fields = (Field("name"), Field("qty", "integer"), Field("maker", writable=False), Field("gone", writable=False))
    db.define_table("item", *fields, migrate=False)
    box.client.define_tables(db)
    yield db
    db.close()


@pytest.fixture
def worker(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply everything as soon as somebody waits for it, however long that takes."""
    monkeypatch.setattr(user_session, "QUEUED_S", 60)
    monkeypatch.setattr(clock, "sleep_s", lambda seconds: box.drain())


def request_of(box: Sandbox, db: Any, token: str | None = None) -> Request:
    """Begin a request of the user with that token, as its model would."""
    request = Request(box.client, box.client.held(), token)
    request.attach(db.item)
    return request


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "found",
    [
        lambda db, row_id: db(db.item).count(),
        lambda db, row_id: not db(db.item).isempty(),
        lambda db, row_id: db.item[row_id],
        lambda db, row_id: db.item(qty=1),
        lambda db, row_id: db().select(db.item.ALL),
        lambda db, row_id: list(db(db.item).iterselect()),
        lambda db, row_id: db(db.other).select(left=db.item.on(db.item.qty == db.other.n)).first().item.id,
    ],
)
def test_the_next_page_waits_until_the_database_has_what_the_user_wrote(box: Sandbox, db: Any, found: Any):
    db.define_table("other", Field("n", "integer"))
    db.other.insert(n=1)
    db.commit()
    request = request_of(box, db)
    row_id = db.item.insert(qty=1)
    token = request.finish()

    request_of(box, db, token)

    assert found(db, row_id)


def test_who_has_written_nothing_does_not_wait(box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch):
    request = request_of(box, db)
    db.item.insert(qty=1)
    request.finish()
    asked: list[Any] = []
    monkeypatch.setattr(box.client.reads, "settle", lambda *args: asked.append(args))

    request_of(box, db)

    assert db(db.item).count() == 0
    assert asked == []


@pytest.mark.usefixtures("worker")
def test_a_request_asks_once_for_what_its_user_wrote(box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch):
    request = request_of(box, db)
    db.item.insert(qty=1)
    token = request.finish()
    settle, asked = box.client.reads.settle, []
    monkeypatch.setattr(box.client.reads, "settle", lambda *args: asked.append(settle(*args)) or asked[-1])

    request_of(box, db, token)
    for _ in range(3):
        db(db.item).count()

    assert asked == [True]


def test_a_page_does_not_fail_when_the_workers_are_behind(box: Sandbox, db: Any, caplog: pytest.LogCaptureFixture):
    request = request_of(box, db)
    db.item.insert(qty=1)
    token = request.finish()

    request_of(box, db, token)

    assert db(db.item).count() == 0
    assert "may not see" in caplog.text


@pytest.mark.usefixtures("worker")
def test_a_request_that_writes_at_once_sees_its_own(box: Sandbox, db: Any):
    Request(box.client).attach(db.item)

    db.item.insert(qty=1)
    once = db(db.item).count()
    db.item.insert(qty=2)

    assert (once, db(db.item).count()) == (1, 2)


# what an edit form ships ------------------------------------------------------------------------------------------


@pytest.fixture
def shown(box: Sandbox, db: Any) -> Any:
    """A record that is in the database."""
    box.client.enqueue_insert(db.item, name="pen", qty=1, maker="Ada", gone="no")
    box.drain()
    return db(db.item).select().first()


def edited(db: Any, record: Any, **changes: Any) -> None:
    """Update a row as an edit form does: with all its fields."""
    values = {name: record[name] for name in ("name", "qty", "maker", "gone")}
    with editing(db.item, record):
        db(db.item.id == record.id).update(**{**values, **changes})


@pytest.mark.usefixtures("worker")
def test_an_edit_ships_the_fields_that_differ_from_the_record_shown(box: Sandbox, db: Any, shown: Any):
    request = request_of(box, db)

    edited(db, shown, qty=5)

    request.finish()
    [op] = [one for one in box.enqueued("item") if one.kind == "update"]
    assert op.values == {"qty": 5}


@pytest.mark.usefixtures("worker")
def test_an_edit_of_which_only_a_stamp_differs_ships_nothing(box: Sandbox, db: Any, shown: Any):
    request = request_of(box, db)
    db.item.maker.update = "Bob"  # as `auth.signature` stamps who changed a row, and when

    edited(db, shown, maker="Bob")
    assert [one.kind for one in box.enqueued("item")] == ["insert"]

    edited(db, shown, maker="Bob", qty=5)
    request.finish()
    [op] = [one for one in box.enqueued("item") if one.kind == "update"]
    assert op.values == {"qty": 5, "maker": "Bob"}


def test_edits_of_two_fields_both_stand_though_the_second_form_shows_the_row_as_it_was(
    box: Sandbox, db: Any, shown: Any
):
    first = request_of(box, db)
    edited(db, shown, qty=5)
    token = first.finish()

    second = request_of(box, db, token)  # the workers are behind
    edited(db, db.item[shown.id], name="ink")
    second.finish()

    box.drain()
    assert (box.rows("item")[0]["name"], box.rows("item")[0]["qty"]) == ("ink", 5)
