"""What is installed: `pipeline`, `workers` and `celeryconfig`, their scripts and tables, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUILD_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in the wheel, as its own build tool makes it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert made.returncode == 0, made.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_puts_three_names_into_site_packages(names: list[str]):
    tops = {name.split("/")[0] for name in names}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"pipeline", "workers", "celeryconfig.py"}


def test_every_file_that_the_code_reads_is_in_the_wheel(names: list[str]):
    wanted = [
        str(path.relative_to(ROOT))
        for package in ("pipeline", "workers")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]

    assert set(wanted) <= set(names)
    assert {"pipeline/oplog/redis/lua/enqueue.lua", "pipeline/shard/records/sql/tables.mysql.sql"} <= set(wanted)


def test_no_test_and_no_document_is_in_the_wheel(names: list[str]):
    stray = [name for name in names if "test_" in name or name.endswith((".md", ".toml"))]

    assert stray == []
