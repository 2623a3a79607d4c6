"""What the operating system says about processes: group, state, and the moment of birth that makes a number unique."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Where Linux shows its processes; elsewhere `ps` is asked.
PROC = Path("/proc")

#: A process in one of these states has ended and only waits for its parent to look.
ENDED = ("Z", "X")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the process table."""

    pid: int
    group: int
    state: str
    born: str

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self.state.startswith(ENDED)


def find(pid: int) -> Entry | None:
    """Return the process with that number, ended or not."""
    if (PROC / "self/stat").exists():
        return _from_proc(PROC / str(pid))
    return next((entry for entry in _from_ps() if entry.pid == pid), None)


def members(group: int) -> list[Entry]:
    """Return the running processes of a group."""
    if (PROC / "self/stat").exists():
        table = [entry for folder in PROC.iterdir() if folder.name.isdigit() and (entry := _from_proc(folder))]
    else:
        table = _from_ps()
    return [entry for entry in table if entry.group == group and entry.running]


def _from_proc(folder: Path) -> Entry | None:
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The command's name stands in brackets and may itself hold brackets and blanks: fields count from the last one.
    fields = text.rpartition(")")[2].split()
    return Entry(int(folder.name), group=int(fields[2]), state=fields[0], born=fields[19])


def _from_ps() -> list[Entry]:
    command = ["ps", "-axo", "pid=,pgid=,stat=,lstart="]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    rows = [line.split(maxsplit=3) for line in lines]
    return [Entry(int(pid), int(group), state, born.strip()) for pid, group, state, born in rows]
