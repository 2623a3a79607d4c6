"""Workers publish a record each second; it says what the servers themselves say, and history goes on behind it."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from click.testing import CliRunner
from support.servers.rig import Rig

from pipeline import cli
from pipeline.admin.observe import Observer
from pipeline.admin.observe.published import NO_HISTORY, read_histories, read_record
from pipeline.admin.observe.record import Record
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config.settings import load

pytestmark = pytest.mark.mariadb


def test_the_record_of_the_workers_is_what_the_servers_say(mariadb: Rig) -> None:
    client = Client(mariadb.config)
    client.define_tables(mariadb.db)
    owners = mariadb.owners(6)
    before = points(client)
    expected = Counter({"enqueued direct insert tally": 6, "applied insert tally": 6})
    counted = counts(client)

    receipts = [client.enqueue_insert(mariadb.db.tally, owner=owner, name="seen", n=1) for owner in owners]
    client.wait_all(receipts, timeout_s=30)
    observer = Observer(load(mariadb.config))
    for _ in polls(30):  # what is set aside is asked every other second only
        found, looked = settled(client), observer.look()
        if told(found) == told(looked):
            break
    observer.close()

    assert found.source == "workers"
    assert told(found) == told(looked)
    assert all(shard.rate is not None and shard.enqueue_rate is not None for shard in found.shards)
    for _ in polls(30):
        if counts(client) - counted >= expected:
            break
    # processes of earlier tests may send their last counts meanwhile
    assert counts(client) - counted >= expected
    shown = json.loads(CliRunner().invoke(cli.pipeline, ["status", "--json", "--config", str(mariadb.config)]).output)
    assert (shown["version"], shown["source"], shown["known"]) == (1, "workers", True)
    assert shown["fingerprint"]
    for _ in polls(30):
        if points(client) > before:
            break
    assert points(client) > before
    client.close()


def points(client: Client) -> int:
    """Return how many points the histories of all shards have."""
    known = dict.fromkeys(client.topology.shards, NO_HISTORY)
    return sum(len(found.recent) for found in read_histories(client.log, known).values())


def told(record: Record) -> list[object]:
    """Return what a record says of each shard that does not change from one moment to the next."""
    return [
        (shard.shard, shard.rejected, shard.lost, *((node.node, node.role) for node in shard.nodes))
        for shard in record.shards
    ]


def counts(client: Client) -> Counter[str]:
    """Return how many ops of a table the deployment's processes have counted, over all shards."""
    found = (Counter(client.log.counts(shard)) for shard in client.topology.shards)
    return Counter({name: n for name, n in sum(found, Counter()).items() if name.endswith(" insert tally")})


def settled(client: Client) -> Record:
    """Wait until the workers' record is fresh and nothing is queued, or lags."""
    for _ in polls(30):
        newest = read_record(client.log, client.topology.shards)
        if newest is None or not newest.fresh or newest.record.unknown:
            continue
        shards = newest.record.shards
        replicas = [node for shard in shards for node in shard.replicas]
        if all(shard.depth == 0 and shard.rate is not None for shard in shards) and not any(
            r.lag_ops for r in replicas
        ):
            return newest.record
    raise AssertionError(f"the workers' record is not what it has to be: {newest}")
