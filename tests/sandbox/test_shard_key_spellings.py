"""A shard key finds its rows however it is spelt: what a write takes, a read takes, and both mean the same bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from pydal.objects import Row
from support.examples import THOROUGH

import pipeline
from pipeline.config import Topology
from pipeline.dal import reference_to
from pipeline.errors import BadOp, BadValue, ConfigError, ShardKeyError
from pipeline.reads.read_place import place_of_id, place_of_key, places_of_query
from pipeline.testing import Sandbox, sandbox

#: How many values each type gets in each of two tests: 10,800 in the thorough profile.
EACH = 400 if THOROUGH else 40
TYPES = {
    "whole": "integer",
    "big": "bigint",
    "refer": "reference owner",
    "money": "decimal(10,2)",
    "tons": "decimal(12,0)",
    "day": "date",
    "moment": "datetime",
    "hour": "time",
    "name": "string",
    "words": "text",
    "raw": "blob",
    "paid": "boolean",
    "weight": "double",
    "config": "json",
    "tags": "list:string",
}
#: Where '' is a value; elsewhere it is NULL, as it is for pyDAL.
TEXTS_KINDS = ("name", "words", "config")
TABLES: dict[str, dict[str, Any]] = {kind: {"shard_key": "key"} for kind in TYPES}


class Word(str, Enum):  # noqa: UP042  # a StrEnum prints its value
    """A text that is an Enum: its `str` is its name."""

    A = "a"
    NINE = "9"


class Number(IntEnum):
    """A number that is an Enum."""

    ZERO = 0
    SEVEN = 7


class lazyT:  # noqa: N801  # known by its name, as web2py's
    """A text that is translated when it is printed."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with sandbox(TABLES, shards=2, buckets=512) as made:
        yield made


@pytest.fixture(scope="module")
def db(box: Sandbox) -> Any:
    return defined(*TYPES)


