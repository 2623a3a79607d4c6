"""Servers and databases that the tests start for themselves, on free ports and in directories of their own."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import support.examples  # noqa: F401  # sets how many examples hypothesis takes
from support.servers.log_users import PASSWORD

from pipeline.clock import polls
from pipeline.config.settings import load
from pipeline.devcluster import Cluster, servers
from pipeline.devcluster.processes import free_ports
from pipeline.devcluster.state import ClusterFailed

# a background job is started with SIGINT ignored, and would hand that on to every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Files that take longest: they begin first, so that the end waits for none. Four at a time, as they fit on two cores.
LONGEST = (
    *("cluster/test_growth", "applications/test_adopting", "admin/test_migrate", "cluster/test_bad_things"),
    *("cluster/test_demo_grows", "reads/test_reads_health", "cluster/test_demo", "admin/test_pipeline_tab"),
    *("cluster/test_grouping_mariadb", "py4web/test_py4web_versions", "cluster/test_cluster_traces"),
    *("reads/test_moving_reads_mariadb", "web2py/test_web2py_browser", "applications/test_tracker"),
    *("crash/test_poison", "crash/test_moves", "crash/test_exactly_once", "crash/test_spool", "crash/test_order"),
    *("crash/test_key_moves", "crash/test_stale_reads", "crash/test_restarts", "crash/test_losses"),
)
START_TIMEOUT_S = 20
#: What was acknowledged outlives a kill; a replica need not wait for others to join it.
OPTIONS = ("--appendfsync", "always", "--repl-diskless-sync-delay", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files come first."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(f"{item.path.parent.name}/{item.path.stem}", len(order)))


def pytest_collection_finish() -> None:
    """Let no collection of garbage look at what there is by now: half a million objects, the tests and their modules.

    It took an eighth of the time of all tests in one process.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class LogServer:
    """A Redis or Valkey server with an append-only file, of which a test may do what it likes."""

    def __init__(self, command: tuple[str, ...], directory: Path):
        [self.port] = free_ports(1)
        servers.keep_password(directory, PASSWORD)
        self._argv = (*servers.service(directory, command, self.port).argv, *OPTIONS)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return servers.address(self.port, PASSWORD)

    def client(self) -> redis.Redis:
        limits = {"socket_timeout": 5, "socket_connect_timeout": 2}
        return redis.Redis(port=self.port, password=PASSWORD, decode_responses=True, **limits)

    def start(self) -> None:
        """Start, and wait until it answers; does nothing while it runs."""
        if self._process is not None:
            return
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in polls(START_TIMEOUT_S):
            if servers.answers(self.port, PASSWORD):
                return
            assert self._process.poll() is None, f"{self._argv[0]} ended with {self._process.returncode}"
        pytest.fail(f"{self._argv[0]} did not answer within {START_TIMEOUT_S} s")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Stop or kill it, and wait until it has gone."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=START_TIMEOUT_S)
            self._process = None

    def restart(self, how: int = signal.SIGKILL) -> None:
        self.stop(how)
        self.start()


def missing(what: str) -> None:
    """Skip a test that lacks a server, but never under CI, where that would hide it."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI must not skip")
    pytest.skip(what)


@pytest.fixture(scope="session")
def start_log_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LogServer]]:
    """Return a function that starts a server of a kind: `redis` or `valkey`."""
    started: list[LogServer] = []

    def start(kind: str) -> LogServer:
        try:
            command = servers.installed() if kind == "redis" else servers.bundled()
        except ClusterFailed as error:
            missing(str(error))
        started.append(LogServer(command, tmp_path_factory.mktemp(kind)))
        return started[-1]

    yield start
    for server in started:
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def log_server(start_log_server: Callable[[str], LogServer]) -> Callable[[str], LogServer]:
    """Return a function that gives the shared server of a kind; tests use prefixes of their own on it."""
    shared: dict[str, LogServer] = {}

    def get(kind: str) -> LogServer:
        if kind not in shared:
            shared[kind] = start_log_server(kind)
        return shared[kind]

    return get


@pytest.fixture(scope="session")
def mariadb_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return pyDAL's address of an empty schema on a real MariaDB server; its user is root."""
    if not (shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin")):
        missing("mariadbd is not installed")
    cluster = Cluster.up(
        tmp_path_factory.mktemp("mariadb") / "cluster", "mariadb", shards=1, replicas=0, workers=0, owned=True
    )
    try:
        yield load(cluster.config).shards["s0"].primary
    finally:
        cluster.down()
