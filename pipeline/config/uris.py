"""Check addresses of databases and of Redis, hide their passwords, and find two that name one database.

An address is shown only through `redact`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from pipeline.config.validators import refusal
from pipeline.errors import did_you_mean

#: The SQL databases that both pyDAL lines speak, by the word before `://`. pyDAL's NoSQL databases cannot lock
#: a row.
SHARD_SCHEMES = frozenset(
    """
    sqlite spatialite mysql:pymysql mysql:MySQLdb mysql:mysqlconnector postgres postgres:psycopg2 postgres2
    postgres2:psycopg2 postgres3 postgres3:psycopg2 mssql mssql2 mssql3 mssql4 mssqln mssql3n mssql4n pytds pymssql
    oracle db2:ibm_db_dbi db2:pyodbc firebird firebird_embedded informix informix-se ingres ingresu cubrid sapdb
    sybase teradata vertica snowflake
    """.split()  # noqa: SIM905 - a list of quoted words would take a screen
)
REDIS_SCHEMES = ("redis", "rediss", "sentinel", "unix")
#: What Celery calls a socket differs from what redis-py calls it.
BROKER_SCHEMES = ("redis", "rediss", "sentinel", "redis+socket")
_MYSQL = re.compile(r"[^:@]+(:[^@]*)?@([^:/@]+|\[[^\]@]+\])(:\d+)?/[^?@]+(\?.*)?")
_KNOWN_SCHEMES = SHARD_SCHEMES.union(REDIS_SCHEMES, BROKER_SCHEMES, {"mysql"})
_DEFAULT_PORTS = {"mysql": "3306", "postgres": "5432"}
#: One text names several Sentinels, with semicolons between them.
_NEXT_URI = re.compile(r";(?=[a-z+]+://)")
_ENCODING = re.compile(r"[?&]set_encoding=([^&;]*)")
#: The zone of a session, unless a shard's setting says otherwise.
UTC = "+00:00"
_ZONE = "time_zone="
_SECRET_ARGUMENT = re.compile(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token)[^=&;]*=)[^&;]*")


def redact(uri: str) -> str:
    """Return *uri* with each password replaced by `***`; also one that is not well formed."""
    return ";".join(_redact_one(one) for one in _NEXT_URI.split(uri))


def shard_address(value: object) -> str | None:
    """Accept *value* if it addresses a database that pyDAL can open and several processes can share."""
    must = "a pyDAL address such as mysql:pymysql://user:password@host:3306/database"
    if not isinstance(value, str) or not value:
        return refusal(value, must)
    scheme, found, rest = value.partition("://")
    if scheme == "mysql":
        return "does not name its driver, and an installed mysqlclient would silently win; write mysql:pymysql://"
    if ":memory" in scheme:
        return "is a database in memory, which no other process can see; write sqlite:// and a file's path"
    if not found or not rest:
        return f"is a text without a scheme or an address; it must be {must}"
    if scheme not in SHARD_SCHEMES:
        return f"has a scheme that cannot hold a shard{did_you_mean(scheme, SHARD_SCHEMES)}; it must be {must}"
    if scheme.startswith("mysql:") and not _MYSQL.fullmatch(rest):
        return f"cannot be read (a password may hold no '@'); it must be {must}"
    if scheme.startswith("mysql:") and (other := _other_characters(rest)):
        return f"has set_encoding={other}, in which characters are lost; write set_encoding=utf8mb4, or leave it out"
    return None


def redis_address(value: object) -> str | None:
    """Accept *value* if it addresses a Redis that can hold the logs."""
    return _redis(value, REDIS_SCHEMES)


def broker_address(value: object) -> str | None:
    """Accept *value* if it addresses a broker of Celery's."""
    if isinstance(value, str) and value.startswith("unix://"):
        return "is a socket, which Celery addresses in another form; write redis+socket:///path?virtual_host=0"
    return _redis(value, BROKER_SCHEMES)


def database_of(uri: str) -> str:
    """Return what names the database in *uri*, without driver, user, password and options."""
    scheme, _, rest = uri.partition("://")
    engine = re.sub(r"\d*n?$", "", scheme.partition(":")[0])
    path, _, options = rest.rpartition("@")[2].partition("?")
    if "sqlite" in engine or "spatialite" in engine:
        return f"sqlite {rest}"
    host, _, name = path.partition("/")
    if engine in _DEFAULT_PORTS and not re.search(r":\d+$", host):
        host += ":" + _DEFAULT_PORTS[engine]
    socket = re.search(r"unix_socket=[^&]*", options)
    return f"{engine} {socket.group() if socket else host.lower()} {name}"


