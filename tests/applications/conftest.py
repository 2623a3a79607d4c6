"""The servers that all applications share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.applications.ground import Ground, ground_of
from support.fixtures import needs_mariadb, pytest_runtest_makereport
from support.web.web2py_server import Site, serving

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Two MariaDB and a Redis, and a worker for each copy of an application that is moved."""
    needs_mariadb()
    with ground_of(tmp_path_factory.mktemp("ground") / "cluster") as made:
        yield made


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A real web2py that serves all copies; in the end it must have no ticket."""
    with serving(tmp_path_factory.mktemp("site")) as made:
        yield made
