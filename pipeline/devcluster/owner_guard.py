"""Take a cluster down when its owner dies, even by SIGKILL.

Run as `python -m pipeline.devcluster.owner_guard DIRECTORY` with a pipe for standard input: the system closes the pipe
with its owner, whatever ended that. A death signal (PR_SET_PDEATHSIG) would be simpler, but it is Linux only, fires
when the *thread* that started the child ends, and does not reach grandchildren.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline.devcluster.celery import import_path

#: How long the guard may take to notice that there is nothing left to guard.
LEAVE_TIMEOUT_S = 10.0


def post(directory: Path) -> subprocess.Popen[bytes]:
    """Start a guard whose owner is this process."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.devcluster.owner_guard", str(directory)],
        env={**os.environ, **import_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """Let the guard go, once the cluster is down."""
    if guard.stdin:
        guard.stdin.close()
    try:
        guard.wait(LEAVE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait(LEAVE_TIMEOUT_S)


def watch_owner(directory: Path) -> None:
    """Wait until the owner is gone, then take down what it left up."""
    from pipeline.devcluster.cluster import Cluster

    sys.stdin.buffer.read()
    Cluster(directory).down()


if __name__ == "__main__":
    watch_owner(Path(sys.argv[1]))
