"""The servers that all applications share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.applications.ground import Ground, ground_of
from support.fixtures import needs_mariadb, pytest_runtest_makereport
from support.web.web2py_server import ROOT, Site, serving

#: `placement.py` is here: workers and web servers import it.
HERE = Path(__file__).parent
__all__ = ["pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Two MariaDB and a Redis, and a worker for each copy of an application that is moved."""
    needs_mariadb()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    with ground_of(tmp_path_factory.mktemp("ground") / "cluster") as made:
        yield made


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A real web2py that serves all copies; in the end it must have no ticket."""
    with serving(tmp_path_factory.mktemp("site"), PYTHONPATH=f"{ROOT}{os.pathsep}{HERE}") as made:
        yield made
