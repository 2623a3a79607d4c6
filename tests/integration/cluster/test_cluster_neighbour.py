"""Another account of the machine on which a local cluster runs: it gets into no server, and reads no file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pymysql
import pytest

from pipeline.devcluster import Cluster
from pipeline.devcluster.state import ClusterFailed, claim

pytestmark = pytest.mark.mariadb

#: An account that owns nothing here.
NOBODY = 65534
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can act as another account (setpriv)"
)
#: Files that hold a password or rows, or tell of them; `find` sees none of them where it cannot list their folder.
TELLING = ("pipeline.toml", "cluster.json", "redis/password.conf", "logs/s0.log", "s0/ibdata1")


def as_nobody(*command: str) -> str:
    """Return what a command prints on stdout, run as an account that owns nothing."""
    identity = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    done = subprocess.run(
        ["setpriv", *identity, *command], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )
    return done.stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster in a folder that everybody could list and write until it was given to the cluster."""
    if not os.environ.get("CI") and not all(map(shutil.which, ("mariadbd", "redis-server"))):
        pytest.skip("mariadbd and redis-server are not installed")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        directory = Path(folder) / "cluster"
        directory.mkdir()
        directory.chmod(0o777)
        running = Cluster.up(directory, "mariadb", shards=1, replicas=0, workers=0, owned=True)
        yield running
        running.down()


def port(cluster: Cluster, name: str) -> int:
    [found] = [process.port for process in cluster.processes if process.name == name]
    assert found is not None
    return found


@needs_root
def test_another_account_reads_none_of_its_files(cluster: Cluster) -> None:
    assert str(cluster.directory.parent) in as_nobody("find", str(cluster.directory.parent), "-readable")
    assert as_nobody("find", str(cluster.directory), "(", "-readable", "-o", "-writable", ")") == ""
    for name in TELLING:
        assert (cluster.directory / name).exists()
        assert as_nobody("cat", str(cluster.directory / name)) == ""


def test_its_folders_and_its_files_are_for_their_user_only(cluster: Cluster) -> None:
    folders = [cluster.directory, *(path for path in cluster.directory.iterdir() if path.is_dir())]
    written = [cluster.config, *cluster.directory.glob("*.json"), *cluster.directory.glob("logs/*")]

    assert {oct(folder.stat().st_mode & 0o777) for folder in folders} == {"0o700"}
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {"0o600"}


def test_no_account_has_an_empty_password(cluster: Cluster) -> None:
    with socket.create_connection(("127.0.0.1", port(cluster, "redis")), timeout=5) as redis:
        redis.sendall(b"CONFIG GET dir\r\n")
        assert redis.recv(200).startswith(b"-NOAUTH")
    for user in ("root", "app", "reader", "replicator", ""):
        for password in ("", user):
            with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
                pymysql.connect(
                    host="127.0.0.1", port=port(cluster, "s0"), user=user, password=password, connect_timeout=5
                )


def test_a_list_of_processes_shows_no_password(cluster: Cluster) -> None:
    shown = [Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in cluster.processes]

    assert len(shown) == 2
    assert not [words for words in shown if cluster.password.encode() in words]
    assert len(cluster.password) == 32


def test_no_statement_reads_or_writes_a_file_of_the_machine(cluster: Cluster, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hush")
    account = {"host": "127.0.0.1", "port": port(cluster, "s0"), "user": "root", "password": cluster.password}

    with closing(pymysql.connect(**account, connect_timeout=5)) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT LOAD_FILE('{secret}')")
        assert cursor.fetchone() == (None,)
        with pytest.raises(pymysql.err.OperationalError, match="secure-file-priv"):
            cursor.execute(f"SELECT 1 INTO OUTFILE '{tmp_path}/written'")


@needs_root
def test_a_folder_of_another_account_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)

    with pytest.raises(ClusterFailed, match="is another user's"):
        claim(theirs, "embedded")
