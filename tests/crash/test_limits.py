"""I13: queues of any length, rows of any size, and a server that takes small packets only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pymysql.constants import ER
from pymysql.err import OperationalError
from support.chance import SOAK
from support.oracle import nodes
from support.oracle.trial import Trial

from pipeline.errors import Rejected
from pipeline.model.receipt import Receipt

pytestmark = pytest.mark.mariadb

#: The smallest packet that is tried, in bytes.
TINY = 65_536


def test_a_long_queue_is_drained_once_workers_are_back(trial: Trial) -> None:
    rig = trial.rig
    count = 100_000 * SOAK
    owners = rig.owners(500)
    for name in ("worker-0", "worker-1"):
        rig.cluster.kill(name)

    receipts = rig.client.enqueue_bulk_insert(
        rig.db.event, ({"owner": owners[i % 500], "body": f"number {i}"} for i in range(count))
    )
    for name in ("worker-0", "worker-1"):
        rig.cluster.start(name)
    rig.client.wait_all(receipts, timeout_s=120 * SOAK)

    found = events(trial, owners)
    assert len(found) == count
    assert {body for _, body in found} == {f"number {i}" for i in range(count)}
    assert {id for id, _ in found} == {receipt.id for receipt in receipts}


def test_rows_of_two_megabytes_are_applied_whole(trial: Trial) -> None:
    rig = trial.rig
    owners = rig.owners(3)
    bodies = ["".join(trial.luck.choices("xyz'\\é😀", k=1000)) * 1200 for _ in range(12 * SOAK)]

    receipts = [
        rig.client.enqueue_insert(rig.db.event, owner=owners[i % 3], body=body) for i, body in enumerate(bodies)
    ]
    rig.client.wait_all(receipts, timeout_s=60)

    assert min(len(body.encode()) for body in bodies) > 1_200_000
    found = dict(events(trial, owners))
    assert [found[receipt.id] for receipt in receipts] == bodies


def test_rows_above_the_packet_limit_are_rejected_with_the_reason_and_all_others_applied(
    trial: Trial, tiny_packets: None
) -> None:
    rig = trial.rig
    owners = rig.owners(8)
    sizes = [trial.luck.choice((10, 1_000, 40_000, 70_000, 200_000)) for _ in range(200 * SOAK)]

    sent = [
        (size, rig.client.enqueue_insert(rig.db.event, owner=trial.luck.choice(owners), body="x" * size))
        for size in sizes
    ]
    fates = [(size, receipt.id, fate(receipt)) for size, receipt in sent]

    found = dict(events(trial, owners))
    for size, id, told in fates:
        if size < TINY:
            assert told in ("applied", "durable")
            assert len(found[id]) == size
        else:
            assert "bytes; the server takes" in told
            assert id not in found


@pytest.fixture
def tiny_packets(trial: Trial) -> Iterator[None]:
    """Let the primaries take small packets only; workers that are connected notice as they connect anew."""
    uris = trial.rig.primaries.values()
    [(before,)] = nodes.rows(next(iter(uris)), "SELECT @@global.max_allowed_packet")
    for uri in uris:
        limit_packets(uri, TINY)
    yield
    for uri in uris:
        limit_packets(uri, before)


def limit_packets(uri: str, limit_bytes: int) -> None:
    """Set the limit for all connections that are made from now on, and end those there are."""
    nodes.rows(uri, f"SET GLOBAL max_allowed_packet = {limit_bytes}")
    mine = "AND user = 'root' AND id <> CONNECTION_ID()"
    for (id,) in nodes.rows(uri, f"SELECT id FROM information_schema.processlist WHERE command <> 'Daemon' {mine}"):
        try:
            nodes.rows(uri, f"KILL {id}")
        except OperationalError as error:
            if error.args[0] != ER.NO_SUCH_THREAD:  # it has ended by itself
                raise


def fate(receipt: Receipt) -> str:
    """Wait for an op; return its status or why it was rejected."""
    try:
        return receipt.wait(60)
    except Rejected as error:
        return str(error)


def events(trial: Trial, owners: list[int]) -> list[tuple[int, str]]:
    """Return ids and bodies of the events of these owners on all primaries."""
    sql = f"SELECT id, body FROM event WHERE owner IN ({', '.join(map(str, owners))})"
    return [(id, body) for uri in trial.rig.primaries.values() for id, body in nodes.rows(uri, sql)]
