"""What a row leads to is read wherever it is: references, rows that refer to it, joins; also of queued rows."""

from __future__ import annotations

from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.requests import WAYS, Find, box, model, of_all_shards, shows, written

import pipeline
from pipeline.errors import BadRead
from pipeline.testing import Sandbox

__all__ = ["box"]


@pytest.fixture
def db(box: Sandbox) -> Any:
    made = model("Eve")
    if not box.rows("country"):
        pipeline.enqueue_insert(made.country, id=7, name="Chile")
        box.drain()
    made.auth_user.insert(first_name="Evelyn")
    return made


@pytest.mark.parametrize("find", WAYS)
def test_a_reference_leads_to_the_row_wherever_it_is(box: Sandbox, db: Any, find: Find):
    friend = pipeline.enqueue_insert(db.person, name="Zed").id
    owner, row_id = written(db, created_by=1, kept_in=7, friends=[friend])
    box.drain()

    if find is of_all_shards:
        row = next(row for row in pipeline.select(db.item) if row.id == row_id)
    else:
        row = find(db, owner, row_id)

    assert row.owner.name == "Zoe"
    assert row.created_by.first_name == "Evelyn"  # of a table that stays in the application's database
    assert row.kept_in.name == "Chile"
    assert [one.name for one in row.friends] == ["Zed"]
    assert (row.owner, row.created_by, row.friends) == (owner, 1, [friend])
    assert (row.owner["name"], "name" in row.owner._table) == ("Zoe", True)


def test_a_reference_to_a_row_that_is_nowhere_is_broken_as_in_pydal(box: Sandbox, db: Any):
    _, row_id = written(db, created_by=99)
    box.drain()

    with pytest.raises(RuntimeError, match="broken reference: auth_user 99"):
        _ = pipeline.get(db.item, row_id).created_by.first_name


def test_a_reference_to_a_table_that_no_shard_has_leads_to_the_applications_database(box: Sandbox):
    db = DAL("sqlite:memory", bigint_id=True)
    db.define_table("shelf", Field("name"))
    db.define_table("book", Field("kept_in", "reference shelf"))
    row_id = pipeline.enqueue_insert(db.book, kept_in=db.shelf.insert(name="top")).id
    box.drain()

    assert pipeline.get(db.book, row_id).kept_in.name == "top"


def test_a_virtual_field_may_follow_a_reference(box: Sandbox, db: Any):
    db.item.reader.f = lambda row: row.item.created_by.first_name
    owner, row_id = written(db, created_by=1)
    box.drain()

    assert [find(db, owner, row_id).reader for find in WAYS if find is not of_all_shards] == ["Evelyn"] * (
        len(WAYS) - 1
    )


@pytest.mark.parametrize("find", WAYS)
def test_all_rows_that_refer_to_a_row_are_found_whatever_was_read_before(box: Sandbox, db: Any, find: Find):
    owner, row_id = written(db)
    for name in ("nib", "cap"):
        pipeline.enqueue_insert(db.part, item=row_id, name=name)
    box.drain()

    row = pipeline.get(db.item, row_id) if find is of_all_shards else find(db, owner, row_id)

    assert sorted(part.name for part in row.part.select()) == ["cap", "nib"]
    assert (row.part.count(), row.part.isempty()) == (2, False)
    assert [part.name for part in row.part(db.part.name == "nib").select()] == ["nib"]


def test_rows_that_refer_to_a_row_from_every_shard_are_all_found(box: Sandbox, db: Any):
    db.define_table("visit", Field("item", "reference item"))  # spread by its own id
    _, row_id = written(db)
    for _ in range(12):
        pipeline.enqueue_insert(db.visit, item=row_id)
    box.drain()

    row = pipeline.get(db.item, row_id)

    assert row.visit.count() == len(row.visit.select()) == 12
    if len(box.client.topology.shards) > 1:  # as for any read over all shards
        with pytest.raises(BadRead, match="orderby"):
            row.visit.select(limitby=(0, 2))
    assert len(row.visit.select(orderby=db.visit.id, limitby=(0, 2))) == 2


def test_what_a_row_leads_to_is_not_changed_through_it(box: Sandbox, db: Any):
    _, row_id = written(db)
    box.drain()

    with pytest.raises(BadRead, match="enqueue_update"):
        pipeline.get(db.item, row_id).part.update(name="x")
    with pytest.raises(BadRead, match="enqueue_delete"):
        pipeline.get(db.item, row_id).part(db.part.id > 0).delete()


