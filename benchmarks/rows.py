"""Make the rows that every peer writes: one `purchase` table, the same values in the same order in every run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import cycle, islice
from typing import Any

from pydal import DAL, Field

TABLE = "purchase"
#: A table whose rows are upserted by a unique index.
TALLY = "tally"
#: Prefixes of tables with foreign keys, and of the same without.
FAMILIES = ("held", "loose")
#: Tables with two columns, and with twenty.
NARROW_TABLE, WIDE_TABLE = "narrow", "wide"
#: Distinct rows; longer runs repeat them (ids are always new), so that memory stays small.
DISTINCT = 50_000
_SEED = 20_260_520
_WORDS = (
    "blue",
    "small",
    "large",
    "gift",
    "box",
    "urgent",
    "repeat",
    "café",
    "Zürich",
    "naïve",
    "100%",
    "cotton",
    "size",
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """A table that rows are inserted into: its name, and its columns beside the id, each with its SQL type."""

    table: str
    types: Mapping[str, str]

    @property
    def insert(self) -> str:
        """The statement that drivers insert a row by."""
        return f"INSERT INTO {self.table} ({', '.join(self.types)}) VALUES ({', '.join(['%s'] * len(self.types))})"

    @property
    def create(self) -> str:
        """The statement that makes the table where it is missing."""
        columns = ", ".join(f"{name} {kind}" for name, kind in self.types.items())
        return (
            f"CREATE TABLE IF NOT EXISTS {self.table} (id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, {columns})"
            " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"
        )

    def define(self, db: DAL) -> Any:
        """Define the table in *db* as an application's model would, and return it."""
        return db.define_table(self.table, *(_field(name, kind) for name, kind in self.types.items()))

    def take(self, count: int) -> list[Row]:
        """Return *count* rows; two calls return equal rows."""
        source = random.Random(_SEED)
        return [{name: _VALUES[kind](source) for name, kind in self.types.items()} for _ in range(count)]


def _field(name: str, kind: str) -> Field:
    word, _, size = kind.rstrip(")").partition("(")
    if word == "VARCHAR":
        return Field(name, length=int(size))
    return Field(name, _TYPES.get(word, kind.lower()))


#: pyDAL's words, where they are not those of SQL.
_TYPES = {"INT": "integer"}
_VALUES: Mapping[str, Callable[[random.Random], Any]] = {
    "BIGINT": lambda source: source.randrange(1, 2**40),
    "INT": lambda source: source.randrange(1, 10**6),
    "DOUBLE": lambda source: source.random() * 1000,
    "VARCHAR(40)": lambda source: f"text {source.randrange(10**6)}",
}


PURCHASE = Shape(
    TABLE,
    {"customer": "BIGINT", "qty": "INT", "price": "DECIMAL(10,2)", "note": "VARCHAR(80)", "created_on": "DATETIME"},
)
NARROW = Shape(NARROW_TABLE, {"customer": "BIGINT", "note": "VARCHAR(40)"})
WIDE = Shape(
    WIDE_TABLE,
    {"customer": "BIGINT"} | {f"c{n}": ("INT", "VARCHAR(40)", "BIGINT", "DOUBLE", "INT")[n % 5] for n in range(1, 20)},
)
SHAPES = {shape.table: shape for shape in (PURCHASE, NARROW, WIDE)}


def take(count: int) -> Iterator[Row]:
    """Yield *count* rows; two calls yield equal rows."""
    return islice(cycle(_pool()), count)


def plain(rows: Iterator[Row] | list[Row]) -> list[Row]:
    """Return the rows as JSON can carry them; pyDAL takes these texts for decimals and datetimes as well."""
    texts = (Decimal, datetime)
    return [{name: str(one) if isinstance(one, texts) else one for name, one in row.items()} for row in rows]


def _pool() -> list[Row]:
    if not _rows:
        source = random.Random(_SEED)
        _rows.extend(_row(source) for _ in range(DISTINCT))
    return _rows


def _row(source: random.Random) -> Row:
    return {
        "customer": source.randrange(1, 2**40),
        "qty": source.randrange(1, 100),
        "price": Decimal(source.randrange(100, 10_000_000)) / 100,
        "note": " ".join(source.choices(_WORDS, k=source.randrange(3, 9)))[:80],
        "created_on": datetime(2026, 1, 1) + timedelta(seconds=source.randrange(31_536_000)),
    }


_rows: list[Row] = []
