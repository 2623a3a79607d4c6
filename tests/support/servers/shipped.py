"""The servers of deploy/, with its files; only ports and folders are a test's."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pymysql
import redis

from pipeline.devcluster.processes import free_ports
from support.servers.deploying import CALL_S, DEPLOY, STARTUP_S, child, run, within

ACCESS_DENIED = {1044, 1045, 1142, 1227}


@dataclass(frozen=True)
class Node:
    port: int
    socket: Path
    passwords: dict[str, str]

    def connect(self, user: str, password: str | None = None) -> pymysql.Connection:
        where = {"unix_socket": str(self.socket)} if user == "root" else {"host": "127.0.0.1", "port": self.port}
        word = password if password is not None else self.passwords[user]
        return pymysql.connect(user=user, password=word, connect_timeout=5, read_timeout=10, autocommit=True, **where)

    def rows(self, user: str, sql: str) -> tuple[tuple, ...]:
        connection = self.connect(user)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()

    def refuses(self, user: str, sql: str) -> bool:
        """Whether *user* lacks the privilege; any other error is raised."""
        try:
            self.rows(user, sql)
        except pymysql.MySQLError as error:
            if error.args[0] in ACCESS_DENIED:
                return True
            raise
        return False

    def script(self, path: Path) -> None:
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={self.socket}"]
        subprocess.run(client, input=path.read_bytes(), check=True, timeout=60, capture_output=True)


@contextmanager
def mariadb_node(
    home: Path, port: int, role: str, server_id: int, passwords: dict[str, str], empty: Path | None = None
) -> Iterator[Node]:
    """Run a server with the files of its role; *empty* is an installation to begin with."""
    home.mkdir()
    if empty:
        shutil.copytree(empty / "data", home / "data")
    else:
        install_mariadb(home)
    options = home / "my.cnf"
    options.write_text(f"!include {DEPLOY}/mariadb/node.cnf\n!include {DEPLOY}/mariadb/{role}.cnf\n")
    (home / "tmp").mkdir()  # a starting server deletes all temporary tables it finds: not those of another's, in /tmp
    common = [f"--defaults-file={options}", f"--datadir={home}/data", f"--user={getpass.getuser()}"]
    sock = Path("/tmp") / f"deploy-test-{port}.sock"  # a socket's path may have 107 characters at most
    own = [f"--socket={sock}", f"--pid-file={home}/pid", f"--server-id={server_id}", "--bind-address=127.0.0.1"]
    small = ["--innodb-buffer-pool-size=32M", "--performance-schema=OFF", f"--tmpdir={home}/tmp"]
    node = Node(port, sock, passwords)
    with child(["mariadbd", *common, *own, *small, f"--port={port}"], home / "log", lambda: answers(node)):
        yield node
    sock.unlink(missing_ok=True)


def install_mariadb(home: Path) -> None:
    """Make an empty server in *home*, with the shipped settings of every node."""
    (home / "install").mkdir(parents=True)
    options = home / "install" / "my.cnf"
    options.write_text(f"!include {DEPLOY}/mariadb/node.cnf\n")
    common = [f"--defaults-file={options}", f"--datadir={home}/data", f"--user={getpass.getuser()}"]
    install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    # As the container image does: else the installation itself is in the binary log, and the replica has it already.
    run(*install, "--skip-log-bin", f"--tmpdir={home}/install", timeout_s=STARTUP_S)


def answers(node: Node) -> bool:
    # Not PyMySQL: where nobody listens yet, it leaves its socket open, and that is a warning.
    ping = ["mariadb-admin", "--no-defaults", "--user=root", f"--socket={node.socket}", "ping"]
    return not subprocess.run(ping, capture_output=True, timeout=CALL_S, check=False).returncode


@contextmanager
def redis_server(role: str, secrets: Path, home: Path, *more: str, program: str = "redis-server") -> Iterator[int]:
    """Run a server with the files of its role; *more* are options of its command line."""
    [port] = free_ports(1)
    acl = secrets / f"{role}.acl"
    own = ["--port", str(port), "--dir", str(home), "--aclfile", str(acl), "--bind", "127.0.0.1"]
    command = [program, str(DEPLOY / "redis" / f"redis-{role}.conf"), *own, *more]
    with child(command, home / "log", lambda: redis_answers(port)):
        yield port


@contextmanager
def replica_of_log(primary: int, secrets: Path, home: Path, admin: str, password: str) -> Iterator[None]:
    """Run a replica of the log's Redis, with the user that deploy/README.md has for it; enter when it follows."""
    with redis_client(primary, admin, password) as client:
        client.execute_command("ACL", "SETUSER", "replica", "on", ">hush", "+psync", "+replconf", "+ping")
    (home / "log-replica").mkdir()
    follow = ["--replicaof", f"127.0.0.1 {primary}", "--masteruser", "replica", "--masterauth", "hush"]
    with (
        redis_server("log", secrets, home / "log-replica", *follow) as port,
        redis_client(port, admin, password) as client,
    ):
        assert within(30, lambda: client.info("replication")["master_link_status"] == "up")
        yield


def redis_answers(port: int) -> bool:
    """Ask as compose's health check does."""
    done = subprocess.run(
        ["redis-cli", "-u", f"redis://health:none@127.0.0.1:{port}", "ping"],
        capture_output=True, text=True, timeout=CALL_S, check=False,
    )  # fmt: skip
    return "PONG" in done.stdout


@contextmanager
def redis_client(port: int, user: str, password: str) -> Iterator[redis.Redis]:
    client = redis.Redis(
        port=port, username=user, password=password, socket_timeout=CALL_S, socket_connect_timeout=CALL_S
    )
    try:
        yield client
    finally:
        client.close()
