"""Stand in for systemctl over a local cluster, so that documented commands run as printed: `python -m … DIR enable …`.

Understands `enable --now pipeline-worker@SHARD` and `restart pipeline.target [OTHERS]`; the caller restarts others.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from pipeline.devcluster import Cluster, processes, startup, state


def stand_in(folder: Path, cluster: Cluster) -> None:
    """Write a command `systemctl` for a cluster into a folder."""
    path = folder / "systemctl"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m support.servers.systemctl "{cluster.directory}" "$@"\n')
    path.chmod(0o755)


def _main(directory: Path, verb: str, *units: str) -> None:
    workers = [one.name for one in state.read_state(directory).services if one.kind == "worker"]
    if verb == "restart" and units[0] == "pipeline.target":
        cluster = Cluster.at(directory)
        for name in workers:
            cluster.stop(name)
            cluster.start(name)
    elif verb == "enable" and units[0] == "--now" and units[1].startswith("pipeline-worker@"):
        made = processes.worker(directory / startup.CONFIG_FILE, len(workers), 1)
        made = replace(made, argv=(*made.argv, "-Q", f"shard.{units[1].partition('@')[2]}"))
        startup.wait_ready(directory, startup.launch(directory, [made]), print)
    else:
        sys.exit(f"no such order: {verb} {units}")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *sys.argv[2:])
