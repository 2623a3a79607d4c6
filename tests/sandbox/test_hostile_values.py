"""Hostile values through every verb: each is stored exactly, refused at the door, or set aside, and stops no other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydal import DAL
from support.hostile import attack, corpus, fields

import pipeline
from pipeline.testing import Sandbox, sandbox

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
    assert len(values) * len(NAMES) > 2_500

    assert faults(box, db, values) == []


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(values=st.lists(VALUES, min_size=3, max_size=12))
def test_any_values_are_stored_exactly_refused_or_set_aside(db: Any, box: Sandbox, values: list[Any]):
    assert faults(box, db, values, next(FIRST_IDS)) == []
