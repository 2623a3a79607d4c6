"""Connect to where a run writes: the primaries and the Redis that a `pipeline.toml` names.

A run empties its table and several Redis databases, so only servers on loopback are accepted.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pymysql
from pydal import DAL
from redis import Redis

from benchmarks.rows import FAMILIES, NARROW_TABLE, PURCHASE, TABLE, TALLY, WIDE_TABLE

#: Redis databases of the peers, apart from the pipeline's own (0 and 1 in a local cluster). Sixteen exist by default.
STREAMS_DATABASE, CELERY_DATABASE, DRAMATIQ_DATABASE, HUEY_DATABASE, LPUSH_DATABASE = 11, 12, 13, 14, 15
#: The longest that a statement of a run may take: a server that hangs must end the run.
TIMEOUT_S = 30

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FAMILY_TABLES = (f"{family}_{level}" for family in FAMILIES for level in ("parent", "child", "grand"))
_OURS = (TABLE, TALLY, NARROW_TABLE, WIDE_TABLE, *_FAMILY_TABLES)


@dataclass(frozen=True, slots=True)
class Target:
    """The servers of one run."""

    config: Path
    primaries: tuple[str, ...]
    redis_url: str
    broker_url: str

    @classmethod
    def load(cls, config: Path) -> Target:
        """Read the configuration and add those of the run's tables that it lacks.

        Raises:
            ValueError: a server is not on loopback; a run would empty it.
        """
        text = os.path.expandvars(config.read_text())
        settings = tomllib.loads(text)
        lacking = [name for name in _OURS if name not in settings.get("tables", {})]
        if lacking:  # else a worker might read what another has just begun to write
            config.write_text(config.read_text() + "".join(map(_section, lacking)))
        primaries = tuple(shard["primary"] for shard in settings["shards"].values())
        url = settings["redis"]["url"]
        target = cls(config.resolve(), primaries, url, settings["redis"].get("broker_url", url))
        for address in (*primaries, target.redis_url, target.broker_url):
            _refuse_remote(address)
        return target

    def environment(self) -> dict[str, str]:
        """Return what a worker process needs to find the same servers."""
        return {**os.environ, "PIPELINE_CONFIG": str(self.config), "PYTHONUNBUFFERED": "1"}

    def connect(self, shard: int, *, local_infile: bool = False) -> pymysql.Connection[Any]:
        """Open an autocommit connection to the primary of *shard*."""
        parts = _address(self.primaries[shard])
        return pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=unquote(parts.username or "root"),
            password=unquote(parts.password or ""),
            database=parts.path.lstrip("/"),
            charset="utf8mb4",
            autocommit=True,
            local_infile=local_infile,
            connect_timeout=TIMEOUT_S,
            read_timeout=TIMEOUT_S,
            write_timeout=TIMEOUT_S,
        )

    def open_dals(self) -> tuple[DAL, ...]:
        """Open one pyDAL connection per shard for the calling thread, with the table defined."""
        dals = tuple(DAL(uri, migrate=False, bigint_id=True, pool_size=0) for uri in self.primaries)
        for dal in dals:
            PURCHASE.define(dal)
        return dals

    def peer_url(self, database: int) -> str:
        """Return the URL of a peer's own *database* on the run's Redis."""
        parts = urlsplit(self.redis_url)
        return urlunsplit(parts._replace(path=f"/{database}"))

    def redis(self, database: int | None = None) -> Redis:
        """Connect to the pipeline's logs, or to a peer's own *database*."""
        url = self.redis_url if database is None else self.peer_url(database)
        return Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)

    def broker(self) -> Redis:
        """Connect to the database that holds the pipeline's Celery queues."""
        return Redis.from_url(self.broker_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)


def _address(uri: str) -> Any:
    scheme, _, rest = uri.partition("://")
    return urlsplit(f"{scheme.split(':')[0]}://{rest}")


def _refuse_remote(uri: str) -> None:
    host = _address(uri).hostname
    if host not in _LOOPBACK:
        raise ValueError(f"{host!r} is not on loopback; a run empties its tables and Redis databases")


def _section(table: str) -> str:
    """Return the section of a table in pipeline.toml."""
    unique = 'unique = [["customer", "sku"]]\n' if table == TALLY else ""
    return f'\n[tables.{table}]\nshard_key = "customer"\n{unique}'
