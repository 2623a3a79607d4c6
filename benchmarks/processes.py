"""Start the worker processes of a run, each in a process group of its own, so that none is left after the block."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.target import Target

#: Where `benchmarks` and `workers` are imported from.
ROOT = Path(__file__).resolve().parent.parent
#: A worker that does not stop on SIGTERM in this time is killed with its children.
STOP_S = 8


@contextmanager
def running(target: Target, *commands: list[str], log: Path | None = None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the commands for as long as the block lasts; their output goes to *log*, or nowhere."""
    started: list[subprocess.Popen[bytes]] = []
    with open(log or os.devnull, "ab") as output:
        try:
            for command in commands:
                started.append(_start(target, command, output.fileno()))
            yield started
        finally:
            _stop(started)


@contextmanager
def paused(started: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Stop the process groups for as long as the block lasts."""
    for process in started:
        os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGCONT)


def kill_group(process_id: int) -> None:
    """Kill the process group of *process_id* with SIGKILL: no process in it can clean up."""
    with suppress(ProcessLookupError):
        os.killpg(os.getpgid(process_id), signal.SIGKILL)


def rss_bytes(group_id: int) -> int:
    """Return the resident memory of a process group, pages that are shared by fork counted once per process."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return sum(_resident_pages(pid) for pid in members_of(group_id)) * page_bytes


def rss_bytes_of(process_id: int) -> int:
    """Return the resident memory of a process, 0 where it has ended."""
    return _resident_pages(process_id) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(*group_ids: int) -> float:
    """Return the processor time of living processes and of the process groups that they lead, in user and system, s."""
    ticks = sum(_ticks(pid) for group_id in group_ids for pid in {group_id, *members_of(group_id)})
    return ticks / os.sysconf("SC_CLK_TCK")


def _start(target: Target, command: list[str], output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=target.environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _stop(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.terminate()
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)


def members_of(group_id: int) -> list[int]:
    """Return the process ids of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(ProcessLookupError, ValueError):
            if os.getpgid(int(entry.name)) == group_id:
                found.append(int(entry.name))
    return found


def _resident_pages(process_id: int) -> int:
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _ticks(process_id: int) -> int:
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])
