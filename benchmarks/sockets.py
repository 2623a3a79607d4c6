"""Find which process holds a TCP connection, by its local port (Linux, /proc)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

#: Columns of /proc/net/tcp: the local address and the inode of the socket.
_LOCAL, _INODE = 1, 9


def process_of_port(local_port: int) -> int | None:
    """Return the id of a process that has the local end of a connection open."""
    inodes = {f"socket:[{inode}]" for inode in _inodes(local_port)}
    for entry in Path("/proc").iterdir() if inodes else ():
        if entry.name.isdigit() and inodes & _links(entry / "fd"):
            return int(entry.name)
    return None


def _inodes(local_port: int) -> set[str]:
    suffix, found = f":{local_port:04X}", set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[_LOCAL].endswith(suffix):
                found.add(columns[_INODE])
    return found


def _links(directory: Path) -> set[str]:
    links = set()
    with suppress(OSError):
        for entry in directory.iterdir():
            with suppress(OSError):
                links.add(os.readlink(entry))
    return links
