"""Buckets move there and back on MariaDB with replicas while everything is read in every way: no read is wrong."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.chance import SOAK, chance
from support.servers.rig import Rig

from pipeline.admin import moving as movers
from pipeline.admin.moving import orders
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import PipelineError, ShardUnavailable, Unavailable
from pipeline.reads.routing import moving, router
from pipeline.reads.routing.moving import Elsewhere

pytestmark = pytest.mark.mariadb
#: Moves of each run, and rows of each owner that nobody changes.
MOVES, ROWS = 4 * SOAK, 5
#: A map is no news after so long, and rows are copied and kept for longer, s: both as they are, and shorter.
OLD_S, HEARD_S, KEEP_S = 2.0, 4.0, 4
#: How long a read may wait for an op that is queued, s: no answer in time is no wrong answer.
WAIT_S = 30.0


@pytest.fixture
def reader(mariadb: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(moving, "OLD_MAP_S", OLD_S)
    monkeypatch.setattr(router, "OLD_MAP_S", OLD_S)
    monkeypatch.setattr(movers, "HEARD_S", HEARD_S)
    made = Client(mariadb.config)
    made.define_tables(mariadb.db)
    yield made
    made.close()


class World:
    """Rows that stay as they are, and rows that one thread counts up; what each kind of read says of them."""

    def __init__(self, client: Client, db: Any, owners: list[int], luck: random.Random):
        self.client, self.db, self.owners, self.luck = client, db, owners, luck
        rows = [{"owner": owner, "body": f"still {n}"} for owner in owners for n in range(ROWS)]
        self.still = [receipt.id for receipt in client.enqueue_bulk_insert(db.event, rows)]
        self.counters = {owner: client.enqueue_insert(db.tally, owner=owner, name=f"c{owner}", n=0) for owner in owners}
        self.counted = Counter[int]()
        self.mine = db.event.owner.belongs(owners)
        client.barrier("event", timeout_s=30)
        client.barrier("tally", timeout_s=30)
        self.read: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()

    def look(self) -> list[str]:
        """Read once, and return what was wrong."""
        name, kind = self.luck.choice([*KINDS.items()])
        self.read[name] += 1
        wrong = kind(self)
        return [f"{name}: {wrong}"] if wrong else []

    def count_up(self) -> tuple[int, Any]:
        """Enqueue one more; return the owner and the receipt."""
        owner = self.luck.choice(self.owners)
        query = self.db.tally.id == self.counters[owner].id
        receipt = self.client.enqueue_update(query, n=self.db.tally.n + 1)
        self.counted[owner] += 1
        return owner, receipt


def _after(world: World) -> str:
    owner, receipt = world.count_up()
    row = world.client.get(world.db.tally, world.counters[owner].id, after=receipt, wait_s=WAIT_S)
    return "" if row and row.n == world.counted[owner] else f"{row and row.n} of {world.counted[owner]}"


def _pending(world: World) -> str:
    owner, _ = world.count_up()
    row = world.client.get(world.db.tally, world.counters[owner].id, pending=True)
    return "" if row and row.n == world.counted[owner] else f"{row and row.n} of {world.counted[owner]}"


def _key_after(world: World) -> str:
    owner, receipt = world.count_up()
    rows = world.client.select(world.db.tally.owner == owner, after=receipt, wait_s=WAIT_S)
    found = [(row.id, row.n) for row in rows]
    return "" if found == [(world.counters[owner].id, world.counted[owner])] else f"{found} of {world.counted[owner]}"


def _all_after(world: World) -> str:
    owner, receipt = world.count_up()
    rows = world.client.select(
        world.db.tally.owner.belongs(world.owners), after=receipt, wait_s=WAIT_S, timeout_s=2 * WAIT_S
    )
    found = {row.owner: row.n for row in rows}
    whole = len(rows) == len(found) == len(world.owners)
    return "" if whole and found[owner] == world.counted[owner] else f"{found}, {owner}: {world.counted[owner]}"


def _block(world: World) -> str:
    owner, receipt = world.count_up()
    for _ in polls(30):
        try:
            with world.client.read("tally", owner, after=receipt, wait_s=WAIT_S) as db:
                found = [row.n for row in db(db.tally.owner == owner).select()]
                world.nodes[db.read_info.role] += 1
        except Elsewhere:  # the bucket has left while the block was open
            continue
        return "" if found == [world.counted[owner]] else f"{found} of {world.counted[owner]}"
    return "it never ends"


def _get(world: World) -> str:
    return "" if world.client.get(world.db.event, world.luck.choice(world.still)) else "missing"


def _key(world: World) -> str:
    found = [row.id for row in world.client.select(world.db.event.owner == world.luck.choice(world.owners))]
    return "" if len(found) == len({*found}) == ROWS else f"{found}"


def _select(world: World) -> str:
    found = [row.id for row in world.client.select(world.mine)]
    return "" if sorted(found) == sorted(world.still) else f"{Counter(found) - Counter(world.still)}, {len(found)}"


def _ordered(world: World) -> str:
    rows = world.client.select(world.mine, orderby=~world.db.event.id, limitby=(3, 9))
    return "" if [row.id for row in rows] == sorted(world.still, reverse=True)[3:9] else f"{[row.id for row in rows]}"


def _count(world: World) -> str:
    found = world.client.count(world.mine)
    return "" if found == len(world.still) else f"{found} of {len(world.still)}"


def _sum(world: World) -> str:
    total = world.db.event.owner.sum()
    found = world.client.select(world.mine, total).first()[total]
    return "" if found == sum(world.owners) * ROWS else f"{found}"


def _groups(world: World) -> str:
    count, owner = world.db.event.id.count(), world.db.event.owner
    rows = world.client.select(world.mine, owner, count, groupby=owner)
    found = {row.event.owner: row[count] for row in rows}
    return "" if len(rows) == len(found) and found == dict.fromkeys(world.owners, ROWS) else f"{found}"


KINDS: dict[str, Callable[[World], str]] = {
    "get": _get,
    "get after": _after,
    "get pending": _pending,
    "select of a key": _key,
    "select of a key after": _key_after,
    "read after": _block,
    "select": _select,
    "select after": _all_after,
    "select in order": _ordered,
    "count": _count,
    "sum": _sum,
    "groups": _groups,
}


def test_no_read_is_wrong_while_buckets_move_there_and_back(mariadb: Rig, reader: Client) -> None:
    topology, luck = mariadb.client.topology, chance("moving reads")
    world = World(reader, mariadb.db, mariadb.owners(8), luck)
    buckets = sorted({topology.bucket_of("event", owner) for owner in world.owners})
    source = topology.shard_of(buckets[0])
    mine = [bucket for bucket in buckets if topology.shard_of(bucket) == source]
    [target] = {*topology.shards} - {source}
    read_while_moving(mariadb, world, mine, (target, source))


def test_no_read_is_wrong_while_a_key_moves_there_and_back(mariadb: Rig, reader: Client) -> None:
    topology, luck = mariadb.client.topology, chance("key reads")
    by_bucket: dict[int, list[int]] = {}
    for owner in mariadb.owners(300):
        by_bucket.setdefault(topology.bucket_of("event", owner), []).append(owner)
    bucket, alike = next((b, own[:2]) for b, own in by_bucket.items() if len(own) > 1)
    others = [own[0] for b, own in by_bucket.items() if b != bucket][:4]
    world = World(reader, mariadb.db, [*alike, *others], luck)
    home = topology.shard_of(bucket)
    [away] = {*topology.shards} - {home}
    read_while_moving(mariadb, world, f"event={alike[0]}", (away, home))


def read_while_moving(mariadb: Rig, world: World, what: list[int] | str, shards: tuple[str, str]) -> None:
    """Read while buckets, or a key, move to one shard and the other by turns; no read may be wrong."""
    over, failed = threading.Event(), list[BaseException]()

    def move() -> None:
        client = Client(mariadb.config)
        try:
            for n in range(MOVES):
                carried_out(client, what, shards[n % 2])
        except BaseException as error:
            failed.append(error)
        finally:
            over.set()
            client.close()

    thread = threading.Thread(target=move)
    thread.start()
    wrong: list[str] = []
    while not over.is_set():
        wrong += world.look()
    thread.join()

    print(f"{MOVES} moves, {sum(world.read.values()):,} reads, {len(wrong)} wrong: {dict(sorted(world.read.items()))}")
    assert failed == []
    assert wrong == []
    assert {*world.read} == {*KINDS}
    assert world.nodes["replica"]


def carried_out(client: Client, what: list[int] | str, target: str) -> None:
    """Move buckets, or a key, by whoever takes the move up."""
    for deadline in polls(30):
        try:
            if isinstance(what, str):
                mover = orders.order_key(client, what, target, "test", keep_s=KEEP_S)
            else:
                mover = orders.order_move(client, what, target, "test", keep_s=KEEP_S)
            break
        except PipelineError:  # a node has not got over the last move
            if deadline.passed:
                raise
    for _ in polls(120):
        try:
            for _ in mover.steps():
                pass
            return
        except (Unavailable, ShardUnavailable):
            continue
    raise AssertionError(f"not moved: {orders.known(client)[0]}")
