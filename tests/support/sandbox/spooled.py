"""A spool in a directory of its own, which forked children inherit."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from pipeline.spool import Spool

FORK = multiprocessing.get_context("fork")
#: The spool of the present test, for its children.
shared: list[Spool] = []


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "app.spool", 1_000_000)
    shared[:] = [made]  # children inherit it, open connection and all
    return made


def payloads(spool: Spool, *buckets: int) -> list[bytes]:
    return [op.payload for op in spool.head(buckets)]
