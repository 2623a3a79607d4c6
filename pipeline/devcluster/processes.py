"""Start, watch and end background processes with their children: Celery's workers and Flower among them.

Every process leads a session and a group of its own. Ctrl-C in the terminal does not reach the process, and its
children can be ended after the process itself. A number is unique only with the moment of birth that the system
reports.

Also here: free loopback ports for servers, and a block that Ctrl-C, SIGTERM and SIGHUP do not interrupt.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pipeline.clock import polls
from pipeline.devcluster.state import ClusterFailed, Process, Service
from pipeline.per_process import chance

LOOPBACK = "127.0.0.1"

#: Linux and macOS give outgoing connections ports from 32768 and 49152 on. A client could take one of those while a
#: killed server is down.
FIRST_PORT, LAST_PORT = 20_000, 32_000

#: The signals that a terminal, `kill` and a closed connection send.
HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Linux's process table; elsewhere `ps` prints one.
PROC = Path("/proc")

#: In these states a process has ended, and its parent has not collected its exit code.
ENDED = ("Z", "X")

#: How much of a log an error repeats.
TAIL_LINES, TAIL_BYTES = 15, 16_384

#: The children of this very process by number, for their exit codes.
_children: dict[int, subprocess.Popen[bytes]] = {}
#: The descriptors of the ports of late, bound and not listened to: nobody else is given them before their servers have
#: started. So many are kept.
RESERVED = 200
_reserved: deque[int] = deque()
#: The folder that holds the packages `pipeline` and `workers`, and in a checkout also `deploy`.
ROOT = Path(__file__).resolve().parents[2]


def spawn(service: Service, directory: Path) -> Process:
    """Start a service in the background.

    Args:
        service: what to run, in the folder `run`.
        directory: the cluster's directory; output is appended to the service's log there.

    Raises:
        ClusterFailed: the program cannot be started.
    """
    log = log_path(directory, service.name)
    offset_bytes = log.stat().st_size if log.exists() else 0
    try:
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab") as output:
            child = subprocess.Popen(
                service.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory / "run",
                env={**os.environ, **service.environment},
                start_new_session=True,
                umask=0o077,  # what a service makes is its user's only
            )
    except OSError as error:
        raise ClusterFailed(f"{service.name}: {service.argv[0]} cannot be started: {error.strerror}") from error
    _children[child.pid] = child
    entry = find(child.pid)
    return Process(service.name, child.pid, service.port, entry.born if entry else "", offset_bytes)


def is_alive(process: Process) -> bool:
    """Return whether this very *process* runs, not a later one with its number."""
    exit_code(process)
    entry = find(process.pid)
    return entry is not None and entry.running and entry.born == process.born


def exit_code(process: Process) -> int | None:
    """Return the exit code of an ended child of ours; None while *process* runs or where it is another's child."""
    child = _children.get(process.pid)
    return child.poll() if child else None


