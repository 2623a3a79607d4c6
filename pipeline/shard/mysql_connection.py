"""Connect to MySQL and MariaDB: exact credentials, verified TLS, and no password for a server that nobody verified.

PyMySQL speaks TLS with a server that offers it, and verifies no certificate unless it is configured to. PyMySQL sends a
server whatever the server requests, the bare password too (`mysql_clear_password`). So these connections configure
both.

A context of TLS may read all certificates that the machine trusts. Reading takes 28 ms of processor time; all the rest
of a connect takes 1.5 ms. Connections of a process share it, until one of its files changes.
"""

from __future__ import annotations

import logging
import os
import select
import ssl
import struct
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from pymysql.connections import Connection
from pymysql.constants import CLIENT, COMMAND, CR, FIELD_TYPE
from pymysql.err import InterfaceError, MySQLError, OperationalError, raise_mysql_exception

from pipeline import clock
from pipeline.config.uris import TLS, host_of, parse
from pipeline.events import Event
from pipeline.shard.driver_errors import Fault, fault_of

if TYPE_CHECKING:
    _Connection = Connection[Any]  # generic in its stubs only
else:
    _Connection = Connection

_PORT = 3306
#: So soon after a commit the next statement begins the next transaction, s: what breaks a connection that idles takes
#: longer. Where batches are small, that is one round trip of seven.
FRESH_S = 1.0
#: Types of columns that hold whole numbers.
_WHOLE = {FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG, FIELD_TYPE.INT24}
#: How an answer begins without rows, what stands behind the rows, and in place of any; and a value that is NULL.
_OK, _END, _ERROR, _NULL = 0x00, 0xFE, 0xFF, 0xFB
#: What a value begins with whose length has two bytes.
_TWO_BYTES = 0xFC
#: The most statements of which the answers wait. A server reads on only while there is room for its answers, of 600
#: bytes at most.
MOST_UNREAD = 32
#: How long an answer to the second of two statements may take that need nothing, s; and how long a server that gives
#: none, or breaks while several are on their way, gets one at a time: for twice as long each time, up to the longest.
PROBE_S, SINGLY_S, MOST_SINGLY_S = 2.0, 60.0, 3_600.0
#: So much is read at once.
_READ_BYTES = 65_536
#: Plugins by which a server learns the password, or enough of it to find it.
_TELLING = ("mysql_clear_password", "dialog", "sha256_password", "caching_sha2_password", "mysql_old_password")
#: What is used where an address says nothing of TLS, and the server offers it.
_UNCHECKED = TLS(verify=False)
logger = logging.getLogger("pipeline.shard")


class _Taker:
    """What a process knows of whether one server, or a proxy before it, takes statements that come together."""

    def __init__(self) -> None:
        self.proved, self._until_s, self._for_s = False, -inf, SINGLY_S

    @property
    def one_at_a_time(self) -> bool:
        return clock.mono_s() < self._until_s

    def doubt(self, place: str, error: Exception) -> None:
        self.proved, self._until_s = False, clock.mono_s() + self._for_s
        logger.warning(Event("statements_sent_singly", address=place, for_s=self._for_s, error=error))
        self._for_s = min(2 * self._for_s, MOST_SINGLY_S)


#: By address: a connection is soon another one.
_takers = defaultdict[str, _Taker](_Taker)


