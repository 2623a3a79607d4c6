"""Start a local cluster in a directory, break single processes on purpose, and take it down without a trace."""

from __future__ import annotations

import atexit
import os
import shutil
import signal as signals
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from pipeline.devcluster import owner_guard, processes, servers, state
from pipeline.devcluster.processes import uninterrupted
from pipeline.devcluster.startup import CONFIG_FILE, ClusterOptions, Progress, construct, one_more, relaunch, wait_ready
from pipeline.devcluster.state import ClusterFailed, Process, Shard

#: How long workers may finish their batch when the cluster goes down, s.
WORKER_GRACE_S = 5.0

#: How long a single process may take to stand after SIGSTOP, and to stop by itself, s.
STAND_TIMEOUT_S = 1.0
STOP_TIMEOUT_S = 30.0


class Cluster:
    """The cluster of a directory. Its state is in `cluster.json`, so any number of these objects may share one.

    Attributes:
        directory: the home of every file of the cluster.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._lock = threading.RLock()
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner_pid: int | None = None

    def __repr__(self) -> str:
        return f"<Cluster {self.directory}>"

    @classmethod
    def up(
        cls,
        directory: str | os.PathLike[str],
        engine: str = "embedded",
        *,
        shards: int = 2,
        replicas: int = 1,
        workers: int = 2,
        worker_concurrency: int = 1,
        flower_port: int | None = None,
        buckets: int = 64,
        tables: str = "",
        report: Progress | None = None,
        owned: bool = False,
    ) -> Cluster:
        """Start a cluster in an empty or new directory and return when every process of it works.

        Args:
            directory: becomes the home of every file of the cluster.
            engine: `embedded` (SQLite and the bundled Valkey) or `mariadb` (installed servers).
            shards: how many primaries.
            replicas: how many replicas each primary has.
            workers: how many Celery workers.
            worker_concurrency: how many child processes each worker has.
            flower_port: None for no Flower, 0 for a free port.
            buckets: the number of buckets in `pipeline.toml`.
            tables: TOML text that is appended to `pipeline.toml`.
            report: called with a sentence about each step.
            owned: whether the cluster goes down with this process, however that ends. Otherwise it stays up.

        Raises:
            ClusterFailed: something could not be started; nothing is left behind. Ctrl-C leaves nothing behind either.
        """
        counts = ClusterOptions(engine, shards, replicas, workers, worker_concurrency, flower_port, buckets, tables)
        cluster = cls(Path(directory).resolve())
        claimed = False
        try:
            with uninterrupted():
                state.claim(cluster.directory, engine)
                claimed = True
                if owned:
                    cluster._own()
            construct(cluster.directory, counts, report or _silent)
        except BaseException:
            # A directory that could not be claimed belongs to somebody else.
            if claimed:
                cluster.down()
            raise
        return cluster

    @classmethod
    def at(cls, directory: str | os.PathLike[str]) -> Cluster:
        """Return the cluster that is up in the directory.

        Args:
            directory: what `up` was given.

        Raises:
            ClusterFailed: no cluster is up there.
        """
        cluster = cls(Path(directory).resolve())
        state.read_state(cluster.directory)
        return cluster

    @property
    def config(self) -> Path:
        """The `pipeline.toml` of this cluster."""
        return self.directory / CONFIG_FILE

    @property
    def password(self) -> str:
        """The password of every account of this cluster, Redis's too: random, and in files of its user's only."""
        return state.read_state(self.directory).password

    def sql(self, node: str, statements: str) -> str:
        """Run statements on a MariaDB node as root, and return a line of column names, then the rows.

        Args:
            node: the node's name, such as `s0-r0`.
            statements: SQL, separated by semicolons.

        Raises:
            ClusterFailed: the server gave no answer within 10 s, or refused a statement.
        """
        known = state.read_state(self.directory)
        return servers.run_statement(known.service(node).port or 0, known.password, statements)

    @property
    def processes(self) -> list[Process]:
        """Every process that was started and not taken down, dead or alive; none when the cluster is down."""
        return list(state.read_state(self.directory).processes) if state.exists(self.directory) else []

    def add_shard(self, report: Progress | None = None) -> Shard:
        """Start the servers of one shard more, and return its addresses; the deployment does not know it yet.

        Args:
            report: called with a sentence about each step.

        Raises:
            ClusterFailed: something could not be started; what was is taken down with the cluster.
        """
        with self._lock:
            return one_more(self.directory, report or _silent)

    def is_alive(self, name: str) -> bool:
        """Return whether a process runs.

        Args:
            name: the process's name, such as `s0-r0` or `worker-1`.
        """
        return processes.is_alive(self._process(name))

    def start(self, name: str) -> None:
        """Start a process that was stopped or killed, on the same port with the same files, and wait until it works.

        Args:
            name: the process's name.

        Raises:
            ClusterFailed: no process has that name, or it does not start.
        """
        with self._lock:
            service = state.read_state(self.directory).service(name)
            before = self._process(name)
            if processes.is_alive(before):
                return
            processes.end([before])
            wait_ready(self.directory, [(service, relaunch(self.directory, service))], _silent)

    def stop(self, name: str, signal: int = signals.SIGTERM) -> None:
        """Send a signal that stops a process, and wait until it and its children are gone.

        SIGSTOP and SIGCONT go to its children too. After SIGSTOP they all stand, or a second is over.

        Args:
            name: the process's name.
            signal: the signal's number.

        Raises:
            ClusterFailed: the process still ran 30 s later.
        """
        process = self._process(name)
        if signal in (signals.SIGSTOP, signals.SIGCONT):
            processes.send_group(process, signal)
            if signal == signals.SIGSTOP:
                processes.wait_stopped(process, STAND_TIMEOUT_S)
            return
        processes.send(process, signal)
        if not processes.wait_gone(process, STOP_TIMEOUT_S):
            raise ClusterFailed(f"{name} ({process.pid}) still ran {STOP_TIMEOUT_S:.0f} s after signal {signal}")
        processes.end([process])

    def kill(self, name: str) -> None:
        """Kill a process and its children with SIGKILL, as a crash would.

        Args:
            name: the process's name.
        """
        processes.end([self._process(name)])

    def down(self, *, grace_s: float = WORKER_GRACE_S) -> list[str]:
        """End all processes, remove all files, and return the names of what was running. Does nothing when down.

        Args:
            grace_s: how long workers and Flower may take to end by themselves; 0: they are killed.
        """
        with self._lock, uninterrupted():
            names = self._take_down(grace_s) if state.exists(self.directory) else []
            self._disown()
        return names

    def _take_down(self, grace_s: float) -> list[str]:
        known = state.read_state(self.directory)
        running = [process.name for process in known.processes if processes.is_alive(process)]
        kinds = {service.name: service.kind for service in known.services}
        polite = [process for process in known.processes if kinds[process.name] in ("worker", "flower")]
        processes.end(polite, grace_s=grace_s)
        # Servers need no grace period: their files go next.
        processes.end([process for process in known.processes if process not in polite])
        for entry in known.entries:
            _remove(self.directory / entry)
        state.remove_state(self.directory)
        for folder in map(Path, known.made_folders):
            # A folder that now holds somebody else's files stays.
            with suppress(OSError):
                folder.rmdir()
        return running

    def _process(self, name: str) -> Process:
        known = state.read_state(self.directory)
        known.service(name)
        process = known.process(name)
        if process is None:
            raise ClusterFailed(f"{name} was never started")
        return process

    def _own(self) -> None:
        self._owner_pid = os.getpid()
        self._guard = owner_guard.post(self.directory)
        atexit.register(self._down_at_exit)

    def _disown(self) -> None:
        if self._guard:
            owner_guard.dismiss(self._guard)
            self._guard = None
            atexit.unregister(self._down_at_exit)

    def _down_at_exit(self) -> None:
        # A fork of the owner inherits this hook, but not the cluster.
        if os.getpid() == self._owner_pid:
            self.down()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _silent(_sentence: str) -> None:
    pass
