"""Processes of a host that never pause find back from the spool: each op is applied once and in order."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from support.oracle import nodes
from support.servers.rig import Rig
from support.servers.spooled import Spooled

from pipeline.clock import polls

PRODUCERS = 4
#: So many ops wait in the spool before Redis goes on.
WAITING = 40


def test_producers_that_never_pause_are_on_the_direct_way_again(valkey: Rig, tmp_path: Path) -> None:
    with closing(Spooled(valkey, tmp_path)) as spooled:
        owners = valkey.owners(PRODUCERS)
        rows = [spooled.client.enqueue_insert(valkey.db.tally, owner=owner, name="steady") for owner in owners]
        over = tmp_path / "over"
        command = [sys.executable, "-m", "support.servers.steady", str(spooled.config)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        started = [
            subprocess.Popen(
                [*command, str(row.id), str(row_owner), str(over)], env=environment, stdout=subprocess.PIPE
            )
            for row, row_owner in zip(rows, owners, strict=True)
        ]
        try:
            with valkey.frozen("redis"):
                assert any(spooled.client.spool.counts().waiting >= WAITING for _ in polls(60))
            over.touch()
            sent = [int(process.communicate(timeout=60)[0]) for process in started]
        finally:
            for process in started:
                process.kill()

        with valkey.worker(valkey.config):
            spooled.client.barrier("tally", 60)
        for row, count in zip(rows, sent, strict=True):
            shard = spooled.client.topology.shard_of(row.bucket)
            sql = f"SELECT n, trace FROM tally WHERE id = {row.id}"
            assert nodes.rows(valkey.primaries[shard], sql) == [(count, "".join(f"{n}," for n in range(count)))]