class Endpoint:
    """A database that connections are made to, as its address says.

    Args:
        uri: the address; see `pipeline.config.uris`.

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
        #: How many statements of those that were sent last were answered before the first that failed.
        self.answered = 0
        if not tells:
            args["auth_plugin_map"] = dict.fromkeys(_TELLING, _Untold)
        super().__init__(**args, ssl=context_of(tls) if tls else None)

    def commit(self) -> None:
        """Commit."""
        self.ask(["COMMIT"])
        self._committed_s = clock.mono_s()

    def ask(self, statements: Sequence[str]) -> list[list[tuple[Any, ...]]]:
        """Send statements together, each in a packet of its own; return the rows of each.

        All may be executed, whatever becomes of those before. Servers and proxies that drop what comes with another
        statement, as Amazon Aurora 2 does (https://github.com/mysql-net/MySqlConnector/issues/486), get one at a time.
        PyMySQL waits for each answer, and makes an object of each
        column and packet: half of the worker's time for a batch of a few ops.

        Args:
            statements: a few, whose rows are whole numbers and texts.

        Raises:
            MySQLError: the first statement's that failed; or the connection broke, and it is unknown what was done.
        """
        failures, found = self._answers_to(statements)
        if (failure := next((error for error in failures if error is not None), None)) is not None:
            raise failure
        return found

    def execute_each(self, statements: Sequence[str]) -> list[MySQLError | None]:
        """Send statements together, as `ask` does; return of each why it failed.

        Args:
            statements: some, without rows, none of which needs what another does.

        Raises:
            MySQLError: one waited for a lock or took too long; or the connection broke. It is unknown what was done.
        """
        failures = list[MySQLError | None]()
        for start in range(0, len(statements), MOST_UNREAD):
            failures += self._answers_to(statements[start : start + MOST_UNREAD])[0]
        return failures

    def _answers_to(self, statements: Sequence[str]) -> tuple[list[MySQLError | None], list[list[tuple[Any, ...]]]]:
        self.answered = 0
        failures, found = list[MySQLError | None](), list[list[tuple[Any, ...]]]()
        together = len(statements) == 1 or self.takes_several()
        for n, some in enumerate([statements] if together else [[sql] for sql in statements]):
            left = 0 if together else len(statements) - n - 1
            self._exchange(some, failures, found, left)
        return failures, found

    def takes_several(self) -> bool:
        """Return whether statements may be sent together; probe it once for all connections to the server.

        Raises:
            MySQLError: the probe failed, and the connection broke; from now on the server gets one at a time.
        """
        this: Any = self
        taker = _takers[self._place]
        if taker.one_at_a_time:
            return False
        if not taker.proved:
            self._exchange(["SELECT 1", "SELECT 1"], [], [], timeout_s=PROBE_S)
            this._sock.settimeout(this._write_timeout)
            taker.proved = True
        return True

    @property
    def _place(self) -> str:
        this: Any = self
        return this.unix_socket or f"{this.host}:{this.port}"

    def _exchange(
        self,
        statements: Sequence[str],
        failures: list[MySQLError | None],
        found: list[list[tuple[Any, ...]]],
        unsent: int = 0,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Send statements together, and take in the answers."""
        this: Any = self
        if not this._sock:
            raise InterfaceError(0, "")
        while this._result is not None and this._result.has_next:  # as the driver does: nothing of it is an answer
            this.next_result()
        this._result = None
        texts = [sql.encode() for sql in statements]
        answers = _Answers(this)
        try:
            # the driver's reads keep the time-out of its writes: `Dialect.driver_args` gives both the same
            this._write_bytes(b"".join([struct.pack("<iB", len(sql) + 1, COMMAND.COM_QUERY) + sql for sql in texts]))
            if timeout_s is not None:
                this._sock.settimeout(timeout_s)
            for left in reversed(range(unsent, unsent + len(texts))):
                try:
                    found.append(answers.rows())
                    failures.append(None)
                    self.answered += not any(failures)
                except MySQLError as error:
                    if answers.broken or (left and fault_of(error) in (Fault.LOCKED, Fault.OVERTIME)):
                        raise  # each of the others could wait as long: their answers are not waited for
                    failures.append(error)
            answers.end()
        except BaseException as error:  # an interrupt too: what is still to come must not be taken for the next answer
            this._force_close()
            if answers.broken and len(statements) > 1 and isinstance(error, MySQLError):
                _takers[self._place].doubt(self._place, error)
            raise

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


class _Answers:
    """Reads the answers to statements off a connection.

    Args:
        connection: PyMySQL's.

    Attributes:
        broken: whether the connection is of no use any more.
    """

    def __init__(self, connection: Any):
        self._read, self._bytes, self._at = connection._rfile.read1, b"", 0
        self.broken = False

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the rows of the next answer.

        Raises:
            MySQLError: what the server says instead; or the connection is broken.
        """
        packet = self._packet(1)
        if packet[0] == _OK:
            return []
        # behind a column's names there are 12 bytes; the 7th is the type
        behind = 2 + packet[0]
        whole = [self._packet(number)[-6] in _WHOLE for number in range(2, behind)]
        self._packet(behind)
        rows = list[tuple[Any, ...]]()
        while (packet := self._packet(behind + len(rows) + 1))[0] != _END:
            rows.append(_row_of(packet, whole))
        return rows

    def end(self) -> None:
        """See that nothing is left.

        Raises:
            MySQLError: there is.
        """
        if self._at < len(self._bytes):
            self._break("there are more answers than statements")

    def _packet(self, number: int) -> bytes:
        while len(self._bytes) < self._at + 4:
            self._more()
        head = int.from_bytes(self._bytes[self._at : self._at + 4], "little")
        start, end = self._at + 4, self._at + 4 + (head & 0xFFFFFF)
        while len(self._bytes) < end:
            self._more()
        self._at = end
        if head >> 24 != number & 0xFF or start == end:
            self._break("the answer is out of order")
        if self._bytes[start] == _ERROR:
            raise_mysql_exception(self._bytes[start:end])
        return self._bytes[start:end]

    def _more(self) -> None:
        try:
            more = self._read(_READ_BYTES)
        except OSError as error:
            self._break(f"no answer ({error})")
        if not more:
            self._break("the connection ended")
        self._bytes += more

    def _break(self, why: str) -> NoReturn:
        self.broken = True
        raise OperationalError(CR.CR_SERVER_LOST, f"Lost connection to MySQL server during query: {why}")


def _row_of(packet: bytes, whole: Sequence[bool]) -> tuple[Any, ...]:
    values, at = list[Any](), 0
    for is_whole in whole:
        size, at = packet[at], at + 1
        if size == _NULL:
            values.append(None)
            continue
        if size > _NULL:
            width = 2 if size == _TWO_BYTES else 3 if size == _TWO_BYTES + 1 else 8
            size, at = int.from_bytes(packet[at : at + width], "little"), at + width
        value, at = packet[at : at + size], at + size
        values.append(int(value) if is_whole else value.decode())
    return tuple(values)


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
