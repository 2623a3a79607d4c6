"""Read how much CPU processes have used, from /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from benchmarks.processes import members_of
from benchmarks.target import Target

_TICKS = os.sysconf("SC_CLK_TCK")


class Meter:
    """Reads the CPU time of all that a run uses.

    Args:
        target: names the servers; all other processes that this one has started are workers.
    """

    def __init__(self, target: Target):
        self._servers = servers_of(target)

    def read(self) -> dict[str, float]:
        """Return the CPU time until now by who used it, s."""
        own, servers = os.times(), {pid for found in self._servers.values() for pid in found}
        workers = sum(map(cpu_s, _descendants(os.getpid()) - servers))
        return {
            "caller": own.user + own.system,
            "Redis": cpu_s_of_server(self._servers, "redis"),
            "workers": own.children_user + own.children_system + workers,
            "MariaDB": cpu_s_of_server(self._servers, "database"),
        }


def _descendants(ancestor: int) -> set[int]:
    """Return the processes that a process has started, and that these have, as far as they live."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, new = set[int](), {ancestor}
    while new := {pid for pid, parent in parents.items() if parent in new}:
        found |= new
    return found


def servers_of(target: Target) -> dict[str, list[int]]:
    """Return the process ids of the run's servers: `redis`, the broker's too, and `database`."""
    redis = {int(client.info("server")["process_id"]) for client in (target.redis(), target.broker())}
    return {"redis": sorted(redis), "database": [_server_of(target, n) for n in range(len(target.primaries))]}


def cpu_s_of_server(servers: dict[str, list[int]], kind: str) -> float:
    """Return the CPU time of all servers of a kind, s."""
    return sum(map(cpu_s, servers[kind]))


def cpu_s_of_group(group_id: int) -> float:
    """Return the CPU time of a process group, s. What processes used that have ended is their parent's."""
    return sum(map(cpu_s, members_of(group_id)))


def cpu_s(process_id: int) -> float:
    """Return the CPU time of a process and of its children that have ended, s; 0 where it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        words = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, words[11:15])) / _TICKS
    return 0.0


def _server_of(target: Target, shard: int) -> int:
    connection = target.connect(shard)
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@pid_file")
        [path] = cursor.fetchone() or ("",)
    connection.close()
    return int(Path(path).read_text())
