"""The check: what is on each shard against what the file says must be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.demo.expected import Fingerprints
from pipeline.demo.fingerprint import Fingerprint
from pipeline.demo.flights import COLUMNS

#: Rows of one page of the read: a few MB.
PAGE_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """One table on one shard: what the file says, and what was found."""

    table: str
    shard: str
    expected: Fingerprint
    found: Fingerprint

    @property
    def equal(self) -> bool:
        """Whether the rows and their checksum are equal."""
        return self.expected == self.found

    def __str__(self) -> str:
        where, rows, must = f"{self.table} on {self.shard}", self.found.rows, self.expected.rows
        if self.equal:
            return f"{where}: {rows:,} rows, checksum {self.found}, equal to the file"
        if rows != must:
            return f"{where}: {rows:,} rows, but the file says {must:,} ({rows - must:+,})"
        return f"{where}: {rows:,} rows as in the file, but other values (checksum {self.found}, not {self.expected})"


def compare(expected: Fingerprints, primary: Callable[[str], Any], tick: Callable[[int], None]) -> list[Comparison]:
    """Read every table on the primary of every shard and compare; *tick* is told of the rows as they are read."""
    return [
        Comparison(table, shard, fingerprint, read_fingerprint(primary(shard), table, tick))
        for (table, shard), fingerprint in expected.items()
    ]


def read_fingerprint(db: Any, table: str, tick: Callable[[int], None] = lambda _: None) -> Fingerprint:
    """Read all rows of *table* in *db*, a page at a time, and return their fingerprint."""
    fingerprint = Fingerprint()
    for page in _pages(db, table):
        for _, *values in page:
            fingerprint.add(values)
        tick(len(page))
    return fingerprint


def _pages(db: Any, table: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield pages by id: pyDAL's SQL, but the driver's own tuples, which cost a tenth of pyDAL's rows."""
    id, last = db[table].id, 0
    columns = [db[table][name] for name in COLUMNS[table]]
    db.rollback()  # ends a snapshot that an earlier read may have left open
    while page := db.executesql(db(id > last)._select(id, *columns, orderby=id, limitby=(0, PAGE_ROWS))):
        yield page
        last = page[-1][0]
    db.rollback()
