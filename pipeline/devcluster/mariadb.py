"""Real MariaDB servers: primaries `s0`, `s1`, … and replicas `s0-r0`, …, durable and replicating by GTID.

They are asked through MariaDB's own command line client: drivers stay where shards are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pipeline.clock import polls
from pipeline.devcluster import redis_server
from pipeline.devcluster.layout import Layout, RunStep, Shard, node_names
from pipeline.devcluster.processes import LOOPBACK, accepts, free_ports
from pipeline.devcluster.state import ClusterFailed, Service

SCHEMA = "shop"

#: The data directory that is made once and copied for each node.
TEMPLATE = "template"
TMP = "tmp"

#: How long a replica may take to connect to its primary.
LINK_TIMEOUT_S = 20.0

#: What a node is run with; a kill at any moment loses no commit, on a primary or on a replica.
OPTIONS = (
    f"--bind-address={LOOPBACK}",
    "--skip-name-resolve",
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
    # Relative to the data directory, so that a deep one does not meet the 107 bytes a socket's path may have.
    "--socket=mariadbd.sock",
    "--pid-file=mariadbd.pid",
)


def log_server_argv() -> tuple[str, ...]:
    """Return the command of the system's Redis."""
    return redis_server.installed()


def lay_out(directory: Path, shards: int, replicas: int) -> Layout:
    """Give each node a port and its command."""
    names = node_names(shards, replicas)
    nodes = [node for primary, followers in names.items() for node in (primary, *followers)]
    ports = dict(zip(nodes, free_ports(len(nodes)), strict=True))
    uris = {
        name: Shard(name, _uri("root", ports[name]), tuple(_uri("reader", ports[follower]) for follower in followers))
        for name, followers in names.items()
    }
    services = tuple(
        Service(node, "mariadb", _argv(directory / node, ports[node], server_id, primary=node in names), ports[node])
        for server_id, node in enumerate(nodes, start=1)
    )
    return Layout(services, tuple(uris.values()), (TEMPLATE, TMP, *nodes))


def prepare(directory: Path, layout: Layout, run: RunStep) -> None:
    """Make one data directory with the accounts in it, and copy it for each node."""
    template = directory / TEMPLATE
    argv = (
        _program("mariadb-install-db"),
        "--no-defaults",
        f"--datadir={template}",
        f"--tmpdir={_tmp(template)}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
        f"--extra-file={Path(__file__).with_name('accounts.sql')}",
        "--innodb-log-file-size=64M",
        *_user(),
    )
    for name in (TEMPLATE, *(service.name for service in layout.services)):
        _tmp(directory / name).mkdir(parents=True)
    run(Service("mariadb-install-db", "step", argv))
    for service in layout.services:
        shutil.copytree(template, directory / service.name)
    shutil.rmtree(template)


def link(layout: Layout) -> None:
    """Make each replica follow its primary, and wait until it does."""
    ports = {service.name: service.port for service in layout.services if service.port}
    pending = {name: port for name, port in ports.items() if "-" in name}
    for name, port in pending.items():
        run_statement(
            port,
            f"CHANGE MASTER TO MASTER_HOST='{LOOPBACK}', MASTER_PORT={ports[name.partition('-')[0]]}, "
            "MASTER_USER='replicator', MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos; START SLAVE",
        )
    for _ in polls(LINK_TIMEOUT_S):
        pending = {name: port for name, port in pending.items() if not replicates(port)}
        if not pending:
            return
    name, port = next(iter(pending.items()))
    raise ClusterFailed(f"{name} does not follow its primary after {LINK_TIMEOUT_S:.0f} s", _replica_status(port))


def answers(port: int) -> bool:
    """Whether the server runs a statement."""
    if not accepts(port):
        return False
    try:
        return run_statement(port, "SELECT 1 AS answer").split() == ["answer", "1"]
    except ClusterFailed:
        return False


def replicates(port: int) -> bool:
    """Whether both threads of a replica run."""
    status = _replica_status(port)
    return "Slave_IO_Running: Yes" in status and "Slave_SQL_Running: Yes" in status


def run_statement(port: int, statements: str) -> str:
    """Run statements as root and return the client's output: a line of column names, then the rows."""
    argv = [_program("mariadb"), "--no-defaults", "--protocol=tcp", f"--host={LOOPBACK}", f"--port={port}"]
    argv += ["--user=root", "--connect-timeout=2", "--batch", "--execute", statements]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterFailed(f"the server on port {port} did not answer within 10 s") from None
    if done.returncode:
        raise ClusterFailed(f"the server on port {port} refused: {done.stderr.strip()}")
    return done.stdout


def _replica_status(port: int) -> str:
    return run_statement(port, "SHOW SLAVE STATUS\\G")


def _uri(user: str, port: int) -> str:
    return f"mysql:pymysql://{user}@{LOOPBACK}:{port}/{SCHEMA}?set_encoding=utf8mb4"


def _argv(folder: Path, port: int, server_id: int, *, primary: bool) -> tuple[str, ...]:
    own = (f"--datadir={folder}", f"--port={port}", f"--server-id={server_id}", f"--tmpdir={_tmp(folder)}")
    role = () if primary else ("--read-only=1",)
    return (_program("mariadbd"), "--no-defaults", *own, *role, *OPTIONS, *_user())


def _tmp(folder: Path) -> Path:
    """Return a node's folder for temporary tables: a starting server deletes all that it finds in its own."""
    return folder.parent / TMP / folder.name


def _user() -> tuple[str, ...]:
    # The server refuses to run as root unless told to.
    return ("--user=root",) if os.geteuid() == 0 else ()


def _program(name: str) -> str:
    # Debian keeps the server in /usr/sbin, which an ordinary user's PATH lacks.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if not path:
        raise ClusterFailed(f"{name} is not installed; on Debian: apt-get install mariadb-server")
    return path
