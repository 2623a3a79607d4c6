"""Read `[pipeline]` of web2py's `appconfig.ini`; write one shard more, or one less, into a configuration's text.

The section has one key a line:

    [pipeline]
    redis       = redis://localhost:6379/0
    broker      = redis://localhost:6379/1
    shard_s0    = mysql:pymysql://app:secret@db0/shop
    replicas_s0 = mysql:pymysql://reader:secret@db0-r1/shop, mysql:pymysql://reader:secret@db0-r2/shop
    shard_keys  = purchase: customer, line: customer
    references  = country

Without a `shard_…` the application's own database, `[db] uri`, is the one shard, and `replicas` are its replicas.
Settings without a key here have one in the TOML file, which `config = pipeline.toml` names.

Write one shard more, or one less, into the text of a configuration: comments stay, and so does each `${NAME}`.
Where the shards share the buckets evenly, each gets the buckets that it has: another number of shards would change the
split. With one shard less, each other gets the buckets that it has by the map.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pipeline.config.uris import shard_address, with_all_characters
from pipeline.errors import ConfigError, did_you_mean

SECTION = "pipeline"
#: The name of the one shard that is the application's own database.
OWN = "s0"
#: What to do where only the application's models know its database.
NOT_FOUND = (
    "Workers and the command line run no models: write the address that the model gives to DAL(...) as "
    f"shard_{OWN} = mysql:pymysql://user:password@host/database, or as uri below [db]"
)
#: A key that names another file instead; relative to the file that has it.
ELSEWHERE = "config"
KEYS = (
    "config", "redis", "broker", "prefix", "buckets", "replicas", "shard_keys", "references", "mode", "reads",
    "time_zone", "ignore",
)  # fmt: skip
_OF_A_SHARD = re.compile(r"(shard|replicas)_(?!keys$)([A-Za-z0-9_-]+)")
#: An address of MySQL's as pyDAL reads it: user, password, host, database and arguments.
_AS_PYDAL = re.compile(r"([^:@]+)(:[^@]*)?@([^/]*)/([^?]+)(\?.*)?", re.DOTALL)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_SEPARATOR = re.compile(r"[,\s]+")
#: How the faults of the settings name a key, and how it is named here.
_NAMES = (
    (re.compile(r"\[shards\.([A-Za-z0-9_-]+)\] primary"), r"shard_\1"),
    (re.compile(r"\[shards\.([A-Za-z0-9_-]+)\] replicas"), r"replicas_\1"),
    (re.compile(r"\[shards\.[A-Za-z0-9_-]+\] time_zone"), "time_zone"),
    (re.compile(r"\[redis\] url"), "redis"),
    (re.compile(r"\[redis\] broker_url"), "broker"),
    (re.compile(r"\[redis\] prefix"), "prefix"),
    (re.compile(r"\[pipeline\] buckets"), "buckets"),
    (re.compile(r"\[tables\.(\w+)\] shard_key"), r"shard_keys of \1"),
)

#: The first line of a shard's section.
_HEADER = re.compile(r"(?m)^[ \t]*\[[ \t]*shards[ \t]*\.[ \t]*[\"']?([A-Za-z0-9_-]+)[\"']?[ \t]*\][^\n]*(?:\n|\Z)")
#: The line of a section that names its buckets.
_BUCKETS = re.compile(r"(?m)^[ \t]*buckets[ \t]*=[ \t]*(\"[^\"\n]*\"|'[^'\n]*')")


def read_ini(path: Path) -> tuple[Mapping[str, Any], Path | None]:
    """Return the settings of an ini file in the TOML file's shape, or the path of the TOML file that it names.

    Args:
        path: the ini file.

    Raises:
        ConfigError: the file is no ini file, or its section is missing or wrong.
    """
    found = read_sections(path)
    if SECTION not in found:
        raise ConfigError([f"{path} has no section [{SECTION}]"])
    if elsewhere := found[SECTION].get(ELSEWHERE):
        return {}, path.parent / elsewhere
    own = found["db"].get("uri")
    if own and _in_doubt(own) and not any(map(_OF_A_SHARD.fullmatch, found[SECTION])):
        raise ConfigError(
            [
                f"{path} [db] uri has an escape such as %40 in its login, and only the model knows whether it gives "
                f"decode_credentials=True to DAL(...): write the address for the workers as [{SECTION}] shard_{OWN}"
            ]
        )
    return sections(found[SECTION], str(path), own and own_address(own, path.parent.parent / "databases")), None


def read_sections(path: Path) -> dict[str, dict[str, str]]:
    """Return the section of the pipeline, if it is there, and the address of the application's own database.

    Args:
        path: the ini file.

    Raises:
        ConfigError: the file is no ini file.
    """
    parser = configparser.ConfigParser()  # with web2py's own rules for '%'
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
        own = parser.get("db", "uri", fallback=None)
        found = {SECTION: dict(parser[SECTION])} if SECTION in parser else {}
    except configparser.InterpolationError as error:
        fault = f"{path} [{error.section}] {error.option} has a lone '%': write '%%', as web2py wants it"
    except (configparser.Error, UnicodeDecodeError) as error:
        fault = f"{path} is not an ini file: {type(error).__name__}"
    else:
        return {**found, "db": {"uri": own} if own else {}}
    raise ConfigError([fault])  # out here: the errors carry the file's text, passwords included


def own_address(uri: str, folder: str | Path | None, *, decoded: bool = False) -> str:
    """Return the address by which the pipeline opens an application's own database.

    The application may leave the driver to pyDAL, and set a smaller character set; a file of SQLite is in its folder.
    pyDAL takes a user's name, a password and a database's name literally, and the pipeline percent-encoded.

    Args:
        uri: what the application gives to `DAL(...)`.
        folder: where the application has its files of SQLite; None where nobody knows.
        decoded: whether it gives `decode_credentials=True` too.
    """
    scheme, found, rest = uri.partition("://")
    if scheme == "mysql":
        scheme = "mysql:pymysql"
    if scheme == "sqlite" and rest and folder:
        rest = str(Path(folder).absolute() / rest)
    if scheme.startswith("mysql:") and (own := _AS_PYDAL.fullmatch(rest)):
        user, password, host, database, arguments = own.groups(default="")
        meant = unquote if decoded else str
        login = f"{_quoted(meant(user))}{password[:1]}{_quoted(meant(password[1:]))}"
        rest = f"{login}@{host}/{_quoted(database)}{arguments}"
    return with_all_characters(scheme + found + rest)


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _in_doubt(uri: str) -> bool:
    """Return whether only the application knows what the login in its own address is."""
    login, at, _ = uri.partition("://")[2].rpartition("@")
    return bool(at) and uri.startswith("mysql") and _ESCAPE.search(login) is not None


def sections(flat: Mapping[str, str], label: str, own_uri: str | None = None) -> dict[str, Any]:
    """Return the settings of a section in the TOML file's shape.

    Args:
        flat: the section's keys and values, as written.
        label: names the file, for messages.
        own_uri: the address of the application's own database; see `own_address`.

    Raises:
        ConfigError: with every key that is wrong.
    """
    faults = [f"{label} [{SECTION}] has an unknown key {key!r}{_hint(key)}" for key in flat if not _known(key)]
    faults += [] if flat.get("redis") else [f"{label} [{SECTION}] redis is missing; the logs live there"]
    buckets = str(flat.get("buckets") or "")
    if buckets and not buckets.isdigit():
        faults.append(f"{label} [{SECTION}] buckets must be a whole number")
    if (reads := flat.get("reads") or "next") not in ("own", "next"):
        faults.append(f"{label} [{SECTION}] reads is own or next, not {reads!r}")
    shards = _shards(flat, own_uri, label, faults)
    tables = _tables(flat, label, faults)
    if faults:
        raise ConfigError(faults)
    return {
        "pipeline": {
            **({"buckets": int(buckets)} if buckets else {}),
            **({"ignore": _listed(flat["ignore"])} if flat.get("ignore") else {}),
        },
        "redis": {
            "url": flat["redis"],
            **({"broker_url": flat["broker"]} if flat.get("broker") else {}),
            **({"prefix": flat["prefix"]} if flat.get("prefix") else {}),
        },
        "shards": shards,
        "tables": tables,
    }


def in_ini_names(faults: Iterable[str], label: str) -> list[str]:
    """Return *faults* of the settings with the names that the keys have in an ini file.

    Args:
        faults: sentences with the keys' names in the TOML file.
        label: names the ini file.
    """
    found = []
    for fault in faults:
        for pattern, name in _NAMES:
            fault = pattern.sub(f"[{SECTION}] {name}", fault)
        found.append(fault if fault.startswith(label) else f"{label}: {fault}")
    return found


def _shards(flat: Mapping[str, str], own_uri: str | None, label: str, faults: list[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    replicas: dict[str, list[str]] = {}
    for key, value in flat.items():
        if match := _OF_A_SHARD.fullmatch(key):
            kind, name = match.groups()
            if kind == "shard":
                found[name] = {"primary": value}
            else:
                replicas[name] = _listed(value)
    if found and flat.get("replicas"):
        faults.append(f"{label} [{SECTION}] replicas does not say of which shard: write replicas_{next(iter(found))}")
    if not found and own_uri:
        found, replicas = {OWN: {"primary": own_uri}}, {OWN: _listed(flat.get("replicas") or ""), **replicas}
        if why := shard_address(own_uri):
            faults.append(f"{label} [db] uri, the one shard as there is no shard_…, {why}")
    elif not found:
        faults.append(f"{label} [{SECTION}] names no shard. {NOT_FOUND}")
    for name, uris in replicas.items():
        if name not in found:
            faults.append(f"{label} [{SECTION}] replicas_{name} has no shard_{name}{did_you_mean(name, found)}")
        elif uris:
            found[name]["replicas"] = uris
    if zone := flat.get("time_zone"):
        found = {name: {**shard, "time_zone": zone} for name, shard in found.items()}
    return found


def _tables(flat: Mapping[str, str], label: str, faults: list[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for pair in re.split(r"[,\n]", flat.get("shard_keys") or ""):
        table, colon, key = (part.strip() for part in pair.partition(":"))
        if table and colon and key:
            found[table] = {"shard_key": key}
        elif pair.strip():
            faults.append(
                f"{label} [{SECTION}] shard_keys takes TABLE: FIELD, TABLE: FIELD; {pair.strip()!r} is neither"
            )
    return found | {table: {"reference": True} for table in _listed(flat.get("references") or "")}


def _listed(value: str) -> list[str]:
    return [part for part in _SEPARATOR.split(value) if part]


def _known(key: str) -> bool:
    return key in KEYS or _OF_A_SHARD.fullmatch(key) is not None


def _hint(key: str) -> str:
    return did_you_mean(key, (*KEYS, "shard_s0", "replicas_s0"))


def with_shard(text: str, name: str, primary: str, replicas: Sequence[str], owned: Mapping[str, str]) -> str:
    """Return the text of a TOML file with a section more, whose shard owns no bucket.

    Args:
        text: the file's.
        name: the new shard's.
        primary: the address of its primary, as it is to be written.
        replicas: the addresses of its replicas, likewise.
        owned: of each shard of the file its buckets as ranges.

    Raises:
        ConfigError: the shards are written in a way that cannot be edited; it says what to write by hand.
    """
    before = tomllib.loads(text)
    shards: Mapping[str, Any] = before["shards"]
    silent = {one: owned[one] for one, section in shards.items() if "buckets" not in section}

    def split_written(header: re.Match[str]) -> str:
        ranges = silent.get(header[1])
        return header[0] if ranges is None else f'{header[0].rstrip()}\nbuckets = "{ranges}"\n'

    section = {"primary": primary, **({"replicas": list(replicas)} if replicas else {}), "buckets": ""}
    lines = [
        f"[shards.{name}]",
        *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in section.items()),
    ]
    made = _HEADER.sub(split_written, text).rstrip("\n") + "\n\n" + "\n".join(lines) + "\n"
    kept = {one: section | ({"buckets": silent[one]} if one in silent else {}) for one, section in shards.items()}
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(made) == {**before, "shards": {**kept, name: section}}:
            return made
    by_hand = [f'buckets = "{ranges}" under [shards.{one}]' for one, ranges in silent.items()]
    raise ConfigError([f"the file cannot be edited by a program; write {', '.join(by_hand)}, and [shards.{name}]"])


def without_shard(text: str, name: str, owned: Mapping[str, str]) -> str:
    """Return the text of a TOML file with a section less, in which each other shard has the buckets that it owns.

    Args:
        text: the file's.
        name: of the shard whose section goes.
        owned: of each other shard its buckets as ranges.

    Raises:
        ConfigError: the shards are written in a way that cannot be edited; it says what to write by hand.
    """
    before = tomllib.loads(text)
    parts = ((shard, body) for shard, body in _parts(text) if shard != name)
    made = "".join(body if shard is None else _with_buckets(body, owned[shard]) for shard, body in parts)
    wanted = {one: {**section, "buckets": owned[one]} for one, section in before["shards"].items() if one != name}
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(made) == {**before, "shards": wanted}:
            return made
    by_hand = [f'buckets = "{ranges}" under [shards.{one}]' for one, ranges in owned.items()]
    raise ConfigError([f"the file cannot be edited by a program; take out [shards.{name}], write {', '.join(by_hand)}"])


def _parts(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield a text in pieces with the shard whose section each is; the comments above a header are no shard's."""
    shard: str | None = None
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if not line.lstrip().startswith("["):
            lines.append(line)
            continue
        above = list(takewhile(lambda one: not one.strip() or one.lstrip().startswith("#"), reversed(lines)))
        yield shard, "".join(lines[: len(lines) - len(above)])
        yield None, "".join(reversed(above))
        header = _HEADER.fullmatch(line)
        shard, lines = header[1] if header else None, [line]
    yield shard, "".join(lines)


def _with_buckets(section: str, ranges: str) -> str:
    """Return a shard's section with other buckets: in the place of its line, or in a line below the header."""
    line = f'buckets = "{ranges}"'
    made, count = _BUCKETS.subn(line, section, count=1)
    header, end, rest = section.partition("\n")
    return made if count else f"{header}\n{line}{end}{rest}"


def replace_file(path: Path, text: str) -> None:
    """Put a text in the place of a file's, whole or not at all; rights and owner stay.

    Args:
        path: of the file, or of a link to it.
        text: the new one.

    Raises:
        ConfigError: the file cannot be written; it is as it was.
    """
    real, made = path.resolve(), ""
    try:
        found = real.stat()
        number, made = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), found.st_mode & 0o777)
            if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), found.st_uid, found.st_gid)
            os.fsync(file.fileno())
        os.replace(made, real)
    except OSError as error:
        with suppress(OSError):
            os.unlink(made)
        raise ConfigError([f"{path} cannot be written ({error.strerror}); give the command with --print"]) from error
