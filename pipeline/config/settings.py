"""Find, read and check the configuration of one deployment: frozen values, and every fault at once.

Every process of a deployment (web, workers, Flower, command line) reads the same file. A value of this module that
exists is valid.

No message repeats a configured value, since it may hold a password.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import files
from pipeline.config.buckets import placement_faults
from pipeline.config.sections import (
    ApplySettings,
    Head,
    Load,
    LogSettings,
    MetricsSettings,
    ReadSettings,
    RedisGroup,
    RedisSettings,
    ShardSettings,
    SpoolSettings,
    TableSettings,
)
from pipeline.config.uris import redact, same_database_faults, server_of
from pipeline.config.validators import a, raise_faults, with_lines
from pipeline.errors import ConfigError, did_you_mean

__all__ = [
    "ApplySettings",
    "LogSettings",
    "MetricsSettings",
    "ReadSettings",
    "RedisSettings",
    "Settings",
    "ShardSettings",
    "SpoolSettings",
    "TableSettings",
    "load",
    "redact",
]

#: Names the configuration's file where a call names none; without it the file is `DEFAULT_PATH`.
VARIABLE = "PIPELINE_CONFIG"
DEFAULT_PATH = "pipeline.toml"
#: `${NAME}`; without its brace it is a fault, not a text.
_REFERENCE = re.compile(r"\$\{([^}]*)(\})?")
_SECTIONS = ("pipeline", "redis", "shards", "tables", "reads", "apply", "spool", "log", "metrics")
_T = TypeVar("_T")


def load(
    source: str | Path | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    file: Path | None = None,
) -> Settings:
    """Return the settings of one deployment.

    Args:
        source: the path of a file, or a dict of the file's shape. None: the file that `$PIPELINE_CONFIG` names, else
            `./pipeline.toml`.
        environ: replaces each `${NAME}` in a text; a variable's own value is taken as it is.
        file: the file that a dict was read from: messages name it, and the spool is beside it.

    Raises:
        ConfigError: with *every* fault, a sentence each.
    """
    raw, label = _written(source, environ)
    label = str(file.absolute()) if file else label
    try:
        return _checked(raw, label, environ)
    except ConfigError as error:
        faults = files.in_ini_names(error.faults, label) if label.endswith(".ini") else error.faults
        raise ConfigError(with_lines(faults, label)) from None


def _checked(raw: Mapping[str, Any], label: str, environ: Mapping[str, str]) -> Settings:
    """Return the settings that sections are.

    Args:
        raw: as they were written.
        label: the name of their file.
        environ: as for `load`.
    """
    faults: list[str] = []
    raw = _filled(raw, environ, faults)
    faults += [
        f"[{name}] is an unknown section{did_you_mean(name, _SECTIONS)}" for name in raw if name not in _SECTIONS
    ]
    head = _section(Head, raw.get("pipeline", {}), "pipeline", faults)
    first, more = _groups_apart(raw.get("redis", {}))
    redis = _section(RedisSettings, first, "redis", faults)
    groups = _group(RedisGroup, more, "redis", faults)
    shards = _group(ShardSettings, raw.get("shards", {}), "shards", faults)
    tables = _group(TableSettings, raw.get("tables", {}), "tables", faults)
    reads = _section(ReadSettings, raw.get("reads", {}), "reads", faults)
    apply = _section(ApplySettings, raw.get("apply", {}), "apply", faults)
    spool = _section(SpoolSettings, raw.get("spool", {}), "spool", faults)
    log = _section(LogSettings, raw.get("log", {}), "log", faults)
    metrics = _section(MetricsSettings, raw.get("metrics", {}), "metrics", faults)
    if faults or not (head and redis and reads and apply and spool and log and metrics):
        every = {"": redis, **groups}
        raise ConfigError([*faults, *_joint_faults(head.buckets if head else None, shards, tables, every)])
    return Settings(
        buckets=head.buckets,
        ignore=head.ignore,
        redis=redis,
        groups={name: group for name, group in groups.items() if group},
        shards={name: shard for name, shard in shards.items() if shard},
        tables={name: table for name, table in tables.items() if table},
        reads=reads,
        apply=apply,
        spool=spool.beside(label if label != "a dict" else ""),
        log=log,
        metrics=metrics,
        source=label,
    )


def with_redis(
    source: str | Path | Mapping[str, Any] | None, url: str | None, environ: Mapping[str, str] = os.environ
) -> Mapping[str, Any]:
    """Return the sections of a configuration as written, with a Redis where they name none.

    Args:
        source: as for `load`.
        url: the address of the Redis; None changes nothing.
        environ: names the file, as for `load`.
    """
    raw, _ = _written(source, environ)
    redis = raw.get("redis", {})
    return {**raw, "redis": {"url": url, **redis}} if url and isinstance(redis, Mapping) else raw


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is configured. `shards` keeps the order of the file: the even split depends on it."""

    _: KW_ONLY
    redis: RedisSettings
    shards: Mapping[str, ShardSettings] = field(hash=False)
    groups: Mapping[str, RedisGroup] = field(default_factory=dict, hash=False)
    tables: Mapping[str, TableSettings] = field(default_factory=dict, hash=False)
    reads: ReadSettings = field(default_factory=ReadSettings)
    apply: ApplySettings = field(default_factory=ApplySettings)
    spool: SpoolSettings = field(default_factory=lambda: SpoolSettings(enabled=False))
    log: LogSettings = field(default_factory=LogSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    buckets: int = 256
    ignore: tuple[str, ...] = ()
    source: str = "a dict"

    def __post_init__(self) -> None:
        head = Head(self.buckets)
        raise_faults(_joint_faults(head.buckets, self.shards, self.tables, {"": self.redis, **self.groups}))

    def loads(self) -> dict[str, Load]:
        """Return the load of each replica, by its node's name."""
        return {f"{name}-r{i}": load for name, shard in self.shards.items() for i, load in enumerate(shard.loads)}


def _groups_apart(raw: object) -> tuple[object, dict[str, Any]]:
    """Return the keys of [redis], and the sections below it."""
    if not isinstance(raw, Mapping):
        return raw, {}
    groups = {name: value for name, value in raw.items() if isinstance(value, Mapping)}
    return {key: value for key, value in raw.items() if key not in groups}, groups


def _group_faults(
    shards: Mapping[str, ShardSettings | None], redis: Mapping[str, RedisSettings | RedisGroup | None]
) -> Iterator[str]:
    """Yield a fault for each shard whose Redis has no section, and for each Redis that is named twice.

    Args:
        shards: the sections [shards.NAME].
        redis: by name, the sections [redis.NAME]; by the empty name, [redis].
    """
    for name, shard in shards.items():
        if shard and shard.redis not in redis:
            yield f"[shards.{name}] redis names no section [redis.NAME]{did_you_mean(shard.redis, filter(None, redis))}"
    known: dict[str, str] = {}
    for name, one in redis.items():
        at = f"[redis.{name}]" if name else "[redis]"
        before = known.setdefault(server_of(one.url), at) if one else at
        if before != at:
            yield f"{at} url is the Redis of {before}: two logs of one bucket would share its keys; name another"


def _joint_faults(
    buckets: int | None,
    shards: Mapping[str, ShardSettings | None],
    tables: Mapping[str, TableSettings | None],
    redis: Mapping[str, RedisSettings | RedisGroup | None],
) -> list[str]:
    """Return the faults of sections taken together; a section that is None has its own faults already."""
    faults = [] if shards else ["[shards] is empty; at least one shard is needed: [shards.s0] with its primary"]
    faults += same_database_faults(node for shard in shards.values() if shard for node in shard.nodes())
    faults += _group_faults(shards, redis)
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


def _written(
    source: str | Path | Mapping[str, Any] | None, environ: Mapping[str, str]
) -> tuple[Mapping[str, Any], str]:
    """Return the sections as they were written, and the name of their file, for messages.

    Args:
        source: as for `load`.
        environ: names the file, as for `load`.

    Raises:
        ConfigError: the file cannot be read, or is neither TOML nor, by its name, an ini file.
    """
    if isinstance(source, Mapping):
        return source, "a dict"
    path, named_by = _find(source, environ)
    if path.suffix == ".ini" and path.exists():
        shape, elsewhere = files.read_ini(path.absolute())
        if elsewhere is None:
            return shape, str(path.absolute())
        path, named_by = elsewhere, f"{path} [{files.SECTION}] {files.ELSEWHERE} names a file, but"
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text), str(path.absolute())
    except OSError as error:
        raise ConfigError([f"{named_by} {path} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError:
        fault = f"{path} is not UTF-8"
    except tomllib.TOMLDecodeError as error:
        fault = f"{path} is not TOML: {str(error).splitlines()[0]}"
    raise ConfigError([fault])  # out here: both errors carry the file's text, passwords included


def _find(source: str | Path | None, environ: Mapping[str, str]) -> tuple[Path, str]:
    if source is not None:
        return Path(source).expanduser(), "the configuration"
    if path := environ.get(VARIABLE):
        return Path(path).expanduser(), f"${VARIABLE} names a file, but"
    return Path(DEFAULT_PATH), f"no configuration was given, ${VARIABLE} is not set, and"


def _filled(value: Any, environ: Mapping[str, str], faults: list[str], path: tuple[str, ...] = ()) -> Any:
    """Return *value* with each `${NAME}` in its texts replaced from *environ*.

    Args:
        value: a section, or a part of one.
        environ: the variables.
        faults: takes a sentence for each variable that is missing.
        path: the names of the sections and the key that lead to *value*.
    """
    if isinstance(value, Mapping):
        return {str(key): _filled(item, environ, faults, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_filled(item, environ, faults, path) for item in value)
    if not isinstance(value, str) or "${" not in value:
        return value

    def variable(match: re.Match[str]) -> str:
        name, closed = match.groups()
        if not closed:
            faults.append(f"{_where(path)} has a '${{' without its '}}'")
        elif name not in environ:
            faults.append(f"{_where(path)} needs the environment variable {name}, which is not set")
        return environ.get(name, match.group()) if closed else match.group()

    return _REFERENCE.sub(variable, value)


def _section(kind: type[_T], raw: object, name: str, faults: list[str], /, **given: Any) -> _T | None:
    """Make a record from one section, or return None and add to *faults*.

    Args:
        kind: a dataclass that checks itself.
        raw: the section as written.
        name: the section's name.
        faults: takes what is wrong, a sentence each.
        given: fields of the record that the section does not name.
    """
    if not isinstance(raw, Mapping):
        faults.append(f"[{name}] is {a(raw)}; it must be a section")
        return None
    keys = {one.name: one for one in fields(kind) if one.init and one.name not in given}  # type: ignore[arg-type]
    gone = getattr(kind, "GONE", {})
    hints = {key: f"; {gone[key]}" if key in gone else did_you_mean(key, keys) for key in raw if key not in keys}
    faults += [f"[{name}] has an unknown key {key!r}{hint}" for key, hint in hints.items()]
    values = {key: value for key, value in raw.items() if key in keys and value is not None}
    absent = {key: None for key, one in keys.items() if one.default is MISSING and one.default_factory is MISSING}
    try:
        return kind(**given, **{**absent, **values})
    except ConfigError as error:
        faults += error.faults
        return None


def _group(kind: type[_T], raw: object, name: str, faults: list[str]) -> dict[str, _T | None]:
    """Make a record from each section below a section, as `_section` does; each learns its own `name`.

    Args:
        kind: a dataclass that checks itself.
        raw: the outer section as written.
        name: the outer section's name.
        faults: takes what is wrong, a sentence each.
    """
    if not isinstance(raw, Mapping):
        faults.append(f"[{name}] is {a(raw)}; it must hold sections such as [{name}.NAME]")
        return {}
    return {key: _section(kind, item, f"{name}.{key}", faults, name=key) for key, item in raw.items()}


def _where(path: tuple[str, ...]) -> str:
    """Return the full name of the key at *path*: `[shards.s0] primary`."""
    return f"[{'.'.join(path[:-1])}] {path[-1]}" if len(path) > 1 else "".join(path)
