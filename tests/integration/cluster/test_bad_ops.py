"""Ops whose table has a column that they do not know wait on MariaDB; what else may be bad is in `test_bad_things`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.client import Client
from pipeline.clock import polls

pytestmark = pytest.mark.mariadb


@pytest.fixture
def client(mariadb: Rig) -> Iterator[Client]:
    made = Client(mariadb.config)
    yield made
    made.close()


def test_a_required_column_that_the_model_lacks_makes_its_inserts_wait_until_it_is_gone(
    mariadb: Rig, client: Client
) -> None:
    client.define_tables(mariadb.db)
    [owner] = mariadb.owners(1)
    alter = "ALTER TABLE event {}"
    for uri in mariadb.primaries.values():
        with nodes.connection(uri) as made:
            nodes.fetch(made, alter.format("ADD COLUMN needed INT NOT NULL"))
    try:
        waits = client.enqueue_insert("event", owner=owner, body="later")
        goes = client.enqueue_insert("tally", owner=owner + 1_000_000, name="now")
        goes.wait(30)
        assert any(waits.status() == "parked" for _ in polls(30))
    finally:
        for uri in mariadb.primaries.values():
            with nodes.connection(uri) as made:
                nodes.fetch(made, alter.format("DROP COLUMN needed"))

    assert waits.wait(60) == "replayed"
