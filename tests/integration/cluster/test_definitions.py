"""A table whose ids do not fit: refused at the door where a primary can be asked, rejected by a worker where not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.client import Client
from pipeline.errors import BadOp, Rejected, ShardUnavailable


@pytest.fixture
def narrow(mariadb: Rig) -> Iterator[Any]:
    """A table that the shards keep with an INT id."""
    for uri in mariadb.primaries.values():
        with nodes.connection(uri) as made:
            nodes.fetch(made, "CREATE TABLE IF NOT EXISTS narrow (id INT AUTO_INCREMENT PRIMARY KEY, n INT)")
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    yield db.define_table("narrow", Field("n", "integer"))
    db.close()
    mariadb.redis.hdel(mariadb.client.log.keys.newest_schemas, "narrow")  # `check` would find it in other tests
    for uri in mariadb.primaries.values():
        with nodes.connection(uri) as made:
            nodes.fetch(made, "DROP TABLE narrow")


@pytest.fixture
def client(mariadb: Rig) -> Iterator[Client]:
    made = Client(mariadb.config)
    yield made
    made.close()


def test_an_id_that_does_not_fit_is_refused_at_the_door(client: Client, narrow: Any) -> None:
    with pytest.raises(BadOp, match=r"ALTER TABLE narrow MODIFY id BIGINT"):
        client.enqueue_insert(narrow, n=1)


def test_where_no_primary_answers_the_door_the_workers_reject_it_with_the_databases_reason(
    client: Client, narrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: Any) -> str:
        raise ShardUnavailable("s0", "on purpose")

    monkeypatch.setattr("pipeline.shard.columns.columns_of", away)

    receipt = client.enqueue_insert(narrow, n=1)

    with pytest.raises(Rejected, match="id"):
        receipt.wait(20)
