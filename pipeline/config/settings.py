"""The settings of one deployment: frozen values, checked where they are made.

Every process of a deployment (web, workers, Flower, command line) reads the same file. A value of this module that
exists is valid; `load` names everything that is wrong with a configuration at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.bucket_ranges import placement_faults
from pipeline.config.file import filled, group, section, written
from pipeline.config.replica import Load
from pipeline.config.sections import (
    ApplySettings,
    Head,
    ReadSettings,
    RedisSettings,
    ShardSettings,
    SpoolSettings,
    TableSettings,
    refuse,
)
from pipeline.config.uris import redact, same_database_faults
from pipeline.errors import ConfigError, did_you_mean

__all__ = [
    "ApplySettings",
    "ReadSettings",
    "RedisSettings",
    "Settings",
    "ShardSettings",
    "SpoolSettings",
    "TableSettings",
    "load",
    "redact",
]

_SECTIONS = ("pipeline", "redis", "shards", "tables", "reads", "apply", "spool")


def load(source: str | Path | Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings from *source*: a path, or a dict of the file's shape.

    Without a source: the file that `$PIPELINE_CONFIG` names, else `./pipeline.toml`. `${NAME}` in a text is replaced
    from *environ*; a variable's own value is not looked into.

    Raises:
        ConfigError: with *every* fault, a sentence each.
    """
    raw, label = written(source, environ)
    faults: list[str] = []
    raw = filled(raw, environ, faults)
    faults += [
        f"[{name}] is an unknown section{did_you_mean(name, _SECTIONS)}" for name in raw if name not in _SECTIONS
    ]
    head = section(Head, raw.get("pipeline", {}), "pipeline", faults)
    redis = section(RedisSettings, raw.get("redis", {}), "redis", faults)
    shards = group(ShardSettings, raw.get("shards", {}), "shards", faults)
    tables = group(TableSettings, raw.get("tables", {}), "tables", faults)
    reads = section(ReadSettings, raw.get("reads", {}), "reads", faults)
    apply = section(ApplySettings, raw.get("apply", {}), "apply", faults)
    spool = section(SpoolSettings, raw.get("spool", {}), "spool", faults)
    if faults or not (head and redis and reads and apply and spool):
        raise ConfigError([*faults, *_joint_faults(head.buckets if head else None, shards, tables)])
    return Settings(
        buckets=head.buckets,
        redis=redis,
        shards={name: shard for name, shard in shards.items() if shard},
        tables={name: table for name, table in tables.items() if table},
        reads=reads,
        apply=apply,
        spool=spool.beside(label if label != "a dict" else ""),
        source=label,
    )


def with_redis(
    source: str | Path | Mapping[str, Any] | None, url: str | None, environ: Mapping[str, str] = os.environ
) -> Mapping[str, Any]:
    """Return the sections of a configuration as written, with *url* as the Redis where they name none."""
    raw, _ = written(source, environ)
    redis = raw.get("redis", {})
    return {**raw, "redis": {"url": url, **redis}} if url and isinstance(redis, Mapping) else raw


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is configured. `shards` keeps the order of the file: the even split depends on it."""

    _: KW_ONLY
    redis: RedisSettings
    shards: Mapping[str, ShardSettings] = field(hash=False)
    tables: Mapping[str, TableSettings] = field(default_factory=dict, hash=False)
    reads: ReadSettings = field(default_factory=ReadSettings)
    apply: ApplySettings = field(default_factory=ApplySettings)
    spool: SpoolSettings = field(default_factory=lambda: SpoolSettings(enabled=False))
    buckets: int = 256
    source: str = "a dict"

    def __post_init__(self) -> None:
        head = Head(self.buckets)
        refuse(_joint_faults(head.buckets, self.shards, self.tables))

    def loads(self) -> dict[str, Load]:
        """Return what each replica is to carry, by its node's name."""
        return {f"{name}-r{i}": load for name, shard in self.shards.items() for i, load in enumerate(shard.loads)}


def _joint_faults(
    buckets: int | None, shards: Mapping[str, ShardSettings | None], tables: Mapping[str, TableSettings | None]
) -> list[str]:
    """Return the faults that show only when sections are seen together; a section that is None has its own already."""
    faults = [] if shards else ["[shards] is empty; at least one shard is needed: [shards.s0] with its primary"]
    faults += same_database_faults(node for shard in shards.values() if shard for node in shard.nodes())
    if buckets is None:
        return faults
    placed = {name: shard.buckets for name, shard in shards.items() if shard}
    if placed and len(placed) == len(shards):
        faults += placement_faults(buckets, placed)
    for name, table in tables.items():
        if table and len(table.bounds) >= buckets:
            faults.append(f"[tables.{name}] bounds has {len(table.bounds)} items; {buckets} buckets take {buckets - 1}")
        if table and any(bucket >= buckets for bucket in table.lookup.values()):
            faults.append(f"[tables.{name}] lookup names a bucket above {buckets - 1}, the last one")
    return faults
