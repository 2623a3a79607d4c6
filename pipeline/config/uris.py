"""Check addresses of databases and of Redis, hide their passwords, and find two that name one database.

An address is shown only through `redact`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from pipeline.config.address import ZONE, Address, host_of, parse
from pipeline.config.validators import refusal, zone_name
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
_KNOWN_SCHEMES = SHARD_SCHEMES.union(REDIS_SCHEMES, BROKER_SCHEMES, {"mysql"})
#: Databases that are files: no part of their addresses is a password.
_FILES = frozenset({"sqlite", "spatialite"})
#: Hosts with their ports, and what follows; a text that is nothing like it may be a password.
_HOST = r"(\[[^\]]*\]|[^:/?,\[]+)(:\d*)?"
_PLACE = re.compile(rf"({_HOST}(,{_HOST})*)?([/?].*)?", re.DOTALL)
_MYSQL_PORT, _POSTGRES_PORT = 3306, "5432"
_ENCODING = re.compile(r"[?&]set_encoding=[^&]*")
#: The zone of a session, unless a shard's setting says otherwise.
UTC = "+00:00"
#: The arguments that belong to a user, as its password does.
_CERTIFICATE = ("ssl_cert=", "ssl_key=")
_SECRET_ARGUMENT = re.compile(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token)[^=&;]*=)[^&;]*")


def redact(uri: str) -> str:
    """Return *uri* with its password replaced by `***`; also one that is not well formed."""
    head, found, rest = uri.partition("://")
    if head not in _KNOWN_SCHEMES:  # then what looks like a scheme may be a part of the password
        head, found, rest = "", "", uri
    user, at, address = rest.rpartition("@")
    if not at and head not in _FILES and ("://" in address or not _PLACE.fullmatch(address)):
        return f"{head}{found}***"
    # From the first ':' or '/' up to the last '@': a password may hold any of the three.
    name = re.split("[:/]", user, maxsplit=1)[0]
    hidden = ":***" if name != user else ""
    return head + found + name + hidden + at + _SECRET_ARGUMENT.sub(r"\1***", address)


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
    return _mysql_fault(value, must) if scheme.startswith("mysql:") else None


def _mysql_fault(uri: str, must: str) -> str | None:
    asked = _ENCODING.search(uri.rpartition("@")[2])
    if asked and (other := asked.group().partition("=")[2]).lower() != "utf8mb4":
        return f"has set_encoding={other}, in which characters are lost; write set_encoding=utf8mb4, or leave it out"
    try:
        address = parse(uri)
    except ValueError as error:
        return f"{error}; it must be {must}"
    if not (address.user and address.path and (address.hosts[0][0] or "unix_socket" in address.arguments)):
        return f"cannot be read (it names a user, a host and a database); it must be {must}"
    zone = address.arguments.get(ZONE)
    return f"has a {ZONE} that {fault}" if zone and (fault := zone_name(zone)) else None


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
    if engine in _FILES:
        return f"sqlite {rest}"
    if engine == "mysql" and (address := _parts(uri)):
        socket = address.arguments.get("unix_socket")
        host = f"unix_socket={socket}" if socket else host_of(address.hosts[0], _MYSQL_PORT).lower()
        return f"mysql {host} {address.path}"
    host, _, name = rest.rpartition("@")[2].partition("?")[0].partition("/")
    if engine == "postgres" and not re.search(r":\d+$", host):
        host += f":{_POSTGRES_PORT}"
    return f"{engine} {host.lower()} {name}"


def _parts(uri: str) -> Address | None:
    try:
        return parse(uri)
    except ValueError:
        return None


def server_of(url: str) -> str:
    """Return what names the Redis in *url*, without scheme, user, password and options."""
    return url.partition("://")[2].rpartition("@")[2].partition("?")[0]


def with_login_of(uri: str, other: str) -> str:
    """Return *uri* with the login of *other*, its certificate too: a promoted replica is written to as its primary."""
    scheme, found, rest = uri.partition("://")
    login, at, theirs = other.partition("://")[2].rpartition("@")
    if not at:
        return uri
    place, _, own = rest.rpartition("@")[2].partition("?")
    arguments = [one for one in theirs.partition("?")[2].split("&") if one.startswith(_CERTIFICATE)]
    arguments += [one for one in own.split("&") if one and not one.startswith(_CERTIFICATE)]
    return f"{scheme}{found}{login}{at}{place}{'?' if arguments else ''}{'&'.join(arguments)}"


def with_zone(uri: str, zone: str | None) -> str:
    """Return an address of MySQL or MariaDB that sets the time zone of sessions; any other address as it is.

    Args:
        uri: pyDAL's URI.
        zone: as MySQL writes it: `+02:00`, `Europe/Berlin`, or SYSTEM for the server's own. None changes nothing.
    """
    plain, _ = zone_of(uri)
    zoned = zone and uri.startswith("mysql:")
    return f"{plain}{'&' if '?' in plain else '?'}{ZONE}={zone}" if zoned else uri


def zone_of(uri: str) -> tuple[str, str]:
    """Return an address as pyDAL reads it, and the time zone that `with_zone` has put into it; UTC without one.

    Args:
        uri: pyDAL's URI.
    """
    place, _, query = uri.partition("?")
    zones = [one for one in query.split("&") if one.startswith(f"{ZONE}=")]
    if not zones:
        return uri, UTC
    plain = "&".join(one for one in query.split("&") if one not in zones)
    return f"{place}{'?' if plain else ''}{plain}", zones[-1].partition("=")[2]


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
    try:
        return _redis_fault(parse(value))
    except ValueError as error:
        return str(error)


def _redis_fault(address: Address) -> str | None:
    if address.on_socket:
        if address.path in ("", "/") or address.hosts[0][0]:
            return f"names no socket; write {address.scheme}:///path"
        numbers = tuple(address.arguments.values())
    elif address.scheme == "sentinel":
        master, _, number = address.path.partition("/")
        if not master or not all(name for name, _ in address.hosts):
            return "must name its hosts and its master: sentinel://user:password@host:26379,host:26379/master/0"
        numbers = (number,)
    else:
        numbers = (address.path,)
    return None if all(one == "" or one.isdecimal() for one in numbers) else "names a database that is no number"


def with_all_characters(uri: str) -> str:
    """Return an address with utf8mb4 where it names another character set.

    Args:
        uri: pyDAL's URI of an application's database.
    """
    login, at, place = uri.rpartition("@")
    return login + at + _ENCODING.sub(lambda asked: f"{asked[0][:1]}set_encoding=utf8mb4", place)


def redacted(record: Any) -> str:
    """Return the `repr` of *record*, a dataclass whose texts are addresses, without their passwords."""

    def shown(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(shown, value))
        return redact(value) if isinstance(value, str) else value

    parts = (f"{one.name}={shown(getattr(record, one.name))!r}" for one in fields(record) if one.repr)
    return f"{type(record).__name__}({', '.join(parts)})"
