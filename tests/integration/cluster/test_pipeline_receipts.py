"""Receipts on real servers: waiting for one, for many, for a table; ids from the database; reference tables."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from support.oracle import nodes
from support.oracle.producer import environment
from support.servers.rig import Rig

from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import PipelineError, WaitTimeout
from pipeline.model.receipt import Receipt

pytestmark = pytest.mark.mariadb

#: Hosts of their own, which have no ids in reserve; their processes connect at once, and have never connected before.
COLD = """
import os, sys
from pipeline.client import Client
from support.tables import define

db, pids = define(), []
for config, owner in zip(sys.argv[1::2], sys.argv[2::2]):
    pid = os.fork()
    if pid == 0:
        client = Client(config)
        client.define_tables(db)
        receipt = client.enqueue_insert(db.event, owner=int(owner), body="the first")
        os.write(1, f"{receipt}\\n".encode())
        os._exit(0)  # the sweeper rings
    pids.append(pid)
sys.exit(sum(os.waitpid(pid, 0)[1] for pid in pids))
"""
#: One of eight processes, each of a fresh host: a whole interpreter, which begins when its standard input ends.
FIRST = """
import sys
from pipeline.client import Client
from support.tables import define

print("has imported all", flush=True)
sys.stdin.read()
client, db = Client(sys.argv[1]), define()
client.define_tables(db)
receipts = [client.enqueue_insert(db.event, owner=int(sys.argv[2]), body=str(n)) for n in range(10)]
for receipt in receipts:
    receipt.wait(60)  # its host's spool may have taken it
