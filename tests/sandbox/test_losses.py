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
from pipeline.enqueue.producer import Acknowledged, Run
from pipeline.errors import LogUnavailable
from pipeline.model import START, new_producer
from pipeline.model.receipt import Receipt
from pipeline.oplog.doorbell import SilentBell
from pipeline.shard.records import ledger_queries
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
        self.senders: dict[int, Client] = {}
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
            self.acked[n], self.senders[n] = receipt, client

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

    def known(self, receipt: Receipt) -> bool:
        """Return whether the shard knows what became of an op."""
        assert receipt.position is not None
        session = self.box.client.nodes.primary(self.box.client.topology.shard_of(receipt.bucket))
        fate = ledger_queries.fate(session, receipt.bucket, receipt.position, receipt.producer, receipt.producer_seq)
        return fate.lost or (fate.applied_seq or 0) >= receipt.producer_seq

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
        unnamed = [
            n for n, receipt in self.acked.items() if self.senders[n] in self.clients and not self.known(receipt)
        ]
        assert not unnamed, "nobody had to ask for what a living process knows"
        return {n: receipt.status() for n, receipt in self.acked.items()}


@pytest.mark.parametrize("nth", range(10 * SOAK))
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


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox({"event": {"shard_key": "who"}, "tally": {"reference": True}}, shards=2, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def lost(box: Sandbox, shard: str = "s0") -> list[tuple[int, ...]]:
    """Return what a shard has recorded as lost: producer, first and last sequence."""
    session = box.client.nodes.primary(shard)
    return session.query("SELECT producer, first_seq, last_seq FROM pipeline_lost ORDER BY producer, first_seq")


def test_what_is_still_in_the_log_of_an_older_epoch_is_not_judged(db: Any, box: Sandbox):
    kept = [pipeline.enqueue_insert(db.event, who=1, n=n) for n in range(3)]
    backup = box.log.replica()
    gone = [pipeline.enqueue_insert(db.event, who=1, n=n) for n in range(3, 5)]
    box.log.fail_over(backup)

    assert not box.client.publisher.settle(), "in question until the log is applied"
    assert [receipt.status() for receipt in (*kept, *gone)] == ["queued"] * 5
    box.drain()
    box.client.publisher.settle()

    shard = box.client.topology.shard_of(kept[0].bucket)
    assert lost(box, shard) == [(kept[0].producer, 4, 5)]
    assert [receipt.status() for receipt in (*kept, *gone)] == ["applied"] * 3 + ["lost"] * 2
    assert box.client.publisher.settle()


def test_what_was_told_lost_is_not_applied_if_the_old_server_comes_back(db: Any, box: Sandbox):
    gone = pipeline.enqueue_insert(db.event, who=1, n=1)
    old = box.log.replica()
    box.log.fail_over()
    box.client.publisher.settle()
    assert gone.status() == "lost"

    box.log.fail_over(old)
    box.client.publisher.settle()
    box.drain()

    assert box.rows("event") == []
    assert gone.status() == "lost"


def test_a_reference_tables_op_is_judged_by_each_shard(db: Any, box: Sandbox):
    """One shard has applied it, the other had not when Redis forgot it."""
    receipt = pipeline.enqueue_insert(db.tally, who=1, n=1)
    box._appliers["s0"].apply()
    box.log.fail_over()

    box.client.publisher.settle()

    assert (lost(box, "s0"), lost(box, "s1")) == ([], [(receipt.producer, 1, 1)])
    assert receipt.status() == "lost"


def test_a_producers_log_that_forgot_only_its_sequences_loses_nothing(db: Any, box: Sandbox):
    """Its hash has an expiry, so a server short of memory may evict it."""
    before = [pipeline.enqueue_insert(db.event, who=1, n=n) for n in range(3)]
    box.log._server.producers.clear()

    after = pipeline.enqueue_insert(db.event, who=1, n=3)
    box.drain()
    box.client.publisher.settle()

    assert [receipt.status() for receipt in (*before, after)] == ["applied"] * 4
    assert lost(box) == lost(box, "s1") == []


def test_what_a_dead_producer_was_told_is_named_by_a_worker_where_redis_knows_it(db: Any, box: Sandbox):
    """One log is gone, its producers' sequences are not, and no process has them in mind."""
    gone = [pipeline.enqueue_insert(db.event, who=1, n=n) for n in range(3)]
    box.client.publisher.idle.clear()
    box.log.forget(gone[0].bucket)
    shard = box.client.topology.shard_of(gone[0].bucket)

    upkeep.reconcile(box.client, shard)
    box.client.publisher.epoch_of(box.client.publisher.scopes[shard])
    upkeep.name_losses(box.client, shard)

    assert lost(box, shard) == [(gone[0].producer, 1, 3)]
    assert upkeep.name_losses(box.client, shard) == 0


def test_a_worker_judges_no_op_that_its_holder_may_send_again(db: Any, box: Sandbox):
    """A spool of another host, or an outbox, has the op; only its holder knows."""
    kept = new_producer(kept=True)
    op = pipeline.enqueue_insert(db.event, who=1, n=1)
    [entry] = box.log.read({op.bucket: START}, {op.bucket: 1})[op.bucket]
    box.client.publisher.resend(kept, {op.bucket: Run(1, [entry.payload])})
    box.drain()
    box.client.publisher.resend(kept, {op.bucket: Run(2, [entry.payload])})
    box.log.forget(op.bucket)
    box.log.restart()
    shard = box.client.topology.shard_of(op.bucket)

    box.client.publisher.epoch_of(box.client.publisher.scopes[shard])
    upkeep.name_losses(box.client, shard)

    assert lost(box, shard) == []


def test_no_producer_is_forgotten_whose_ops_may_wait_in_a_log(db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    """Its next op would look like one behind a loss."""
    monkeypatch.setattr(upkeep, "REMEMBERED_S", -60)
    first = pipeline.enqueue_insert(db.event, who=1, n=1)
    shard = box.client.topology.shard_of(first.bucket)
    box.drain()
    after = pipeline.enqueue_insert(db.event, who=1, n=2)

    upkeep.trim(box.client, shard)
    box.drain()

    assert lost(box, shard) == []
    assert after.status() == "applied"
    upkeep.trim(box.client, shard)
    assert box.client.nodes.primary(shard).query("SELECT * FROM pipeline_producers") == []
