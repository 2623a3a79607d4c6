"""Shard keys move to shards of their own and back while ops arrive, and everybody ends at any statement.

A storm as in `moving`, with few buckets, so that several keys share one. Now and then a whole bucket moves. After every
step at most one shard applies a key's ops. Readers that have to see all that was acknowledged see just that, whether
they have news of the map or hear nothing; or they are refused.

`python -m support.sandbox.moving_keys --moves 500 --seed 1`, with `tests` on the path, is a long run.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storm.sandbox_storm import SPARED
from storm.virtual_time import VirtualTime

from pipeline import clock
from pipeline.admin.moving import orders
from pipeline.client import Client
from pipeline.config.buckets import FIRST_PIECE, log_number
from pipeline.enqueue.buckets import follow_noted
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.reads import Token
from pipeline.shard import NodeSession
from support.oracle import judge
from support.oracle.ledger import replay
from support.sandbox.moving import OWNERS, SHARDS, Storm, long_run
from support.tables import TABLES_TOML

BUCKETS = 3
#: How likely an order is about a whole bucket.
WHOLE = 0.15
#: The states in which a shard applies the ops of all keys of a bucket, or of a piece.
APPLYING = ("active", "holding", "halted")


class KeyStorm(Storm):
    """One run; see `Storm`."""

    buckets = BUCKETS
    #: A bucket that has stopped uses up tries in which no worker is killed: else its next op would be called poison.
    spared = 8 * SPARED
    tables_toml = TABLES_TOML + '\n[tables.tally_archive]\nshard_key = "owner"\n'

    def __init__(self, seed: int, folder: Path, time: VirtualTime):
        super().__init__(seed, folder, time)
        self.wrong, self._dice = list[str](), random.Random(f"reads {seed}")
        for client in self.processes:  # a read that waits takes time
            gather = client.reads._gather
            gather._all = _slow(time, gather._all)  # type: ignore[method-assign]

    def _step(self, what: Callable[[], None]) -> None:
        super()._step(what)
        if self._dice.random() < READS:
            self._read()

    def _read(self) -> None:
        """Read rows of an owner, which have to be as all acknowledged ops make them."""
        dice, client, owner = self._dice, self._dice.choice(self.processes), self._dice.randrange(OWNERS)
        if dice.random() < 0.5:
            follow_noted(client.log, client.topology)
            client.topology.heard_at_s = clock.mono_s()
        else:
            client.topology.heard_at_s = -math.inf
        model = replay(self.ledger).model
        wanted = {id: _row(row) for id, row in model.rows.items()}
        mine = {id: row for id, row in wanted.items() if row[0] == owner}
        name = dice.choice([*KINDS])
        try:
            found, expected = KINDS[name](client, self.db.tally, owner, mine, wanted)
        except PipelineError:
            self.faults["reads refused"] += 1
            return
        self.faults[f"reads of {name}"] += 1
        if found != expected:
            self.wrong.append(f"step {self.steps}, {name} of {owner}: {_unlike(found, expected)}")

    def _promote(self) -> None:
        super()._promote()
        for client in self.clients:
            client.reads.close()

    def moment(self, session: NodeSession | None = None) -> None:
        """See `Storm.moment`; a connection that is cut counts as a try that has failed, too."""
        try:
            super().moment(session)
        except ShardUnavailable as error:
            self._spared[error.node.partition("-")[0]] = self.spared
            raise

    def broken(self) -> list[str]:
        """Return what is not as the acknowledged ops say; a version goes with its row, to which it refers here."""
        model = replay(self.ledger).model
        gone = {f"version {id}" for id, (row, _) in model.versions.items() if row not in model.rows}
        return self.wrong + [said for said in super().broken() if said not in gone]

    def _one_owner(self, what: str) -> None:
        owners, applies = Counter[int](), Counter[int]()
        for shard in SHARDS:
            states = dict(self._rows(shard, "SELECT bucket, state FROM pipeline_watermarks"))
            sql = "SELECT bucket FROM pipeline_moves WHERE of_bucket IS NOT NULL"
            pieces = {number for (number,) in self._rows(shard, sql)}
            owners.update(
                b for b, state in states.items() if b < self.buckets and state in (*APPLYING, "lent", "stopped")
            )
            applies.update(n for n, state in states.items() if n >= FIRST_PIECE and state in APPLYING)
            within = (n for n in pieces - states.keys() if states.get(log_number(n)) in APPLYING)
            applies.update(within)
        assert max(owners.values(), default=1) == 1, f"step {self.steps}, {what}: two shards own {owners}"
        assert max(applies.values(), default=0) <= 1, f"step {self.steps}, {what}: two shards apply {applies}"

    def _order_one(self, busy: set[int]) -> None:
        if self.luck.random() < WHOLE:
            super()._order_one(busy)
            return
        owner, client = self.luck.randrange(OWNERS), self.luck.choice(self.processes)
        target = self.luck.choice([shard for shard in SHARDS if shard != self._place_of(owner)])
        if self.luck.random() < 0.5:
            away = [*self.admin.topology.placement.pieces.values()]
            if away:
                piece = self.luck.choice(away)
                owner, target = int(piece.of.key), self.admin.topology.shard_of(piece.of.bucket)
        with self._may_end("order"):
            orders.order_key(client, f"tally={owner}", target, "storm", keep_s=0)
            self.faults["moves ordered"] += 1
            back = target == client.topology.shard_of(client.topology.bucket_of("tally", owner))
            self.faults["ways back ordered" if back else "ways out ordered"] += 1

    def _place_of(self, owner: int) -> str:
        away = judge.away({name: self._file(name) for name in SHARDS}).get(
            self.admin.topology.bucket_of("tally", owner)
        )
        return away[0] if away is not None and away[2] == owner else super()._place_of(owner)


def _slow(time: VirtualTime, then: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        time.sleep_s(0.1)
        return then(*arguments)

    return both


#: Rows by their ids; of one that an upsert made, the model does not know the id.
Rows = dict[Any, tuple[Any, ...]]
_ALL: dict[str, Any] = {"after": Token(rest=True), "wait_s": 0.0}


def _row(row: Any) -> tuple[Any, ...]:
    return row.owner, row.name, row.n, row.trace


def _rows(found: Any) -> list[tuple[Any, ...]]:
    return sorted(map(_row, found))


def _get(client: Client, tally: Any, owner: int, mine: Rows, wanted: Rows) -> tuple[Any, Any]:
    known = [id for id in mine if isinstance(id, int)]
    found = (client.get(tally, id, **_ALL) for id in known)
    return _rows(row for row in found if row is not None), sorted(mine[id] for id in known)


def _of_key(client: Client, tally: Any, owner: int, mine: Rows, wanted: Rows) -> tuple[Any, Any]:
    return _rows(client.select(tally.owner == owner, **_ALL)), sorted(mine.values())


def _all_rows(client: Client, tally: Any, owner: int, mine: Rows, wanted: Rows) -> tuple[Any, Any]:
    return _rows(client.select(tally, **_ALL)), sorted(wanted.values())


def _count(client: Client, tally: Any, owner: int, mine: Rows, wanted: Rows) -> tuple[Any, Any]:
    return client.count(tally, **_ALL), len(wanted)


def _block(client: Client, tally: Any, owner: int, mine: Rows, wanted: Rows) -> tuple[Any, Any]:
    with client.read(tally, owner, **_ALL) as db:
        return _rows(db(db.tally.owner == owner).select()), sorted(mine.values())


#: What a read finds, and what it should.
KINDS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "ids": _get,
    "a key": _of_key,
    "all": _all_rows,
    "count": _count,
    "block": _block,
}
READS = 0.15


def _unlike(found: Any, expected: Any) -> str:
    if isinstance(found, int):
        return f"{found}, not {expected}"
    lacking, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    return f"lacks {[*lacking][:3]}, has {[*more][:3]}"


if __name__ == "__main__":
    long_run(KeyStorm, __doc__)
