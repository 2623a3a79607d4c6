"""Make the rows that every peer writes: one `purchase` table, the same values in the same order in every run."""

from __future__ import annotations

import random
from collections.abc import Iterator
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
COLUMNS = ("customer", "qty", "price", "note", "created_on")
CREATE_TABLE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  customer BIGINT,
  qty INT,
  price DECIMAL(10,2),
  note VARCHAR(80),
  created_on DATETIME
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4
"""

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


def define_purchase(db: DAL) -> None:
    """Define the table in *db* as an application's model would."""
    db.define_table(
        TABLE,
        Field("customer", "bigint"),
        Field("qty", "integer"),
        Field("price", "decimal(10,2)"),
        Field("note", "string", length=80),
        Field("created_on", "datetime"),
    )


def take(count: int) -> Iterator[Row]:
    """Yield *count* rows; two calls yield equal rows."""
    return islice(cycle(_pool()), count)


def plain(rows: Iterator[Row] | list[Row]) -> list[Row]:
    """Return the rows as JSON can carry them; pyDAL takes these texts for decimals and datetimes as well."""
    return [{**row, "price": str(row["price"]), "created_on": str(row["created_on"])} for row in rows]


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
