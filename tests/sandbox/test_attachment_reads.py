"""Reads of an attached table through the application's own DAL, where that stands on the one shard's primary."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline import attachment, clock
from pipeline.attachment.changes import editing
from pipeline.errors import BadOp, BadRead, Rejected, WaitTimeout
from pipeline.testing import Sandbox, sandbox
from pipeline.web import own_reads
from pipeline.web.outbox import Outbox
from pipeline.web.request import Request


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_reads, "QUEUED_S", 0.01)
    monkeypatch.setattr(own_reads, "OWN_S", 0.01)


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
    monkeypatch.setattr(own_reads, "QUEUED_S", 60)
    monkeypatch.setattr(own_reads, "OWN_S", 60)
    monkeypatch.setattr(clock, "sleep_s", lambda seconds: box.drain())


_actions = count()


def request_of(
    box: Sandbox, db: Any, token: str | None = None, reads: str | None = None, action: str | None = None
) -> Request:
    """Begin a request of the user with that token, as its model would; by default of an action of its own."""
    request = Request(box.client, box.client.held(), token, action or f"shop/default/action{next(_actions)}")
    request.attach(db.item, reads)
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
    assert "own_writes_unseen" in caplog.text


@pytest.mark.usefixtures("worker")
def test_a_request_that_writes_at_once_sees_its_own(box: Sandbox, db: Any):
    Request(box.client).attach(db.item)

    db.item.insert(qty=1)
    once = db(db.item).count()
    db.item.insert(qty=2)

    assert (once, db(db.item).count()) == (1, 2)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "read",
    [
        lambda db: db(db.other).count(),
        lambda db: db().select(db.other.ALL),
        lambda db: db.executesql("SELECT COUNT(*) FROM other"),
    ],
)
def test_the_first_read_of_any_table_waits_since_mysql_shows_its_state_to_the_transactions_end(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch, read: Any
):
    db.define_table("other", Field("n", "integer"))
    request = request_of(box, db)
    db.item.insert(qty=1)
    token = request.finish()
    settle, asked = box.client.reads.settle, []
    monkeypatch.setattr(box.client.reads, "settle", lambda *args: asked.append(settle(*args)) or asked[-1])
    request_of(box, db, token)

    read(db)  # as `requires_membership` reads its groups

    assert asked == [True]
    assert db(db.item).count() == 1
    assert asked == [True]


def test_a_request_that_only_writes_to_tables_of_its_own_database_waits_for_nothing(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch
):
    db.define_table("other", Field("n", "integer"), Field("words"))
    request = request_of(box, db)
    db.item.insert(qty=1)
    token = request.finish()
    asked: list[Any] = []
    monkeypatch.setattr(box.client.reads, "settle", lambda *args: asked.append(args))
    request_of(box, db, token)

    db.other.insert(n=1, words="select it from here")

    assert asked == []


# what a request has written itself --------------------------------------------------------------------------------

#: Each reads how many rows of `item` have qty 1, as applications do.
OWN_READS = [
    lambda db: db(db.item.qty == 1).count(),
    lambda db: len(db(db.item.qty == 1).select()),
    lambda db: len(list(db(db.item.qty == 1).iterselect())),
    lambda db: int(not db(db.item.qty == 1).isempty()),
    lambda db: int(db.item(qty=1) is not None),
    lambda db: db.executesql("SELECT COUNT(*) FROM item WHERE qty = 1")[0][0],
    lambda db: db(db.other.n.belongs(db(db.item.qty == 1)._select(db.item.qty))).count(),
    lambda db: len(db(db.item.qty == 1).select(db.other.ALL, left=db.item.on(db.item.qty == db.other.n))),
]


@pytest.fixture
def other(db: Any) -> Any:
    """A table of the application's own, with one row."""
    db.define_table("other", Field("n", "integer"), Field("item", "integer"))
    db.other.insert(n=1)
    db.commit()
    return db.other


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("read", OWN_READS)
def test_a_request_that_reads_what_it_has_queued_is_warned_of_once_with_its_cure(
    box: Sandbox, db: Any, caplog: pytest.LogCaptureFixture, read: Any
):
    request = request_of(box, db, action="shop/loans/pay")
    own_reads._warned.clear()
    db.item.insert(qty=1)

    found = read(db), read(db)

    assert found == (0, 0)
    [told] = warnings(caplog)
    assert told.startswith("own_read_of_older action=shop/loans/pay text=\"reads 'item', to which it has written")
    assert r"attach(db.item, reads=\"own\")" in told
    request.finish()
    caplog.clear()

    request_of(box, db, action="shop/loans/pay")
    db.item.insert(qty=1)
    read(db)
    request_of(box, db, action="shop/loans/list")
    db.item.insert(qty=1)
    read(db)

    assert [one.split()[1] for one in warnings(caplog) if "has written, and sees" in one] == ["action=shop/loans/list"]


