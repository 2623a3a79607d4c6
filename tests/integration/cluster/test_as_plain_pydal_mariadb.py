"""Random programs on a real MariaDB, with the plain copy on the same server; see `sandbox/test_as_plain_pydal.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydal import DAL
from pymysql.constants import CLIENT
from support.examples import THOROUGH
from support.oracle.programs import as_plain, drained_by_waiting

from pipeline import api
from pipeline.shard import NodeSession
from pipeline.testing import Sandbox

pytestmark = pytest.mark.mariadb

#: `PROGRAMS=600` runs more; a hundred take half a minute.
PROGRAMS = int(os.environ.get("PROGRAMS", 12 if THOROUGH else 3))


@pytest.fixture(scope="module")
def server(mariadb_uri: str) -> Iterator[NodeSession]:
    session = NodeSession("s0", mariadb_uri)
    yield session
    session.discard()


def opened(uri: str, folder: Path) -> DAL:
    """Return a DAL that counts an update which changes nothing: else pyDAL takes the row of `t[5] = …` for missing."""
    return DAL(uri, folder=str(folder), bigint_id=True, driver_args={"client_flag": CLIENT.FOUND_ROWS})


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_any_requests_read_and_leave_what_they_do_in_plain_pydal(
    server: NodeSession, mariadb_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for name in ("plain_copy", "our_copy"):
        server.query(f"DROP DATABASE IF EXISTS {name}")
        server.query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    place, _, options = mariadb_uri.partition("?")
    plain_uri, our_uri = (f"{place.rpartition('/')[0]}/{name}?{options}" for name in ("plain_copy", "our_copy"))
    box = Sandbox(tmp_path, {}, 1, 16, uri=our_uri)
    monkeypatch.setattr(api, "client", box.client)
    drained_by_waiting(monkeypatch, box)

    with closing(opened(plain_uri, tmp_path)) as plain, closing(opened(our_uri, tmp_path)) as ours:
        as_plain(box, plain, ours, seed, neighbour=True)

    box.client.close()
