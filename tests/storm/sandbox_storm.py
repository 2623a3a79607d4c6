"""A schedule in one process: the real code over a log in memory and SQLite shards, in virtual time.

What runs next, and what fails, is drawn from the seed alone; no thread runs beside it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from storm import families
from storm.deeds import Caller, all_deeds, told_together
from storm.judge import rows_of, verdict
from storm.outcome import Outcome
from storm.virtual_time import VirtualTime, virtual_time
from support.sandbox.spooling import Switched
from support.tables import TABLES_TOML, define

from pipeline import testing
from pipeline.apply.applier import Applier
from pipeline.bounds import WaitBudgets
from pipeline.client import Client
from pipeline.enqueue.epochs import EpochCache
from pipeline.enqueue.producer import Acknowledged
from pipeline.enqueue.spool_fallback import DrainThread
from pipeline.errors import PipelineError, PipelineFull, Unavailable, WrongDeployment
from pipeline.per_process import chance
from pipeline.reads.routing.replicas import OLD_S, HealthCache
from pipeline.shard import NodeSession
from pipeline.spool.sqlite_file import SpoolFile
from pipeline.testing import Sandbox
from workers.chores import Chores

BUCKETS, OWNERS = 8, 4
#: How many steps a schedule has: calls, turns of workers and drainers, faults.
STEPS = 160
#: After so long without a fault everything must be accounted for, s.
RECOVERY_S = 60.0
TABLES = {**tomllib.loads(TABLES_TOML)["tables"], **families.TABLES}
#: What is said of an op that may yet be applied; of one that is parked behind a refused one for good, too.
UNSETTLED = frozenset({"queued", "spooled", "unknown", "parked"})
#: For so many turns after a worker was killed none is: an op that is alone in three that end badly is rejected.
SPARED = 6
#: What a process with another file has: each misplaces ops.
OTHER_FILES: tuple[dict[str, Any], ...] = (
    {"pipeline": {"buckets": 2 * BUCKETS}},
    {"tables": {**TABLES, "event": {"shard_key": "body"}}},
    {"redis": {"prefix": "other"}},
)
#: A schedule has one of these themes: what Redis forgets may be lost, a primary that lags must lose nothing.
THEMES = ("servers", "forgetting", "primary", "tables")
#: Tables that refuse for a while whatever is written to them: they are full, or not what the ops' definition says, or
#: the worker lost its right. Where ours refuses too, there is no room to set ops aside.
REFUSING = ("event", "tally", "note", "country", families.PARENT, families.CHILD, "pipeline_rejects")
REFUSALS = (1114, 1054, 1142)


class Killed(BaseException):
    """A process is gone in the middle of a step."""


def run(seed: int, steps: int = STEPS) -> Outcome:
    """Run one schedule, and judge it."""
    folder = Path(tempfile.mkdtemp(prefix="storm-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        with virtual_time() as time, _no_threads(), _drawn_from(seed), _full_disks() as full, _refusing() as refusing:
            return _Schedule(seed, folder, time, full, refusing).run(steps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _no_threads() -> Iterator[None]:
    """Let nothing run in a thread of its own: what threads do is a step of the schedule, or done at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DrainThread, "wake", lambda self, *arguments, **options: None)
        patch.setattr(Acknowledged, "_keep_watch", lambda self: None)
        patch.setattr(WaitBudgets, "aside", lambda self, work, **options: work())
        patch.setattr(EpochCache, "_in_time", lambda self, what, work, scope: work())
        patch.setattr(HealthCache, "_keep_fresh", _fetch_if_old)
        patch.setattr(testing, "MemoryLog", Switched)
        yield


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Draw numbers of producers, and the order in which a worker looks at buckets, from the seed as well."""
    before, drawn = chance.getstate(), random.Random(f"numbers {seed}")
    chance.seed(f"orders {seed}")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "urandom", drawn.randbytes)
            yield
    finally:
        chance.setstate(before)


@contextmanager
def _full_disks() -> Iterator[set[Path]]:
    """Yield which spools' disks are full: none at first."""
    full, writing = set[Path](), SpoolFile.writing

    @contextmanager
    def tried(self: SpoolFile, **options: Any) -> Iterator[sqlite3.Connection]:
        if self.path in full:
            raise PipelineFull("the disk is full on purpose")
        with writing(self, **options) as db:
            yield db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpoolFile, "writing", tried)
        yield full


