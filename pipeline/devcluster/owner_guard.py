"""Take a cluster down when its owner ends, even by SIGKILL.

`python -m pipeline.devcluster.owner_guard DIRECTORY` runs with a pipe as its standard input. The system closes that
pipe when the owner ends, whatever ended it. A death signal (PR_SET_PDEATHSIG) would be simpler, but is Linux only,
fires when the *thread* that started the child ends, and does not reach grandchildren.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline.devcluster.processes import import_path

#: How long the guard may take to end once the cluster is down, s.
LEAVE_TIMEOUT_S = 10.0


def post(directory: Path) -> subprocess.Popen[bytes]:
    """Start a guard whose owner is this process.

    Args:
        directory: the cluster's directory.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline.devcluster.owner_guard", str(directory)],
        env={**os.environ, **import_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """End the guard, once the cluster is down.

    Args:
        guard: what `post` returned.
    """
    if guard.stdin:
        guard.stdin.close()
    try:
        guard.wait(LEAVE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait(LEAVE_TIMEOUT_S)


def watch_owner(directory: Path) -> None:
    """Wait until the owner is gone, then take down what runs in the directory.

    Args:
        directory: the cluster's directory.
    """
    from pipeline.devcluster import Cluster

    sys.stdin.buffer.read()
    Cluster(directory).down()


if __name__ == "__main__":
    watch_owner(Path(sys.argv[1]))
