"""Workers publish a record each second; it says what the servers themselves say, and history goes on behind it."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from click.testing import CliRunner
from support.servers.rig import Rig

from pipeline import cli
from pipeline.admin.observe.observer import Observer
from pipeline.admin.observe.published import read_history, read_record
from pipeline.admin.observe.record import Record
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config.settings import load

pytestmark = pytest.mark.mariadb


def test_the_record_of_the_workers_is_what_the_servers_say(mariadb: Rig) -> None:
    client = Client(mariadb.config)
    client.define_tables(mariadb.db)
    owners = mariadb.owners(6)
    before = sum(len(read_history(client.log, shard).recent) for shard in client.topology.shards)
    counted = counts(client)

    receipts = [client.enqueue_insert(mariadb.db.tally, owner=owner, name="seen", n=1) for owner in owners]
    client.wait_all(receipts, timeout_s=30)
    found = settled(client)
    observer = Observer(load(mariadb.config))
    looked = observer.look()
    observer.close()

    assert found.source == "workers"
    for theirs, ours in zip(found.shards, looked.shards, strict=True):
        assert (theirs.shard, theirs.rejected, theirs.lost) == (ours.shard, ours.rejected, ours.lost)
        assert [(node.node, node.role) for node in theirs.nodes] == [(node.node, node.role) for node in ours.nodes]
        assert theirs.rate is not None
        assert theirs.enqueue_rate is not None
    for _ in polls(30):
        if counts(client) - counted == Counter({"enqueued direct insert tally": 6, "applied insert tally": 6}):
            break
    assert counts(client) - counted == Counter({"enqueued direct insert tally": 6, "applied insert tally": 6})
    told = json.loads(CliRunner().invoke(cli.pipeline, ["status", "--json", "--config", str(mariadb.config)]).output)
    assert (told["version"], told["source"], told["known"]) == (1, "workers", True)
    assert told["fingerprint"]
    for _ in polls(30):
        if sum(len(read_history(client.log, shard).recent) for shard in client.topology.shards) > before:
            break
    assert sum(len(read_history(client.log, shard).recent) for shard in client.topology.shards) > before
    client.close()


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
