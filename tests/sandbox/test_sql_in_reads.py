"""A text from outside never becomes SQL: it stays a value of its statement, or the read is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples
from support.hostile import HOSTILE_TEXTS

from pipeline.dal.sql_texts import guard
from pipeline.errors import BadRead

# statements -------------------------------------------------------------------------------------------------------


class NoServer:
    """Takes every statement and has no rows: statements are written for a server's dialect without one."""

    def __init__(self, *args: Any, **options: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self

    def fetchone(self) -> tuple[int]:
        return (0,)

    def fetchall(self) -> list[Any]:
        return []


def define(db: Any) -> Any:
    db.define_table("vault", Field("secret"))
    db.define_table(
        "item",
        Field("name"),
        Field("body", "text"),
        Field("qty", "integer"),
        Field("big", "bigint"),
        Field("price", "decimal(8,2)"),
        Field("weight", "double"),
        Field("rate", "float"),
        Field("paid", "boolean"),
        Field("day", "date"),
        Field("at", "datetime"),
        Field("hour", "time"),
        Field("bytes", "blob"),
        Field("facts", "json"),
        Field("tags", "list:string"),
        Field("numbers", "list:integer"),
        Field("vaults", "list:reference vault"),
        Field("vault", "reference vault"),
    )
    return db


@pytest.fixture(scope="module", params=["mysql:pymysql://a:b@nowhere/c", "sqlite:memory"], ids=["mysql", "sqlite"])
def db(request: pytest.FixtureRequest) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param.startswith("mysql"):
            patch.setattr(pymysql, "connect", NoServer)
        made = define(DAL(request.param, migrate=False))
        guard(made._adapter)
        yield made


def untyped(field: Any) -> Any:
    """Return an expression of which pyDAL does not know the type."""
    return (field == None).case("a", "b")  # noqa: E711 - pyDAL's own words


#: Where a query takes a value, given the column and the text.
VALUES: dict[str, Callable[[Any, str], Any]] = {
    "==": lambda f, t: f == t,
    "!=": lambda f, t: f != t,
    "<": lambda f, t: f < t,
    "between": lambda f, t: (f >= t) & (f <= t),
    "not": lambda f, t: ~(f == t),
    "belongs": lambda f, t: f.belongs([t, "1"]),
    "belongs of a set": lambda f, t: f.belongs({t}),
    "like": lambda f, t: f.like(t),
    "ilike": lambda f, t: f.ilike(t),
    "escape": lambda f, t: f.like("a", escape=t),
    "regexp": lambda f, t: f.regexp(t),
    "startswith": lambda f, t: f.startswith(t),
    "endswith": lambda f, t: f.endswith(t),
    "contains": lambda f, t: f.contains(t),
    "contains any": lambda f, t: f.contains([t, "1"]),
    "+": lambda f, t: (f + t) == f,
    "-": lambda f, t: (f - t) == f,
    "*": lambda f, t: (f * t) == f,
    "sum of a sum": lambda f, t: (f + f) == t,
    "coalesce": lambda f, t: f.coalesce(t) == f,
    "coalesce ==": lambda f, t: f.coalesce(f) == t,
    "replace": lambda f, t: f.replace(t, t) == f,
    "case": lambda f, t: (f == None).case(t, t) == f,  # noqa: E711
    "case ==": lambda f, t: untyped(f) == t,
    "case belongs": lambda f, t: untyped(f).belongs([t]),
    "upper": lambda f, t: f.upper() == t,
    "length": lambda f, t: f.len() == t,
    "max": lambda f, t: f.max() == t,
    "year": lambda f, t: f.year() == t,
    "subselect": lambda f, t: f.belongs(f.db(f == t).nested_select(f)),
}
#: Where a read takes a field, a condition or a name, given the DAL and the text.
TEXTS: dict[str, Callable[[Any, str], Any]] = {
    "orderby": lambda db, t: db(db.item)._select(db.item.id, orderby=t),
    "orderby, in a list": lambda db, t: db(db.item)._select(db.item.id, orderby=[db.item.id, t]),
    "orderby, joined": lambda db, t: db(db.item)._select(db.item.id, orderby=db.item.id | t),
    "groupby": lambda db, t: db(db.item)._select(db.item.id.count(), groupby=t),
    "having": lambda db, t: db(db.item)._select(db.item.id.count(), groupby=db.item.qty, having=t),
    "distinct": lambda db, t: db(db.item)._select(db.item.id, distinct=t),
    "left": lambda db, t: db(db.item)._select(db.item.id, left=t),
    "join": lambda db, t: db(db.item)._select(db.item.id, join=t),
    "on": lambda db, t: db(db.item)._select(db.item.id, left=db.vault.on(t)),
    "field": lambda db, t: db(db.item)._select(db.item.id, t),
    "limitby": lambda db, t: db(db.item)._select(db.item.id, limitby=(0, t)),
    "query": lambda db, t: db(t)._select(db.item.id),
    "and": lambda db, t: db((db.item.id > 0) & t)._select(db.item.id),
    "or": lambda db, t: db((db.item.id > 0) | t)._select(db.item.id),
    "belongs": lambda db, t: db(db.item.id.belongs(t))._select(db.item.id),
    "name": lambda db, t: db(db.item)._select(db.item.id.with_alias(t)),
    "count distinct": lambda db, t: db(db.item)._count(distinct=t),
    "in a subselect": lambda db, t: db(
        db.item.id.belongs(db(db.item).nested_select(db.item.id, orderby=t, correlated=False))
    )._select(db.item.id),
}

_LITERAL = re.compile(r"'(?:[^']|'')*'|NULL\b")
_NUMBER = re.compile(r"[-+]?(?<![\w`\"])(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def shape(sql: str) -> str:
    """Return a statement without its values. With NO_BACKSLASH_ESCAPES only a quote ends a literal."""
    return re.sub(r"\s", "", _NUMBER.sub("?", _LITERAL.sub("?", str(sql))))


def written(make: Callable[[], Any]) -> str | None:
    """Return the statement's shape, or None where the read is refused, or where pyDAL does not have it."""
    try:
        return shape(make())
    except (BadRead, NotImplementedError, AttributeError, SyntaxError):
        return None


def asked(db: Any, field: Any, place: str, text: str) -> str | None:
    return written(lambda: db(VALUES[place](field, text))._select(db.item.id))


class Shapes(dict[tuple[str, str], set[str | None]]):
    """What a statement looks like with harmless values, for each column and place."""

    def __repr__(self) -> str:  # hypothesis prints what a test is given
        return f"<{len(self)} shapes>"


@pytest.fixture(scope="module")
def shapes(db: Any) -> Shapes:
    return Shapes(
        ((field.name, place), {asked(db, field, place, one) for one in ("1", "", "a", "2024-02-29")})
        for field in db.item
        for place in VALUES
    )


def check_values(db: Any, shapes: Shapes, text: str, turn: int) -> None:
    """Write the text in every place, each with another column: by *turn* they meet."""
    fields = list(db.item)
    for at, place in enumerate(VALUES):
        field = fields[(turn + at) % len(fields)]
        found = asked(db, field, place, text)
        assert found is None or found in shapes[field.name, place], (field.type, place, text)


_SAFE_WORDS = {"id", "item", "count", "sum", "min", "max", "avg", "asc", "desc", "as", "random"}


def check_texts(db: Any, text: str) -> None:
    """Give the text where fields, conditions and names are expected: all but columns and names is refused."""
    words = {*_SAFE_WORDS, *db.item.fields}
    for name, make in TEXTS.items():
        if text == "" or written(lambda make=make: make(db, text)) is None:
            continue
        if name == "name":  # of `table.name` only the name is written
            assert re.fullmatch(r"\w+|[\"`][\w ]+[\"`]", text.partition(".")[2] or text), text
        else:
            assert set(re.findall(r"\w+", text.lower())) <= words, (name, text)
            assert re.fullmatch(r"[\w\s.,()*\"`]*|<random>", text), (name, text)


def test_a_hostile_text_stays_a_value_of_its_statement(db: Any, shapes: Shapes) -> None:
    for turn, text in enumerate(HOSTILE_TEXTS):
        check_values(db, shapes, text, turn)
        check_texts(db, text)


#: Not the long ones: hypothesis prints what fails.
SHORT = [text for text in HOSTILE_TEXTS if len(text) < 200]
PARTS = st.lists(st.one_of(st.sampled_from(SHORT), st.text(max_size=8)), min_size=1, max_size=3).map("".join)


@settings(max_examples=examples(500), deadline=None)
@given(text=PARTS, turn=st.integers(0, 40))
def test_any_text_stays_a_value_of_its_statement(db: Any, shapes: Shapes, text: str, turn: int) -> None:
    check_values(db, shapes, text, turn)
    check_texts(db, text)