@pytest.mark.usefixtures("worker", "other")
@pytest.mark.parametrize("read", OWN_READS)
def test_a_request_sees_its_own_writes_where_the_table_is_attached_so(
    box: Sandbox, db: Any, caplog: pytest.LogCaptureFixture, read: Any
):
    request = request_of(box, db, reads="own")
    seen = []
    row_id = db.item.insert(qty=1)
    seen.append(read(db))  # the list below the form
    db(db.item.id == row_id).update(qty=2)
    seen.append(read(db))  # a loan that was paid is open no more
    db(db.item.id == row_id).delete()
    seen.append(read(db))

    request.finish()

    assert seen == [1, 0, 0]
    assert [one.kind for one in box.enqueued("item")] == ["insert", "update", "delete"]
    assert warnings(caplog) == []


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("ondelete", ["CASCADE", "SET NULL"])
def test_a_request_sees_what_its_own_deletes_do_to_the_rows_that_refer_to_them(box: Sandbox, db: Any, ondelete: str):
    db.define_table("part", Field("item", "reference item", ondelete=ondelete), migrate=False)
    db.define_table("grandpart", Field("part", "reference part"), migrate=False)
    box.client.define_tables(db)
    request, row_id = request_of(box, db, reads="next"), db.item.insert(qty=1)
    for table in (db.part, db.grandpart):
        request.attach(table, reads="own")
    part_id = db.part.insert(item=row_id)
    db.grandpart.insert(part=part_id)
    request.finish()
    box.drain()

    request = request_of(box, db, reads="next")
    for table in (db.part, db.grandpart):
        request.attach(table, reads="own")
    db(db.item.id == row_id).delete()
    left = [db(db.part.item == row_id).count(), db(db.grandpart).count()]
    asked = request.count(db.grandpart)

    assert left == [0, int(ondelete == "SET NULL")]
    assert asked == left[1]
    request.finish()


@pytest.mark.usefixtures("worker")
def test_a_read_of_what_a_request_has_not_written_sends_nothing(box: Sandbox, db: Any, other: Any):
    request = request_of(box, db, reads="own")
    db.item.insert(qty=1, name="a 'word'")

    for query in (other, other.item == 5, other.n.belongs(db(other.item > 0)._select(other.n))):
        db(query).select()
    db.executesql("SELECT 'from item' FROM other")

    assert box.enqueued() == []
    request.finish()
    assert len(box.enqueued()) == 1


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("SELECT `item`.`id` FROM `item`", {"item"}),
        ("SELECT x.id FROM ITEM AS x", {"item"}),
        ('SELECT "x"."id" FROM "item" AS "x", "other"', {"item"}),
        ("SELECT * FROM other WHERE id IN (SELECT id FROM [item] WHERE 1)", {"item"}),
        ("SELECT id FROM `bought`", {"old"}),
        ("SELECT id FROM other JOIN item ON 1, bought", {"item", "old"}),
        ("SELECT `other`.`item`, other.item FROM other", set()),
        ("SELECT id FROM items, item_archive, my_item", set()),
        ("SELECT id FROM other WHERE name = 'an item' OR name = 'it''s item' OR name = '\\'", set()),
    ],
)
def test_a_statement_names_a_table_and_no_column_or_text_that_is_called_so(db: Any, sql: str, named: set[str]):
    db.define_table("old", Field("n", "integer"), rname="`bought`", migrate=False)
    seen: list[Any] = []
    for table in (db.item, db.old):
        attachment.attach(table, pipeline.current, pipeline.current, before_read=seen.append)

    with suppress(sqlite3.Error):
        db.executesql(sql)

    assert [reading.tables for reading in seen] == [named]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "read",
    [
        lambda request, db, row_id: request.get(db.item, row_id).qty,
        lambda request, db, row_id: request.get(db.item, row_id, pending=True).qty,
        lambda request, db, row_id: request.select(db.item).first().qty,
        lambda request, db, row_id: request.count(db.item),
        lambda request, db, row_id: request.count("item"),
        lambda request, db, row_id: request.get(table=db.item, row_id=row_id).qty,
        lambda request, db, row_id: request.count(query="item"),
        lambda request, db, row_id: on_a_node(request.read(db.item), db),
        lambda request, db, row_id: on_a_node(request.read("item"), db),
        lambda request, db, row_id: on_a_node(request.read(table="item"), db),
        lambda request, db, row_id: request.read_db(db)(db.item).count(),
    ],
)
def test_reads_through_the_pipeline_see_it_too(box: Sandbox, db: Any, read: Any):
    request = request_of(box, db, reads="own")
    row_id = db.item.insert(qty=1)

    assert read(request, db, row_id) == 1


