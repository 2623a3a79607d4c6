"""Send a packed command on one socket to Redis, and read its reply, with half of the driver's work per round trip.

The driver makes the connection (address, TLS, login, database, Sentinel) and closes it; in between it is ours alone.
"""

from __future__ import annotations

import _socket
import select
import socket
import struct
import sys
from typing import Any

import hiredis
import redis

#: More than any reply of the hot path; longer ones take several reads.
READ_BYTES = 4096
#: The same where replies hold ops.
MANY_BYTES = 65_536
_INCOMPLETE = object()
_ERRORS: dict[str, type[redis.exceptions.RedisError]] = {
    "LOADING": redis.exceptions.BusyLoadingError,
    "NOSCRIPT": redis.exceptions.NoScriptError,
    "OOM": redis.exceptions.OutOfMemoryError,
    "READONLY": redis.exceptions.ReadOnlyError,
}


class Wire:
    """Speaks over a connection of the driver's pool; one thread at a time.

    Each send and each read waits for the connection's own time-out at most. After an `OSError` or a `ConnectionError`
    it is unknown what the server has done: drop the wire, never use it on.
    """

    __slots__ = ("_connection", "_pool", "_reader", "_socket", "_timeout_s")

    def __init__(self, pool: Any):
        self._pool = pool
        self._connection = pool.get_connection()
        self._socket = self._connection._sock
        self._timeout_s: float | None = self._socket.gettimeout()
        _wait_at_most(self._socket, self._timeout_s)
        self._reader = hiredis.Reader(replyError=_error, notEnoughData=_INCOMPLETE)

    def ask(self, packed: bytes, more_s: float = 0.0) -> Any:
        """Send a packed command and return its reply.

        Args:
            packed: the command.
            more_s: how much longer than usual the first byte of the reply may take, s.

        Raises:
            ResponseError: the server refused it; the wire goes on.
            OSError, ConnectionError: no answer in time, or the connection is gone.
        """
        reader, reply = self._reader, _INCOMPLETE
        try:
            self._socket.sendall(packed)
            while reply is _INCOMPLETE:
                try:
                    received = self._socket.recv(READ_BYTES)
                except (BlockingIOError, TimeoutError):
                    if more_s <= 0 or not self.readable(more_s):
                        raise
                    more_s = 0.0
                    continue
                if not received:
                    raise redis.exceptions.ConnectionError("the server closed the connection")
                reader.feed(received)
                reply = reader.gets()
                if type(reply) is bytes:  # nearly always
                    return reply
                while type(reply) is hiredis.PushNotification:  # said unasked
                    reply = reader.gets()
        except BaseException:  # an interrupt too: a reply that comes later must not be taken for the next one's
            self._connection.disconnect()
            raise
        if isinstance(reply, redis.exceptions.RedisError):
            raise reply
        return reply

    def ask_long(self, packed: bytes, more_s: float) -> Any:
        """Send a command of many bytes, and return its reply; see `ask`.

        Args:
            packed: the command.
            more_s: how much longer than usual each send and each read may wait, s.
        """
        if self._timeout_s:
            _wait_at_most(self._socket, self._timeout_s + more_s)
        try:
            return self.ask(packed)
        finally:
            if self._connection._sock is self._socket:  # not closed since
                _wait_at_most(self._socket, self._timeout_s)

    def ask_all(self, packed: bytes, count: int) -> list[Any]:
        """Send packed commands together, and return their replies; what the server refused is an error among them.

        Args:
            packed: the commands.
            count: how many they are.

        Raises:
            OSError, ConnectionError, ReadOnlyError: no answer in time, the connection is gone, or leads to a replica.
        """
        self.send(packed)
        return self.replies(count)

    def send(self, packed: bytes) -> None:
        """Send packed commands, whose replies are taken with `replies`.

        Args:
            packed: the commands.

        Raises:
            OSError: the connection is gone.
        """
        try:
            self._socket.sendall(packed)
        except BaseException:
            self._connection.disconnect()
            raise

    def replies(self, count: int) -> list[Any]:
        """Return the replies to commands that were sent, see `ask_all`.

        Args:
            count: how many commands.
        """
        reader, found = self._reader, list[Any]()
        try:
            while True:
                while len(found) < count and (reply := reader.gets()) is not _INCOMPLETE:
                    if isinstance(reply, redis.exceptions.ReadOnlyError):
                        raise reply  # a replica by now: another server has to be found
                    if type(reply) is not hiredis.PushNotification:
                        found.append(reply)
                if len(found) == count:
                    return found
                received = self._socket.recv(MANY_BYTES)
                if not received:
                    raise redis.exceptions.ConnectionError("the server closed the connection")
                reader.feed(received)
        except BaseException:
            self._connection.disconnect()
            raise

    def readable(self, within_s: float = 0.0) -> bool:
        """Return whether there is a reply to read, or the connection is gone.

        Args:
            within_s: how long to wait for either.
        """
        if self._socket.fileno() < 0:
            return True
        if not hasattr(select, "poll"):  # eventlet takes it away
            return bool(select.select([self._socket], [], [], within_s)[0])
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(1000 * within_s))

    def close(self) -> None:
        """Give the connection back to the pool."""
        if self._connection._sock is self._socket:  # not closed since
            self._socket.settimeout(self._timeout_s)
        self._pool.release(self._connection)

    def drop(self) -> None:
        """Close the connection: what is on it is unknown."""
        self._connection.disconnect()
        self._pool.release(self._connection)


def _wait_at_most(sock: Any, timeout_s: float | None) -> None:
    """Leave a socket's time-out to the kernel where it can keep it: Python's own costs a `poll` for each call.

    Not on sockets of gevent or eventlet, which may not block, nor under TLS.
    """
    if timeout_s and sys.platform == "linux" and type(sock) is socket.socket and isinstance(sock, _socket.socket):
        whole, part = divmod(timeout_s, 1)
        timeval = struct.pack("@ll", int(whole), max(1, int(part * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        sock.settimeout(None)
    else:
        sock.settimeout(timeout_s)


def _error(text: str) -> redis.exceptions.RedisError:
    code, _, rest = text.partition(" ")
    known = _ERRORS.get(code)
    return known(rest) if known else redis.exceptions.ResponseError(rest if code == "ERR" else text)