def test_rows_are_joined_with_what_they_refer_to_and_with_what_refers_to_them(box: Sandbox, db: Any):
    rows = {name: written(db, seen_by="Eve", created_by=1) for name in ("first", "second")}
    for owner, row_id in rows.values():
        pipeline.enqueue_insert(db.part, item=row_id, name=f"of {owner}")
    box.drain()
    ids = [row_id for _, row_id in rows.values()]
    query = db.item.id.belongs(ids)

    parts = pipeline.select(query, orderby=db.item.id).join(db.part.item)
    assert {row.id: [part.name for part in row.part] for row in parts} == {
        row_id: [f"of {owner}"] for owner, row_id in rows.values()
    }
    owners = pipeline.select(query).join(db.person.id, name="owner")
    assert [row.owner.name for row in owners] == ["Zoe", "Zoe"]
    makers = pipeline.select(query).join(db.auth_user.id, name="created_by")
    assert [row.created_by.first_name for row in makers] == ["Evelyn", "Evelyn"]


def test_a_set_over_the_applications_database_and_the_shards_is_refused_by_name(box: Sandbox, db: Any):
    written(db, created_by=1)
    box.drain()
    rows = pipeline.select(db.item)

    with pytest.raises(BadRead, match="'auth_user' stays in the application's database and 'item' does not"):
        rows.db(db.item.created_by == db.auth_user.id).select()


def test_a_lazy_table_that_refers_to_a_row_is_made_when_it_is_asked_for(box: Sandbox):
    db = model("Eve", lazy_tables=True)
    _, row_id = written(db)
    pipeline.enqueue_insert("part", item=row_id, name="nib")
    box.drain()
    lazy = model("Eve", lazy_tables=True)

    assert [part.name for part in pipeline.get(lazy.item, row_id).part.select()] == ["nib"]


def test_what_a_row_of_the_primarys_dal_leads_to_is_of_its_transaction_where_one_shard_has_it(box: Sandbox, db: Any):
    owner, row_id = written(db)
    pipeline.enqueue_insert(db.part, item=row_id, name="nib")
    box.drain()
    pdb = pipeline.get_db(db.item, owner)
    row = pdb.item(row_id)
    pdb(pdb.part.item == row_id).update(name="changed")

    assert [part.name for part in row.part.select()] == ["changed"]
    assert row.owner.name == "Zoe"
    pdb.rollback()


# rows that are queued -----------------------------------------------------------------------------------------------


def test_a_queued_row_is_read_as_it_will_be_when_it_is_applied(box: Sandbox, db: Any):
    friend = pipeline.enqueue_insert(db.person, name="Zed").id
    owner, row_id = written(db, created_by=1, kept_in=7, friends=[friend])
    pipeline.enqueue_insert(db.part, item=row_id, name="nib")

    def seen(**options: Any) -> list[Any]:
        row = pipeline.get(db.item, row_id, **options)
        shows(row, "Eve")
        values = {name: (row[name], type(row[name]).__name__) for name in db.item.fields}
        return [values, row.owner.name, row.created_by.first_name, row.kept_in.name, [one.name for one in row.friends]]

    queued = seen(pending=True)
    assert pipeline.get(db.item, row_id, pending=True).pending
    box.drain()

    assert queued == seen() == seen(pending=True)
    assert queued[0]["owner"] == (owner, "Reference")


@pytest.mark.parametrize(
    "hides",
    [
        lambda db: db.item.seen_by == "Bob",
        lambda db: db.item.seen_by.like("B%"),
        lambda db: db.item.seen_by.belongs(["Bob", "Cy"]),
        lambda db: db.item.owner.belongs(db(db.person.name == "nobody")._select(db.person.id)),
        lambda db: (db.item.id < 0) | (db.item.name.contains("pencil")),
    ],
)
def test_a_queued_row_that_the_filter_hides_is_not_there(box: Sandbox, hides: Any):
    db = model("Eve")
    _, row_id = written(db)
    assert pipeline.get(db.item, row_id, pending=True) is not None

    db.item._common_filter = lambda query: hides(db)
    queued = pipeline.get(db.item, row_id, pending=True)
    db.item._common_filter = lambda query: ~hides(db)
    shown = pipeline.get(db.item, row_id, pending=True)
    box.drain()

    assert (queued, shown.id) == (None, row_id)
    assert pipeline.get(db.item, row_id).id == row_id


def test_a_queued_row_of_another_tenant_is_not_there(box: Sandbox):
    def tenants(tenant: str) -> Any:
        made = DAL("sqlite:memory")
        made.define_table("note", Field("text"), Field("request_tenant", default=tenant, writable=False))
        return made

    mine, theirs = tenants("one"), tenants("two")
    row_id = pipeline.enqueue_insert(mine.note, text="x").id

    assert pipeline.get(mine.note, row_id, pending=True).text == "x"
    assert pipeline.get(theirs.note, row_id, pending=True) is None
    box.drain()
    pipeline.enqueue_update(mine.note.id == row_id, request_tenant="two")
    assert pipeline.get(mine.note, row_id, pending=True) is None
    assert pipeline.get(theirs.note, row_id, pending=True).text == "x"
    box.drain()
