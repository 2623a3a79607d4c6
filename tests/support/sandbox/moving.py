"""Buckets move to and fro in one process while ops arrive, and movers, workers and primaries end at any statement.

Two processes move, each with connections of its own, and now and then a mover that was thought dead goes on. A primary
that ends is followed by its replica, which lacks the last commits. After every step at most one shard owns a bucket; in
the end all rows are what a replay of the acknowledged ops gives.

`python -m support.sandbox.moving --moves 500 --seed 1`, with `tests` on the path, is a long run.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sqlite3
import tempfile
import threading
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from storm.sandbox_storm import SPARED, Killed, _drawn_from, _no_threads
from storm.virtual_time import VirtualTime, virtual_time

from pipeline.admin import moving as movers
from pipeline.admin.migration import migrate
from pipeline.admin.moving import Mover, carrier, orders
from pipeline.admin.moving.buckets_rows import FencedSession
from pipeline.admin.moving.carrier import MoveStep
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.oplog.doorbell import SilentBell
from pipeline.shard import NodeSession, row_sync
from support.oracle import judge, nodes
from support.oracle.ledger import Acknowledged, in_order, replay
from support.oracle.load import Load
from support.sandbox.spooling import Switched
from support.tables import TABLES_TOML, define
from workers.chores import Chores

BUCKETS, OWNERS, SHARDS = 8, 6, ("s0", "s1", "s2")
#: How many moves may be under way, and how many movers may be at work, those that were thought dead included.
MOVES_AT_ONCE, MOVERS = 2, 4
#: How likely a statement of a step ends its process, or its connection, while these end.
DEADLY = (0.0, 0.0, 0.01, 0.05)
#: Steps in which everything must be over once nothing ends any more.
RECOVERY = 4000
#: What of the log is a step in which a process may end, like each statement.
LOG_STEPS = ("note_placement", "raise_epoch", "mark_dirty", "mark_clean", "postpone", "finish")


class Storm:
    """One run.

    Args:
        seed: decides everything.
        folder: for the databases.
        time: passes when somebody sleeps.
    """

    buckets, tables_toml, spared = BUCKETS, TABLES_TOML, SPARED

    def __init__(self, seed: int, folder: Path, time: VirtualTime):
        self.luck, self.time, self.folder = random.Random(f"moving {seed}"), time, folder
        self._thread = threading.get_ident()
        self.log: Any = Switched()
        self.faults: Counter[str] = Counter()
        self.ended = self.steps = 0
        self._mortal, self._deadly = False, 0.0
        #: The connections that movers have for themselves, and those of them whose server has died.
        self.apart, self._gone = WeakSet[NodeSession](), WeakSet[Any]()
        self._spared, self._over = Counter[str](), set[int]()
        self._open, self._judges = ExitStack(), dict[str, Any]()
        self.db = define()
        self.clients = [self._client() for _ in range(4)]
        self.admin, *self.processes = self.clients
        migrate(self.admin)
        self.loads = [
            Load(client, self.db, random.Random(self.luck.random()), f"L{n}", range(OWNERS))
            for n, client in enumerate(self.processes)
        ]
        self.ledger: list[Acknowledged] = []
        self.movers: list[tuple[Client, Iterator[MoveStep]]] = []
        self.appliers = {shard: self._applier(shard) for shard in SHARDS}
        self.chores = [Chores(self.admin, scope) for scope in self.admin.publisher.scopes.values()]
        for shard in SHARDS:
            self._replicate(shard)

    def run(self, moves: int) -> None:
        """Let so many moves be over, one way or the other."""
        turns: dict[Callable[[], None], int] = {
            self._send: 8,
            self._work: 8,
            self._move: 14,
            self._follow: 6,
            self._order: 4,
            self._take_up: 3,
            self._chore: 1,
            self._fault: 1,
        }
        while self.ended < moves:
            self._step(self.luck.choices([*turns], [*turns.values()])[0])
        self._recover()

    def broken(self) -> list[str]:
        """Return what is not as the acknowledged ops say."""
        uris = {name: self._file(name) for name in SHARDS}
        states = self._states()
        verdict = replay(self.ledger)
        said = [f"{op} is {state}" for op, state in states.items() if state in ("queued", "lost")]
        for word, wanted in (("rejected", verdict.refused), ("parked", verdict.parked)):
            found = {op for op, state in states.items() if state == word}
            said += [f"{word} wrongly: {op}" for op in found ^ wanted]
        rows, kept = dict[tuple[int, str], Any](), dict[int, Any]()
        for shard, uri in uris.items():
            with nodes.connection(uri) as made:
                here, versions = judge.tally_of(made, range(OWNERS)), judge.versions_of(made, range(OWNERS))
            owned = {owner for owner, _ in here} | {version.owner for _, version in versions.values()}
            said += [f"{shard} has rows of {o}" for o in owned if self._place_of(o) != shard]
            rows, kept = rows | here, kept | versions
        said += judge.differences(verdict.model, rows)
        said += [
            f"version {id}"
            for id in kept.keys() | verdict.model.versions
            if kept.get(id) != verdict.model.versions.get(id)
        ]
        return said if in_order(self.ledger) else [*said, "a log has a producer's ops in another order"]

    def close(self) -> None:
        """Close all connections."""
        for client in self.clients:
            client.close()
        self._open.close()

    # whose turn it is ---------------------------------------------------------------------------------------

    def _step(self, what: Callable[[], None]) -> None:
        self.steps += 1
        self.time.sleep_s(self.luck.choice((0.001, 0.01, 0.1)))
        what()
        self._one_owner(what.__name__)

    def _one_owner(self, what: str) -> None:
        owners = Counter[int]()
        for shard in SHARDS:
            sql = "SELECT bucket FROM pipeline_watermarks WHERE state IN ('active', 'holding', 'halted')"
            owners.update(bucket for (bucket,) in self._rows(shard, sql) if bucket < BUCKETS)
        assert max(owners.values()) == 1, f"step {self.steps}, {what}: two shards own {owners}"

    def _rows(self, shard: str, sql: str) -> list[tuple[Any, ...]]:
        """Return what a statement finds, on a connection that the judge keeps: each step asks each shard."""
        if shard not in self._judges:
            self._judges[shard] = self._open.enter_context(nodes.connection(self._file(shard)))
        return nodes.fetch(self._judges[shard], sql)

    def _send(self) -> None:
        self.ledger.append(self.luck.choice(self.loads).send())

    def _work(self) -> None:
        shard = self.luck.choice(SHARDS)
        self._spared[shard] -= 1
        with self._may_end("worker", mortal=self._spared[shard] <= 0):
            self.appliers[shard].apply()
            return
        self.appliers[shard], self._spared[shard] = self._applier(shard), self.spared

    def _order(self) -> None:
        under_way = [*orders.under_way(self.admin)]
        busy = {bucket for one in under_way for bucket in one.buckets}
        if len(under_way) < MOVES_AT_ONCE:
            self._order_one(busy)

    def _order_one(self, busy: set[int]) -> None:
        topology, bucket = self.admin.topology, self.luck.randrange(self.buckets)
        source = topology.shard_of(bucket)
        mine = [one for one in topology.buckets_of(source) if one not in busy and one < self.buckets]
        target = self.luck.choice([shard for shard in SHARDS if shard != source])
        some = self.luck.sample(mine, min(len(mine), self.luck.choice((1, 1, 2, 3))))
        if some:
            with self._may_end("order"):
                orders.order_move(self.luck.choice(self.processes), some, target, "storm", keep_s=0)
                self.faults["moves ordered"] += 1

    def _take_up(self) -> None:
        """Let a process take up a move, although another one may be at it: that one is thought dead."""
        client = self.luck.choice(self.processes)
        found = [*orders.under_way(client)]
        if found and len(self.movers) < MOVERS:
            mover = self.luck.choice(found)
            self.movers.append((client, self._steps_of(mover)))

    def _steps_of(self, mover: Mover) -> Iterator[MoveStep]:
        yield from mover.steps()
        self.ended += mover.leg.move not in self._over
        self._over.add(mover.leg.move)

    def _move(self) -> None:
        if not self.movers:
            return
        _, steps = one = self.luck.choice(self.movers)
        with self._may_end("mover"):
            for _ in range(self.luck.choice((1, 1, 2, 5))):
                if next(steps, None) is None:
                    self.movers.remove(one)
                    break
            return
        self.movers.remove(one)

    def _chore(self) -> None:
        self.luck.choice(self.chores).turn()

    # what fails ---------------------------------------------------------------------------------------------

    @contextmanager
    def _may_end(self, who: str, *, mortal: bool = True) -> Iterator[None]:
        """Let what is done in the block end at any statement, as a process or as a connection."""
        self._mortal = mortal
        try:
            yield
        except Killed:
            self.faults[f"{who} killed"] += 1
        except PipelineError as error:
            self.faults[f"{who}: {type(error).__name__}"] += 1
        finally:
            self._mortal = False

    def moment(self, session: NodeSession | None = None) -> None:
        """Maybe end whoever is at work, or its connection; never a thread that another test has left behind."""
        if threading.get_ident() != self._thread:
            return
        if session is not None and session in self._gone:  # a connection ends with its server
            self._gone.discard(session)
            session.discard()
            raise ShardUnavailable(session.node, "the server has died")
        if self._mortal and self._deadly and self.luck.random() < self._deadly:
            if session is not None and self.luck.random() < 0.4:
                session.discard()
                raise ShardUnavailable(session.node, "the connection was cut on purpose")
            raise Killed

    def _fault(self) -> None:
        self.luck.choice((self._lethal, self._lethal, self._promote, self._promote, self._restart))()

    def _lethal(self) -> None:
        self._deadly = self.luck.choice(DEADLY)

    def _restart(self) -> None:
        self.log.restart()
        self.faults["redis restarted"] += 1

    def _follow(self) -> None:
        self._replicate(self.luck.choice(SHARDS))

    def _replicate(self, shard: str) -> None:
        self._copied(f"{shard}", f"{shard}-r0")

    def _promote(self) -> None:
        """Let a primary be as its replica, which lacks the last commits; connections do not outlive their server."""
        shard = self.luck.choice(SHARDS)
        self._copied(f"{shard}-r0", shard)
        self.faults["primary killed"] += 1
        self._gone.update(one for one in self.apart if one.node == shard)
        for client in self.clients:
            client.nodes.close()
        self.appliers[shard] = self._applier(shard)

    def _copied(self, source: str, target: str) -> None:
        with (
            closing(sqlite3.connect(self.folder / f"{source}.sqlite")) as one,
            closing(sqlite3.connect(self.folder / f"{target}.sqlite")) as other,
        ):
            one.backup(other)

    # the end ------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Let all moves be over, and all ops be accounted for."""
        self._deadly = 0.0
        self.movers.clear()
        for _ in range(RECOVERY):
            for shard in SHARDS:
                self._replicate(shard)
                self.log.sweep(shard, due_ms=0)
            for what in (self._take_up, self._move, self._move, self._chore):
                self._step(what)
            for shard in SHARDS:
                self._step(lambda shard=shard: self.appliers[shard].apply())  # type: ignore[misc]
            self.time.sleep_s(1.0)
            if not self.movers and not [*orders.under_way(self.admin)] and not self._queued():
                return
        raise AssertionError(f"not over: {orders.known(self.admin)[:3]}, {self._queued()} queued")

    def _queued(self) -> int:
        for load in self.loads:
            load._client.publisher.settle()
        return sum(state == "queued" for state in self._states().values())

    def _states(self) -> dict[judge.Op, str]:
        """Return what became of each op."""
        return judge.states({name: self._file(name) for name in SHARDS}, self.admin.topology, self.ledger)

    def _place_of(self, owner: int) -> str:
        """Return the shard that has the rows of an owner."""
        return self.admin.topology.shard_of(self.admin.topology.bucket_of("tally", owner))

    # parts --------------------------------------------------------------------------------------------------

    def _file(self, node: str) -> str:
        return f"sqlite://{self.folder}/{node}.sqlite"

    def _client(self) -> Client:
        made = Client(
            {
                "pipeline": {"buckets": self.buckets},
                "redis": {"url": "redis://moving.invalid/0"},
                "shards": {one: {"primary": self._file(one), "replicas": [self._file(f"{one}-r0")]} for one in SHARDS},
                "tables": tomllib.loads(self.tables_toml)["tables"],
                "apply": {"breaker": False},
                "spool": {"enabled": False},
            },
            log=self.log,
            bell=SilentBell(),
        )
        made.define_tables(self.db)
        return made

    def _applier(self, shard: str) -> Applier:
        client = self.admin
        return Applier(
            shard, client.nodes.primary(shard), self.log, client.settings.apply, tables=client.settings.tables
        )


