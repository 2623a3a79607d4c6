"""`pipeline cluster up|status|down` as a user types it, and the README's quick start in its printed order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli.cluster import cluster as command
from pipeline.devcluster import Cluster


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words], prog_name="pipeline cluster")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "D"
    Cluster(tmp_path / "D").down()


def test_up_shows_what_runs_where_and_what_to_type_next(directory: Path):
    result = run("up", "--dir", directory, "--workers", 0)

    assert result.exit_code == 0
    redis = Cluster.at(directory).processes[0]
    assert f"127.0.0.1:{redis.port}" in result.stdout
    assert str(redis.pid) in result.stdout
    assert f"export PIPELINE_CONFIG={directory}/pipeline.toml" in result.stdout
    assert f"pipeline cluster down --dir {directory}" in result.stdout


def test_status_lists_processes_for_programs_and_succeeds_while_all_live(directory: Path):
    cluster = Cluster.up(directory, shards=1, workers=0)

    result = run("status", "--dir", directory, "--json")

    assert result.exit_code == 0
    redis, replica = cluster.processes
    assert json.loads(result.stdout) == {
        "config": str(cluster.config),
        "processes": [
            {"name": "redis", "pid": redis.pid, "port": redis.port},
            {"name": "s0-r0", "pid": replica.pid, "port": None},
        ],
    }


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_fails_when_a_process_is_dead_and_shows_which(directory: Path, options: list[str]):
    Cluster.up(directory, shards=1, workers=0).kill("s0-r0")

    result = run("status", "--dir", directory, *options)

    assert result.exit_code == 1
    if options:
        pids = {process["name"]: process["pid"] for process in json.loads(result.stdout)["processes"]}
        assert pids["s0-r0"] is None
        assert pids["redis"]
    else:
        assert "dead" in result.stdout


def test_status_of_no_cluster_fails_and_says_how_to_start_one(directory: Path):
    result = run("status", "--dir", directory)

    assert result.exit_code == 1
    assert f"pipeline cluster up --dir {directory}" in result.stderr


def test_down_says_what_it_stopped_and_is_content_when_nothing_is_up(directory: Path):
    Cluster.up(directory, shards=1, workers=0)

    first, second = run("down", "--dir", directory), run("down", "--dir", directory)

    assert (first.exit_code, first.stdout) == (0, "stopped: redis, s0-r0\n")
    assert (second.exit_code, second.stdout) == (0, f"nothing is up in {directory}\n")


def test_a_folder_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")

    result = run("up", "--dir", tmp_path, "--workers", 0)

    assert result.exit_code == 1
    assert "is not empty" in result.stderr


@pytest.mark.parametrize(
    "words", [["up"], ["up", "--dir", "D", "--engine", "oracle"], ["up", "--dir", "D", "--shards", "0"]]
)
def test_wrong_usage_has_an_exit_code_of_its_own(words: list[str]):
    assert run(*words).exit_code == 2


README = Path(__file__).parents[3] / "README.md"


def test_the_readmes_quick_start_runs_in_its_printed_order(tmp_path: Path):
    page = README.read_text(encoding="utf-8").partition("## Use it\n")[2]
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    [commands] = re.findall(r"```sh\npip install.*?\n(.*?)```", page, re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    try:
        run = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        Cluster(tmp_path / "dev").down()

    assert run.returncode == 0, run.stdout + run.stderr
    assert {file.name for file in tmp_path.glob("*.py")} == {"shop.py", "tables.py"}
    assert "all primaries are prepared" in run.stdout
