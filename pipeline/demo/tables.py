"""The demo's tables: as pyDAL definitions, as an application would write them, and their part of `pipeline.toml`."""

from __future__ import annotations

from typing import Any

from pydal import DAL, Field

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
    define_tables(db)
    return db


def define_tables(db: Any) -> None:
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
