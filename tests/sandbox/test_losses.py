"""I5, I6: whatever Redis forgets, every acknowledged op is applied or told lost, and what is told is final."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from pydal import DAL, Field
from support.chance import SEED, SOAK, chance

import pipeline
from pipeline.admin import upkeep
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.enqueue.acknowledged import Acknowledged
from pipeline.errors import LogUnavailable
from pipeline.model.receipt import Receipt
from pipeline.oplog.doorbell import SilentBell
from pipeline.testing import Sandbox, sandbox

#: The shard keys that ops are of.
OWNERS = range(8)
STEPS = 120


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("n", "integer"))
    db.define_table("tally", Field("who", "integer"), Field("n", "integer"))
    yield db
    db.close()


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread settle: the schedule does."""
    monkeypatch.setattr(Acknowledged, "_keep_watch", lambda self: None)


class Storm:
    """Producers, workers and a Redis that forgets, by chance; the model is what was acknowledged and what was told."""

    def __init__(self, box: Sandbox, db: Any, luck: Random):
        self.box, self.db, self.luck = box, db, luck
        self.acked: dict[int, Receipt] = {}
        self.doubt: set[int] = set()
        self.told_lost: set[int] = set()
        self.clients = [self.client() for _ in range(3)]
        self.counters = {who: self.clients[0].enqueue_insert(db.tally, who=who, n=0).id for who in OWNERS}
        self.backups: list[object] = [box.log.replica()]
        box.drain()

    def client(self) -> Client:
        made = Client(self.box.client.settings, log=self.box.log, bell=SilentBell())
        made.define_tables(self.db)
        return made

    def run(self) -> None:
        steps: list[tuple[int, Callable[[], object]]] = [
            (30, self.send), (12, self.work), (4, self.settle), (6, self.ask), (2, self.back_up), (2, self.forget),
            (1, self.kill), (1, self.in_a_transaction), (3, self.break_line),
        ]  # fmt: skip
        weights, calls = zip(*steps, strict=True)
        for _ in range(STEPS):
            self.luck.choices(calls, weights)[0]()

    def send(self) -> None:
        """Send one op, or several of several buckets at once: each adds a row, and one to its owner's counter."""
        client, db = self.luck.choice(self.clients), self.db
        who, n = self.luck.choice(OWNERS), len(self.acked) + len(self.doubt) + 1
        try:
            with client.atomic():
                receipt = client.enqueue_insert(db.event, who=who, n=n)
                client.enqueue_update(db.tally.id == self.counters[who], n=db.tally.n + 1)
        except LogUnavailable:
            self.doubt.add(n)
        else:
            self.acked[n] = receipt

    def break_line(self) -> None:
        moments = self.luck.choice([["send"], ["reply"], ["send", "send"], ["reply", "reply"]])

        def fault(moment: str) -> None:
            if moments and moments[0] == moment:
                moments.pop(0)
                raise ConnectionError("broken on purpose")

        self.box.log.fault = fault
        self.send()
        self.box.log.fault = None

    def work(self) -> None:
        shard = self.luck.choice(self.box.client.topology.shards)
        self.box._appliers[shard].apply()

    def in_a_transaction(self) -> None:
        """Let Redis forget while a worker has read what it is to apply."""
        moment, client = self.luck.choice(["execute", "mark", "commit", "committed"]), self.box.client
        step = lambda name: self.forget() if name == moment else None  # noqa: E731
        shard = self.luck.choice(client.topology.shards)
        Applier(shard, client.nodes.primary(shard), self.box.log, client.settings.apply, step).apply()

    def settle(self) -> None:
        self.luck.choice(self.clients).publisher.settle()

    def ask(self) -> None:
        if self.acked:
            n = self.luck.choice(list(self.acked))
            state = self.acked[n].status()
            assert (state == "lost") or n not in self.told_lost, f"{n} was told lost, and is {state} now"
            if state == "lost":
                self.told_lost.add(n)

    def back_up(self) -> None:
        self.backups.append(self.box.log.replica())

    def forget(self) -> None:
        log, luck = self.box.log, self.luck
        how = luck.choice(["wipe", "restart", "older", "log", "tail", "producers"])
        if how == "producers":
            log._server.producers.clear()
        elif how in ("log", "tail"):
            bucket = luck.choice(list(log._server.logs) or [0])
            kept = len(log._server.logs.get(bucket, []))
            log.forget(bucket, keep=luck.randrange(kept) if how == "tail" and kept else 0)
            if how == "tail":  # a file that was cut is read by a server that starts
                log.restart()
        else:
            log.fail_over({"wipe": None, "restart": log.replica(), "older": luck.choice(self.backups)}[how])

    def kill(self) -> None:
        """End a producer process: what it knows is gone."""
        nth = self.luck.randrange(len(self.clients))
        self.clients[nth] = self.client()

    def end(self) -> dict[int, str]:
        """Do what workers and producers do by themselves, until nothing is left; return what the receipts say."""
        shards = self.box.client.topology.shards
        for _ in range(4):
            for scope in self.box.client.publisher.scopes.values():
                self.box.client.publisher.epoch_of(scope)
            for shard in shards:
                upkeep.reconcile(self.box.client, shard)
            self.box.drain()
            settled = [client.publisher.settle() for client in self.clients]
        assert all(settled)
        return {n: receipt.status() for n, receipt in self.acked.items()}


@pytest.mark.parametrize("nth", range(25 * SOAK))
def test_every_acknowledged_op_is_applied_once_or_told_lost_for_good(db: Any, nth: int):
    tables = {"event": {"shard_key": "who", "ids": "database"}, "tally": {"shard_key": "who"}}
    with sandbox(tables, shards=2, buckets=4) as box:
        pipeline.define_tables(db)
        storm = Storm(box, db, chance("losses", nth))
        storm.run()

        states = storm.end()

        rows, counted = [row["n"] for row in box.rows("event")], sum(row["n"] for row in box.rows("tally"))
        applied = {n for n, state in states.items() if state == "applied"}
        seed = f"PIPELINE_SEED={SEED}"
        assert set(states.values()) <= {"applied", "lost"}, seed
        assert {n for n in storm.told_lost if states[n] != "lost"} == set(), seed
        assert set(rows) - storm.doubt == applied, seed
        assert len(rows) == len(set(rows)) == counted, seed
