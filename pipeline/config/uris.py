"""Take addresses of databases and of Redis apart, check them, hide their passwords, find two that name one database.

Take the address of a database or of a Redis apart: one grammar for all of them, and exact credentials.

    scheme://user:password@host:port/database?argument=value&argument=value

Each part is percent-encoded as `urllib.parse.quote(part, safe="")` does it, so any text can be a password. No message
repeats a part: any may be a password in the wrong place.

An address is shown only through `redact`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote, unquote

from pipeline.config.validators import refusal, zone_name
from pipeline.errors import did_you_mean

#: What turns TLS on and says how; the same for MariaDB, for Redis and for Sentinel.
TLS_ARGUMENTS = ("ssl_ca", "ssl_cert", "ssl_key", "ssl_verify")
#: The arguments that an address takes, by its scheme; all databases of MySQL's take those of `mysql`.
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "mysql": ("set_encoding", "unix_socket", *TLS_ARGUMENTS),
    "redis": (),
    "rediss": TLS_ARGUMENTS,
    "sentinel": TLS_ARGUMENTS,
    "unix": ("db",),
    "redis+socket": ("virtual_host",),
}
#: What drivers call these arguments, and what to write.
_ELSEWHERE = {
    "charset": "set_encoding",
    "ssl_ca_certs": "ssl_ca",
    "ssl_certfile": "ssl_cert",
    "ssl_keyfile": "ssl_key",
    "ssl_cert_reqs": "ssl_verify",
    "ssl_check_hostname": "ssl_verify",
    "ssl_verify_cert": "ssl_verify",
    "ssl_verify_identity": "ssl_verify",
}
#: The zone of sessions, which `uris.with_zone` puts into an address; a file has a key of its own for it.
ZONE = "time_zone"
_SOCKETS = ("unix", "redis+socket")
_LOGIN = re.compile(r"([^:@/?#]*)(?::([^@?#]*))?")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[^\[\]:/?#@,\s]*)(?::(\d{1,5}))?")
_ESCAPES = "write '@' as %40, ':' as %3A, '/' as %2F, '?' as %3F, '#' as %23 and '%' as %25"
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN = re.compile(r"[a-z][a-z_-]{0,40}")
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


@dataclass(frozen=True, slots=True)
class TLS:
    """How a connection is encrypted, and what is checked.

    Attributes:
        ca: the file of the authorities that may have signed the server's certificate; None: those of the machine.
        cert: the file of the client's own certificate.
        key: the file of its key; None: it is in the file of the certificate.
        verify: whether the server's certificate, its dates and its name are checked.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    """An address in its parts, each as the driver takes it.

    Attributes:
        scheme: the word before `://`.
        user: the user's name; None without one.
        password: None without one.
        hosts: name or IP address, and port, of each host; several for Sentinel.
        path: what follows the host's slash: a database's name, a socket, `master/0` for Sentinel.
        arguments: by name.
    """

    scheme: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def tls(self) -> TLS | None:
        """How connections are encrypted; None where the address does not ask for it."""
        given = {name: self.arguments.get(name) for name in TLS_ARGUMENTS}
        if self.scheme != "rediss" and not any(given.values()):
            return None
        return TLS(given["ssl_ca"], given["ssl_cert"], given["ssl_key"], given["ssl_verify"] != "false")

    @property
    def on_socket(self) -> bool:
        """Whether the address is of a Redis behind a Unix socket."""
        return self.scheme in _SOCKETS

    @property
    def default_port(self) -> int:
        """The port of each host of Redis or Sentinel that is given none."""
        return 26379 if self.scheme == "sentinel" else 6379

    @property
    def number(self) -> int:
        """The number of Redis's database."""
        if self.on_socket:
            return int(next(iter(self.arguments.values()), 0))
        return int((self.path.partition("/")[2] if self.scheme == "sentinel" else self.path) or 0)

    @property
    def master(self) -> str:
        """The name by which Sentinels know their master."""
        return self.path.partition("/")[0]

    @property
    def login(self) -> str:
        """User and password, quoted, and the `@` behind them; empty without both."""
        secret = "" if self.password is None else f":{quote(self.password, safe='')}"
        return f"{quote(self.user or '', safe='')}{secret}@" if self.user or secret else ""


