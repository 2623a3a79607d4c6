"""Define a frozen record for each section of the configuration: a record that exists is valid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from pipeline.config.buckets import Ranges, parse_ranges, ranges
from pipeline.config.uris import broker_address, redacted, redis_address, shard_address, with_zone
from pipeline.config.validators import (
    Validator,
    ascending,
    bucket_table,
    choice,
    each,
    faults_of,
    flag,
    number,
    optional,
    pattern,
    raise_faults,
    refusal,
    whole_number,
    zone_name,
)
from pipeline.errors import did_you_mean
from pipeline.events import FORMATS

#: An id has ten bits for its bucket.
MOST_BUCKETS = 1024
_NAME = pattern(r"[A-Za-z_][A-Za-z0-9_]*", "a name of letters, digits and underscores")
_COLUMN_LISTS = each(each(_NAME, "a list of column names"), 'a list of lists of column names, such as [["email"]]')
_RULE = pattern(
    r"hash|modulo|range|lookup|[A-Za-z_][\w.]*:[A-Za-z_]\w*", "hash, modulo, range, lookup or module:function"
)
_SHARD_NAME = pattern(r"[A-Za-z0-9_-]{1,32}", "at most 32 letters, digits, '-' and '_' (it names a queue)")
_GROUP_NAME = pattern(r"[A-Za-z0-9_-]{1,32}", "at most 32 letters, digits, '-' and '_'")
_NAMED_GROUP = pattern(r"[A-Za-z0-9_-]{0,32}", "the name of a section [redis.NAME]")
_SIGN_KEYS = pattern(r"([!-~]{32,256}( [!-~]{32,256})?)?", "one or two keys of 32 to 256 characters, a blank between")
#: The keys of a replica that is written as a table, and what each may be.
_REPLICA: dict[str, Validator] = {
    "uri": shard_address,
    "weight": number(0, 1_000),
    "limit": whole_number(1, 100_000),
}


@dataclass(frozen=True, slots=True)
class Load:
    """The share of reads that one replica takes.

    Attributes:
        weight: its share of the reads beside the other replicas; with 0 it takes none, and is there to be promoted.
        limit: how many reads each process lets run there at once; None: any number.
    """

    weight: float = 1.0
    limit: int | None = None


def replica_fault(value: object) -> str | None:
    """Accept *value* if it is an address, or a table with an address and perhaps a weight and a limit."""
    if not isinstance(value, Mapping):
        return shard_address(value) if isinstance(value, str) else refusal(value, "an address, or a table { uri = … }")
    faults = [f"has an unknown key {key!r}{did_you_mean(key, _REPLICA)}" for key in value if key not in _REPLICA]
    given = {"uri": None, **value}
    faults += [f"{key} {fault}" for key, check in _REPLICA.items() if key in given and (fault := check(given[key]))]
    return "; ".join(faults) or None


def uris_of(replicas: Iterable[str | Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the addresses of *replicas*, each written as an address or as a table."""
    return tuple(one if isinstance(one, str) else one["uri"] for one in replicas)


def loads_of(replicas: Iterable[str | Mapping[str, Any]]) -> tuple[Load, ...]:
    """Return the loads of *replicas*, each written as an address or as a table, in the same order."""
    return tuple(
        Load() if isinstance(one, str) else Load(**{k: v for k, v in one.items() if k != "uri"}) for one in replicas
    )


