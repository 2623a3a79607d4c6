"""I15: a read with a token is never stale, whatever happens to replication."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.chance import SOAK
from support.fixtures import missing
from support.servers import read_faults

PAIRS = 2000 * SOAK


@pytest.mark.mariadb
@pytest.mark.timeout(600 * SOAK)
def test_no_own_read_is_stale_while_replicas_lag_stall_stop_die_and_are_promoted(tmp_path: Path) -> None:
    if not (shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin") and shutil.which("redis-server")):
        missing("mariadbd or redis-server")

    result = read_faults.run(tmp_path / "cluster", PAIRS, longest_s=4.0)

    assert result["pairs"] == PAIRS
    assert result["stale"] == 0, result
    assert not [key for key in result["answers"] if key.startswith("error")], result
    assert result["faults"]["promote"] == 2
    assert sum(count for key, count in result["answers"].items() if key.startswith("replica")) > PAIRS / 10, result
