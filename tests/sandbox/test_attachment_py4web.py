"""Tables that py4web's fixture attaches and publishes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.testing import Sandbox, sandbox

face = pytest.importorskip("pipeline.py4web")


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox(shards=1) as made:
        yield made


def test_a_script_writes_at_once_and_reads_without_waiting(box: Sandbox, tmp_path: Any):
    db = DAL(box.client.nodes.uri(box.client.nodes.primary_name("s0")), folder=str(tmp_path), bigint_id=True)
    db.define_table("item", Field("name"), migrate=False)
    pipeline.define_tables(db)
    face.Pipeline(db).attach(db.item)

    row_id = db.item.insert(name="pen")
    with ThreadPoolExecutor(1) as pool:
        by_thread = pool.submit(lambda: int(db.item.insert(name="ink"))).result()

    assert {one.id for one in box.enqueued("item")} == {row_id, by_thread}
    assert db(db.item).count() == 0
    assert db(db.item.id.belongs([row_id])).delete() == 1
    assert box.drain().applied == 3
    db.close()


def test_a_table_that_all_threads_share_keeps_each_threads_versions(box: Sandbox, tmp_path: Any):
    db = DAL(box.client.nodes.uri(box.client.nodes.primary_name("s0")), folder=str(tmp_path), bigint_id=True)
    db.define_table("item", Field("name"), Field("is_active", "boolean", default=True), migrate=False)
    db._migrate = False
    db.item._enable_record_versioning()
    pipeline.define_tables(db)
    face.Pipeline(db).attach(db.item)
    ids = [db.item.insert(name=f"{n}") for n in range(4)]

    def write(row_id: int) -> None:
        for n in range(10):
            db(db.item.id == row_id).update(name=f"v{n}")
        db(db.item.id == row_id).delete()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, ids))

    assert box.drain().rejected == 0
    assert [row["is_active"] for row in box.rows("item")] == [False] * 4
    for start, row_id in enumerate(ids):
        kept = [row["name"] for row in box.rows("item_archive") if row["current_record"] == row_id]
        assert kept == [f"{start}", *(f"v{n}" for n in range(10))]
    db.close()


def test_tables_that_are_defined_after_the_fixture_are_published_by_the_first_page_that_lists_it(
    box: Sandbox, tmp_path: Any
):
    db = face.DAL(box.client.nodes.uri(box.client.nodes.primary_name("s0")), folder=str(tmp_path), bigint_id=True)
    fixture = face.Pipeline(db)  # common.py
    db.define_table("item", Field("name"), migrate=False)  # models.py, which imports db from common.py

    fixture.on_request({"fixtures": [fixture, db]})  # an action that calls nothing

    assert list(box.log.newest_schemas()) == ["item"]
    db.close()