@dataclass(frozen=True, slots=True)
class Head:
    """The section [pipeline]; `ignore` has names of tables that are left to their database, or patterns of them."""

    buckets: int = 256
    ignore: tuple[str, ...] = ()

    CHECKS: ClassVar[Mapping[str, Validator]] = {
        "buckets": whole_number(1, MOST_BUCKETS),
        "ignore": each(pattern(r"[\w*?]+", "a table's name, in which * stands for anything"), "a list of names"),
    }

    def __post_init__(self) -> None:
        raise_faults(faults_of("pipeline", self.CHECKS, self))


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Where the logs and Celery's messages are. `timeout_s` limits one call that a web request makes.

    With a `sign_key`, entries and definitions are signed, and those of others are refused. The first of two keys signs.
    """

    url: str
    broker_url: str = ""
    prefix: str = "pl"
    timeout_s: float = 0.25
    sign_key: str = field(default="", repr=False)
    accept_unsigned: bool = False

    CHECKS: ClassVar[Mapping[str, Validator]] = {
        "url": redis_address,
        "broker_url": broker_address,
        "prefix": pattern(r"[A-Za-z0-9_.-]{1,32}", "at most 32 letters, digits, '.', '-' and '_'"),
        "timeout_s": number(0.01, 60),
        "sign_key": _SIGN_KEYS,
        "accept_unsigned": flag,
    }

    def __post_init__(self) -> None:
        checks = dict(self.CHECKS)
        if not self.broker_url:
            object.__setattr__(self, "broker_url", self.url)
            if redis_address(self.url):
                del checks["broker_url"]  # one fault, not the same one twice
        raise_faults(faults_of("redis", checks, self))

    def __repr__(self) -> str:
        return redacted(self)


@dataclass(frozen=True, slots=True)
class RedisGroup:
    """A section [redis.NAME]: one more Redis, for the logs of the shards that name it; all else is as in [redis]."""

    name: str
    url: str

    CHECKS: ClassVar[Mapping[str, Validator]] = {"name": _GROUP_NAME, "url": redis_address}

    def __post_init__(self) -> None:
        raise_faults(faults_of(f"redis.{self.name}", self.CHECKS, self))

    def __repr__(self) -> str:
        return redacted(self)


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """One shard: the addresses of its nodes, its buckets where the even split is not meant, its sessions' time zone."""

    name: str
    primary: str
    replicas: tuple[str, ...] = ()
    buckets: Ranges | None = None
    time_zone: str | None = None
    #: The name of the [redis.NAME] that has the shard's logs; empty: [redis] has them.
    redis: str = ""
    #: The load of each replica; the file writes it beside the address, `{ uri = "…", weight = 2, limit = 50 }`.
    loads: tuple[Load, ...] = field(default=(), init=False)

    CHECKS: ClassVar[Mapping[str, Validator]] = {
        "name": _SHARD_NAME,
        "primary": shard_address,
        "replicas": each(replica_fault, "a list of addresses"),
        "buckets": optional(ranges),
        "time_zone": optional(zone_name),
        "redis": _NAMED_GROUP,
    }

    def __post_init__(self) -> None:
        if isinstance(self.buckets, str):  # as the file has it; a text that cannot be parsed is left for its check
            with suppress(ValueError):
                object.__setattr__(self, "buckets", parse_ranges(self.buckets))
        raise_faults(faults_of(f"shards.{self.name}", self.CHECKS, self))
        object.__setattr__(self, "loads", loads_of(self.replicas))
        object.__setattr__(self, "primary", with_zone(self.primary, self.time_zone))
        replicas = tuple(with_zone(uri, self.time_zone) for uri in uris_of(self.replicas))
        object.__setattr__(self, "replicas", replicas)

    def nodes(self) -> list[tuple[str, str]]:
        """Return the full key and the address of each node, the primary first."""
        replicas = [(f"[shards.{self.name}] replicas item {at}", uri) for at, uri in enumerate(self.replicas, 1)]
        return [(f"[shards.{self.name}] primary", self.primary), *replicas]

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each node by its name, the primary first: `s0`, `s0-r0`, `s0-r1`."""
        return {self.name: self.primary} | {f"{self.name}-r{n}": uri for n, uri in enumerate(self.replicas)}

    def __repr__(self) -> str:
        return redacted(self)


@dataclass(frozen=True, slots=True)
class TableSettings:
    """How one table is spread, and what happens to its rejected ops. The defaults hold for any table."""

    name: str
    shard_key: str | None = None
    rule: str = "hash"
    ids: str = "pipeline"
    on_reject: str = "park"
    reference: bool = False
    reads: str | None = None
    unique: tuple[tuple[str, ...], ...] = ()
    bounds: tuple[Any, ...] = ()
    lookup: Mapping[Any, int] = field(default_factory=dict, hash=False)

    CHECKS: ClassVar[Mapping[str, Validator]] = {
        "name": _NAME,
        "shard_key": optional(_NAME),
        "rule": _RULE,
        "ids": choice("pipeline", "database"),
        "on_reject": choice("park", "skip", "halt"),
        "reference": flag,
        "reads": optional(choice("own", "next")),
        "unique": _COLUMN_LISTS,
        "bounds": ascending,
        "lookup": bucket_table,
    }

    def __post_init__(self) -> None:
        section = f"tables.{self.name}"
        raise_faults(
            faults_of(section, self.CHECKS, self) or [f"[{section}] {fault}" for fault in self._contradictions()]
        )

    def _contradictions(self) -> Iterable[str]:
        for key, rule in (("bounds", "range"), ("lookup", "lookup")):
            if self.rule == rule and not getattr(self, key):
                yield f"{key} is missing or empty; rule = '{rule}' needs it"
            elif self.rule != rule and getattr(self, key):
                yield f"{key} is given, but only rule = '{rule}' reads it"
        if self.reference:
            if self.ids == "database":
                yield "ids = 'database' would number each shard's copy differently; reference = true needs 'pipeline'"
            if self.shard_key is not None or self.rule != "hash":
                yield "has a shard_key or a rule, but reference = true puts every row on every shard"
        elif self.shard_key is None and self.ids == "database":
            yield "ids = 'database' needs a shard_key: the id is not known when the op chooses its bucket"
        elif self.shard_key is None and self.rule != "hash":
            yield "rule needs a shard_key: the table's own id already carries its bucket, as rule = 'hash' reads it"


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How far behind a replica may be, and what a read does when every replica is further behind."""

    #: Keys of older releases, and what to write instead.
    GONE: ClassVar[Mapping[str, str]] = {
        "primary_budget": "primary_limit replaces it: the number of reads that each process lets run on a primary at "
        "once because replicas are behind"
    }

    max_lag_s: float = 5.0
    wait_s: float = 0.1
    on_stale: str = "primary"
    primary_limit: int = 0
    secret: str = field(default="", repr=False)

    CHECKS: ClassVar[Mapping[str, Validator]] = {
        "max_lag_s": number(0, 86_400),
        "wait_s": number(0, 60),
        "on_stale": choice("primary", "stale", "error"),
        "primary_limit": whole_number(0, 100_000),
        "secret": pattern(r".{16,256}|", "a text of 16 to 256 characters"),
    }

    def __post_init__(self) -> None:
        raise_faults(faults_of("reads", self.CHECKS, self))


