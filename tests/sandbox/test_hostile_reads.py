"""Every read of the pipeline is exact for a hostile text, or refuses it by name; no text reaches another table."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from decimal import Decimal
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples
from support.hostile_texts import HOSTILE_TEXTS

import pipeline
from pipeline.attachment import detach
from pipeline.errors import PipelineError
from pipeline.testing import Sandbox, sandbox
from pipeline.web.request import Request

#: The line 3 of pyDAL writes this as it is, and no database takes it.
TEXTS = [text for text in HOSTILE_TEXTS if text != "<random>" or find_spec("pydal.ast") is None]
SECRET = "the-secret-of-the-vault"
PRICES = ("1.50", "-1.5", "1000", "0")


@pytest.fixture(scope="module", params=[1, 2], ids=["one shard", "two shards"])
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with sandbox({"item": {"shard_key": "owner"}, "vault": {"reference": True}}, shards=request.param) as made:
        yield made


def model() -> Any:
    db = DAL("sqlite:memory", bigint_id=True)
    db.define_table("vault", Field("secret"))
    db.define_table(
        "item",
        Field("owner", "integer"),
        Field("name", "text"),
        Field("price", "decimal(12,4)"),
        Field("facts", "json"),
    )
    return db


@pytest.fixture(scope="module")
def db(box: Sandbox) -> Any:
    db = model()
    pipeline.define_tables(db)
    pipeline.enqueue_insert(db.vault, secret=SECRET)
    for n, name in enumerate(STORED):
        pipeline.enqueue_insert(db.item, owner=n % 3, name=name, price=PRICES[n % len(PRICES)])
    box.drain()
    return db


#: Names of rows, so that an exact answer is not always an empty one.
STORED = [text for text in HOSTILE_TEXTS[::5] if text and text.isprintable() and len(text) < 100]
Answer = set[tuple[str, int]]


#: SQLite takes no NUL in a statement.
REFUSALS = (PipelineError, sqlite3.ProgrammingError)


def found(rows: Any) -> Answer:
    rows = list(rows)
    assert SECRET not in repr(rows)
    return {(row.name, row.owner) for row in (one.get("item", one) for one in rows)}


def expected(holds: Callable[[str, int, Decimal], bool]) -> Answer:
    every = ((name, n % 3, Decimal(PRICES[n % len(PRICES)])) for n, name in enumerate(STORED))
    return {(name, owner) for name, owner, price in every if holds(name, owner, price)}


def named(text: str) -> Answer:
    return expected(lambda name, owner, price: name == text)


def priced(text: str) -> Answer:
    if re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", text, re.ASCII) is None:
        return set()
    return expected(lambda name, owner, price: price == Decimal(text.strip()))


def everything(text: str) -> Answer:
    return expected(lambda *row: True)


def nothing(text: str) -> Answer:
    return set()


def at_node(read: Callable[[Any, Any, str], Any]) -> Callable[[Any, str], Any]:
    """Return what reads on the node of each shard key, and by the primary's DAL, which must agree."""

    def every(db: Any, text: str) -> Answer:
        answer: Answer = set()
        for owner in range(3):
            with pipeline.read(db.item, owner) as node:
                answer |= (here := {one for one in found(read(node, node.item, text)) if one[1] == owner})
            primary = pipeline.get_db(db.item, owner)
            assert {one for one in found(read(primary, primary.item, text)) if one[1] == owner} == here
            primary.rollback()
        return answer

    return every


#: Each read, and the rows that it may show where it is not refused.
READS: dict[str, tuple[Callable[[Any, str], Any], Callable[[str], Answer]]] = {
    "name": (lambda db, t: found(pipeline.select(db.item.name == t)), named),
    "names": (lambda db, t: found(pipeline.select(db.item.name.belongs([t]))), named),
    "price": (lambda db, t: found(pipeline.select(db.item.price == t)), priced),
    "prices": (lambda db, t: found(pipeline.select(db.item.price.belongs([t]))), priced),
    "name in a read": (at_node(lambda node, item, t: node(item.name == t).select()), named),
    "price in a read": (at_node(lambda node, item, t: node(item.price == t).select()), priced),
    "iterated": (at_node(lambda node, item, t: list(node(item.price == t).iterselect())), priced),
    "order": (lambda db, t: found(pipeline.select(db.item, orderby=t)), everything),
    "order in a read": (at_node(lambda node, item, t: node(item).select(orderby=t)), everything),
    "fields": (lambda db, t: found(pipeline.select(db.item, db.item.name, db.item.owner, t)), everything),
    "limits": (lambda db, t: found(pipeline.select(db.item, orderby=db.item.id, limitby=(0, t))), nothing),
    "condition": (lambda db, t: found(pipeline.select((db.item.id > 0) & t)), nothing),
    "belongs": (lambda db, t: found(pipeline.select(db.item.id.belongs(t))), nothing),
    "having": (lambda db, t: found(pipeline.select(db.item, groupby=db.item.id, having=t)), everything),
    "case": (lambda db, t: found(pipeline.select((db.item.id > 0).case("a", "b") == t)), nothing),
    "json": (lambda db, t: found(pipeline.select(db.item.facts == t)), nothing),
    "get": (lambda db, t: found(filter(None, [pipeline.get(db.item, t)])), nothing),
    "pending": (lambda db, t: found(filter(None, [pipeline.get(db.item, t, pending=True)])), nothing),
    "table": (lambda db, t: found(pipeline.select(t)), lambda t: everything(t) if t == "item" else set()),
    "after": (lambda db, t: found(pipeline.select(db.item, after=t)), everything),
    "page": (lambda db, t: found(Request(pipeline.current()).select(db.item.price == t)), priced),
}


