"""Connect to MySQL and MariaDB: exact credentials, verified TLS, and no password for a server that nobody verified.

PyMySQL speaks TLS with a server that offers it, and verifies no certificate unless it is configured to. It sends a
server whatever that requests, the bare password too (`mysql_clear_password`). So these connections configure both.

A context of TLS may read all certificates that the machine trusts. That takes 28 ms of processor time; all the rest of
a connect takes 1.5 ms. Connections of a process share it, until one of its files changes.
"""

from __future__ import annotations

import os
import select
import ssl
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pymysql.connections import Connection
from pymysql.constants import CLIENT, CR
from pymysql.err import OperationalError

from pipeline import clock
from pipeline.config.address import TLS, host_of, parse

if TYPE_CHECKING:
    _Connection = Connection[Any]  # generic in its stubs only
else:
    _Connection = Connection

_PORT = 3306
#: So soon after a commit the next statement begins the next transaction, s: what breaks a connection that idles takes
#: longer. Where batches are small, that is one round trip of seven.
FRESH_S = 1.0
#: Plugins by which a server learns the password, or enough of it to find it.
_TELLING = ("mysql_clear_password", "dialog", "sha256_password", "caching_sha2_password", "mysql_old_password")
#: What is used where an address says nothing of TLS, and the server offers it.
_UNCHECKED = TLS(verify=False)


class Endpoint:
    """A database that connections are made to, as its address says.

    Args:
        uri: the address; see `pipeline.config.address`.

    Attributes:
        uri: what pyDAL reads: the same database, without a password.
    """

    def __init__(self, uri: str):
        address = parse(uri)
        host, port = address.hosts[0]
        self._tls = address.tls
        self._args = {
            "host": host or "localhost",
            "port": port or _PORT,
            "user": address.user,
            # PyMySQL would write a text in Latin-1
            "password": (address.password or "").encode(),
            "database": address.path,
            "unix_socket": address.arguments.get("unix_socket"),
            "charset": "utf8mb4",
        }
        place = host_of((host or "localhost", port), _PORT)
        self.uri = (
            f"{address.scheme}://{quote(address.user or '', safe='')}@{place}/{quote(address.path, safe='')}"
            "?set_encoding=utf8mb4"
        )

    def connect(self, args: dict[str, Any]) -> Any:
        """Return a new connection.

        Args:
            args: the driver's arguments, pyDAL's and ours; those of the address replace pyDAL's.

        Raises:
            OperationalError: the server cannot be reached, or is not the one that the address means.
        """
        own = {name: value for name, value in args.items() if name not in ("db", "passwd")} | self._args
        # whoever wrote an address with TLS or a socket has said that its server may have the password
        tells = self._tls is not None or self._args["unix_socket"] is not None
        return NodeConnection(**own, tls=self._tls, tells=tells)


class NodeConnection(_Connection):
    """PyMySQL's connection that does what the address says of TLS, and knows whether it needs a BEGIN.

    Args:
        tls: how it is encrypted; None: if the server offers that, and nothing is checked.
        tells: whether the server may learn the password.
        args: PyMySQL's own arguments.
    """

    def __init__(self, *, tls: TLS | None = None, tells: bool = False, **args: Any):
        self._asked, self._tells = tls, tells
        self._committed_s = -inf
        if not tells:
            args["auth_plugin_map"] = dict.fromkeys(_TELLING, _Untold)
        super().__init__(**args, ssl=context_of(tls) if tls else None)

    def commit(self) -> None:
        """Commit."""
        super().commit()
        self._committed_s = clock.mono_s()

    @property
    def begins_itself(self) -> bool:
        """Whether the next statement begins a transaction: autocommit is off, the last has just ended, and the server
        has not hung up since.
        """
        this: Any = self
        if clock.mono_s() >= self._committed_s + FRESH_S or this.get_autocommit() or this._sock is None:
            return False
        if not hasattr(select, "poll"):  # eventlet takes it away
            return False
        hung_up = select.poll()
        hung_up.register(this._sock, select.POLLIN)
        return not hung_up.poll(0)

    def _create_ssl_ctx(self, given: Any) -> Any:
        # If PyMySQL renames it, connects without `tls` are only slower.
        return given or context_of(_UNCHECKED)

    def _get_server_information(self) -> None:
        this: Any = self
        super()._get_server_information()  # type: ignore[misc]  # PyMySQL's own, which the stubs leave out
        if self._asked and not this.server_capabilities & CLIENT.SSL:
            # PyMySQL before 1.2 would go on without TLS
            raise OperationalError(
                CR.CR_SSL_CONNECTION_ERROR,
                "the server offers no TLS, which its address asks for: give the server ssl_cert and ssl_key, or take "
                "ssl_ca, ssl_cert, ssl_key and ssl_verify out of the address, and anybody between can read and change "
                "what passes",
            )
        if not self._tells and this._auth_plugin_name in _TELLING:
            # the first packet would hold the password; a server that wants it still is refused then
            this._auth_plugin_name = "mysql_native_password"


class _Untold:
    """What answers a server that asks for more than a proof of the password.

    Args:
        connection: PyMySQL's.
    """

    def __init__(self, connection: Any):
        self._host = connection.host

    def authenticate(self, packet: object) -> None:
        """Refuse, whatever *packet* the server sent."""
        raise OperationalError(
            CR.CR_AUTH_PLUGIN_ERR,
            f"the account on {self._host} is of a kind that gives the server the password itself: add ssl_ca=/path "
            "to the address, so that the server is verified first (or ssl_verify=false to trust it)",
        )


def context_of(tls: TLS) -> ssl.SSLContext:
    """Return the process's context for connections.

    Args:
        tls: what to check.

    Raises:
        OperationalError: a file cannot be read, or is not what it must be.
    """
    files = {name: path for name in ("ca", "cert", "key") if (path := getattr(tls, name))}
    try:
        return _context(tls, tuple(os.stat(path).st_mtime_ns for path in files.values()))
    except OSError as error:  # ssl's errors too
        named = " and ".join(f"ssl_{name}={path}" for name, path in files.items())
        reason = error.strerror if error.filename else "it is no such file in PEM form, or the key is of another"
        raise OperationalError(CR.CR_SSL_CONNECTION_ERROR, f"{named} cannot be used: {reason or error}") from error


@lru_cache(maxsize=64)
def _context(tls: TLS, changed_ns: tuple[int, ...]) -> ssl.SSLContext:
    if tls.verify:
        context = ssl.create_default_context(cafile=tls.ca)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # the certificates that MySQL makes by itself do not pass the strict rules of Python 3.13
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if tls.cert:
        context.load_cert_chain(tls.cert, tls.key)
    return context
