"""Whether `pipeline check` sees that ops could not be left in the spool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.admin.check import surroundings
from pipeline.admin.check.evidence import Evidence
from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.errors import PipelineError


def found(**settings: Any) -> list[tuple[str, str]]:
    loaded = load(
        {
            "redis": {"url": "redis://localhost/0"},
            "shards": {"s0": {"primary": "sqlite:///tmp/never.sqlite"}},
            "spool": settings,
        }
    )
    away = PipelineError("not asked")
    evidence = Evidence(loaded, Topology(loaded), away, away, (), "", None, {}, {})
    return [(one.severity, one.what) for one in surroundings.spool_findings(evidence)]


def test_a_spool_that_can_be_written_is_no_fault(tmp_path: Path) -> None:
    assert found(path=str(tmp_path / "pipeline.spool")) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    [(severity, what)] = found(path=str(tmp_path / "none" / "pipeline.spool"))

    assert severity == "error"
    assert what == f"its folder {tmp_path / 'none'} is not there"


def test_a_folder_in_which_every_user_may_write_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)

    assert found(path=str(tmp_path / "app.spool")) == [("error", f"every user of this machine may write in {tmp_path}")]


def test_a_file_that_this_user_cannot_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pipeline.spool"
    path.touch()
    monkeypatch.setattr(surroundings.os, "access", lambda one, mode: one != path)  # root may write everywhere

    [(severity, what)] = found(path=str(path))

    assert severity == "error"
    assert "cannot be written by this user" in what


def test_a_disk_with_less_room_than_the_spool_may_take_is_a_warning(tmp_path: Path) -> None:
    [(severity, what)] = found(path=str(tmp_path / "pipeline.spool"), max_mb=1_000_000)

    assert severity == "warning"
    assert what.startswith("is 1000000, its disk has ")


def test_a_damaged_spool_that_was_moved_aside_is_an_error_until_it_is_deleted(tmp_path: Path) -> None:
    aside = tmp_path / "pipeline.spool.damaged-1700000000000"
    aside.touch()
    Path(f"{aside}-wal").touch()

    [(severity, what)] = found(path=str(tmp_path / "pipeline.spool"))

    assert severity == "error"
    assert what == f"was damaged: {aside} may hold ops that were never sent"


def test_no_spool_is_looked_for_where_there_is_none(tmp_path: Path) -> None:
    assert found(enabled=False, path=str(tmp_path / "none" / "pipeline.spool")) == []