def defined(*kinds: str) -> Any:
    """Return a DAL with tables whose shard keys are of these types, and publish them."""
    made = DAL("sqlite:memory", migrate=False)
    made.define_table("owner", Field("name"))
    for kind in kinds:
        made.define_table(kind, Field("key", TYPES[kind]), Field("n", "integer"))
    pipeline.define_tables(made)
    return made


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call gives, or the error that it raises."""
    try:
        return call()
    except BadOp as error:
        return type(error), str(error)


def found_by(box: Sandbox, table: Any, key: Any) -> Any:
    """Return the bucket in which a read finds the rows of a key, in each way to ask for them; or the error."""
    topology: Topology = box.client.topology

    def by_query(query: Any) -> int:
        [place] = places_of_query(topology, query, [table])
        return place.buckets[0]  # type: ignore[index]

    ways = [
        outcome(lambda: place_of_key(topology, table, key).buckets[0]),  # type: ignore[index]
        outcome(lambda: place_of_id(topology, table, 5, key).buckets[0]),  # type: ignore[index,union-attr]
        outcome(lambda: by_query(table.key == key)),
        outcome(lambda: by_query((table.n > 3) & table.key.belongs([key]))),
    ]
    assert len(set(ways)) == 1, ways
    return ways[0]


def written_by(table: Any, key: Any) -> Any:
    """Return the bucket of a write that names the rows of a key; or the error."""
    return outcome(lambda: pipeline.enqueue_update(table.key == key, n=1).bucket)


def whole_spellings(n: int) -> list[Any]:
    sign = "-" if n < 0 else ""
    spelt = [n, str(n), f"{sign}00{abs(n)}", Decimal(n), Decimal(f"{n}.0")]
    spelt += [f"+{n}"] if n >= 0 else []
    spelt += [float(n)] if int(float(n)) == n else []
    spelt += [bool(n)] if n in (0, 1) else []
    return spelt + ([Number(n)] if n in (0, 7) else [])


def decimal_spellings(number: Decimal) -> list[Any]:
    spelt: list[Any] = [
        number,
        str(number),
        f"{number:+.4f}".lstrip("+"),
        number.normalize(),
        f"{number:e}",
        float(number),
    ]
    return spelt + ([int(number)] if number == int(number) else [])


def moment_spellings(moment: datetime) -> list[Any]:
    spelt: list[Any] = [moment, moment.isoformat(), moment.isoformat(" "), moment.isoformat(" ") + ".000"]
    spelt += [moment.isoformat(" ")[:-3]] if not moment.second else []
    return spelt + ([moment.date(), moment.date().isoformat()] if moment.time() == time() else [])


def day_spellings(day: date) -> list[Any]:
    midnight = datetime(day.year, day.month, day.day)
    return [day, day.isoformat(), midnight, midnight.isoformat(" "), midnight.isoformat()]


def blob_spellings(raw: bytes) -> list[Any]:
    spelt: list[Any] = [raw, bytearray(raw), memoryview(raw)]
    try:
        return [*spelt, raw.decode()]
    except UnicodeDecodeError:
        return spelt


DAYS = st.dates(date(1000, 1, 1))
MOMENTS = st.one_of(
    st.datetimes(datetime(1000, 1, 1)).map(lambda moment: moment.replace(microsecond=0)),
    DAYS.map(lambda day: datetime(day.year, day.month, day.day)),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTS = st.one_of(st.integers(-3, 20), st.integers(-(2**31), 2**31 - 1))
BIG = st.one_of(INTS, st.integers(-(2**63), 2**63 - 1), st.integers(2**49, 2**53))
WRITTEN: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], list[Any]]]] = {
    "whole": (INTS, whole_spellings),
    "big": (BIG, whole_spellings),
    "refer": (st.one_of(st.integers(0, 20), st.integers(2**49, 2**53 - 1)), whole_spellings),
    "money": (st.decimals(-(10**8) + 1, 10**8 - 1, places=2), decimal_spellings),
    "tons": (st.integers(-(10**12) + 1, 10**12 - 1).map(Decimal), decimal_spellings),
    "day": (DAYS, day_spellings),
    "moment": (MOMENTS, moment_spellings),
    "hour": (st.times().map(lambda t: t.replace(microsecond=0)), lambda t: [t, t.isoformat(), t.isoformat() + ".0"]),
    "name": (TEXTS, lambda text: [text, text + " ", lazyT(text), *([int(text)] if text == "9" else [])]),
    "words": (
        st.one_of(TEXTS, st.sampled_from(Word)),
        lambda text: [text, str.__str__(text) + "  ", lazyT(str.__str__(text))],
    ),
    "raw": (st.binary(min_size=1, max_size=30), blob_spellings),
    "config": (st.recursive(st.none() | st.integers() | TEXTS, st.lists, max_leaves=4), lambda value: [value]),
}
ANYTHING = st.one_of(
    BIG, TEXTS, DAYS, st.datetimes(), st.times(), st.binary(max_size=9), st.booleans(), st.floats(), st.uuids(),
    st.decimals(), st.sampled_from([*Word, *Number]), TEXTS.map(lazyT), st.integers(0, 99).map(lambda n: Row(id=n)),
    st.sampled_from(["", "0", "-1", "012", "1e2", "2024-02-30", "2024-02-29", "12.345", "T", " 7", "0000-00-00"]),
    st.lists(TEXTS, max_size=2), st.integers(2**63, 2**70),
)  # fmt: skip
OFTEN = settings(
    max_examples=EACH,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", WRITTEN)
@OFTEN
@given(data=st.data())
def test_each_spelling_of_a_written_key_finds_the_bucket_of_its_row(
    box: Sandbox, db: Any, kind: str, data: st.DataObject
) -> None:
    values, spellings = WRITTEN[kind]
    key, table = data.draw(values), db[kind]
    assume(key is not None)
    spelt = spellings(key)
    if kind == "refer":
        spelt += [Row(id=key), reference_to(db.owner, key)]

    bucket = pipeline.enqueue_insert(table, key=key).bucket

    assert {found_by(box, table, one) for one in spelt} == {bucket}, spelt
    assert {written_by(table, one) for one in spelt} == {bucket}, spelt


@pytest.mark.parametrize("kind", TYPES)
@OFTEN
@given(key=ANYTHING)
def test_what_no_column_holds_is_refused_alike_and_all_else_has_one_bucket(
    box: Sandbox, db: Any, kind: str, key: Any
) -> None:
    assume(key != "" or kind in TEXTS_KINDS)
    table = db[kind]

    read, update = found_by(box, table, key), written_by(table, key)
    insert = outcome(lambda: pipeline.enqueue_insert(table, key=key).bucket)

    assert isinstance(insert, tuple) or insert == read, "explicit writes refuse more: what pyDAL bends"
    if kind == "refer":  # a read takes a number that is no id: it names no row
        assert isinstance(read, int) if isinstance(update, int) else update[0] is BadValue
    else:
        assert read == update


def test_an_empty_text_is_null_where_the_column_is_no_text_and_finds_nothing_on_any_shard(
    box: Sandbox, db: Any
) -> None:
    assert len(places_of_query(box.client.topology, db.whole.key == "", [db.whole])) == 2
    assert pipeline.count(db.whole.key == "") == 0
    with pytest.raises(ShardKeyError, match="is missing"):
        place_of_key(box.client.topology, db.whole, "")


def test_a_number_that_is_no_id_finds_nothing_and_is_no_fault(box: Sandbox, db: Any) -> None:
    for number in (0, -1, "0"):
        assert len(pipeline.select(db.owner.id == number)) == 0
        assert len(pipeline.select(db.refer.key == number)) == 0
    assert pipeline.get(db.owner, 2**70) is None
    with pytest.raises(BadValue, match=r"owner.id cannot take this str: it is not a whole number"):
        pipeline.select(db.owner.id == "abc")


@pytest.mark.parametrize(
    ("kind", "key", "spellings"),
    [
        ("whole", 12, ["012", "12", Decimal(12), 12.0]),
        ("day", date(2024, 2, 29), [datetime(2024, 2, 29), "2024-02-29"]),
        ("money", "12.50", [Decimal("12.5"), 12.5, "12.5", "12.50"]),
        ("refer", 7, [Row(id=7), "7", Number.SEVEN]),
        ("name", "é", [lazyT("é")]),
        ("raw", b"\xff", [bytearray(b"\xff")]),
    ],
)
def test_rows_are_read_by_each_spelling_of_their_key(kind: str, key: Any, spellings: list[Any]) -> None:
    with sandbox({kind: TABLES[kind]}) as box:  # in which no op of the properties above waits to be applied
        db = defined(kind)
        table = db[kind]
        pipeline.enqueue_insert(db.owner, id=7, name="whom a row refers to")
        receipt = pipeline.enqueue_insert(table, key=key, n=77)
        box.drain()

        for spelt in spellings:
            if not isinstance(spelt, Decimal):  # SQLite takes none from pyDAL 3
                assert [row.n for row in pipeline.select((table.key == spelt) & (table.n == 77))] == [77], spelt
            assert pipeline.get(table, receipt.id, shard_key=spelt).n == 77
            assert pipeline.get_db(table, spelt)(table.n == 77).count() == 1
            with pipeline.read(table, spelt) as node:
                assert node(table.n == 77).count() == 1


def test_the_keys_that_a_rule_lists_may_be_spelt_in_any_way_too() -> None:
    lists = {"rule": "lookup", "shard_key": "key", "lookup": {"12.5": 3, "007": 4, "*": 1}}
    with sandbox({"money": lists}) as made:
        db = DAL("sqlite:memory", migrate=False)
        db.define_table("money", Field("key", "decimal(10,2)"))
        pipeline.define_tables(db)

        assert [found_bucket(made, db, key) for key in (Decimal("12.50"), "12.5", 7, "7.00", 8)] == [3, 3, 4, 4, 1]


def found_bucket(box: Sandbox, db: Any, key: Any) -> int:
    written = pipeline.enqueue_insert(db.money, key=key).bucket
    assert place_of_key(box.client.topology, db.money, key).buckets == (written, box.client.topology.reference_bucket)
    return written


@pytest.mark.parametrize(
    ("lookup", "fault"),
    [
        ({"12.5": 3, "12.50": 4}, "lists two keys that are equal in 'key'"),
        ({"twelve": 3}, "lists the key 'twelve', but money.key cannot take this str: it is not a number"),
    ],
)
def test_a_rule_that_lists_one_key_twice_or_none_of_the_column_is_refused_where_its_table_is_defined(
    lookup: dict[str, int], fault: str
) -> None:
    with sandbox({"money": {"rule": "lookup", "shard_key": "key", "lookup": lookup}}):
        db = DAL("sqlite:memory", migrate=False)
        db.define_table("money", Field("key", "decimal(10,2)"))

        with pytest.raises(ConfigError, match=fault):
            pipeline.define_tables(db)
