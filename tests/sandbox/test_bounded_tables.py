"""A program that defines tables without end fills no process: what is kept of each is bounded, and made anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.model import Position
from pipeline.reads import Need, connections, node_tables
from pipeline.reads.node_tables import NodeTables
from pipeline.shard.records import ACTIVE, Mark
from pipeline.testing import Sandbox, sandbox

FEW = 4
NAMES = [f"notes_{n}" for n in range(3 * FEW)]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr(node_tables, "MOST_DEFINITIONS", FEW)
    tables: dict[str, Any] = {name: {"shard_key": "owner"} for name in NAMES}
    with sandbox({**tables, "person": {"shard_key": "id"}}, shards=1) as made:
        yield made


def model() -> Any:
    db = DAL("sqlite:memory", migrate=False)
    db.define_table("person", Field("name"))
    for name in NAMES:
        db.define_table(name, Field("owner", "integer"), Field("writer", "reference person"), Field("said"))
    pipeline.define_tables(db)
    return db


def filled(db: Any) -> tuple[int, dict[str, int]]:
    writer = pipeline.enqueue_insert(db.person, name="ann").id
    ids = {name: pipeline.enqueue_insert(db[name], owner=1, writer=writer, said=name).id for name in NAMES}
    assert writer is not None
    return writer, {name: row_id for name, row_id in ids.items() if row_id is not None}


def nodes_tables(box: Sandbox) -> NodeTables:
    return NodeTables.on(box.client.reads._router.readers["s0"].db)


def test_a_nodes_tables_are_bounded_and_each_is_read_as_ever_after_it_was_forgotten(box: Sandbox) -> None:
    db = model()
    writer, ids = filled(db)
    box.drain()

    for _ in range(2):
        for name, row_id in ids.items():
            row = pipeline.get(db[name], row_id)
            assert (row.said, row.writer.name) == (name, "ann")
            assert pipeline.select(db[name].owner == 1).first().said == name
    tables = nodes_tables(box)
    assert len(tables._defined) <= FEW + 1
    assert set(tables.db.tables) == set(tables._defined)
    assert len(tables._met) <= FEW + 1
    person = tables.table(db.person)
    assert len(person._referenced_by) <= FEW, "what is forgotten is held by what it refers to"
    assert pipeline.get(db.person, writer).name == "ann"


def test_a_definition_that_changes_to_and_fro_is_kept_once(box: Sandbox) -> None:
    tables = nodes_tables(box)
    for n in range(20):
        db = DAL("sqlite:memory", migrate=False)
        db.define_table("person", Field("name"))
        more = [Field("more")] if n % 2 else []
        db.define_table("notes_0", Field("writer", "reference person"), *more)
        assert ("more" in tables.table(db.notes_0).fields) == bool(n % 2)
        tables.forget()

    assert len(tables.db.person._referenced_by) == 1


def test_a_thread_remembers_no_callers_table_without_end(box: Sandbox) -> None:
    db = model()
    _, ids = filled(db)
    box.drain()

    for name, row_id in ids.items():
        pipeline.get(db[name], row_id)
        pipeline.select(db[name].owner == 1)

    assert len(nodes_tables(box).callers.tables) <= FEW + 2


def test_a_thread_remembers_the_sequences_of_the_newest_producers(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_PRODUCERS", FEW)
    reader = box.client.reads._router.readers["s0"]
    asked = dict.fromkeys(range(3 * FEW), 1)
    monkeypatch.setattr(connections.ledger_queries, "sequences", lambda _, pairs: dict.fromkeys(pairs, 1))
    monkeypatch.setattr(connections.ledger_queries, "marks_of", lambda *_: {0: Mark(Position(1, 5), ACTIVE)})

    assert reader.probe({0: Need(Position(1, 1), older=asked)}), "all that one read asks for"
    for producer in range(100, 100 + 3 * FEW):
        assert reader.probe({0: Need(Position(1, 1), older={producer: 1})})

    assert len(reader.here.sequences[0]) <= FEW