def server_of(url: str) -> str:
    """Return what names the Redis in *url*, without scheme, user, password and options."""
    return ";".join(one.partition("://")[2].rpartition("@")[2].partition("?")[0] for one in _NEXT_URI.split(url))


def with_login_of(uri: str, other: str) -> str:
    """Return *uri* with the user and password of *other*: a promoted replica is written to as its primary was."""
    scheme, found, rest = uri.partition("://")
    login, at, _ = other.partition("://")[2].rpartition("@")
    if not at:
        return uri
    return scheme + found + login + at + rest.rpartition("@")[2]


def with_zone(uri: str, zone: str | None) -> str:
    """Return an address of MySQL or MariaDB that asks for sessions in a time zone; any other address as it is.

    Args:
        uri: pyDAL's URI.
        zone: as MySQL writes it: `+02:00`, `Europe/Berlin`, or SYSTEM for the server's own. None changes nothing.
    """
    plain, _ = zone_of(uri)
    zoned = zone and uri.startswith("mysql:")
    return f"{plain}{'&' if '?' in plain else '?'}{_ZONE}{zone}" if zoned else uri


def zone_of(uri: str) -> tuple[str, str]:
    """Return an address as pyDAL reads it, and the time zone that `with_zone` has put into it; UTC without one.

    Args:
        uri: pyDAL's URI.
    """
    plain, _, zone = uri.partition(_ZONE)
    return plain.rstrip("?&"), zone or UTC


def same_database_faults(nodes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a fault for each node whose database an earlier node has already.

    Args:
        nodes: (key, address) of each.
    """
    first: dict[str, str] = {}
    for key, uri in nodes:
        earlier = first.setdefault(database_of(uri), key)
        if earlier != key:
            yield f"{key} is the same database as {earlier}; each node has a database of its own"


def _redis(value: object, schemes: tuple[str, ...]) -> str | None:
    must = "an address that begins with " + " or ".join(f"{scheme}://" for scheme in schemes)
    if not isinstance(value, str) or not value:
        return refusal(value, must)
    scheme, found, rest = value.partition("://")
    if scheme.startswith("redis+cluster") or scheme == "rediss+cluster":
        return f"is a Redis Cluster, over which Celery's transport does not work; it must be {must}"
    if not found or not rest:
        return f"is a text without a scheme or an address; it must be {must}"
    if scheme not in schemes:
        return f"has an unknown scheme{did_you_mean(scheme, schemes)}; it must be {must}"
    return None


def with_all_characters(uri: str) -> str:
    """Return an address that asks for utf8mb4 where it asks for another character set.

    Args:
        uri: pyDAL's URI of an application's database.
    """
    return _ENCODING.sub(lambda asked: f"{asked[0][:1]}set_encoding=utf8mb4", uri)


def _other_characters(rest: str) -> str | None:
    """Return the character set that an address asks for, if it is not utf8mb4."""
    found = _ENCODING.search(rest.rpartition("@")[2])
    return found[1] if found and found[1].lower() != "utf8mb4" else None


def _redact_one(uri: str) -> str:
    head, found, rest = uri.partition("://")
    if head not in _KNOWN_SCHEMES:  # then what looks like a scheme may be a part of the password
        head, found, rest = "", "", uri
    user, at, address = rest.rpartition("@")
    # From the first ':' or '/' up to the last '@': a password may hold any of the three.
    name = re.split("[:/]", user, maxsplit=1)[0]
    hidden = ":***" if name != user else ""
    return head + found + name + hidden + at + _SECRET_ARGUMENT.sub(r"\1***", address)


def redacted(record: Any) -> str:
    """Return the `repr` of *record*, a dataclass whose texts are addresses, without their passwords."""

    def shown(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(shown, value))
        return redact(value) if isinstance(value, str) else value

    parts = (f"{one.name}={shown(getattr(record, one.name))!r}" for one in fields(record) if one.repr)
    return f"{type(record).__name__}({', '.join(parts)})"
