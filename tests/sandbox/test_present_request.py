"""What belongs to a request stays with it: its tables, its user and its filters are those of the rows that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.errors import BadRead
from pipeline.testing import Sandbox, sandbox

TABLES: dict[str, dict[str, Any]] = {
    "person": {},
    "item": {"shard_key": "owner"},
    "part": {"shard_key": "item"},
    "country": {"reference": True},
}


@pytest.fixture(scope="module", params=[1, 2], ids=["one shard", "two shards"])
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with sandbox(TABLES, shards=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def rows(box: Sandbox) -> dict[str, tuple[int, int]]:
    """The owner and the id of each user's one item."""
    found = {user: written(model(user)) for user in ("Ada", "Bob")}
    box.drain()
    return found


class Present(local):
    """Who a thread's request is of, as web2py's `current` knows."""

    user = ""


PRESENT = Present()


def model(user: str, uri: str = "sqlite:memory", **options: Any) -> Any:
    """Return the DAL of a request of *user*, as a model makes it."""
    db = DAL(uri, bigint_id=True, migrate=uri.endswith("memory"), **options)
    db.define_table("auth_user", Field("first_name"))
    db.define_table("person", Field("name"), format="%(name)s")
    db.define_table("country", Field("name"))
    db.define_table(
        "item",
        Field("owner", "reference person"),
        Field("created_by", "reference auth_user"),
        Field("kept_in", "reference country"),
        Field("name", filter_out=lambda value: f"{value} for {user}", represent=lambda value, row: f"{user}: {value}"),
        Field("seen_by", default=user),
        Field("friends", "list:reference person"),
        Field.Virtual("reader", lambda row: user),
        Field.Method("greet", lambda row, word: f"{word} {user}"),
        common_filter=lambda query: db.item.seen_by == user,
    )
    db.define_table("part", Field("item", "reference item"), Field("name"))
    db.item.virtualfields.append(Old(user))
    pipeline.define_tables(db)
    return db


class Old:
    """Virtual fields in pyDAL's old style."""

    def __init__(self, user: str):
        self._user = user

    def old_reader(self) -> str:
        return self._user


Find = Callable[[Any, int, int], Any]


def one_get(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.get(db.item, row_id)


def one_get_pending(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.get(db.item, row_id, pending=True)


def by_shard_key(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.select(db.item.owner == owner).first()


def of_all_shards(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.select(db.item, orderby=db.item.id).first()


def in_a_read(db: Any, owner: int, row_id: int) -> Any:
    with pipeline.read(db.item, owner) as node:
        return node(node.item.owner == owner).select().first()


def in_a_read_of_the_callers_query(db: Any, owner: int, row_id: int) -> Any:
    with pipeline.read(db.item, owner) as node:
        return node(db.item.owner == owner).select(node.item.ALL).first()


def of_a_nodes_table(db: Any, owner: int, row_id: int) -> Any:
    with pipeline.read(db.item, owner) as node:
        return node.item(row_id)


def iterated(db: Any, owner: int, row_id: int) -> Any:
    with pipeline.read(db.item, owner) as node:
        return next(iter(node(node.item.owner == owner).iterselect()), None)


def of_the_primary(db: Any, owner: int, row_id: int) -> Any:
    pdb = pipeline.get_db(db.item, owner)
    return pdb(pdb.item.owner == owner).select().first()


def of_the_primarys_table(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.get_db("item", owner).item(row_id)


WAYS: list[Find] = [
    of_the_primary,
    of_the_primarys_table,
    one_get,
    one_get_pending,
    by_shard_key,
    of_all_shards,
    in_a_read,
    in_a_read_of_the_callers_query,
    of_a_nodes_table,
    iterated,
]


def written(db: Any, owner: int = 0, **fields: Any) -> tuple[int, int]:
    """Queue an item, and return its owner and its id."""
    owner = owner or pipeline.enqueue_insert(db.person, name="Zoe").id
    return owner, pipeline.enqueue_insert(db.item, owner=owner, name="pen", **fields).id


def shows(row: Any, user: str) -> None:
    """Check that a row is as a request of *user* reads it."""
    assert (row.reader, row.greet("hi"), row.name) == (user, f"hi {user}", f"pen for {user}")


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


# what a row leads to ----------------------------------------------------------------------------------------------


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
