"""What belongs to a request stays with it: its tables, its user and its filters are those of the rows that it reads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.requests import WAYS, Find, box, model, rows, shows, written

import pipeline
from pipeline.testing import Sandbox

__all__ = ["box", "rows"]


class Present(local):
    """Who a thread's request is of, as web2py's `current` knows."""

    user = ""


PRESENT = Present()


@pytest.mark.parametrize("find", WAYS)
def test_a_row_is_read_as_the_present_request_reads_it(rows: Any, find: Find):
    for user in ("Ada", "Bob", "Ada"):
        shows(find(model(user), *rows[user]), user)


@pytest.mark.parametrize("find", WAYS)
def test_nobody_sees_the_rows_that_the_present_requests_filter_hides(rows: Any, find: Find):
    owner, row_id = rows["Ada"]

    assert find(model("Ada"), owner, row_id) is not None
    assert getattr(find(model("Bob"), owner, row_id), "id", None) in (None, rows["Bob"][1])


@pytest.mark.parametrize("find", WAYS)
def test_two_requests_at_once_each_read_as_their_own_user(rows: Any, find: Find):
    together = Barrier(2, timeout=30)

    def page(user: str) -> None:
        db = model(user)
        for _ in range(10):
            together.wait()
            shows(find(db, *rows[user]), user)

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(page, user) for user in ("Ada", "Bob")]:
            future.result()


def test_a_filter_is_asked_for_in_the_thread_of_its_request(box: Sandbox):
    db = model("")
    db.item._common_filter = lambda query: db.item.seen_by == PRESENT.user
    PRESENT.user = "Cy"
    _, row_id = written(db, seen_by="Cy")
    box.drain()

    assert [row.id for row in pipeline.select(db.item)] == [row_id]
    assert pipeline.count(db.item) == pipeline.count(db.item, distinct=db.item.seen_by) == 1


@pytest.mark.parametrize("by_field", [False, True])
def test_rows_are_rendered_by_the_present_request(rows: Any, monkeypatch: pytest.MonkeyPatch, by_field: bool):
    monkeypatch.setattr(
        DAL, "representers", {"rows_render": lambda field, value, row: field.represent(value, row)}, raising=False
    )
    for user in ("Ada", "Bob"):
        db = model(user)
        found = pipeline.select(db.item)
        rendered = found.render(fields=[found.db.item.name] if by_field else None)
        assert [row.name for row in rendered] == [f"{user}: pen for {user}"]


def test_virtual_fields_of_the_old_style_are_the_present_requests(rows: Any):
    for user in ("Ada", "Bob"):
        assert [row.old_reader for row in pipeline.select(model(user).item)] == [user]


def test_a_virtual_field_that_was_edited_is_there_without_a_restart(rows: Any):
    pipeline.get(model("Ada").item, rows["Ada"][1])

    edited = model("Ada")
    edited.item.reader.f = lambda row: "edited"

    assert [find(edited, *rows["Ada"]).reader for find in WAYS] == ["edited"] * len(WAYS)


# the primary's DAL --------------------------------------------------------------------------------------------------


def test_the_primarys_dal_has_a_field_that_the_model_got_since(box: Sandbox):
    def model_with(*more: Field) -> Any:
        made = DAL("sqlite:memory")
        made.define_table("note2", Field("text"), *more)
        return made

    old, new = model_with(), model_with(Field("added", default="new"))
    first = pipeline.enqueue_insert(old.note2, text="x").id
    box.drain()
    assert pipeline.get_db(old.note2, first).note2(first).text == "x"
    for shard in box.client.topology.shards:
        box.client.nodes.primary(shard).execute("ALTER TABLE note2 ADD added")
        box.client.nodes.primary(shard).adapter.commit()

    pdb = pipeline.get_db(new.note2, first)

    assert pdb(pdb.note2.added == None).select().first().text == "x"  # noqa: E711 - pyDAL's own words


STAMPED: list[Callable[[Any, Any, int], Any]] = [
    lambda pdb, db, row_id: pdb(pdb.stamped.id == row_id).update(text="y"),
    lambda pdb, db, row_id: pdb(db.stamped.id == row_id).update(text="y"),
    lambda pdb, db, row_id: pdb.stamped(row_id).update_record(text="y"),
    lambda pdb, db, row_id: pdb.stamped.insert(text="y"),
]


@pytest.mark.parametrize("write", STAMPED)
def test_what_the_primarys_dal_writes_is_stamped_by_the_present_request(box: Sandbox, write: Any):
    def model_of(user: str) -> Any:
        made = DAL("sqlite:memory")
        made.define_table("stamped", Field("text"), Field("stamp", default=user, update=user))
        return made

    row_id = pipeline.enqueue_insert(model_of("Ada").stamped, text="x").id
    box.drain()
    stamps = []
    for user in ("Ada", "Bob"):
        db = model_of(user)
        pdb = pipeline.get_db(db.stamped, row_id)
        write(pdb, db, row_id)
        stamps.append(pdb(pdb.stamped.text == "y").select().first().stamp)
        pdb.rollback()

    assert stamps == ["Ada", "Bob"]


def test_a_grid_that_asks_a_tables_dal_for_the_table_gets_the_present_requests(rows: Any):
    (ada, _), (bob, _) = rows["Ada"], rows["Bob"]
    for user, owner, hidden in (("Ada", ada, bob), ("Bob", bob, ada)):
        db = model(user)
        with pipeline.read(db.item, shard_key=owner) as node:
            table = node.item
            its = table._db
            found = its(its[table._tablename].id > 0, ignore_common_filters=None).select(its.item.ALL, orderby=table.id)

            assert its["item"] is table
            assert {row.owner for row in found} == {owner}
            assert its(its.item.owner == hidden).isempty()


def test_a_table_that_refers_to_itself_is_bound(box: Sandbox):
    db = model("Ada")
    db.define_table("node", Field("up", "reference node"), Field("name"))
    pipeline.define_tables(db)

    with pipeline.read(db.item, shard_key=7) as node:
        assert node._own(db.node)._db is node
        assert node._own(db.node).up.referenced_table() is node._own(db.node)


def test_threads_that_make_statements_at_once_do_not_mix_them_up(rows: Any):
    together, before = Barrier(2, timeout=30), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def page(user: str) -> None:
        owner, row_id = rows[user]
        own = pipeline.get_db(model(user).item, owner)
        together.wait()
        for _ in range(300):
            found = own((own.item.owner == owner) & (own.item.id == row_id)).select(own.item.id, own.item.owner)
            assert [(row.id, row.owner) for row in found] == [(row_id, owner)]

    try:
        with ThreadPoolExecutor(2) as threads:
            for future in [threads.submit(page, user) for user in ("Ada", "Bob")]:
                future.result()
    finally:
        sys.setswitchinterval(before)
