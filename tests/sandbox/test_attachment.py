"""An attached table: pyDAL's own words become ops, and return what its callers expect."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.attachment import attached, changes, detach
from pipeline.errors import BadOp, BadQuery, BadValue, ShardKeyError
from pipeline.testing import Sandbox
from pipeline.web.request import Request

TABLES = {"sale": {"shard_key": "customer"}, "odd": {"ids": "database", "shard_key": "name"}}


@pytest.fixture
def db(box: Sandbox, tmp_path: Any) -> Iterator[Any]:
    db = DAL("sqlite:memory", folder=str(tmp_path), bigint_id=True)
    db.define_table(
        "item",
        Field("name", length=20),
        Field("qty", "integer", default=1),
        Field("double_qty", "integer", compute=lambda row: row.qty * 2),
        Field("note", default="new", update="changed"),
        Field("at", "datetime"),
    )
    db.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer"))
    db.define_table("odd", Field("name"))
    db.define_table("auth_user", Field("email"))
    db.define_table(
        "loose",
        Field("words", "text"),
        Field("tags", "list:string"),
        Field("config", "json"),
        Field("money", "decimal(10,2)"),
    )
    pipeline.define_tables(db)
    pipeline.attach(db.item)
    pipeline.attach(db.loose)
    pipeline.attach(db.sale)
    yield db
    db.close()


def test_insert_returns_the_real_id_and_writes_nothing_to_the_applications_own_database(box: Sandbox, db: Any):
    row_id = db.item.insert(name="pen", qty=3)

    box.drain()
    assert [row["id"] for row in box.rows("item")] == [row_id]
    assert box.rows("item")[0] | {"at": None} == {
        "id": row_id, "name": "pen", "qty": 3, "double_qty": 6, "note": "new", "at": None
    }  # fmt: skip
    assert db(db.item).count() == 0


def test_every_insert_of_pydal_is_queued(box: Sandbox, db: Any):
    ids = db.item.bulk_insert([{"name": "a"}, {"name": "b"}, {"name": "c"}])
    db.item[None] = {"name": "d"}
    ids.append(db.item.update_or_insert(db.item.name == "e", name="e"))
    found = db.item.validate_and_insert(name="f")
    db.item.import_from_csv_file(io.StringIO("item.name,item.qty\r\ng,5\r\n"))

    assert found["id"] > 2**49
    assert not found["errors"]
    assert [one.values["name"] for one in sorted(box.enqueued("item"), key=lambda one: one.values["name"])] == [
        *"abcdefg"
    ]
    assert {one.id for one in box.enqueued("item")} >= set(ids)


def test_a_whole_database_is_imported_if_ids_are_mapped(box: Sandbox, db: Any):
    text = "TABLE item\r\nitem.id,item.name\r\n1,a\r\n2,b\r\n\r\nEND\r\n"

    db.import_from_csv_file(io.StringIO(text), id_map={})

    assert sorted(one.values["name"] for one in box.enqueued("item")) == ["a", "b"]


def test_update_and_delete_by_id_are_one_op_and_return_one(box: Sandbox, db: Any):
    row_id, gone = db.item.insert(name="pen"), db.item.insert(name="ink")

    assert db(db.item.id == row_id).update(qty=5) == 1
    assert db(db.item.id == gone).delete() == 1

    box.drain()
    [row] = box.rows("item")
    assert (row["name"], row["qty"], row["double_qty"], row["note"]) == ("pen", 5, 10, "changed")


def test_insert_returns_a_reference_that_reads_its_row_as_pydals_does(box: Sandbox, db: Any):
    one = db.item.insert(name="pen")
    two, three = db.item.bulk_insert([{"name": "ink"}, {"name": "nib"}])

    db.executesql(f"INSERT INTO item (id, name) VALUES ({one:d}, 'pen')")
    assert one.name == "pen"
    assert [type(made).__name__ for made in (one, two, three)] == ["Reference"] * 3


@pytest.mark.parametrize("row_id", [0, "0", -1, "", None])
def test_an_id_that_no_row_has_is_no_row_and_no_op(box: Sandbox, db: Any, row_id: Any):
    assert db(db.item.id == row_id).update(qty=5) == 0
    assert db((db.item.id == row_id) & (db.item.qty > 0)).delete() == 0

    assert box.enqueued() == []


def test_rows_are_found_under_the_names_that_table_and_id_have_in_the_database(box: Sandbox, db: Any):
    db.define_table("old", Field("number", "id"), Field("order", rname="`the order`"), rname="`tbl_old`")
    pipeline.define_tables(db)
    pipeline.attach(db.old)
    db.old.insert(order="a")
    box.drain()

    assert db(db.old.order == "a").update(order="b") == 1

    box.drain()
    assert [row["order"] for row in box.rows("old")] == ["b"]


def test_a_whole_number_is_a_text_of_its_digits_as_pydal_stores_it(box: Sandbox, db: Any):
    row_id = db.item.insert(name=1024)
    db(db.item.id == row_id).update(note=row_id)

    box.drain()
    assert [(row["name"], row["note"]) for row in box.rows("item")] == [("1024", f"{row_id:d}")]
    with pytest.raises(BadValue, match=r"item\.name"):
        pipeline.enqueue_insert(db.item, name=1024, qty=1)


MOMENT = datetime(2024, 5, 1, 9, 30, 0, 7)


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("words", "caf\u00e9".encode(), "caf\u00e9"),
        ("words", bytearray(b"ab"), "ab"),
        ("words", 1.5, "1.5"),
        ("words", Decimal("1.10"), "1.10"),
        ("words", True, "True"),
        ("words", date(2024, 5, 1), "2024-05-01"),
        ("words", MOMENT, "2024-05-01 09:30:00.000007"),
        ("words", time(9, 30), "09:30:00"),
        ("words", UUID(int=5), str(UUID(int=5))),
        ("tags", [7, 1.5, "a|b", Decimal("2.50")], ["7", "1.5", "a|b", "2.50"]),
        ("tags", 7, ["7"]),
        (
            "config",
            {"a": Decimal("1.50"), "b": [MOMENT, date(2024, 5, 1)]},
            {"a": "1.50", "b": ["2024-05-01 09:30:00", "2024-05-01"]},
        ),
        ("config", (1, (2,)), [1, [2]]),
        ("money", Decimal(10) / 3, 3.33),
        ("money", Decimal("-2.345"), -2.35),
        ("money", 2.675, 2.68),
        ("money", "0.005", 0.01),
    ],
)
def test_what_pydal_stores_without_loss_is_stored_on_an_attached_table_and_refused_by_an_explicit_call(
    box: Sandbox, db: Any, field: str, value: Any, stored: Any
):
    row_id = db.loose.insert(**{field: value})
    changed = db.loose.insert()
    db(db.loose.id == changed).update(**{field: value})

    box.drain()

    assert {row["id"]: row[field] for row in box.rows("loose")} == {row_id: stored, changed: stored}
    with pytest.raises(BadValue, match=f"loose.{field}"):
        pipeline.enqueue_insert(db.loose, **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("words", b"\xff", "not UTF-8"),
        ("words", [1], "send a str"),
        ("words", {"a": 1}, "send a str"),
        ("tags", [b"ab"], "send bytes"),
        ("tags", 0, "empty list"),
        ("tags", [None], "send a str"),
        ("config", {1: 2}, "JSON must be made of"),
        ("config", {"s"}, "JSON must be made of"),
        ("config", float("nan"), "JSON must be made of"),
        ("config", [MOMENT.replace(tzinfo=timezone(timedelta(hours=2)))], "time zone"),
        ("money", Decimal("NaN"), "NaN"),
        ("money", Decimal("123456789.00"), "cannot hold all its digits"),
    ],
)
def test_what_pydal_would_bend_is_refused_on_an_attached_table(box: Sandbox, db: Any, field: str, value: Any, why: str):
    with pytest.raises(BadValue, match=why):
        db.loose.insert(**{field: value})


def test_a_condition_is_never_rounded(box: Sandbox, db: Any):
    row_id = db.loose.insert(money=Decimal("3.33"))
    box.drain()

    with pytest.raises(BadValue, match="cannot hold all its digits"):
        db((db.loose.id == row_id) & (db.loose.money == Decimal("3.333"))).update(words="changed")


def test_the_shortcuts_of_pydal_see_success(box: Sandbox, db: Any):
    row_id, gone = db.item.insert(name="pen"), db.item.insert(name="ink")

    db.item[row_id] = {"qty": 7}
    del db.item[gone]

    box.drain()
    assert [row["qty"] for row in box.rows("item")] == [7]


def test_a_selected_row_can_be_updated_and_deleted(box: Sandbox, db: Any):
    detach(db.item)
    kept, gone = (db.item(db.item.insert(id=2**49 + n, name=f"n{n}")) for n in range(2))
    pipeline.attach(db.item)

    kept.update_record(qty=9)
    gone.delete_record()
    db.item.validate_and_update(kept.id, name="new")

    assert [(one.kind, one.id) for one in box.enqueued("item") if one.id == gone.id] == [("delete", gone.id)]
    assert [one.values.get("name") for one in box.enqueued("item") if one.id == kept.id] == [None, "new"]


def test_a_query_without_a_place_becomes_an_op_for_each_row_that_still_matches(box: Sandbox, db: Any):
    low, high = db.sale.insert(customer=7, qty=1), db.sale.insert(customer=8, qty=5)
    box.drain()

    assert db(db.sale.qty > 3).update(qty=50) == 1
    box.drain()
    assert db(db.sale.qty > 100).delete() == 0

    # meanwhile the row stops to match: the op must see that
    [op] = [one for one in box.enqueued("sale") if one.kind == "update"]
    assert op.where is not None
    assert {row["id"]: row["qty"] for row in box.rows("sale")} == {low: 1, high: 50}


def test_a_row_that_no_longer_matches_when_the_op_is_applied_is_left_alone(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch
):
    row_id = db.sale.insert(customer=8, qty=5)
    box.drain()
    look = changes.primary_rows

    def look_and_be_overtaken(*args: Any) -> Any:
        found = look(*args)
        pipeline.enqueue_update(db.sale.customer == 8, qty=1)
        return found

    monkeypatch.setattr(changes, "primary_rows", look_and_be_overtaken)
    assert db(db.sale.qty > 3).delete() == 1

    box.drain()
    assert [(row["id"], row["qty"]) for row in box.rows("sale")] == [(row_id, 1)]


def test_a_row_that_is_still_queued_is_waited_for_and_never_overlooked(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch
):
    db.sale.insert(customer=8, qty=5)
    barrier = box.client.barrier
    monkeypatch.setattr(box.client, "barrier", lambda *args: (box.drain(), barrier(*args)))

    assert db(db.sale.qty > 3).update(qty=6) == 1

    box.drain()
    assert [row["qty"] for row in box.rows("sale")] == [6]


def test_a_write_that_would_overlook_what_its_own_request_has_queued_is_refused(box: Sandbox, db: Any):
    request = Request(box.client, box.client.held())
    request.attach(db.sale)
    request.attach(db.item)
    row_id = db.sale.insert(customer=8, qty=5)

    with pytest.raises(BadOp, match="same request has queued"):
        db(db.sale.qty > 3).update(qty=6)
    assert db(db.item.qty > 3).update(qty=6) == 0  # of another table: nothing can be overlooked
    assert db((db.sale.id == row_id) & (db.sale.qty > 3)).update(qty=7) == 1

    request.finish()
    box.drain()
    assert [row["qty"] for row in box.rows("sale")] == [7]


def test_a_write_in_an_atomic_block_that_would_overlook_the_blocks_own_is_refused(box: Sandbox, db: Any):
    with pipeline.atomic():
        db.sale.insert(customer=8, qty=5)
        with pytest.raises(BadOp, match="same request has queued"):
            db(db.sale.qty > 3).update(qty=6)

    assert [one.kind for one in box.enqueued()] == ["insert"]


def test_ids_in_a_list_are_an_op_each_and_nobody_looks_for_their_rows(box: Sandbox, db: Any):
    ids = [db.sale.insert(customer=n, qty=n) for n in range(4)]

    assert db(db.sale.id.belongs(ids[:2])).delete() == 2
    assert db(db.sale.id.belongs(ids[2:]) & (db.sale.qty > 2)).update(qty=9) == 2
    assert db(db.sale.id.belongs([])).delete() == 0

    assert {one.id for one in box.enqueued("sale") if one.kind == "delete"} == set(ids[:2])
    box.drain()
    assert {row["id"]: row["qty"] for row in box.rows("sale")} == {ids[2]: 2, ids[3]: 9}


def test_a_query_that_the_log_cannot_carry_is_refused_by_its_operator(box: Sandbox, db: Any):
    db.item.insert(name="pen")
    box.drain()

    with pytest.raises(BadQuery, match="'like'"):
        db(db.item.name.like("p%")).delete()


def test_an_update_may_repeat_the_shard_key_and_not_change_it(box: Sandbox, db: Any):
    row_id = db.sale.insert(customer=7, qty=1)
    box.drain()

    db(db.sale.id == row_id).update(customer=7, qty=2)
    with pytest.raises(ShardKeyError, match="cannot be changed"):
        db(db.sale.id == row_id).update(customer=8)

    box.drain()
    assert [(row["customer"], row["qty"]) for row in box.rows("sale")] == [(7, 2)]


def test_an_update_by_the_shard_key_may_repeat_it_and_is_one_op(box: Sandbox, db: Any):
    db.sale.bulk_insert([{"customer": 7, "qty": 1}, {"customer": 7, "qty": 2}])

    assert db(db.sale.customer == 7).update(customer=7, qty=9) == 1

    box.drain()
    assert [row["qty"] for row in box.rows("sale")] == [9, 9]


def test_an_update_that_repeats_the_shard_key_of_a_row_still_queued_comes_after_it(box: Sandbox, db: Any):
    row_id = db.sale.insert(customer=7, qty=1)

    assert db(db.sale.id == row_id).update(customer=7, qty=2) == 1

    box.drain()
    assert [row["qty"] for row in box.rows("sale")] == [2]


def test_a_row_with_an_id_of_the_databases_own_is_found_by_its_shard_key(box: Sandbox, db: Any):
    for shard in box.client.topology.shards:  # as rows that were there before the pipeline
        session = box.client.nodes.primary(shard)
        session.execute("INSERT INTO sale (id, customer, qty) VALUES (5, 7, 1)")
        session.adapter.commit()

    assert db(db.sale.id == 5).update(qty=9) == 2
    [one, *_] = box.enqueued("sale")
    assert one.values == {"qty": 9}


def test_the_callbacks_of_the_application_run_in_the_request_with_the_real_id(box: Sandbox, db: Any):
    seen: list[Any] = []
    db.item._before_insert.append(lambda row: seen.append(("before", row["name"])))
    db.item._after_insert.append(lambda row, row_id: seen.append(("after", row_id)))
    db.item._after_update.append(lambda dbset, row: seen.append(("updated", row["qty"])))
    db.item._after_delete.append(lambda dbset: seen.append("deleted"))

    row_id = db.item.insert(name="pen")
    db(db.item.id == row_id).update(qty=2)
    db(db.item.id == row_id).delete()

    assert seen == [("before", "pen"), ("after", row_id), ("updated", 2), "deleted"]


def test_a_callback_that_forbids_a_write_forbids_the_op(box: Sandbox, db: Any):
    db.item._before_insert.append(lambda row: True)

    assert db.item.insert(name="pen") == 0
    assert box.enqueued() == []


def test_a_soft_delete_by_callback_is_an_update(box: Sandbox, db: Any):
    row_id = db.item.insert(name="pen")
    db.item._before_delete.append(lambda dbset: dbset.update(note="gone"))

    db(db.item.id == row_id).delete()

    box.drain()
    assert [row["note"] for row in box.rows("item")] == ["gone"]


def test_what_goes_around_the_callbacks_is_queued_too(box: Sandbox, db: Any):
    row_id = db.item.insert(name="pen")

    db(db.item.id == row_id).update_naive(qty=2)
    db(db.item.id == row_id).delete_naive()

    assert [one.kind for one in box.enqueued("item")] == ["insert", "update", "delete"]


def test_an_attached_table_cannot_be_truncated_nor_dropped(db: Any):
    with pytest.raises(BadOp, match="delete its rows"):
        db.item.truncate()
    with pytest.raises(BadOp, match="detach it"):
        db.item.drop()

    detach(db.item)
    db.item.truncate()
    db.item.drop()


def test_an_id_above_0_means_all_rows_as_appadmin_asks(box: Sandbox, db: Any):
    for name in "ab":
        db.item.insert(name=name)
    box.drain()

    assert db(db.item.id > 0).update(qty=7) == 2
    box.drain()
    rows = box.rows("item")

    assert db((db.item.id > 0) & (db.item.id == rows[0]["id"])).delete() == 1
    box.drain()
    assert [row["qty"] for row in rows] == [7, 7]
    assert len(box.rows("item")) == 1


def test_moments_are_cut_as_pydal_cuts_them(box: Sandbox, db: Any):
    from datetime import datetime

    db.item.insert(name="pen", at=datetime(2026, 5, 6, 7, 8, 9, 123456))

    box.assert_enqueued(db.item, at=datetime(2026, 5, 6, 7, 8, 9))


def test_a_value_that_the_column_cannot_hold_is_refused_and_not_cut(box: Sandbox, db: Any):
    with pytest.raises(BadValue, match="21 characters"):
        db.item.insert(name="x" * 21)


def test_filters_and_computed_fields_run_once(box: Sandbox, db: Any):
    filtered: list[str] = []
    computed: list[str] = []
    db.define_table(
        "shout",
        Field("name", filter_in=lambda text: filtered.append(text) or text + "!"),
        Field("length", "integer", compute=lambda row: computed.append(row.name) or len(row.name)),
    )
    pipeline.attach(db.shout)

    row_id = db.shout.insert(name="hey")
    db(db.shout.id == row_id).update(name="you")

    assert [one.values for one in box.enqueued("shout")] == [{"name": f"{n}!", "length": 4} for n in ("hey", "you")]
    assert filtered == ["hey", "you"]
    assert computed == ["hey!", "you!"]


def test_attaching_twice_is_harmless_and_other_tables_are_untouched(box: Sandbox, db: Any):
    pipeline.attach(db.item)
    pipeline.attach(db.item)

    db.item.insert(name="pen")
    db.auth_user.insert(email="a@example.com")

    assert len(box.enqueued()) == 1
    assert db(db.auth_user).count() == 1
    assert [attached(db[name]) for name in ("item", "auth_user")] == [True, False]


def test_detached_tables_are_pydals_again(box: Sandbox, db: Any):
    detach(db.item)
    detach(db.sale)

    db.item.insert(name="pen")

    assert db(db.item).count() == 1
    assert box.enqueued() == []


@pytest.mark.parametrize(
    ("name", "why"),
    [("auth_user", "reads its row back"), ("odd", 'ids = "database"')],
)
def test_a_table_that_must_be_written_at_once_is_refused(db: Any, name: str, why: str):
    with pytest.raises(BadOp, match=why):
        pipeline.attach(db[name])

    assert not attached(db[name])


def test_a_table_with_int_ids_is_refused(box: Sandbox, db: Any):
    for shard in box.client.topology.shards:
        box.client.nodes.primary(shard).execute("CREATE TABLE small (id INT PRIMARY KEY, name TEXT)")
    db.define_table("small", Field("name"), migrate=False)

    with pytest.raises(BadOp, match="cannot hold a 53-bit id"):
        pipeline.attach(db.small)


def test_a_file_in_the_row_is_refused_above_a_limit(box: Sandbox, db: Any):
    db.define_table("scan", Field("file", "upload", uploadfield="content"), Field("content", "blob"))
    pipeline.attach(db.scan)

    db.scan.insert(file="a.txt", content=b"small")
    with pytest.raises(BadValue, match="uploadfield=True"):
        db.scan.insert(file="a.txt", content=b"x" * 1_000_001)

    assert len(box.enqueued("scan")) == 1


def test_a_request_holds_what_pydal_writes_until_its_commit(box: Sandbox, db: Any):
    request = Request(box.client, box.client.held())
    request.attach(db.item)

    db.item.insert(name="a")
    db.item.bulk_insert([{"name": "b"}, {"name": "c"}])

    assert request.waiting == 3
    assert box.enqueued() == []
    request.finish()
    assert len(box.enqueued()) == 3


@pytest.mark.parametrize(
    ("sql", "warned"),
    [
        ("UPDATE item SET qty = 1", True),
        ('  delete from "item"', True),
        ("SELECT qty FROM item", False),
        ("DELETE FROM items_of_others", False),
    ],
)
def test_sql_that_writes_around_the_pipeline_is_logged(
    db: Any, sql: str, warned: bool, caplog: pytest.LogCaptureFixture
):
    db.executesql('CREATE TABLE "items_of_others" (id INTEGER)')

    db.executesql(sql)

    assert ("write_around table=item" in caplog.text) == warned


def test_references_of_an_imported_database_follow_their_rows(box: Sandbox, db: Any):
    source = DAL("sqlite:memory")
    for one in (source, db):
        one.define_table("maker", Field("name"))
        one.define_table("part", Field("maker", "reference maker"), Field("its", "list:reference maker"))
    ada, bob = source.maker.insert(name="Ada"), source.maker.insert(name="Bob")
    source.part.insert(maker=bob, its=[ada, bob])
    file = io.StringIO()
    source.export_to_csv_file(file)
    pipeline.define_tables(db)
    pipeline.attach(db.maker)
    pipeline.attach(db.part)

    db.import_from_csv_file(io.StringIO(file.getvalue()))

    box.drain()
    ids = {row["name"]: row["id"] for row in box.rows("maker")}
    [part] = box.rows("part")
    assert (part["maker"], part["its"]) == (ids["Bob"], [ids["Ada"], ids["Bob"]])
    source.close()


def test_an_id_of_the_pipeline_in_an_int_column_of_the_applications_own_table_is_warned_about_once(
    box: Sandbox, db: Any, caplog: pytest.LogCaptureFixture
):
    db.define_table("permission", Field("record_id", "integer"), Field("of", "integer"), Field("wide", "bigint"))
    row_id = db.item.insert(name="pen")

    for value in (7, row_id, str(row_id), row_id):
        db.permission.insert(record_id=value, wide=row_id)
    db.permission.bulk_insert([{"record_id": row_id}, {"of": 7}])
    assert [told.split(" text=")[0] for told in caplog.messages] == [narrow("permission", "record_id", row_id)]

    db(db.permission.id > 0).update(of=row_id)
    assert caplog.messages[1].startswith(narrow("permission", "of", row_id))
    assert len(caplog.records) == 2
    assert {row.wide for row in db(db.permission).select()} >= {row_id}


def narrow(table: str, column: str, row_id: int) -> str:
    return f"narrow_column table={table} column={column} id={row_id}"


@pytest.mark.parametrize(("wide", "warned"), [(False, True), (True, False)])
def test_a_reference_has_32_bits_where_the_dal_was_made_without_bigint_id(
    box: Sandbox, caplog: pytest.LogCaptureFixture, tmp_path: Any, wide: bool, warned: bool
):
    db = DAL("sqlite:memory", folder=str(tmp_path), bigint_id=wide)
    db.define_table("item", Field("name", length=20))
    db.define_table(f"wish{wide}", Field("item", "reference item", ondelete="NO ACTION"))
    pipeline.attach(db.item)
    row_id = db.item.insert(name="pen")
    db.executesql("PRAGMA foreign_keys=OFF")

    db[f"wish{wide}"].insert(item=row_id)

    assert ("narrow_column table=wishFalse column=item" in caplog.text) == warned
    db.close()