def on_a_node(read: Any, db: Any) -> int:
    with read as node:
        return int(node(db.item).count())


def test_a_read_through_the_pipeline_of_what_is_queued_is_warned_of(
    box: Sandbox, db: Any, caplog: pytest.LogCaptureFixture
):
    request = request_of(box, db, action="shop/default/summary")
    request.enqueue_insert(db.item, qty=1)

    assert request.count(db.item) == 0
    assert "action=shop/default/summary text=\"reads 'item'" in caplog.text


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("reads", "rows"), [("own", [2]), ("next", [1, 2])])
def test_what_looks_before_it_writes_finds_what_the_request_has_written(
    box: Sandbox, db: Any, reads: str, rows: list[int]
):
    request = request_of(box, db, reads=reads)

    for qty in (1, 2):
        db.item.update_or_insert(db.item.name == "pen", name="pen", qty=qty)

    request.finish()
    box.drain()
    assert sorted(row["qty"] for row in box.rows("item")) == rows


@pytest.mark.usefixtures("worker")
def test_rows_that_a_write_must_look_for_are_found_among_the_requests_own(box: Sandbox, db: Any):
    request = request_of(box, db, reads="own")
    for qty in (1, 2):
        db.item.insert(name="pen", qty=qty)

    changed = db(db.item.qty > 1).update(name="ink")
    deleted = db(db.item.name == "ink").delete()

    request.finish()
    box.drain()
    assert (changed, deleted) == (1, 1)
    assert [row["qty"] for row in box.rows("item")] == [1]


@pytest.mark.parametrize("mode", ["now", "on_commit"])
def test_a_page_on_a_node_that_was_chosen_before_its_request_wrote_is_warned_of(
    box: Sandbox, db: Any, caplog: pytest.LogCaptureFixture, mode: str
):
    held = None if mode == "now" else box.client.held()
    request = Request(box.client, held, action=f"shop/default/{mode}")
    rdb = request.read_db(db)
    rdb(db.item).count()
    assert caplog.text == ""

    request.enqueue_insert(db.item, qty=1)
    rdb(db.item).count()

    assert f"action=shop/default/{mode} text=\"reads 'item'" in caplog.text
    request.finish()
    caplog.clear()
    box.drain()
    assert request.read_db(db)(db.item).count() == 1
    assert caplog.text == ""


