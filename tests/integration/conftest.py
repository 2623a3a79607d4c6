"""Real servers for the tests of this folder."""

from __future__ import annotations

from support.fixtures import lone_trial, mariadb, pytest_runtest_makereport, trial, valkey

__all__ = ["lone_trial", "mariadb", "pytest_runtest_makereport", "trial", "valkey"]
