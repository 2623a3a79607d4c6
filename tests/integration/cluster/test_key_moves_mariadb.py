"""A shard key moves to another shard and back on MariaDB with replicas, while workers apply a load on its bucket."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict

import pytest
from support.chance import SOAK, chance
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.admin import moving as movers
from pipeline.admin.moving import orders
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import ShardUnavailable

pytestmark = pytest.mark.mariadb
#: How often the key goes there and back.
TRIPS = 2 * SOAK


def test_a_key_moves_there_and_back_under_load(mariadb: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 1.0)
    client, db, luck = mariadb.client, mariadb.db, chance("key moves")
    topology, by_bucket = client.topology, defaultdict[int, list[int]](list)
    for owner in mariadb.owners(300):
        by_bucket[topology.bucket_of("tally", owner)].append(owner)
    bucket, owners = next((b, own[:2]) for b, own in by_bucket.items() if len(own) > 1)
    home = topology.shard_of(bucket)
    [away] = {*topology.shards} - {home}
    tally, sent, over = db.tally, Counter[int](), threading.Event()
    rows = {o: client.enqueue_insert(tally, owner=o, name=f"c{o}", n=0).id for o in owners}
    names: dict[int, set[str]] = {o: {f"c{o}"} for o in owners}
    failed = list[BaseException]()

    def load() -> None:
        mine = Client(mariadb.config)
        mine.define_tables(db)
        try:
            for n in range(100_000):
                if over.is_set():
                    return
                send(mine, n)
                over.wait(0.005)
        except BaseException as error:
            failed.append(error)
        finally:
            mine.close()

    def send(mine: Client, n: int) -> None:
        owner, kind = luck.choice(owners), luck.choice(("id", "id", "key", "insert", "upsert", "delete", "group"))
        name, by_id = f"k{owner}.{n}", tally.id == rows[owner]
        if kind == "id":
            mine.enqueue_update(by_id, n=tally.n + 1)
        elif kind == "key":
            mine.enqueue_update((tally.owner == owner) & (tally.name == f"c{owner}"), n=tally.n + 1)
        elif kind == "insert":
            mine.enqueue_insert(tally, owner=owner, name=name)
        elif kind == "upsert":
            mine.enqueue_upsert(tally, key=["owner", "name"], owner=owner, name=name, n=1)
        elif kind == "delete":
            made = mine.enqueue_insert(tally, owner=owner, name=name)
            mine.enqueue_delete(tally.id == made.id)
        else:
            with mine.atomic():
                mine.enqueue_insert(tally, owner=owner, name=name)
                mine.enqueue_update(by_id, n=tally.n + 1)
        sent[owner] += kind in ("id", "key", "group")
        names[owner] |= {name} if kind in ("insert", "upsert", "group") else set()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(TRIPS):
            for target in (away, home):
                carried_out(client, f"tally={owners[0]}", target)
        carried_out(client, f"tally={owners[0]}", away)
    finally:
        over.set()
        thread.join()
    client.barrier("tally", timeout_s=60)

    assert failed == []
    for owner, shard in zip(owners, (away, home), strict=True):
        for place, uri in mariadb.primaries.items():
            found = nodes.rows(uri, f"SELECT name, n FROM tally WHERE owner = {owner}")
            assert {name for name, _ in found} == (names[owner] if place == shard else set())
            assert not found or dict(found)[f"c{owner}"] == sent[owner]
    carried_out(client, f"tally={owners[0]}", home)


def carried_out(client: Client, key: str, target: str) -> None:
    """Move as the command does; a worker may be at it, too."""
    for deadline in polls(120, first_s=0.2, most_s=1.0):
        try:
            mover = orders.order_key(client, key, target, "a test", keep_s=1)
            break
        except Exception:
            if deadline.passed:
                raise
    for deadline in polls(180, first_s=0.05, most_s=0.5):
        try:
            if mover.hold():
                list(mover.steps())
                mover.release()
                return
            if mover.stage() == "over":
                return
        except ShardUnavailable:
            pass
        assert not deadline.passed, f"the move is not over: {mover.stage()}"