@contextmanager
def storm(seed: int, kind: type[Storm] = Storm) -> Iterator[Any]:
    """Yield a run of a seed."""
    folder = Path(tempfile.mkdtemp(prefix="moving-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with virtual_time() as time, _no_threads(), _drawn_from(seed), pytest.MonkeyPatch.context() as patch:
            patch.setattr(movers, "HEARD_S", 0.0)
            patch.setattr(movers, "WAIT_S", 0.02)
            patch.setattr(carrier, "WAIT_S", 0.02)
            patch.setattr(carrier, "KEPT_S", 0.01)
            patch.setattr(row_sync, "FIRST", 40)
            patch.setattr(row_sync, "MOST", 40)
            made = kind(seed, folder, time)
            _watch(made, patch)
            yield made
            made.close()
    finally:
        logging.disable(before)
        shutil.rmtree(folder, ignore_errors=True)


def _watch(made: Storm, patch: pytest.MonkeyPatch) -> None:
    """Let each statement, each commit and each step of the log be a moment at which whoever is at work may end."""
    for name in ("execute", "rows", "query"):
        patch.setattr(NodeSession, name, _before(made, getattr(NodeSession, name)))
    made_apart, transaction = FencedSession.__init__, NodeSession.transaction

    def noted(self: FencedSession, *arguments: Any, **options: Any) -> None:
        made_apart(self, *arguments, **options)
        made.apart.add(self)

    patch.setattr(FencedSession, "__init__", noted)

    @contextmanager
    def committed(self: NodeSession) -> Iterator[NodeSession]:
        with transaction(self):
            yield self
        made.moment(self)

    patch.setattr(NodeSession, "transaction", committed)
    for name in LOG_STEPS:
        patch.setattr(made.log, name, _behind(made, getattr(made.log, name)))


def _before(made: Storm, then: Callable[..., Any]) -> Callable[..., Any]:
    def both(self: NodeSession, *arguments: Any, **options: Any) -> Any:
        made.moment(self)
        return then(self, *arguments, **options)

    return both


def _behind(made: Storm, first: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any, **options: Any) -> Any:
        found = first(*arguments, **options)
        made.moment()
        return found

    return both


def long_run(kind: type[Storm], doc: str | None) -> None:
    """Make a long run of a kind of storm, as the arguments of the command say, and print what happened.

    Args:
        kind: of the storm.
        doc: what it is.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--moves", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=10, help="moves of one run")
    given = parser.parse_args()
    faults, ops, steps = Counter[str](), 0, 0
    for seed in range(given.seed, given.seed + -(-given.moves // given.each)):
        with storm(seed, kind) as made:
            made.run(given.each)
            assert not (said := made.broken()), f"seed {seed}: {said[:5]}"
            assert not made.faults["mover: MoveEnded"] or kind is not Storm, (
                f"seed {seed}: a move ended for a difference"
            )
        faults, ops, steps = faults + made.faults, ops + len(made.ledger), steps + made.steps
    print(json.dumps({"moves": given.moves, "ops": ops, "steps": steps, **dict(sorted(faults.items()))}, indent=1))


if __name__ == "__main__":
    long_run(Storm, __doc__)
