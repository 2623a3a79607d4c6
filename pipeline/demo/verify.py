"""Compare what is on each shard with what the file says must be there.

The state at the end is computed from the file alone. A cancelled flight is gone, a corrected one has the file's delays,
and any other has none yet. Planes and weather are as in the file. The topology says only *where* a key is.

A digest of rows is their number and a checksum that does not depend on their order. The checksum is the sum of a 64-bit
hash of each row, modulo 2**64. A sum, not an exclusive or, so a row that is there twice changes it. Digests of disjoint
sets add up to that of their union.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any

from pipeline.demo.data import COLUMNS, DataRow, Dataset, is_cancelled, is_corrected, shard_key

#: Rows of one page of the read: a few MB.
PAGE_ROWS = 10_000
_MODULUS = 1 << 64


@dataclass(slots=True)
class Digest:
    """A count and a checksum that grow row by row."""

    rows: int = 0
    checksum: int = 0

    def add(self, values: Iterable[object]) -> None:
        """Add one row.

        Args:
            values: the row's values in a fixed order, without the id.
        """
        text = "\x1f".join(["\\N" if value is None else str(value) for value in values])
        digest = blake2b(text.encode(), digest_size=8).digest()
        self.rows += 1
        self.checksum = (self.checksum + int.from_bytes(digest, "big")) % _MODULUS

    def __add__(self, other: Digest) -> Digest:
        return Digest(self.rows + other.rows, (self.checksum + other.checksum) % _MODULUS)

    def __str__(self) -> str:
        return f"{self.checksum:016x}"


#: The shard of a (table, shard key).
Where = Callable[[str, str], str]
#: By (table, shard).
Digests = dict[tuple[str, str], Digest]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One table on one shard: what the file says, and what was found."""

    table: str
    shard: str
    expected: Digest
    found: Digest

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


def compare(expected: Digests, primaries: Mapping[str, Any], tick: Callable[[int], None]) -> list[Comparison]:
    """Read every table on the primary of every shard, and compare.

    Args:
        expected: what the file says.
        primaries: by shard, a DAL on its primary.
        tick: called with the number of rows of each page that was read.
    """
    comparisons = []
    for (table, shard), digest in expected.items():
        found = Digest()
        for page in _pages(primaries[shard], table):
            for _, *values in page:
                found.add(values)
            tick(len(page))
        comparisons.append(Comparison(table, shard, digest, found))
    return comparisons


def expected_digests(dataset: Dataset, place: Where, shards: Iterable[str]) -> Digests:
    """Return what each table on each shard must look like, empty tables included.

    Args:
        dataset: the file.
        place: the shard of a table and a shard key.
        shards: the names of all shards.
    """
    found = {(table, shard): Digest() for table in COLUMNS for shard in shards}
    place = cache(place)
    for table in COLUMNS:
        for row in final_rows(dataset, table):
            found[table, place(table, shard_key(table, row))].add(row.values())
    return found


def final_rows(dataset: Dataset, table: str) -> Iterator[DataRow]:
    """Yield a table's rows as they must be at the end.

    Args:
        dataset: the file.
        table: the table's name.
    """
    return _final_flights(dataset) if table == "flight" else dataset.rows(table)


def _pages(db: Any, table: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield pages by id: pyDAL's SQL, but the driver's own tuples, which cost a tenth of pyDAL's rows."""
    id, last = db[table].id, 0
    columns = [db[table][name] for name in COLUMNS[table]]
    db.rollback()  # ends a snapshot that an earlier read may have left open
    while page := db.executesql(db(id > last)._select(id, *columns, orderby=id, limitby=(0, PAGE_ROWS))):
        yield page
        last = page[-1][0]
    db.rollback()


def _final_flights(dataset: Dataset) -> Iterator[DataRow]:
    for number, flight in enumerate(dataset.rows("flight")):
        if is_cancelled(flight):
            continue
        if not is_corrected(number, flight):
            flight["dep_delay"] = flight["arr_delay"] = None
        yield flight