@pytest.mark.usefixtures("worker")
def test_whether_there_was_a_row_is_asked_before_the_write_whose_answer_counts_ops(box: Sandbox, db: Any):
    request = request_of(box, db, reads="own")
    pen, ink = db.item.insert(name="pen"), 5

    answers = []
    for row_id in (pen, ink):
        found = db(db.item.id == row_id)
        there = not found.isempty()  # as the documentation says to do
        answers.append((found.update(qty=9), there))
        answers.append((found.delete(), there))

    request.finish()
    assert answers == [(1, True), (1, True), (1, False), (1, False)]
    assert box.drain().rejected == 0


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("reads", ["own", "next"])
def test_old_style_virtual_fields_of_an_attached_table_are_on_rows_read_through_its_dal(
    box: Sandbox, db: Any, reads: str
):
    class Doubled:
        def twice(self) -> int:
            return int(self.item.qty * 2)  # type: ignore[attr-defined]  # pyDAL puts the row there

    db.item.virtualfields.append(Doubled())
    request = request_of(box, db, reads=reads)
    row_id = db.item.insert(qty=1)
    db(db.item.id == row_id).update(qty=2)
    db(db.item.qty > 5).select()
    request.finish()
    box.drain()

    assert db.item[row_id].twice == 4
    db(db.item).select().first().update_record(qty=3)
    request.finish()
    box.drain()
    assert [row.twice for row in db(db.item).select()] == [6]


@pytest.mark.usefixtures("worker")
def test_a_request_that_fails_after_it_saw_its_own_writes_says_that_they_stand(
    box: Sandbox, db: Any, caplog: pytest.LogCaptureFixture
):
    request = request_of(box, db, reads="own", action="shop/default/half")
    db.item.insert(qty=1)
    db(db.item).count()
    db.item.insert(qty=2)

    request.drop()

    assert [one.values["qty"] for one in box.enqueued("item")] == [1]
    assert "rolled_back_after_send action=shop/default/half ops=1" in caplog.text


@pytest.mark.usefixtures("worker")
def test_an_op_that_the_database_refuses_is_an_error_of_the_read_that_waits_for_it(box: Sandbox, db: Any):
    box.client.nodes.primary("s0").query("CREATE UNIQUE INDEX only_one ON item (qty)")
    request_of(box, db, reads="own")
    db.item.insert(qty=1)
    db.item.insert(qty=1)

    with pytest.raises(Rejected):
        db(db.item).count()


def test_a_read_of_own_writes_never_shows_an_older_state_when_the_workers_are_behind(box: Sandbox, db: Any):
    request_of(box, db, reads="own")
    db.item.insert(qty=1)

    with pytest.raises(WaitTimeout):
        db(db.item).count()


def test_a_read_in_an_atomic_block_of_what_the_block_has_queued_is_refused(box: Sandbox, db: Any):
    request = request_of(box, db, reads="own")

    with request.atomic():
        db.item.insert(qty=1)
        with pytest.raises(BadRead, match="atomic block"):
            db(db.item).count()

    assert box.enqueued() == []


def test_own_reads_are_refused_in_the_outbox_whose_ops_wait_for_their_commit(box: Sandbox, db: Any):
    rules = box.client.topology.table("item")

    with pytest.raises(BadOp, match="mode on_commit or now"):
        attachment.reads_own(db.item, rules, "own", "outbox")
    with pytest.raises(BadOp, match="own, next"):
        attachment.reads_own(db.item, rules, "mine")


def test_a_request_with_an_outbox_sends_nothing_early_whoever_attached_the_table(box: Sandbox, db: Any, tmp_path: Any):
    own = DAL("sqlite:memory", folder=str(tmp_path), bigint_id=True)
    request = Request(box.client, Outbox(own, box.client))
    request.attach(db.item, reads="own")
    db.item.insert(qty=1)

    for read in (lambda: db(db.item).count(), lambda: request.count(db.item)):
        with pytest.raises(BadRead, match="nothing is sent before its commit"):
            read()

    assert (request.waiting, box.enqueued()) == (1, [])
    request.drop()
    own.close()


def test_a_table_may_be_set_to_be_read_so(tmp_path: Any):
    with sandbox({"item": {"reads": "own"}}, shards=1) as box:
        db = DAL("sqlite:memory", bigint_id=True)
        db.define_table("item", Field("qty", "integer"), migrate=False)
        Request(box.client).attach(db.item)

        assert attachment.sees_own(db.item)
        Request(box.client).attach(db.item, reads="next")
        assert not attachment.sees_own(db.item)
        db.close()


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
