"""Free loopback ports that stay a cluster's own."""

from __future__ import annotations

import random
import socket

from pipeline.devcluster.errors import ClusterFailed

LOOPBACK = "127.0.0.1"

#: Below the ranges from which Linux (32768) and macOS (49152) give ports to outgoing connections: a port in those could
#: be taken by any client while a server that was killed is on its way back.
FIRST_PORT, LAST_PORT = 20_000, 32_000


def free_ports(count: int) -> list[int]:
    """Return that many different ports on which nothing listens."""
    found: set[int] = set()
    for port in random.sample(range(FIRST_PORT, LAST_PORT), LAST_PORT - FIRST_PORT):
        if len(found) == count:
            return sorted(found)
        if is_free(port):
            found.add(port)
    raise ClusterFailed(f"fewer than {count} ports are free on {LOOPBACK} between {FIRST_PORT} and {LAST_PORT}")


def is_free(port: int) -> bool:
    """Whether a server could listen on the port."""
    with socket.socket() as probe:
        # As servers do: an old connection in TIME_WAIT is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def accepts(port: int, *, timeout_s: float = 1.0) -> bool:
    """Whether something accepts connections on the port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s):
            return True
    except OSError:
        return False
