"""`pipeline demo --grow`, on both engines: it waits longer than it works, so it is in a file of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from test_demo import ROWS, command, folder, processes_in, pytestmark, skip_without_servers

__all__ = ["folder", "pytestmark"]


@pytest.mark.parametrize("engine", ["embedded", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def test_a_third_shard_that_is_added_in_the_middle_of_the_load_gets_its_share(engine: str, folder: Path) -> None:
    skip_without_servers(engine)

    asked = command(engine, folder, "--grow", "--json")
    run = subprocess.run(asked, capture_output=True, text=True, timeout=400, check=False)

    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["ok"] is True
    assert len(result["checked"]) == 9
    flights = {one["shard"]: one["rows"] for one in result["checked"] if one["table"] == "flight"}
    grown = result["growth"]
    assert flights["s2"] > 0
    assert grown["buckets_moved"] >= 2
    assert grown["ops_meanwhile"] >= ROWS // 2
    assert [list(one["flights"]) for one in grown["samples"]][:: len(grown["samples"]) - 1] == [
        ["s0", "s1"],
        ["s0", "s1", "s2"],
    ]
    assert processes_in(folder) == []
    assert not folder.exists()
