"""Anything under any of our keys in a real Redis: no call crashes, workers mend it, and no op is lost or doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydal import DAL, Field

from pipeline.admin.check import check
from pipeline.admin.migration import migrate
from pipeline.admin.observe import Observer, Recorder
from pipeline.admin.observe.published import NO_HISTORY, read_histories
from pipeline.admin.why import why
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.errors import LogUnavailable, PipelineError
from pipeline.model import INSERT, Op
from pipeline.oplog.appends import EVERYWHERE, scopes_of
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.redis.keys import Keys
from pipeline.oplog.redis.log import RedisLog
from workers import chores

NUMBERS = b"9" * 400
#: What a neighbour may put under a name, whatever we keep there.
KINDS: dict[str, Callable[[Any, str, bytes], object]] = {
    "string": lambda redis, key, junk: redis.set(key, junk),
    "list": lambda redis, key, junk: redis.rpush(key, junk, b"junk"),
    "set": lambda redis, key, junk: redis.sadd(key, junk),
    "hash": lambda redis, key, junk: redis.hset(key, mapping={junk[:300]: junk, b"1": junk, b"0": junk, b"s0": junk}),
    "zset": lambda redis, key, junk: redis.zadd(key, {junk[:300]: 1, b"1": float("-inf"), b"99999": 0}),
    "stream": lambda redis, key, junk: redis.xadd(key, {junk[:300]: junk}, id="3-3"),
}


class Deployment:
    """A client on a real Redis, with shards in SQLite, and what a worker does."""

    def __init__(self, url: str, folder: Path):
        self.folder, self.prefix = folder, f"t{uuid4().hex[:12]}"
        self.settings = {
            "pipeline": {"buckets": 16},
            "redis": {"url": url, "prefix": self.prefix, "timeout_s": 2.0},
            "shards": {"s0": {"primary": f"sqlite://{folder}/s0.sqlite"}},
            "tables": {"event": {"shard_key": "owner", "rule": "modulo"}},
            "spool": {"enabled": True, "path": str(folder / "spool")},
        }
        self.db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        self.db.define_table("event", Field("owner", "integer"), Field("body"))
        self.client = self.new_client()
        migrate(self.client)
        self.client.define_tables(self.db)
        migrate(self.client)
        session = self.client.nodes.primary("s0")
        self.applier = Applier("s0", session, self.client.log, self.client.settings.apply)
        self.acknowledged: list[int] = []
        self.redis: Any = RedisLog(url)._client

    def new_client(self) -> Client:
        return Client(self.settings, bell=SilentBell())

    def close(self) -> None:
        self.client.close()
        self.db.close()
        self.redis.close()

    def insert(self, client: Client | None = None, **options: Any) -> None:
        body = f"{len(self.acknowledged)}"
        receipt = (client or self.client).enqueue_insert(self.db.event, {"owner": 7, "body": body}, **options)
        assert receipt.id is not None
        self.acknowledged.append(receipt.id)

    def calls(self) -> dict[str, Callable[[], object]]:
        """Return what web processes and commands do, by name."""
        client, db = self.client, self.db
        return {
            "insert": self.insert,
            "insert again": self.insert,
            "with a key": lambda: self.insert(idempotency_key=uuid4().hex),
            "with the planted key": lambda: client.enqueue_insert(
                db.event, {"owner": 7, "body": "planted"}, idempotency_key="planted"
            ),
            "bulk": self.bulk,
            "of a new process": self.new_process,
            "get": lambda: client.get(db.event, 5, pending=True, shard_key=7, wait_s=0.0, on_stale="stale"),
            "select": lambda: client.select(db.event.owner == 7, wait_s=0.0, on_stale="stale"),
            "why": lambda: why(client, "shard:s0"),
            "look": self.look,
            "newest": self.newest,
            "history": lambda: read_histories(client.log, {"s0": NO_HISTORY}),
            "define": lambda: client.define_tables(db),
        }

    def bulk(self) -> None:
        rows = [{"owner": owner, "body": "bulk"} for owner in range(20)]
        self.acknowledged += [
            receipt.id for receipt in self.client.enqueue_bulk_insert(self.db.event, rows) if receipt.id
        ]

    def new_process(self) -> None:
        client = self.new_client()
        try:
            client.define_tables(self.db)
            self.insert(client)
            str(client.enqueue_update(self.db.event.owner == 8, {"body": "changed"}))
        finally:
            client.close()

    def look(self) -> Any:
        observer = Observer(self.client.settings)
        try:
            return observer.look()
        finally:
            observer.close()

    def newest(self) -> Any:
        observer = Observer(self.client.settings)
        try:
            return observer.newest()
        finally:
            observer.close()

    def worker_turn(self) -> None:
        """Do what the threads and tasks of a worker do within some seconds."""
        for scope in scopes_of(("s0",)).values():
            chores.Chores(self.client, scope).turn()
        log, recorder = self.client.log, Recorder(self.client.settings)
        recorder.turn()
        recorder.close()
        log.sweep("s0", due_ms=0)
        assert self.client.drainer is not None
        self.client.drainer.drain()
        log.mark_dirty("s0", range(17))
        for _ in range(50):
            if not self.applier.apply().left:
                return
        raise AssertionError("the worker goes on for ever")

    def rows(self) -> dict[int, str]:
        found = self.client.nodes.primary("s0").query(f"SELECT id, body FROM {self.db.event._rname}")
        return dict(found)


def planted(keys: Keys) -> dict[str, str]:
    """Return every key that a deployment has, by its name in `Keys`."""
    of_all = (
        "schemas",
        "newest_schemas",
        "ids",
        "full",
        "room",
        "reads",
        "unfit",
        "hosts",
        "seen",
        "health",
        "deployment",
        "secret",
    )
    found = {name: getattr(keys, name) for name in of_all}
    of_shard = ("epoch", "dirty", "bell", "marks", "attempts", "notes", "waits", "counts", "record", "recent", "day")
    found |= {name: getattr(keys, name)("s0") for name in of_shard}
    found |= {
        "epoch of all": keys.epoch(EVERYWHERE),
        "record of all": keys.record(EVERYWHERE),
        "log": keys.log(7),
        "big": f"{keys.bigs}7",
    }
    scoped = Op(INSERT, "event", "", 0.0, idempotency_key="planted").scoped_key
    found |= {"claim": keys.claim(7, scoped)}
    leases = ("lineage:s0", "trim:s0", "reconcile:s0", "alive:s0", "probe", "observe", "span:s0")
    return found | {name: keys.lease(name) for name in leases}


@pytest.fixture
def deployment(log_server: Callable[[str], Any], tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(log_server("redis").url, tmp_path)
    made.insert()
    made.worker_turn()
    yield made
    made.close()


def attempt(call: Callable[[], object]) -> str:
    """Return what one of our errors says; raise any other."""
    try:
        call()
    except PipelineError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("kind", "junk"),
    [
        *(("string", junk) for junk in (b"", b"\xff\xfe \xff", NUMBERS)),
        *(("hash", junk) for junk in (b"\xff\xfe \xff", NUMBERS, b"1 2 3", b'["a", {"b": 1}]')),
        *((kind, b"junk") for kind in ("list", "set", "zset", "stream")),
    ],
)
def test_no_call_crashes_on_junk_in_any_key_and_workers_mend_it(deployment: Deployment, kind: str, junk: bytes):
    keys = Keys(deployment.prefix)
    for key in [*planted(keys).values(), *deployment.redis.keys(f"{keys.prefix}:producer:*")]:
        deployment.redis.delete(key)
        KINDS[kind](deployment.redis, key, junk)

    for call in deployment.calls().values():
        attempt(call)
    for _ in range(2):
        attempt(deployment.worker_turn)

    assert {name: said for name, call in deployment.calls().items() if (said := attempt(call))} == {}
    deployment.worker_turn()
    assert len(set(deployment.acknowledged)) == len(deployment.acknowledged) > 20
    [shard] = deployment.look().shards
    assert (shard.depth, shard.rejected, shard.lost) == (0, 0, 0)
    rows = deployment.rows()
    assert rows.keys() >= set(deployment.acknowledged)
    assert [*rows.values()].count("planted") == 1
    assert deployment.look().redis.strange == ()


def test_nobody_holds_a_lease_that_cannot_be_read(deployment: Deployment):
    log, key = deployment.client.log, Keys(deployment.prefix).lease("probe")
    deployment.redis.delete(key)
    deployment.redis.rpush(key, b"junk")

    for token in ("a", "b"):
        with pytest.raises(LogUnavailable, match="WRONGTYPE"):
            log.hold_lease("probe", token, 60_000)
        with pytest.raises(LogUnavailable, match="WRONGTYPE"):
            log.hold_leases(["probe", f"free {token}"], token, 60_000)

    assert not log.hold_lease("free a", "b", 60_000)


def test_status_and_check_name_what_nobody_of_ours_has_written(deployment: Deployment):
    keys = Keys(deployment.prefix)
    for key in (keys.marks("s0"), keys.log(7)):
        deployment.redis.delete(key)
        deployment.redis.set(key, "junk")

    [fault, *_] = deployment.look().faults(60)
    findings = check(deployment.settings).findings

    assert keys.marks("s0") in fault.subject
    assert keys.log(7) in fault.subject
    assert any(keys.log(7) in str(finding) for finding in findings)