def count_of(db: Any, text: str) -> None:
    assert pipeline.count(db.item.name == text) == len([one for one in STORED if one == text])


def by_key(db: Any, text: str) -> None:
    owners = {row.owner for row in pipeline.select(db.item.owner == text)}
    assert not owners or owners == {int(text)}


def check(db: Any, text: str) -> None:
    for way, (read, may_show) in READS.items():
        try:
            answer = read(db, text)
        except REFUSALS:
            continue
        assert answer in (may_show(text), set()) if may_show is everything else answer == may_show(text), (way, text)
    for read_ in (count_of, by_key):
        try:
            read_(db, text)
        except REFUSALS:
            continue


@pytest.mark.parametrize("part", range(4))
def test_a_hostile_text_is_read_exactly_or_refused(db: Any, part: int) -> None:
    for text in TEXTS[part::4]:
        check(db, text)


@settings(max_examples=examples(60), deadline=None)
@given(
    text=st.lists(
        st.one_of(st.sampled_from([text for text in TEXTS if len(text) < 200]), st.text(max_size=8)), max_size=3
    ).map("".join)
)
def test_any_text_is_read_exactly_or_refused(db: Any, text: str) -> None:
    check(db, text)


# what stays as it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", ["item.name", "name DESC, item.owner", '"item"."name" desc', "<random>", "`name`", "item.price, item.id"]
)
def test_columns_by_their_names_order_a_read_as_in_pydal(box: Sandbox, db: Any, order: str) -> None:
    if order == "<random>" and order not in TEXTS:
        pytest.skip("the line 3 of pyDAL has no random order")
    with pipeline.read(db.item, 1) as node:
        assert found(node(db.item.owner == 1).select(orderby=order))


def test_the_application_may_vouch_for_a_text(box: Sandbox, db: Any) -> None:
    raw = pipeline.raw
    with pipeline.read(db.item, 1) as node:
        one = node.item.owner == 1
        longest = node(one).select(orderby=raw("LENGTH(name) DESC"), limitby=(0, 1)).first()
        groups = node(one).select(node.item.owner, raw("COUNT(*)"), groupby=raw("owner"), having=raw("COUNT(*) > 1"))
        inner = node(one & node.item.id.belongs(raw("SELECT id FROM item WHERE owner = 1;"))).count()

    assert len(longest.name) == max(len(name) for name, owner in expected(lambda n, o, p: o == 1))
    assert (len(groups), inner) == (1, len(STORED[1::3]))


def test_the_selects_that_pydal_writes_itself_are_no_texts_of_a_stranger(box: Sandbox, db: Any) -> None:
    with pipeline.read(db.item, 1) as node:
        assert node(node.item.id.belongs(node(node.item.owner == 1)._select(node.item.id))).count() == len(STORED[1::3])
        assert node(node.item.id.belongs(db(db.item.owner == 1)._select(db.item.id))).count() == len(STORED[1::3])


# attached tables, read through the application's own DAL -----------------------------------------------------------


@pytest.fixture
def own(box: Sandbox) -> Iterator[Any]:
    """A DAL with the same rows in its own database."""
    db = model()
    db.vault.insert(secret=SECRET)
    for n, name in enumerate(STORED):
        db.item.insert(owner=n % 3, name=name, price=PRICES[n % len(PRICES)])
    pipeline.attach(db.item)
    yield db
    db.close()


ATTACHED: dict[str, tuple[Callable[[Any, str], Any], Callable[[str], Answer]]] = {
    "name": (lambda db, t: found(db(db.item.name == t).select()), named),
    "price": (lambda db, t: found(db(db.item.price == t).select()), priced),
    "price, iterated": (lambda db, t: found(db(db.item.price == t).iterselect()), priced),
    "order": (lambda db, t: found(db(db.item).select(orderby=t)), everything),
    "fields": (lambda db, t: found(db(db.item).select(db.item.ALL, t)), everything),
    "belongs": (lambda db, t: found(db(db.item.id.belongs(t)).select()), nothing),
    "condition": (lambda db, t: found(db((db.item.id > 0) & t).select()), nothing),
    "case": (lambda db, t: found(db((db.item.id > 0).case("a", "b") == t).select()), nothing),
    "json": (lambda db, t: found(db(db.item.facts == t).select()), nothing),
    "price by keyword": (lambda db, t: found(filter(None, [db.item(price=t)])), priced),
}


def test_an_attached_table_is_read_exactly_or_the_text_is_refused(own: Any) -> None:
    for text in TEXTS:
        for way, (read, may_show) in ATTACHED.items():
            try:
                answer = read(own, text)
            except (*REFUSALS, ValueError, TypeError, SyntaxError):  # pyDAL's own refusals, as they were
                continue
            if way == "price by keyword":
                assert answer <= priced(text), text
            else:
                assert answer == may_show(text), (way, text)


def test_what_grids_give_as_texts_is_taken(own: Any) -> None:
    assert own(own.item).select("count(*)").first()["count(*)"] == len(STORED)
    assert own(own.item).select("item.name", "item.owner", orderby="item.name").first().name == min(STORED)
    assert "SELECT" in own(own.item)._select("count(*) AS count_all", groupby=own.item.owner)
    assert own(own.item.id.belongs(own(own.item.owner == 1)._select(own.item.id))).count() == len(STORED[1::3])


def test_tables_that_are_not_attached_and_detached_ones_read_as_pydal_does(own: Any) -> None:
    order = "LENGTH(secret), (SELECT 1)"
    assert len(own(own.vault).select(orderby=order)) == 1
    with pytest.raises(PipelineError, match=r"pipeline\.raw"):
        own(own.item).select(orderby="LENGTH(name)")

    detach(own.item)

    assert len(own(own.item).select(orderby="LENGTH(name)")) == len(STORED)
