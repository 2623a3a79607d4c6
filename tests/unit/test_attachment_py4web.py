"""A table that py4web's fixture attaches at import, used where there is no request."""

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
