"""Real servers for the tests of this folder."""

from __future__ import annotations

from support.fixtures import customer, lone_trial, mariadb, pytest_runtest_makereport, shop, site, trial, valkey
from support.servers.deploying import secrets

__all__ = [
    "customer",
    "lone_trial",
    "mariadb",
    "pytest_runtest_makereport",
    "secrets",
    "shop",
    "site",
    "trial",
    "valkey",
]
