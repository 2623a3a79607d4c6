"""Start, watch and end background processes, each with the whole group of its children.

Every process leads a session and a group of its own: Ctrl-C in the terminal does not reach it, and its children can be
ended with it even after it has died itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.clock import polls
from pipeline.devcluster import process_table
from pipeline.devcluster.errors import ClusterFailed
from pipeline.devcluster.state import Process, Service

#: How much of a log an error repeats.
TAIL_LINES, TAIL_BYTES = 15, 16_384

#: The children of this very process by number; someone has to collect their exit codes.
_children: dict[int, subprocess.Popen[bytes]] = {}


def spawn(service: Service, directory: Path) -> Process:
    """Start the service in the background, its output appended to its log."""
    log = log_path(directory, service.name)
    offset_bytes = log.stat().st_size if log.exists() else 0
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                service.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory / "run",
                env={**os.environ, **service.environment},
                start_new_session=True,
            )
    except OSError as error:
        raise ClusterFailed(f"{service.name}: {service.argv[0]} cannot be started: {error.strerror}") from error
    _children[child.pid] = child
    entry = process_table.find(child.pid)
    return Process(service.name, child.pid, service.port, entry.born if entry else "", offset_bytes)


def is_alive(process: Process) -> bool:
    """Whether this very process runs."""
    exit_code(process)
    entry = process_table.find(process.pid)
    return entry is not None and entry.running and entry.born == process.born


def exit_code(process: Process) -> int | None:
    """Return the exit code of an ended child of ours; None when it runs or is not ours to ask."""
    child = _children.get(process.pid)
    return child.poll() if child else None


def send(process: Process, number: int) -> None:
    """Send a signal to the process alone."""
    if is_alive(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def send_group(process: Process, number: int) -> None:
    """Send a signal to the process and its children."""
    # A number is not given again while a group bears it; another process under that number means that ours is all gone.
    entry = process_table.find(process.pid)
    if entry is None or entry.born == process.born:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def wait_gone(process: Process, timeout_s: float) -> bool:
    """Wait until the process has ended; whether it did in time."""
    return any(not is_alive(process) for _ in polls(timeout_s))


def end(processes: Sequence[Process], *, grace_s: float = 0.0) -> None:
    """End the processes and all their children: SIGTERM first when there is a grace period, then SIGKILL."""
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
        # ended, but perhaps only just: its exit code may still be on its way
        if process.pid in _children and any(exit_code(process) is not None for _ in polls(1)):
            _children.pop(process.pid)


def log_path(directory: Path, name: str) -> Path:
    """Return where a service's output goes."""
    return directory / "logs" / f"{name}.log"


def log_text(directory: Path, process: Process) -> str:
    """Return what the process has written since it was started."""
    try:
        with log_path(directory, process.name).open("rb") as log:
            log.seek(process.log_offset_bytes)
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def log_tail(directory: Path, process: Process) -> str:
    """Return the last lines that the process has written."""
    return "\n".join(log_text(directory, process)[-TAIL_BYTES:].splitlines()[-TAIL_LINES:])


def _left(processes: Iterable[Process]) -> list[Process]:
    return [process for process in processes if is_alive(process) or _has_children(process)]


def _has_children(process: Process) -> bool:
    entry = process_table.find(process.pid)
    reused = entry is not None and entry.born != process.born
    return not reused and bool(process_table.members(process.pid))
