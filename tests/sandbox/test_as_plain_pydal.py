"""Whatever a request does with pyDAL's words on attached tables, it reads and leaves what it would in plain pyDAL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL
from support.examples import THOROUGH
from support.oracle.programs import as_plain, drained_by_waiting

from pipeline.testing import Sandbox, sandbox


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A deployment whose ops are applied as soon as somebody waits for it."""
    with sandbox(shards=1) as made:
        drained_by_waiting(monkeypatch, made)
        yield made


@pytest.mark.parametrize("seed", range(40 if THOROUGH else 5))
def test_any_requests_read_and_leave_what_they_do_in_plain_pydal(box: Sandbox, tmp_path: Any, seed: int) -> None:
    plain = DAL("sqlite:memory", folder=str(tmp_path), bigint_id=True)
    ours = DAL(box.client.nodes.uri(box.client.nodes.primary_name("s0")), folder=str(tmp_path), bigint_id=True)

    as_plain(box, plain, ours, seed)

    plain.close()
    ours.close()
