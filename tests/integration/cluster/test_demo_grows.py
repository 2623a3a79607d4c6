"""`pipeline demo --grow`, on both engines side by side: it waits longer than it works."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from test_demo import ROWS, command, lacks_servers, processes_in, pytestmark, skip_without_servers, take_down

__all__ = ["pytestmark"]


class Run(NamedTuple):
    """A demo that runs, and the files that take what it prints."""

    folder: Path
    process: subprocess.Popen[bytes]
    result: Path
    errors: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Start the demo on each engine whose servers are there."""
    made: dict[str, Run] = {}
    for engine in ("embedded", "mariadb"):
        if lacks_servers(engine):
            continue
        home = tmp_path_factory.mktemp(engine)
        folder, result, errors = home / "cluster", home / "result.json", home / "errors"
        with result.open("w") as out, errors.open("w") as err:
            asked = command(engine, folder, "--grow", "--json")
            made[engine] = Run(folder, subprocess.Popen(asked, stdout=out, stderr=err), result, errors)
    yield made
    for run in made.values():
        run.process.kill()
        run.process.wait()
        take_down(run.folder)


@pytest.mark.parametrize("engine", ["embedded", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def test_a_third_shard_that_is_added_in_the_middle_of_the_load_gets_its_share(
    engine: str, runs: dict[str, Run]
) -> None:
    skip_without_servers(engine)
    run = runs[engine]

    assert run.process.wait(timeout=280) == 0, run.errors.read_text()

    result = json.loads(run.result.read_text())
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
    assert processes_in(run.folder) == []
    assert not run.folder.exists()
