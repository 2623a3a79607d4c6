"""Take the address of a database or of a Redis apart: one grammar for all of them, and exact credentials.

    scheme://user:password@host:port/database?argument=value&argument=value

Each part is percent-encoded as `urllib.parse.quote(part, safe="")` does it, so any text can be a password. No message
repeats a part: any may be a password in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

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
_HOST = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[^\[\]:/?#@,\s]*)(?::(\d{1,5}))?")
_ESCAPES = "write '@' as %40, ':' as %3A, '/' as %2F, '?' as %3F, '#' as %23 and '%' as %25"
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN = re.compile(r"[a-z][a-z_-]{0,40}")


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
        if not (found := _HOST.fullmatch(one)):
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