print(*receipts)
"""


def test_wait_all_returns_when_every_row_is_there(mariadb: Rig) -> None:
    owners = mariadb.owners(20)

    receipts = mariadb.client.enqueue_bulk_insert(
        mariadb.db.event, [{"owner": owners[i % 20], "body": str(i)} for i in range(2500)]
    )
    mariadb.client.wait_all(receipts, timeout_s=60)

    assert sorted(ids(mariadb, "event", owners)) == sorted(receipt.id for receipt in receipts)


def test_a_barrier_waits_for_what_other_producers_enqueued_too(mariadb: Rig) -> None:
    owners, other = mariadb.owners(10), Client(mariadb.config)
    try:
        for owner in owners:
            other.enqueue_insert(mariadb.db.event, owner=owner, body="from another process")

        mariadb.client.barrier("event", timeout_s=60)

        assert len(ids(mariadb, "event", owners)) == 10
    finally:
        other.close()


def test_eight_processes_on_fresh_hosts_reach_a_redis_that_is_well_with_their_first_op(
    mariadb: Rig, tmp_path: Path
) -> None:
    spools = [f'[spool]\npath = "{tmp_path}/{nth}.spool"\n' for nth in range(8)]
    configs = [mariadb.config_through({}, spool=spool, redis="[redis]\n") for spool in spools]

    owners = mariadb.owners(8)
    arguments = [word for config, owner in zip(configs, owners, strict=True) for word in (str(config), str(owner))]

    run = subprocess.run(
        [sys.executable, "-c", COLD, *arguments], env=environment(), stdout=subprocess.PIPE, text=True, timeout=120
    )

    receipts = [mariadb.client.parse(text) for text in run.stdout.splitlines()]
    assert (run.returncode, len(receipts)) == (0, 8)
    assert [receipt for receipt in receipts if receipt.position is None] == []
    mariadb.client.wait_all(receipts, timeout_s=60)
    assert len(ids(mariadb, "event", owners)) == 8


def test_eight_cold_processes_of_fresh_hosts_write_at_once_on_a_machine_that_has_no_time(
    mariadb: Rig, tmp_path: Path
) -> None:
    spools = [f'[spool]\npath = "{tmp_path}/{nth}.spool"\n' for nth in range(8)]
    configs = [str(mariadb.config_through({}, spool=spool, redis="[redis]\n")) for spool in spools]
    owners = mariadb.owners(8)

    with ExitStack() as stack:
        starts = [
            stack.enter_context(python(FIRST, config, str(owner), stdin=PIPE, stdout=PIPE))
            for config, owner in zip(configs, owners, strict=True)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(8))
        assert {process.stdout.readline() for process in starts if process.stdout} == {"has imported all\n"}
        for _ in range(6 * (os.cpu_count() or 1)):
            stack.callback(stack.enter_context(python("while True: pass")).kill)
        said = list(pool.map(lambda process: process.communicate(timeout=120)[0], starts))

    receipts = [mariadb.client.parse(text) for line in said for text in line.split()]
    assert [process.returncode for process in starts] == [0] * 8
    assert len({receipt.id for receipt in receipts}) == 80
    assert sorted(ids(mariadb, "event", owners)) == sorted(receipt.id for receipt in receipts)


def python(code: str, *arguments: str, **pipes: int) -> Popen[str]:
    return Popen([sys.executable, "-c", code, *arguments], env=environment(), text=True, **pipes)


def test_waiting_ends_at_its_timeout_while_no_worker_runs_and_the_op_stays_queued(mariadb: Rig) -> None:
    [owner] = mariadb.owners(1)
    with mariadb.frozen():
        receipt = mariadb.client.enqueue_insert(mariadb.db.event, owner=owner, body="x")

        with pytest.raises(WaitTimeout):
            receipt.wait(0.2)
        with pytest.raises(WaitTimeout):
            mariadb.client.barrier("event", timeout_s=0.2)

        assert receipt.status() == "queued"
    assert receipt.wait(30) in ("applied", "durable")


def test_a_receipt_becomes_durable_once_every_replica_has_the_row(mariadb: Rig) -> None:
    [owner] = mariadb.owners(1)
    receipt = mariadb.client.enqueue_insert(mariadb.db.event, owner=owner, body="x", durability="applied")

    for _ in polls(30):
        if receipt.status() == "durable":
            break

    assert receipt.status() == "durable"
    sql = f"SELECT id FROM event WHERE owner = {owner}"
    assert [row for uri in mariadb.replicas.values() for row in nodes.rows(uri, sql)] == [(receipt.id,)]


def test_a_printed_receipt_tells_another_process_the_same(mariadb: Rig) -> None:
    [owner] = mariadb.owners(1)
    receipt = mariadb.client.enqueue_insert(mariadb.db.event, owner=owner, body="x")

    again = mariadb.client.parse(str(receipt))

    assert again == receipt
    assert again.id == receipt.id
    assert again.wait(30) in ("applied", "durable")


def test_a_reference_table_is_the_same_on_every_shard(mariadb: Rig) -> None:
    country = mariadb.db.country
    receipts = [mariadb.client.enqueue_insert(country, name=f"land {i}", inhabitants=i) for i in range(20)]
    receipts += [mariadb.client.enqueue_update(country.id == receipts[3].id, inhabitants=country.inhabitants * 1000)]
    receipts += [mariadb.client.enqueue_delete(country.id == receipts[4].id)]
    mariadb.client.wait_all(receipts, timeout_s=60)

    sql = "SELECT id, name, inhabitants FROM country ORDER BY id"
    copies = [nodes.rows(uri, sql) for uri in mariadb.primaries.values()]

    wanted = {receipts[i].id: (f"land {i}", i) for i in range(20) if i != 4} | {receipts[3].id: ("land 3", 3000)}
    for copy in copies:
        assert {id: rest for id, *rest in map(tuple, copy) if id in wanted} == {id: [*v] for id, v in wanted.items()}
        assert receipts[4].id not in {row[0] for row in copy}


def test_a_receipt_learns_the_id_that_the_database_gave(mariadb: Rig) -> None:
    owners = mariadb.owners(5)
    with mariadb.frozen():
        receipts = [
            mariadb.client.enqueue_insert(mariadb.db.note, owner=o, body=f"{o}.{i}") for i in range(9) for o in owners
        ]
        before = [receipt.id for receipt in receipts[:3]]
    mariadb.client.wait_all(receipts, timeout_s=60)

    chosen = ", ".join(map(str, owners))
    found = {}
    for shard, uri in mariadb.primaries.items():
        for id, body in nodes.rows(uri, f"SELECT id, body FROM note WHERE owner IN ({chosen})"):
            found[body] = (shard, id)

    assert before == [None, None, None]
    topology = mariadb.client.topology
    told = {f"{owners[i % 5]}.{i // 5}": (topology.shard_of(r.bucket), r.id) for i, r in enumerate(receipts)}
    assert told == found


def test_a_receipt_of_no_pipeline_cannot_be_asked(mariadb: Rig) -> None:
    [owner] = mariadb.owners(1)
    receipt = mariadb.client.enqueue_insert(mariadb.db.event, owner=owner, body="x")

    stray = Receipt.parse(str(receipt), mariadb.client.seal)

    with pytest.raises(PipelineError, match="belongs to no pipeline"):
        stray.status()


def ids(rig: Rig, table: str, owners: list[int]) -> list[int]:
    """Return the ids of the rows of these owners on all primaries."""
    sql = f"SELECT id FROM {table} WHERE owner IN ({', '.join(map(str, owners))})"
    return [id for uri in rig.primaries.values() for (id,) in nodes.rows(uri, sql)]
