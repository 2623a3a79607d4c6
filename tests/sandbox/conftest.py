"""The sandbox that most of these tests have; a module that needs one of another make has a fixture of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.sandbox.demo import dataset

from pipeline.testing import Sandbox, sandbox

__all__ = ["box", "dataset"]


@pytest.fixture
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox with the tables of the test's module, `TABLES`."""
    with sandbox(request.module.TABLES) as made:
        yield made