@contextmanager
def _refusing() -> Iterator[dict[str, int]]:
    """Yield which tables refuse what is written to them, each with the number of the error: none at first."""
    refusing, execute, rows = dict[str, int](), NodeSession.execute, NodeSession.rows

    def meet(sql: str) -> None:
        written = re.match(r'(?:INSERT (?:OR \w+ )?INTO|UPDATE|DELETE FROM) "?(\w+)', sql)
        if written and (code := refusing.get(written[1])) is not None:
            raise pymysql.err.OperationalError(code, "refused on purpose")

    def execute_or_not(self: NodeSession, sql: str) -> int:
        meet(sql)
        return execute(self, sql)

    def rows_or_not(self: NodeSession, sql: str) -> Any:
        meet(sql)
        return rows(self, sql)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NodeSession, "execute", execute_or_not)
        patch.setattr(NodeSession, "rows", rows_or_not)
        yield refusing


def _fetch_if_old(self: HealthCache, here: Any, now_s: float) -> None:
    if now_s - here.fetched_at_s > OLD_S:
        self._fetch(here)


class _Schedule:
    def __init__(self, seed: int, folder: Path, time: VirtualTime, full: set[Path], refusing: dict[str, int]):
        self.luck, self.time, self.folder, self.full = random.Random(f"storm {seed}"), time, folder, full
        self.refusing = refusing
        self.outcome = Outcome("sandbox", seed)
        self.box = Sandbox(folder, TABLES, 2, BUCKETS)
        self.log: Any = self.box.log
        self.db = families.define(
            define()
        )  # not once for all: py4web, which another test imports, takes the defaults of fields that are there
        self.box.client.define_tables(self.db)
        self.primaries = {name: shard.primary for name, shard in self.box.client.settings.shards.items()}
        self.clients = [self._client(f"{host}.spool") for host in ("a", "a", "b")]
        self._deadly = 0.0  # how likely the next step of a worker or drainer kills it
        self._spared = 0  # a worker that was just killed is not killed again so soon: an op would be blamed for it
        self.appliers = {shard: self._applier(shard) for shard in self.box.client.topology.shards}
        self.chores = [Chores(self.box.client, scope) for scope in self.box.client.publisher.scopes.values()]
        self.theme = self.luck.choice(THEMES)
        self.faults: list[Callable[[], str]] = [*self._always(), *getattr(self, f"_{self.theme}")()]
        self.replica, self.copies = self.log.replica(), dict[str, sqlite3.Connection]()
        self.may_lose, self._back_s = False, 0.0

    def run(self, steps: int) -> Outcome:
        shared = self._settled_rows()
        self.callers = [
            Caller(
                f"c{n}", client, self.db, random.Random(self.luck.random()), shared,
                self.luck.choice(("redis", "redis", "spooled")),
            )
            for n, client in enumerate(self.clients)
        ]  # fmt: skip
        self._copy_primaries()
        for caller in self.callers:
            caller.reads["on_stale"] = "error"  # what is set aside is on no node, and a read may say so
            caller.act("event")  # each host knows then which configuration fits
        for _ in range(steps):
            self._step_of_anybody()
        self.outcome.broken += self._recover()
        for deed in all_deeds(self.callers):
            deed.told = deed.told or self._told(deed)
        rows = rows_of(self.primaries, range(OWNERS))
        self.outcome.broken += verdict(
            self.callers, rows, may_lose=self.may_lose, in_order="host's clock steps" not in self.outcome.faults
        )
        self.outcome.count(self.callers)
        self._close()
        return self.outcome

    # whose turn it is ---------------------------------------------------------------------------------------

    def _step_of_anybody(self) -> None:
        self.time.sleep_s(self.luck.choice((0.001, 0.01, 0.1, 0.6)))
        self.log.away = self.log.away and self.time.mono_s() < self._back_s
        turns = self._call, self._work, self._drain, self._chore, self._look, self._fault
        what = self.luck.choices(turns, (10, 6, 3, 2, 1, 2))[0]
        what()

    def _call(self) -> None:
        self.luck.choice(self.callers).act()

    def _work(self) -> None:
        shard = self.luck.choice(list(self.appliers))
        try:
            self.appliers[shard].apply()
        except Killed:
            self.appliers[shard], self._spared = self._applier(shard), SPARED
            self.outcome.faults["worker killed"] += 1
        except PipelineError:
            pass

    def _drain(self) -> None:
        client = self.luck.choice(self.clients)
        assert client.drainer is not None
        client.drainer._step = self._may_die
        try:
            if client.drainer.drain(patient=False).sent:
                client.away.close()
            client.drainer.forget()
        except Killed:
            self.outcome.faults["drainer killed"] += 1
        except PipelineError:
            pass

    def _chore(self) -> None:
        with suppress(PipelineError, Killed):
            self.log.sweep(self.luck.choice(list(self.appliers)), due_ms=1000)
            self.luck.choice(self.chores).turn()

    def _look(self) -> None:
        self.luck.choice(self.clients).publisher.settle()

    def _fault(self) -> None:
        name = self.luck.choice(self.faults)()
        if name:
            self.outcome.faults[name] += 1

    # faults -------------------------------------------------------------------------------------------------

    def _always(self) -> list[Callable[[], str]]:
        common = [self._lethal, self._away, self._lossy_line]
        return [*common, *common, self._clock, self._full, self._hash_deleted, self._disk_full, self._other_file]

    def _servers(self) -> list[Callable[[], str]]:
        return [self._restart]

    def _forgetting(self) -> list[Callable[[], str]]:
        return [self._restart, self._fail_over, self._fail_over, self._wipe, self._stream_deleted, self._stream_deleted]

    def _primary(self) -> list[Callable[[], str]]:
        return [self._restart, self._copy_primaries, self._promote, self._promote, self._table_refuses]

    def _tables(self) -> list[Callable[[], str]]:
        return [self._restart, *[self._table_refuses] * 6]

    def _lethal(self) -> str:
        self._deadly = 0.0 if self._deadly else self.luck.choice((0.05, 0.2))
        return ""

    def _away(self) -> str:
        if self.log.away:
            return ""
        self.log.away, self._back_s = True, self.time.mono_s() + self.luck.choice((0.05, 0.5, 4.0))
        return "redis away"

    def _lossy_line(self) -> str:
        share = self.luck.choice((0.0, 0.1, 0.5))

        def fault(moment: str) -> None:
            if self.luck.random() < share:
                self.outcome.faults[f"{moment} cut"] += 1
                raise ConnectionError("cut on purpose")

        self.log.fault = fault if share else None
        return ""

    def _clock(self) -> str:
        if self.luck.random() < 0.5:
            self.log.ahead_ms = self.luck.choice((-3_600_000, 0, 3_600_000))
            return "redis's clock steps"
        self.time.wall_off_s = self.luck.choice((-3600.0, 0.0, 3600.0))
        return "host's clock steps"

    def _full(self) -> str:
        if self.log.full() is None and self.luck.random() < 0.5:
            self.log.set_full("full on purpose", 2000)
            return "redis full"
        return ""

    def _disk_full(self) -> str:
        path = self.folder / self.luck.choice(("a.spool", "b.spool"))
        self.full ^= {path}
        return "spool's disk full" if path in self.full else ""

    def _other_file(self) -> str:
        """Let a process call that has another file."""
        client = self._client("b.spool", **self.luck.choice(OTHER_FILES))
        try:
            receipt = client.enqueue_insert(self.db.event, owner=0, body="misplaced")
            self.outcome.broken.append(f"misplaced: {receipt}")
        except (WrongDeployment, Unavailable):
            pass
        finally:
            client.close()
        return "another configuration calls"

    def _table_refuses(self) -> str:
        table = self.luck.choice(REFUSING)
        if self.refusing.pop(table, None) is not None:
            return ""
        self.refusing[table] = 1114 if table.startswith("pipeline_") else self.luck.choice(REFUSALS)
        return f"table refuses with {self.refusing[table]}"

    def _restart(self) -> str:
        self.log.restart()
        return "redis restarted"

    def _fail_over(self) -> str:
        if self.luck.random() < 0.5:
            self.replica = self.log.replica()
            return ""
        self.log.fail_over(self.replica)
        self.may_lose = True
        return "redis fails over to one that lags"

    def _stream_deleted(self) -> str:
        self.log.forget(self.luck.randrange(BUCKETS + 1))
        self.may_lose = True
        return "stream deleted"

    def _hash_deleted(self) -> str:
        """Let Redis evict what it knows of one sender."""
        known = self.log._server.producers
        if known:
            known.pop(self.luck.choice(sorted(known)))
        return "sender's hash deleted"

    def _wipe(self) -> str:
        self.log.fail_over()
        self.may_lose = True
        return "redis wiped"

    def _copy_primaries(self) -> str:
        for shard, uri in self.primaries.items():
            copy = sqlite3.connect(":memory:")
            with closing(sqlite3.connect(uri.removeprefix("sqlite://"))) as db:
                db.backup(copy)
            self.copies[shard] = copy
        return ""

    def _promote(self) -> str:
        """Let a primary be as one that lacks the last commits."""
        shard = self.luck.choice(list(self.primaries))
        with closing(sqlite3.connect(self.primaries[shard].removeprefix("sqlite://"))) as primary:
            self.copies[shard].backup(primary)
        for caller in self.callers:
            caller.in_sessions = 0.0  # a session forgets what every node has, and this node was not one
        for client in self.clients:  # connections do not outlive their server
            if (reads := client.__dict__.pop("reads", None)) is not None:
                reads.close()
        return "database fails over to one that lags"

    # the end ------------------------------------------------------------------------------------------------

    def _recover(self) -> list[str]:
        """Let all faults end, and everything be accounted for; return what is not, in time."""
        self.log.away, self.log.fault, self.log.ahead_ms, self._deadly = False, None, 0, 0.0
        self.time.wall_off_s = 0.0
        self.log.set_full(None)
        self.full.clear()
        self.refusing.clear()
        deadline_s = self.time.mono_s() + RECOVERY_S
        self._pass_of_all()
        for caller in self.callers if self.luck.random() < 0.5 else ():  # others send nothing more
            caller.last()
        while self.time.mono_s() < deadline_s:
            self._pass_of_all()
            for deed in all_deeds(self.callers):
                deed.told = self._told(deed)
            if not any(deed.told in UNSETTLED for deed in all_deeds(self.callers)):
                return []
            self.time.sleep_s(1.0)
        return []

    def _pass_of_all(self) -> None:
        for chores in self.chores:
            chores.turn()
        for client in self.clients:
            client.publisher.settle()
            assert client.drainer is not None
            if client.drainer.drain().sent:
                client.away.close()
            client.drainer.forget()
        for shard, applier in self.appliers.items():
            self.log.sweep(shard, due_ms=1000)
            for _ in range(20):
                if not applier.apply().left:
                    break

    def _told(self, deed: Any) -> str:
        return told_together({self._status(receipt) for receipt in deed.receipts})

    def _status(self, receipt: Any) -> str:
        try:
            return str(next(c for c in self.clients if c.client is not None).follower.status(receipt))
        except Unavailable:
            return "unknown"

    # parts --------------------------------------------------------------------------------------------------

    def _client(self, spool: str, **other: Any) -> Client:
        settings = self.box.client.settings
        made = Client(
            {
                "pipeline": {"buckets": settings.buckets},
                "redis": {"url": settings.redis.url, **other.pop("redis", {})},
                "shards": {name: {"primary": uri} for name, uri in self.primaries.items()},
                "tables": TABLES,
                "spool": {"path": str(self.folder / spool), "max_mb": 1},
                **other,
            },
            log=self.log,
            bell=self.box.bell,
        )
        made.define_tables(self.db)
        return made

    def _applier(self, shard: str) -> Applier:
        client = self.box.client
        session = client.nodes.primary(shard)
        return Applier(shard, session, self.log, client.settings.apply, self._may_die, client.settings.tables)

    def _may_die(self, step: str) -> None:
        self._spared -= step == "due"
        if self._spared <= 0 and self._deadly and self.luck.random() < self._deadly:
            raise Killed(step)

    def _settled_rows(self) -> dict[int, int]:
        """Make the rows that all callers write to."""
        made = {n: self.box.client.enqueue_insert(self.db.tally, owner=n, name="shared") for n in range(OWNERS)}
        self.box.client.enqueue_insert(self.db.event, owner=0)  # a table without rows may be spread otherwise
        for applier in self.appliers.values():
            while applier.apply().left:
                pass
        return {owner: receipt.id for owner, receipt in made.items()}  # type: ignore[misc]

    def _close(self) -> None:
        for client in (*self.clients, self.box.client):
            client.close()
