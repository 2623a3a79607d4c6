"""Record versioning of an attached table: the worker keeps each row as it was, in one group with the update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.attachment import attached, detach
from pipeline.errors import BadOp, ShardKeyError
from pipeline.testing import Sandbox
from pipeline.web.outbox import Outbox
from pipeline.web.request import Request

TABLES: dict[str, dict[str, Any]] = {
    "sale": {"shard_key": "customer"},
    "kept_with": {"shard_key": "customer"},
    "kept_apart": {"shard_key": "qty"},
    "country": {"reference": True},
    "country_archive": {"reference": True},
    "town": {"reference": True},
    "odd_archive": {"ids": "database", "shard_key": "current_record"},
    "page_archive": {"shard_key": "current_record"},
}


@pytest.fixture
def db(box: Sandbox, tmp_path: Any) -> Iterator[Any]:
    db = DAL("sqlite:memory", folder=str(tmp_path), bigint_id=True)
    db.define_table(
        "paper",
        Field("title", length=20),
        Field("n", "integer", default=0),
        Field("modified_on", "datetime"),
        Field("is_active", "boolean", default=True, readable=False),
    )
    db.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer", default=1))
    for name in ("country", "town", "odd", "page"):
        db.define_table(name, Field("name", length=20, unique=True), Field("price", "decimal(8,2)"))
    pipeline.define_tables(db)
    yield db
    db.close()


@pytest.fixture
def paper(db: Any) -> Any:
    """An attached table that keeps versions, with soft delete."""
    db.paper._enable_record_versioning()
    pipeline.attach(db.paper)
    return db.paper


def history(box: Sandbox, table: Any, row_id: int, *fields: str, link: str = "current_record") -> list[Any]:
    box.drain()
    rows = [row for row in box.rows(table) if row[link] == row_id]
    return [row[fields[0]] if len(fields) == 1 else tuple(row[name] for name in fields) for row in rows]


def test_an_update_keeps_the_row_as_the_worker_finds_it(box: Sandbox, db: Any, paper: Any):
    row_id = paper.insert(title="a")

    for title in "bcd":  # none of them is applied when the next is made
        assert db(paper.id == row_id).update(title=title) == 1

    assert history(box, "paper_archive", row_id, "title", "is_active") == [("a", True), ("b", True), ("c", True)]
    assert [row["title"] for row in box.rows(paper)] == ["d"]
    assert box.rows("paper_archive")[0]["id"] > 2**49


def test_what_the_row_is_when_the_op_is_applied_is_kept_and_not_what_it_was_when_the_op_was_made(
    box: Sandbox, db: Any, paper: Any
):
    row_id = paper.insert(title="a", n=1)
    box.drain()
    request = Request(box.client, box.client.held())
    request.attach(paper)

    db(paper.id == row_id).update(title="b")
    pipeline.enqueue_update(paper, row_id, {"n": 5})  # of someone else, sent before
    request.finish()

    assert history(box, "paper_archive", row_id, "title", "n") == [("a", 5)]


@pytest.mark.parametrize("write", ["update_record", "assign", "validate_and_update", "update_or_insert"])
def test_every_update_of_pydal_keeps_a_version(box: Sandbox, db: Any, paper: Any, write: str):
    detach(paper)
    row_id = paper.insert(id=2**49 + 3, title="a")
    pipeline.attach(paper)
    pipeline.enqueue_insert(paper, {"id": row_id, "title": "a"})

    if write == "update_record":
        paper(row_id).update_record(title="b")
    elif write == "assign":
        paper[row_id] = {"title": "b"}
    elif write == "validate_and_update":
        db(paper.id == row_id).validate_and_update(title="b")
    else:
        paper.update_or_insert(paper.id == row_id, title="b")

    assert history(box, "paper_archive", row_id, "title") == ["a"]
    assert [row["title"] for row in box.rows(paper)] == ["b"]


def test_a_copy_and_its_update_are_one_group_so_that_both_are_applied_or_neither(box: Sandbox, db: Any, paper: Any):
    session = box.client.nodes.primary("s0")
    row_id = paper.insert(title="a")
    box.drain()
    for shard in box.client.topology.shards:
        session = box.client.nodes.primary(shard)
        session.execute("DROP TABLE paper_archive")
        session.execute("CREATE TABLE paper_archive (id INTEGER PRIMARY KEY, current_record, title, n, modified_on, "
                        "is_active CHECK (title <> 'a'))")  # fmt: skip
        session.adapter.commit()

    db(paper.id == row_id).update(title="b")
    outcome = box.drain()

    assert (outcome.applied, outcome.rejected) == (0, 1)
    assert [row["title"] for row in box.rows(paper)] == ["a"]
    assert box.rows("paper_archive") == []


def test_an_update_of_a_row_that_is_not_there_keeps_nothing_and_is_no_fault(box: Sandbox, db: Any, paper: Any):
    db(paper.id == 2**49).update(title="b")

    assert box.drain() == (1, 0)
    assert box.rows("paper_archive") == []


def test_an_update_that_changes_nothing_keeps_nothing_as_in_pydal(box: Sandbox, db: Any, paper: Any):
    row_id, empty = paper.insert(title="a", n=1), paper.insert(title=None)

    db(paper.id == row_id).update(title="a", n=1)
    db(paper.id == empty).update(title=None)
    db(paper.id == row_id).update(title="A")

    assert history(box, "paper_archive", row_id, "title") == ["a"]
    assert history(box, "paper_archive", empty, "title") == []


def test_an_expression_keeps_each_step(box: Sandbox, db: Any, paper: Any):
    row_id = paper.insert(title="a")

    for _ in range(3):
        db(paper.id == row_id).update(n=paper.n + 1)

    assert history(box, "paper_archive", row_id, "n") == [0, 1, 2]
    assert box.rows(paper)[0]["n"] == 3


def test_a_delete_becomes_an_update_of_is_active_and_keeps_the_row(box: Sandbox, db: Any, paper: Any):
    row_id, other = paper.insert(title="a"), paper.insert(title="b")
    detach(paper)
    paper.insert(id=row_id, title="a")
    pipeline.attach(paper)

    db(paper.id == row_id).delete()
    paper(row_id).delete_record()

    assert history(box, "paper_archive", row_id, "is_active") == [True]
    assert {row["id"]: row["is_active"] for row in box.rows(paper)} == {row_id: False, other: True}


def test_a_soft_delete_that_finds_no_row_is_never_a_delete(box: Sandbox, db: Any, paper: Any):
    assert db(paper.title == "none").delete() == 0

    assert box.enqueued() == []


def test_a_row_that_was_deleted_softly_is_not_updated_any_more(box: Sandbox, db: Any, paper: Any):
    row_id = paper.insert(title="a")

    db(paper.id == row_id).delete()
    db(paper.id == row_id).update(title="b")

    assert history(box, "paper_archive", row_id, "title") == ["a"]
    assert [row["title"] for row in box.rows(paper)] == ["a"]


def test_an_update_of_many_rows_keeps_each_of_those_that_still_match(box: Sandbox, db: Any, paper: Any):
    ids = [paper.insert(title=title, n=n) for n, title in enumerate("abcd")]
    box.drain()

    assert db(paper.n > 1).update(n=9) == 2
    assert db(paper.id.belongs(ids[:2])).update(n=8) == 2

    assert [history(box, "paper_archive", row_id, "n") for row_id in ids] == [[0], [1], [2], [3]]


def test_a_naive_update_keeps_nothing(box: Sandbox, db: Any, paper: Any):
    row_id = paper.insert(title="a")
    paper._before_update.append(lambda dbset, fields: fields["title"] == "forbidden")
    query = db(paper.id == row_id)

    assert query.update(title="forbidden") == 0
    query.update_naive(title="b")

    assert history(box, "paper_archive", row_id, "title") == []
    assert [row["title"] for row in box.rows(paper)] == ["b"]


def test_versioning_may_come_after_attaching(box: Sandbox, db: Any):
    pipeline.attach(db.paper)
    db.paper._enable_record_versioning()
    row_id = db.paper.insert(title="a")

    db(db.paper.id == row_id).update(title="b")

    assert history(box, "paper_archive", row_id, "title") == ["a"]
    assert attached(db.paper_archive)


def test_versioning_that_comes_late_goes_to_the_request_that_has_the_table_now(box: Sandbox, db: Any):
    pipeline.attach(db.paper)
    request = Request(box.client, box.client.held())
    request.attach(db.paper)
    db.paper._enable_record_versioning()

    db.paper_archive.insert(title="mine")
    db(db.paper.id == 2**49).update(title="b")

    assert request.waiting == 2
    request.drop()


def test_archive_and_link_may_have_names_of_their_own(box: Sandbox, db: Any):
    db.paper._enable_record_versioning(archive_name="old_%(tablename)s", current_record="now", is_active=None)
    pipeline.attach(db.paper)
    row_id = db.paper.insert(title="a")

    db(db.paper.id == row_id).update(title="b")
    db(db.paper.id == row_id).delete()

    assert history(box, "old_paper", row_id, "title", link="now") == ["a"]
    assert box.rows(db.paper) == []


def test_fields_that_only_the_archive_has_get_their_defaults(box: Sandbox, db: Any):
    db.define_table("why", db.paper, Field("reason", default="edited"), Field("current_record", "reference paper"))
    db.paper._enable_record_versioning(archive_name="other_archive")
    db.other_archive._pipeline = None
    keeping = db.paper._before_update[-1]
    keeping.__defaults__ = (db, "why", "current_record")
    pipeline.attach(db.paper)
    row_id = db.paper.insert(title="a")

    db(db.paper.id == row_id).update(title="b")

    assert history(box, "why", row_id, "title", "reason") == [("a", "edited")]


def test_a_detached_table_keeps_its_versions_by_pydal_again(box: Sandbox, db: Any, paper: Any):
    detach(paper)
    row_id = paper.insert(title="a")

    db(paper.id == row_id).update(title="b")
    db(paper.id == row_id).delete()

    assert [row.title for row in db(db.paper_archive).select(orderby=db.paper_archive.id)] == ["a", "b"]
    assert box.enqueued() == []


def test_versions_stand_in_the_bucket_of_their_row(box: Sandbox, db: Any):
    topology = box.client.topology
    for table in (db.sale, db.page, db.country):
        table._enable_record_versioning(is_active=None)
        pipeline.attach(table)
    sales = {customer: db.sale.insert(customer=customer) for customer in range(20)}
    pages = [db.page.insert(name=str(n)) for n in range(20)]
    country = db.country.insert(name="a")

    for customer, row_id in sales.items():
        db((db.sale.id == row_id) & (db.sale.customer == customer)).update(qty=2)
    for row_id in pages:
        db(db.page.id == row_id).update(price=2)
    db(db.country.id == country).update(price=3)
    box.drain()

    kept = {row["customer"]: topology.bucket_of("sale_archive", row["id"]) for row in box.rows("sale_archive")}
    assert kept == {customer: topology.bucket_of("sale", customer) for customer in sales}
    assert len(box.rows("page_archive")) == 20
    assert [row["price"] for row in box.rows(db.country)] == [3]
    assert len(box.rows("country_archive")) == 1


def test_an_update_may_repeat_the_shard_key(box: Sandbox, db: Any):
    db.sale._enable_record_versioning()
    pipeline.attach(db.sale)
    row_id = db.sale.insert(customer=7)

    db(db.sale.id == row_id).update(customer=7, qty=2)  # still queued
    box.drain()
    db(db.sale.customer == 7).update(customer=7, qty=3)

    assert history(box, "sale_archive", row_id, "qty") == [1, 2]


@pytest.mark.parametrize(
    ("name", "archive", "error", "why"),
    [
        ("sale", "kept_apart", ShardKeyError, "must be on its shard"),
        ("town", "town_archive", ShardKeyError, r"\[tables.town_archive\] reference = true"),
        ("paper", "country_archive", ShardKeyError, r"\[tables.paper\] reference = true"),
        ("odd", "odd_archive", BadOp, 'ids = "database"'),
    ],
)
def test_an_archive_elsewhere_than_its_rows_is_refused_by_name(
    db: Any, name: str, archive: str, error: type[Exception], why: str
):
    db[name]._enable_record_versioning(archive_name=archive)

    with pytest.raises(error, match=why):
        pipeline.attach(db[name])

    assert not attached(db[name])


def test_an_archive_that_shares_the_shard_key_may_stand_by_it(box: Sandbox, db: Any):
    db.sale._enable_record_versioning(archive_name="kept_with")
    pipeline.attach(db.sale)
    row_id = db.sale.insert(customer=7)

    db((db.sale.id == row_id) & (db.sale.customer == 7)).update(qty=2)
    box.drain()

    assert db(db.kept_with.customer == 7).update(qty=5) == 1
    box.drain()
    assert [row["qty"] for row in box.rows("kept_with")] == [5]


@pytest.mark.parametrize(
    ("field", "why"),
    [
        (Field("name", length=10), "cannot hold every value"),
        (Field("name", length=20), "cannot hold every value"),
        (Field("price", "decimal(8,1)"), "same type and length"),
        (Field("price", "double"), "same type and length"),
    ],
)
def test_an_archive_whose_field_cannot_hold_every_value_is_refused(db: Any, field: Any, why: str):
    db.define_table("narrow", Field("current_record", "reference page"), field)
    db.page.name.length = 21
    db.page._enable_record_versioning(archive_name="page_versions")
    db.page._before_update[-1].__defaults__ = (db, "narrow", "current_record")

    with pytest.raises(BadOp, match=why):
        pipeline.attach(db.page)


def test_an_archive_in_another_database_is_refused(db: Any):
    other = DAL("sqlite:memory")
    db.paper._enable_record_versioning(archive_db=other)

    with pytest.raises(BadOp, match="leave archive_db out"):
        pipeline.attach(db.paper)
    other.close()


def test_an_archive_with_callbacks_of_its_own_is_refused_before_and_after(db: Any, paper: Any):
    db.paper_archive._after_insert.append(lambda row, row_id: None)

    with pytest.raises(BadOp, match="_after_insert has callbacks"):
        db(paper.id == 2**49).update(title="b")
    with pytest.raises(BadOp, match="_after_insert has callbacks"):
        pipeline.attach(paper)


def test_versioning_that_comes_behind_our_back_is_refused_at_the_next_write(db: Any):
    pipeline.attach(db.paper)
    type(db.paper)._enable_record_versioning(db.paper)

    with pytest.raises(BadOp, match="attach it again"):
        db.paper.insert(title="a")

    pipeline.attach(db.paper)
    assert db.paper.insert(title="a")


def test_a_version_that_is_only_queued_is_waited_for_and_not_guessed(box: Sandbox, db: Any, paper: Any):
    from pipeline.reads.pending import CannotOverlay

    row_id = paper.insert(title="a")
    box.drain()
    db(paper.id == row_id).update(title="b")
    [copy] = [one for one in box.enqueued("paper_archive") if one.kind == "copy"]
    asked: list[Any] = []
    overlay = box.client.reads._overlay
    real = overlay.row

    def row(*args: Any) -> Any:
        try:
            return real(*args)
        except CannotOverlay as error:
            asked.append(str(error))
            box.drain()
            raise

    overlay.row = row
    found = pipeline.get(db.paper_archive, copy.id, pending=True)
    assert found.title == "a"
    assert asked


def test_the_whole_of_a_request_is_kept_or_dropped_with_its_versions(box: Sandbox, db: Any, paper: Any):
    row_id = paper.insert(title="a")
    for send in (False, True):
        request = Request(box.client, box.client.held())
        request.attach(paper)
        db(paper.id == row_id).update(title="b")
        assert request.waiting == 1
        request.finish() if send else request.drop()

    assert history(box, "paper_archive", row_id, "title") == ["a"]


def test_the_ids_of_a_rows_versions_grow_on_every_shard_and_in_a_reference_table(box: Sandbox, db: Any):
    db.country._enable_record_versioning()
    pipeline.attach(db.country)
    row_id = db.country.insert(name="a")

    for n in range(50):
        db(db.country.id == row_id).update(price=n)

    # `rows` are by id
    assert history(box, "country_archive", row_id, "price") == [None, *range(49)]


def test_a_row_shows_its_queued_updates_and_their_copies_change_nothing_of_it(box: Sandbox, db: Any, paper: Any):
    row_id = paper.insert(title="a")
    box.drain()
    db(paper.id == row_id).update(title="b")
    db(paper.id == row_id).update(n=paper.n + 1)

    found = pipeline.get(paper, row_id, pending=True)

    assert (found.title, found.n, found.pending) == ("b", 1, True)


def test_a_row_that_the_database_numbered_is_kept_beside_it(box: Sandbox, db: Any):
    db.sale._enable_record_versioning()
    pipeline.attach(db.sale)
    bucket = box.client.topology.bucket_of("sale", 7)
    session = box.client.nodes.primary(box.client.topology.shard_of(bucket))
    session.execute("INSERT INTO sale (id, customer, qty) VALUES (5, 7, 1)")
    session.adapter.commit()

    assert db(db.sale.id == 5).update(qty=9) == 1

    assert history(box, "sale_archive", 5, "qty") == [1]
    assert [box.client.topology.bucket_of("sale_archive", row["id"]) for row in box.rows("sale_archive")] == [bucket]


def test_a_queued_copy_tells_what_it_reads(box: Sandbox, db: Any, paper: Any):
    db(paper.id == 5).update(n=paper.n + 1)

    [copy] = box.assert_enqueued("paper_archive", times=1)

    assert (copy.kind, copy.source) == ("copy", "paper")
    assert str(copy).startswith(f"copy paper_archive id={copy.id} of paper ")


def test_a_version_goes_through_the_outbox_in_one_row_with_its_update(box: Sandbox, db: Any, paper: Any):
    row_id = paper.insert(title="a")
    request = Request(box.client, Outbox(db, box.client))
    request.attach(paper)

    db(paper.id == row_id).update(title="b")
    db(paper.id == row_id).delete()
    kept = db(db.pipeline_outbox).count()
    db.commit()
    request.finish()

    assert kept == 2
    assert history(box, "paper_archive", row_id, "title", "is_active") == [("a", True), ("b", True)]
    assert db(db.pipeline_outbox).count() == 0