@dataclass(frozen=True, slots=True)
class ApplySettings:
    """What one apply transaction aims at (`target_ms`) and its limits; how long an op and the log wait at most."""

    target_ms: int = 100
    max_rows: int = 5_000
    max_bytes: int = 8_000_000
    buckets: int = 64
    statement_s: int = 10
    lock_wait_s: int = 3_600
    early_wait_s: int = 10
    set_aside: int = 10_000
    breaker: bool = True
    replica_away_s: int = 21_600
    rejects_days: int = 90
    rejects_mb: int = 1_000

    CHECKS: ClassVar[Mapping[str, Validator]] = {
        "target_ms": whole_number(1, 10_000),
        "max_rows": whole_number(1, 100_000),
        "max_bytes": whole_number(1_000, 1_000_000_000),
        "buckets": whole_number(1, MOST_BUCKETS + 1),
        "statement_s": whole_number(1, 15),
        "lock_wait_s": whole_number(1, 604_800),
        "early_wait_s": whole_number(0, 3_600),
        "set_aside": whole_number(0, 10_000_000),
        "breaker": flag,
        "replica_away_s": whole_number(1, 31_536_000),
        "rejects_days": whole_number(0, 36_500),
        "rejects_mb": whole_number(0, 1_000_000),
    }

    def __post_init__(self) -> None:
        raise_faults(faults_of("apply", self.CHECKS, self))


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How workers and commands print their log; an application prints its own."""

    format: str = "text"

    CHECKS: ClassVar[Mapping[str, Validator]] = {"format": choice(*FORMATS)}

    def __post_init__(self) -> None:
        raise_faults(faults_of("log", self.CHECKS, self))


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """The local file that takes ops while Redis is away; without a `path` it is beside the configuration's file."""

    path: str = ""
    max_mb: int = 256
    enabled: bool = True

    CHECKS: ClassVar[Mapping[str, Validator]] = {
        "path": pattern(r"[^\0]*", "the path of a file on a local disk"),
        "max_mb": whole_number(1, 1_000_000),
        "enabled": flag,
    }

    def __post_init__(self) -> None:
        raise_faults(faults_of("spool", self.CHECKS, self))

    def beside(self, configuration: str) -> SpoolSettings:
        """Return the settings with the whole path; a configuration that is no file needs a path for its spool.

        Args:
            configuration: the path of the configuration's file, or the empty string.
        """
        if not configuration:
            return replace(self, enabled=self.enabled and bool(self.path))
        path = Path(configuration)
        return replace(self, path=str(path.parent / (self.path or f"{path.stem}.spool")))


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where a worker shows its metrics; with port 0 nowhere, and nothing is counted for them."""

    port: int = 0
    host: str = "127.0.0.1"

    CHECKS: ClassVar[Mapping[str, Validator]] = {
        "port": whole_number(0, 65_535),
        "host": pattern(r"[A-Za-z0-9.:-]+", "an address of this machine, such as 127.0.0.1"),
    }

    def __post_init__(self) -> None:
        raise_faults(faults_of("metrics", self.CHECKS, self))
