"""Hostile values through every verb: each is stored exactly, refused at the door, or set aside, and stops no other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydal import DAL
from support.hostile import OF_A_FIELD, READS, VERBS, ask, attack, corpus, fields

import pipeline
from pipeline.admin.dead import HEADS, Where, chosen, replay
from pipeline.admin.dead_op import edit
from pipeline.errors import PipelineError
from pipeline.testing import Sandbox, sandbox

SECRET = "what only this table has"
NAMES = [field.name for field in fields()]
TEXTS = st.text(st.characters(), max_size=50) | st.text("'\"\\%;-#|\0\x1f ()", max_size=12)
SCALARS = st.one_of(
    TEXTS, st.integers(), st.floats(), st.decimals(), st.binary(max_size=20), st.booleans(), st.none(), st.datetimes()
)
#: Examples share their tables.
FIRST_IDS = count(10**6, 10**6)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXTS, SCALARS, max_size=2)


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", *fields())
    db.define_table("keyed", *fields())
    db.keyed.name.unique = True
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox({"keyed": {"shard_key": "name"}}, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def faults(box: Sandbox, db: Any, values: list[Any], first_id: int = 1) -> list[str]:
    made = []
    for attempt in attack(box.client, db, values, NAMES, first_id):
        made.append(attempt)
        if len(made) % 100 == 0:
            pipeline.enqueue_insert(db.event, name="kept")
    box.drain()
    rows = {row["id"]: row for row in box.rows("event")}
    assert sum(row["name"] == "kept" for row in rows.values()) >= len(made) // 100
    return [wrong for attempt in made if (wrong := attempt.wrong(box.client, db, rows))]


def test_the_kept_values_are_stored_exactly_refused_or_set_aside(db: Any, box: Sandbox):
    values = corpus()
    assert len(values) * len(NAMES) * len(VERBS) > 20_000

    assert faults(box, db, values) == []


@example(values=["\x00", "\x00"])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(values=st.lists(VALUES, min_size=3, max_size=12))
def test_any_values_are_stored_exactly_refused_or_set_aside(db: Any, box: Sandbox, values: list[Any]):
    assert faults(box, db, values, next(FIRST_IDS)) == []


def test_the_kept_values_are_refused_or_read_nothing_that_was_not_asked_for_in_every_read_place(db: Any, box: Sandbox):
    values = corpus()
    assert len(values) * (len(NAMES) + len(READS) - len(OF_A_FIELD)) > 4_500
    rows = [pipeline.enqueue_insert(db.event, who=n, name=f"n{n}", price=n, note=SECRET) for n in range(3)]
    box.drain()
    before = box.rows("event"), box.rows("keyed")

    strange = []
    for asked, answer in ask(box.client, db, values, NAMES):
        count = answer if isinstance(answer, int) else 0 if answer is None else len(answer)
        if count > len(rows) or (asked.startswith(("subselect", "id ", "pending ")) and SECRET in repr(answer)):
            strange.append(asked)

    assert strange == []
    assert (box.rows("event"), box.rows("keyed")) == before


def test_the_kept_values_are_edited_into_refused_ops_or_refused_and_stop_no_replay(db: Any, box: Sandbox):
    values = corpus()
    pipeline.enqueue_insert(db.keyed, name="taken")
    refused = [pipeline.enqueue_insert(db.keyed, name="taken") for _ in values]
    box.drain()

    taken = 0
    for receipt, value in zip(refused, values, strict=True):
        assert receipt.position is not None
        for name in NAMES:
            try:
                edit(box.client, (receipt.bucket, receipt.position), {name: value})
            except PipelineError:
                continue
            taken += 1
    list(replay(box.client, chosen(box.client, Where(), HEADS)))
    box.drain()

    assert taken > 100
    assert {receipt.status() for receipt in refused} <= {"replayed", "rejected"}
    assert [row["name"] for row in box.rows("keyed")].count("taken") == 1
