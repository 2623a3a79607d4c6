"""Run real MariaDB servers: primaries `s0`, `s1`, … and replicas `s0-r0`, …, durable and replicating by GTID.

Statements go through MariaDB's own command line client: drivers are imported in `pipeline.shard` only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.clock import polls
from pipeline.devcluster import redis_server, state
from pipeline.devcluster.processes import LOOPBACK, accepts, free_ports
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
        self.log_server = redis_server.installed()
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
