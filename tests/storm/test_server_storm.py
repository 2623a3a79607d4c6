"""A fixed number of schedules on real servers; `make storm` runs any number, and replays a failing seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from storm.server_storm import Storm, storm
from support.fixtures import needs_mariadb

pytestmark = pytest.mark.mariadb

#: These meet most kinds of faults, and none that takes a server long to come back from.
SEEDS = (12, 15, 18, 22, 23)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    needs_mariadb()
    logging.disable(logging.CRITICAL)
    with storm(tmp_path_factory.mktemp("storm")) as made:
        yield made
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_promise_is_broken_whatever_fails_on_real_servers(servers: Storm, seed: int) -> None:
    outcome = servers.run(seed)

    assert outcome.broken == []
    assert outcome.ops["applied"]