def parse(uri: str) -> Address:
    """Return the parts of an address.

    Args:
        uri: of MySQL's or MariaDB's, or of Redis.

    Raises:
        ValueError: the rest of a sentence that begins with the address's key; it repeats no text of the address.
    """
    scheme, _, rest = uri.partition("://")
    login, at, place = rest.rpartition("@")
    if at and not _LOGIN.fullmatch(login):
        raise ValueError(f"cannot be read (a password may hold no '@' as such: {_ESCAPES})")
    user, _, password = login.partition(":")
    place, _, query = place.partition("?")
    netloc, slash, path = place.partition("/")
    if scheme in _SOCKETS:
        path = slash + path
    return Address(
        scheme,
        _text(user) or None,
        _text(password) if ":" in login else None,
        tuple(_hosts(scheme, netloc)),
        _text(path),
        _arguments(scheme, query),
    )


def _hosts(scheme: str, netloc: str) -> Iterator[tuple[str, int | None]]:
    for one in netloc.split(",") if scheme == "sentinel" else [netloc]:
        if not (found := _HOST_AND_PORT.fullmatch(one)):
            raise ValueError(
                f"cannot be read from its host on (in a user's name and a password {_ESCAPES}; an IPv6 address is "
                "written as [::1])"
            )
        host, port = found.groups()
        if port is not None and not 0 < int(port) < 65536:
            raise ValueError("has a port above 65535 or of 0")
        yield _text(host).strip("[]"), int(port) if port else None


def _arguments(scheme: str, query: str) -> dict[str, str]:
    known = _ARGUMENTS["mysql" if scheme.startswith("mysql") else scheme]
    found: dict[str, str] = {}
    for one in query.split("&") if query else ():
        name, equals, value = one.partition("=")
        if name not in known and name != ZONE:
            shown = f"argument {name!r}" if _PLAIN.fullmatch(name) and equals else "argument"
            hint = f"; write {_ELSEWHERE[name]}" if _ELSEWHERE.get(name) in known else did_you_mean(name, known)
            takes = ", ".join(known) or "no argument"
            raise ValueError(f"has an unknown {shown}{hint}; an address of {scheme}:// takes {takes}")
        if name in found or not value:
            raise ValueError(f"has the argument {name} {'twice' if name in found else 'without a value'}")
        found[name] = _text(value)
    _check_tls(found)
    return found


def _check_tls(arguments: Mapping[str, str]) -> None:
    for name in ("ssl_ca", "ssl_cert", "ssl_key", "unix_socket"):
        if not arguments.get(name, "/").startswith("/"):
            raise ValueError(f"has {name} without a whole path: processes start in different folders; begin it with /")
    if arguments.get("ssl_verify") not in (None, "true", "false"):
        raise ValueError("has an ssl_verify that is neither true nor false")
    if "ssl_key" in arguments and "ssl_cert" not in arguments:
        raise ValueError("has ssl_key without ssl_cert, the certificate of the key")


def _text(part: str) -> str:
    """Return a part as it is meant."""
    if _LONE_PERCENT.search(part):
        raise ValueError("has a '%' that begins no escape; write '%' as %25")
    try:
        text = unquote(part, errors="strict")
        text.encode()
    except UnicodeError:
        raise ValueError("has bytes that are no UTF-8") from None
    if "\0" in text:
        raise ValueError("has a zero byte")
    return text


def host_of(host: tuple[str, int | None], port: int) -> str:
    """Return a host and its port as an address writes them.

    Args:
        host: as in `Address`.
        port: where the address gives none.
    """
    name, given = host
    quoted = quote(name, safe=":")
    return f"{f'[{quoted}]' if ':' in name else quoted}:{given or port}"


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