def send(process: Process, number: int) -> None:
    """Send the signal *number* to the *process* alone."""
    if is_alive(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def send_group(process: Process, number: int) -> None:
    """Send the signal *number* to the *process* and its children."""
    # No number is reused while a group has it: another process under this number means that the group is gone.
    entry = find(process.pid)
    if entry is None or entry.born == process.born:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def wait_gone(process: Process, timeout_s: float) -> bool:
    """Return whether the *process* ended within *timeout_s* seconds."""
    return any(not is_alive(process) for _ in polls(timeout_s))


def wait_stopped(process: Process, timeout_s: float) -> bool:
    """Return whether the *process* and its children stood within *timeout_s* seconds; a busy machine delays SIGSTOP."""
    return any(all(one.state[0] in "Tt" for one in members(process.pid)) for _ in polls(timeout_s))


def end(processes: Sequence[Process], *, grace_s: float = 0.0) -> None:
    """End the processes and all their children.

    Args:
        processes: what to end; a process that has ended may still have children.
        grace_s: seconds between SIGTERM and SIGKILL; 0 for SIGKILL at once.

    Raises:
        ClusterFailed: some are still there 10 s after SIGKILL.
    """
    if grace_s:
        for process in processes:
            send_group(process, signal.SIGCONT)
            send(process, signal.SIGTERM)
        any(not any(map(is_alive, processes)) for _ in polls(grace_s))
    for process in processes:
        send_group(process, signal.SIGKILL)
    if not any(not _left(processes) for _ in polls(10)):
        left = ", ".join(f"{process.name} ({process.pid})" for process in _left(processes))
        raise ClusterFailed(f"still there 10 s after SIGKILL: {left}")
    for process in processes:
        # a process that has only just ended may not have its exit code yet
        if process.pid in _children and any(exit_code(process) is not None for _ in polls(1)):
            _children.pop(process.pid)
    for child in list(_children.values()):  # one that another process has ended, such as a command of an operator
        child.poll()


def log_path(directory: Path, name: str) -> Path:
    """Return the log of the service *name* of the cluster in *directory*."""
    return directory / "logs" / f"{name}.log"


def log_text(directory: Path, process: Process) -> str:
    """Return what the *process* has written since it was started, from its log in *directory*."""
    try:
        with log_path(directory, process.name).open("rb") as log:
            log.seek(process.log_offset_bytes)
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def log_tail(directory: Path, process: Process) -> str:
    """Return the last lines that the *process* has written, from its log in *directory*."""
    return "\n".join(log_text(directory, process)[-TAIL_BYTES:].splitlines()[-TAIL_LINES:])


def _left(processes: Iterable[Process]) -> list[Process]:
    return [process for process in processes if is_alive(process) or _has_children(process)]


def _has_children(process: Process) -> bool:
    entry = find(process.pid)
    reused = entry is not None and entry.born != process.born
    return not reused and bool(members(process.pid))


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One line of the process table."""

    pid: int
    group: int
    state: str
    born: str

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return not self.state.startswith(ENDED)


def find(pid: int) -> ProcessEntry | None:
    """Return the process with the number *pid*, ended or not."""
    if (PROC / "self/stat").exists():
        return _from_proc(PROC / str(pid))
    return next((entry for entry in _from_ps() if entry.pid == pid), None)


def members(group: int) -> list[ProcessEntry]:
    """Return the running processes of a *group*, which has the number of its leader."""
    if (PROC / "self/stat").exists():
        table = [entry for folder in PROC.iterdir() if folder.name.isdigit() and (entry := _from_proc(folder))]
    else:
        table = _from_ps()
    return [entry for entry in table if entry.group == group and entry.running]


def _from_proc(folder: Path) -> ProcessEntry | None:
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The command's name is in brackets and may hold brackets and blanks: fields count from the last bracket.
    fields = text.rpartition(")")[2].split()
    return ProcessEntry(int(folder.name), group=int(fields[2]), state=fields[0], born=fields[19])


def _from_ps() -> list[ProcessEntry]:
    command = ["ps", "-axo", "pid=,pgid=,stat=,lstart="]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    rows = [line.split(maxsplit=3) for line in lines]
    return [ProcessEntry(int(pid), int(group), state, born.strip()) for pid, group, state, born in rows]


def free_ports(count: int) -> list[int]:
    """Return *count* different ports on which nothing listens, and which no other process is given now; sorted."""
    found: list[int] = []
    for port in chance.sample(range(FIRST_PORT, LAST_PORT), LAST_PORT - FIRST_PORT):
        if len(found) == count:
            return sorted(found)
        if _reserve(port):
            found.append(port)
    raise ClusterFailed(f"fewer than {count} ports are free on {LOOPBACK} between {FIRST_PORT} and {LAST_PORT}")


def _reserve(port: int) -> bool:
    """Bind a port without listening, if nobody else has: a server that reuses addresses can listen nevertheless."""
    reserving = socket.socket()
    try:
        reserving.bind((LOOPBACK, port))
    except OSError:
        reserving.close()
        return False
    reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _reserved.append(reserving.detach())
    if len(_reserved) > RESERVED:
        os.close(_reserved.popleft())
    return True


def is_free(port: int) -> bool:
    """Return whether a server could listen on the *port*."""
    with socket.socket() as probe:
        # Servers set it too: an old connection in TIME_WAIT does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def accepts(port: int, *, timeout_s: float = 1.0) -> bool:
    """Return whether something accepts connections on the *port* within *timeout_s* seconds."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s):
            return True
    except OSError:
        return False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Deliver the signals of `HELD` after the block only. Does nothing in other threads, which get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    # A handler that Python did not install is None here, and could not be put back.
    numbers = [number for number in HELD if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, hold) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def worker(config: Path, number: int, concurrency: int) -> Service:
    """Return the service of one worker for all shards.

    Args:
        config: the cluster's `pipeline.toml`.
        number: the worker's number, part of its name.
        concurrency: how many child processes the worker has.
    """
    name = f"worker-{number}"
    # a worker waits a second for what its neighbours have revoked, and nobody revokes a bell
    options = ("worker", "-n", f"{name}@%h", "-c", str(concurrency), "-l", "INFO", "--without-mingle")
    return Service(name, "worker", (*_celery(), *options), environment=_environment(config))


def flower(config: Path, port: int) -> Service:
    """Return the service of Flower.

    Args:
        config: the cluster's `pipeline.toml`.
        port: the port to listen on.
    """
    options = ["flower", f"--address={LOOPBACK}", f"--port={port}"]
    settings = ROOT / "deploy" / "flowerconfig.py"
    if settings.exists():
        options.append(f"--conf={settings}")
    return Service("flower", "flower", (*_celery(), *options), port, _environment(config))


def flower_answers(port: int) -> bool:
    """Return whether Flower reports that it is healthy.

    Args:
        port: Flower's port on the loopback interface.
    """
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def import_path() -> dict[str, str]:
    """Return the environment in which a child imports the same packages as this process."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])}


def _celery() -> tuple[str, ...]:
    if importlib.util.find_spec("workers") is None and not (ROOT / "workers").is_dir():
        raise ClusterFailed(f"the package 'workers' is not installed beside 'pipeline' in {ROOT}")
    return (sys.executable, "-P", "-m", "celery", "-A", "workers")


def _environment(config: Path) -> dict[str, str]:
    return {**import_path(), "PIPELINE_CONFIG": str(config)}
