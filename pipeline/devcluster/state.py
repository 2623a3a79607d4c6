"""Store what a cluster's directory holds and what runs: `cluster.json`, the only record of both; name its shards.

The file is written before each thing that it names exists. So `down` finds all there is to remove, whatever interrupted
a start.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.errors import PipelineError

#: The state's file in the cluster's directory.
STATE_FILE = "cluster.json"
#: The file of the next state, until it is complete.
UNFINISHED = "cluster.json.new"
#: The folders of each cluster: what its processes print, where they run, and its spool.
FOLDERS = ("logs", "run", "spool")

ProcessKind = Literal["redis", "mariadb", "sqlite-replica", "worker", "flower", "step"]


class ClusterFailed(PipelineError):
    """The local cluster cannot be started, found or taken down; the message says which process and what to do.

    Attributes:
        log_tail: the last lines that the process wrote; empty where no process is concerned.
    """

    def __init__(self, why: str, log_tail: str = ""):
        super().__init__(f"{why}; its log ends with:\n{log_tail}" if log_tail else why)
        self.log_tail = log_tail


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as `pipeline.toml` names it: pyDAL URIs of its primary and replicas."""

    name: str
    primary: str
    replicas: tuple[str, ...]


def node_names(shards: int, replicas: int, first: int = 0) -> dict[str, tuple[str, ...]]:
    """Return the name of each shard, which is also its primary's, with the names of its replicas.

    Args:
        shards: how many shards: 1 gives `s0`, 2 gives `s0` and `s1`.
        replicas: how many replicas each shard has: 2 gives `s0-r0` and `s0-r1`.
        first: the number of the first shard.
    """
    numbers = range(first, first + shards)
    return {f"s{i}": tuple(f"s{i}-r{j}" for j in range(replicas)) for i in numbers}


@dataclass(frozen=True, slots=True)
class Service:
    """One program to run, with all that is needed to run it again."""

    name: str
    kind: ProcessKind
    argv: tuple[str, ...]
    port: int | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Process:
    """A service that was started. *born* distinguishes it from a later process with the same number."""

    name: str
    pid: int
    port: int | None
    born: str = ""
    log_offset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Everything that is up, and every entry that `down` removes; *password* is of all accounts, Redis's too."""

    engine: str
    made_folders: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    processes: tuple[Process, ...] = ()
    password: str = field(default="", repr=False)

    def service(self, name: str) -> Service:
        """Return the service of that name, or raise an error that lists the names there are.

        Args:
            name: the service's name, such as `worker-0`.

        Raises:
            ClusterFailed: no service has that name.
        """
        for service in self.services:
            if service.name == name:
                return service
        names = ", ".join(service.name for service in self.services)
        raise ClusterFailed(f"the cluster has no process {name!r}; it has: {names}")

    def process(self, name: str) -> Process | None:
        """Return the process that was last started under that name.

        Args:
            name: the service's name.

        Returns:
            None before the first start.
        """
        return next((process for process in self.processes if process.name == name), None)

    def with_process(self, process: Process) -> ClusterState:
        """Return the state with a process in the place of an earlier one of the same name.

        Args:
            process: what has just been started.
        """
        others = tuple(other for other in self.processes if other.name != process.name)
        return replace(self, processes=(*others, process))

    def without(self, name: str) -> ClusterState:
        """Return the state with neither service nor process of that name.

        Args:
            name: the service's name.
        """
        return replace(
            self,
            services=tuple(service for service in self.services if service.name != name),
            processes=tuple(process for process in self.processes if process.name != name),
        )

    def with_services(self, services: Iterable[Service], entries: Iterable[str] = ()) -> ClusterState:
        """Return the state with services and directory entries added.

        Args:
            services: what will be started.
            entries: names of files and folders that `down` removes.
        """
        return replace(self, services=(*self.services, *services), entries=(*self.entries, *entries))


def claim(directory: Path, engine: str) -> None:
    """Make the directory this cluster's own, for its user only, or refuse one that holds anything.

    Args:
        directory: missing folders are made.
        engine: the engine's name, for the state.

    Raises:
        ClusterFailed: the directory holds something or is another user's, or another cluster is being started in it.
    """
    if (directory / STATE_FILE).exists():
        raise ClusterFailed(f"{directory} already holds a cluster; run: pipeline cluster down --dir {directory}")
    if directory.exists() and not directory.is_dir():
        raise ClusterFailed(f"{directory} is not a directory")
    if directory.exists() and any(directory.iterdir()):
        raise ClusterFailed(f"{directory} is not empty; a cluster needs an empty or a new directory")
    if directory.exists() and directory.stat().st_uid != os.geteuid():
        raise ClusterFailed(
            f"{directory} is another user's, who could read and replace all in it; give one of your own"
        )
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700)
    made = tuple(str(folder) for folder in missing)
    directory.chmod(0o700)
    try:
        fresh = ClusterState(engine, made, FOLDERS, password=secrets.token_hex(16))
        write(directory, fresh, new=True)
    except FileExistsError:
        raise ClusterFailed(f"another cluster is being started in {directory}") from None
    for name in FOLDERS:
        (directory / name).mkdir(mode=0o700)


def exists(directory: Path) -> bool:
    """Return whether the directory holds a cluster.

    Args:
        directory: the cluster's directory.
    """
    return (directory / STATE_FILE).exists()


def read_state(directory: Path) -> ClusterState:
    """Return the state of the cluster in a directory.

    Args:
        directory: the cluster's directory.

    Raises:
        ClusterFailed: no cluster is up there; the message says how to start one. Or the file is not a state.
    """
    try:
        return msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=ClusterState)
    except FileNotFoundError:
        raise ClusterFailed(f"no cluster is up in {directory}; run: pipeline cluster up --dir {directory}") from None
    except msgspec.MsgspecError as error:
        raise ClusterFailed(f"{directory / STATE_FILE} is not a cluster's state: {error}") from error


def remove_state(directory: Path) -> None:
    """Remove the state's file, and one that a signal left incomplete.

    Args:
        directory: the cluster's directory.
    """
    for name in (UNFINISHED, STATE_FILE):
        (directory / name).unlink(missing_ok=True)


def write(directory: Path, state: ClusterState, *, new: bool = False) -> None:
    """Write the state atomically, readable by its owner only.

    Args:
        directory: the cluster's directory.
        state: the whole new state.
        new: whether there must be no state yet.

    Raises:
        FileExistsError: *new* is true, and there is a state.
    """
    path = directory / STATE_FILE
    target = path if new else directory / UNFINISHED
    text = msgspec.json.format(msgspec.json.encode(state))
    write_private(target, text, new=new)
    if not new:
        target.replace(path)


def write_private(path: Path, data: bytes, *, new: bool = False) -> None:
    """Write a file that its owner only may read.

    Args:
        path: the file; a link in its place is refused.
        data: the whole contents.
        new: whether there must be no file yet.

    Raises:
        FileExistsError: *new* is true, and there is a file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_EXCL if new else os.O_TRUNC)
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
