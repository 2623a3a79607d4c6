"""Celery looks into the working directory first: a `celeryconfig.py`, `pipeline.py` or `workers/` there is not ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import clock
from pipeline.admin.check import surroundings
from pipeline.admin.check.evidence import Evidence
from pipeline.config.settings import load
from pipeline.config.topology import Topology
from pipeline.errors import PipelineError
from workers.sweeper import Child

ROOT = Path(__file__).parents[2]
CELERY = Path(sys.executable).with_name("celery")
TIMEOUT_S = 60
#: A port where nothing answers, so that a worker gets as far as its own log.
CONFIGURATION = """
[redis]
url = "redis://127.0.0.1:1/0"
[shards.s0]
primary = "sqlite:///{folder}/s0.sqlite"
[spool]
enabled = false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with two modules of somebody else's, and the pipeline's configuration."""
    (tmp_path / "celeryconfig.py").write_text("task_default_queue = 'theirs'\n")
    (tmp_path / "pipeline.py").write_text("print('their pipeline runs')\n")
    (tmp_path / "pipeline.toml").write_text(CONFIGURATION.format(folder=tmp_path))
    return tmp_path


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PIPELINE_CONFIG": str(folder / "pipeline.toml"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def output(folder: Path, *command: str) -> str:
    with start(folder, *command) as process:
        try:
            return process.communicate(timeout=TIMEOUT_S)[0]
        finally:
            process.kill()


def findings(folder: Path) -> list[tuple[str, str, str]]:
    settings, away = load(folder / "pipeline.toml"), PipelineError("not asked")
    evidence = Evidence(settings, Topology(settings), away, away, (), "", None, {}, {})
    return [(one.place, one.what, one.fix) for one in surroundings.foreign_findings(evidence)]


def test_celery_takes_our_settings_and_our_package(folder: Path) -> None:
    said = output(folder, str(CELERY), "-A", "workers", "report")

    assert "task_default_queue: 'shard.s0'" in said
    assert "theirs" not in said
    assert "their pipeline runs" not in said


@pytest.fixture
def lines_of_a_worker(folder: Path) -> Iterator[list[str]]:
    """What a worker says until it has started its threads."""
    with start(folder, str(CELERY), "-A", "workers", "worker", "-c", "1", "-P", "solo", "-l", "INFO") as process:
        assert process.stdout is not None
        deadline, lines = clock.Deadline(TIMEOUT_S), []
        for line in process.stdout:
            lines.append(line)
            if "pipeline.py" in line or deadline.passed:
                break
        process.kill()
        yield lines


def test_a_worker_says_what_it_found_and_which_settings_it_uses(folder: Path, lines_of_a_worker: list[str]) -> None:
    said = "".join(lines_of_a_worker)

    assert f"Celery's settings are {ROOT / 'celeryconfig.py'}" in said
    assert f"{folder / 'celeryconfig.py'} is not ours, and is not used" in said
    assert f"{folder / 'pipeline.py'} is not ours, and is not used" in said


def test_what_a_worker_starts_is_ours(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    child = Child(str(folder / "pipeline.toml"))

    child.start("pipeline", "--version")
    assert child._process is not None
    child._process.wait(TIMEOUT_S)

    assert "pipeline, version" in capfd.readouterr().out


def test_the_command_of_the_documents_starts_our_workers_beside_a_package_of_that_name(folder: Path) -> None:
    (folder / "workers").mkdir()
    (folder / "workers" / "__init__.py").write_text("from celery import Celery\napp = Celery('their workers')\n")

    theirs = output(folder, str(CELERY), "-A", "workers", "report")
    ours = output(folder, str(CELERY), "--workdir=/", "-A", "workers", "report")

    assert "shard.s0" not in theirs
    assert "task_default_queue: 'shard.s0'" in ours


def test_check_names_a_package_that_would_be_started_instead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "workers").mkdir()
    (folder / "workers" / "__init__.py").touch()

    found = {place: (what, fix) for place, what, fix in findings(folder)}

    what, fix = found["workers"]
    assert what.startswith(f"is {folder / 'workers' / '__init__.py'} in this folder")
    assert fix == f"PIPELINE_CONFIG={folder / 'pipeline.toml'} celery --workdir=/ -A workers worker"
    assert found["pipeline"][0].startswith(f"is {folder / 'pipeline.py'} in this folder")


def test_check_finds_nothing_where_the_modules_are_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    assert findings(folder) == []


def test_a_plain_folder_named_workers_is_no_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "workers").mkdir()

    assert [place for place, _, _ in findings(folder)] == ["pipeline"]
