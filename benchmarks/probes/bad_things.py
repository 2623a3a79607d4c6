"""Make one bad thing after the other, each beside a steady load: what stops a shard elsewhere, by public bug trackers.

A case prepares the servers, and yields what sends the bad ops. It is over once its ops are settled or wait for good.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pydal import DAL, Field

import pipeline
from benchmarks.processes import ROOT
from benchmarks.rows import TABLE
from benchmarks.sockets import process_of_port
from benchmarks.target import Target
from pipeline.client import Client
from pipeline.model import INSERT, Op, encode
from pipeline.oplog.appends import Append, Scope

#: Shard key of the bad ops: no op of the load has it.
BAD_KEY = 1_000_003
BAD = "bad"
SIGNAL = "SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001"
TRIGGER = f"""CREATE TRIGGER bad BEFORE INSERT ON {TABLE} FOR EACH ROW
BEGIN IF NEW.note = '{BAD}' THEN {{}}; END IF; END"""
ODD = "CREATE TABLE odd (id BIGINT PRIMARY KEY, owner INT, n INT{})"
ODD_TRIGGER = "CREATE {} TRIGGER odd_before BEFORE INSERT ON odd FOR EACH ROW {}"
GONE = ("DROP TABLE IF EXISTS odd, odd_base, odd_away, odd_1, odd_2, odd_3, odd_4", "DROP VIEW IF EXISTS odd")
#: The server, too, refuses what nobody kills in time: nothing but three deaths ends such an op.
SLEEP = "DO SLEEP(1); SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213"
SLEEPS = "SELECT host FROM information_schema.processlist WHERE state = 'User sleep'"
LOOK_S = 0.01
#: How many large ops come at once.
LARGE, LARGE_BYTES = 30, 10_000_000
#: How many ops in a row a table refuses before it halts: each process counts those of each shard, and one of two
#: processes has 20 of one of two shards at the latest after 77.
IN_A_ROW = 100


@dataclass(slots=True)
class Bad:
    """Bad ops.

    Attributes:
        send: enqueues them, and returns their receipts.
        mend: statements after which those that wait are applied.
        resume: a table that an operator then lets go on.
        release: what else lets them go on.
        receipts: of what was sent.
    """

    send: Callable[[], list[Any]]
    mend: tuple[str, ...] = ()
    resume: str = ""
    release: Callable[[], None] | None = None
    receipts: list[Any] = field(default_factory=list)

    @property
    def buckets(self) -> set[int]:
        """The buckets of the bad ops. What waits for a schema, a lock or a newer release holds its bucket."""
        return {receipt.bucket for receipt in self.receipts}


Case = Callable[[Target, Any], AbstractContextManager[Bad]]


def everywhere(target: Target, *statements: str) -> None:
    """Run statements on each primary."""
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            for sql in statements:
                cursor.execute(sql)


def every(target: Target, sql: str) -> list[tuple[Any, ...]]:
    """Return the first row that a query gives on each primary."""
    found = []
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            found.append(cursor.fetchone() or ())
    return found


def trigger(does: str) -> Case:
    """Return the case of an insert at which a trigger does something."""

    @contextmanager
    def case(target: Target, purchase: Any) -> Iterator[Bad]:
        everywhere(target, TRIGGER.format(does))
        try:
            yield Bad(lambda: [pipeline.enqueue_insert(purchase, customer=BAD_KEY, note=BAD)])
        finally:
            everywhere(target, "DROP TRIGGER bad")

    return case


def odd(*statements: str, times: int = 1, mend: tuple[str, ...] = (), resume: str = "", **values: Any) -> Case:
    """Return the case of inserts into a table that is made in some way."""

    @contextmanager
    def case(target: Target, purchase: Any) -> Iterator[Bad]:
        everywhere(target, *statements)
        try:
            yield Bad(lambda: [pipeline.enqueue_insert(_odd(), owner=n, **values) for n in range(times)], mend, resume)
        finally:
            everywhere(target, *GONE)

    return case


def _odd(name: str = "odd", *more: Field) -> Any:
    db = DAL("sqlite:memory", migrate=False, bigint_id=True)
    fields = (Field("owner", "integer"), Field("n", "integer"), Field("body", "text"))
    return db.define_table(name, *fields, *more)


@contextmanager
def _no_right(target: Target, purchase: Any) -> Iterator[Bad]:
    """Let an insert need a right that somebody does not have: the account of the shard owns its schema."""
    everywhere(
        target,
        "CREATE USER ghost@localhost",
        ODD.format(", body TEXT"),
        ODD.format("").replace("odd", "odd_base"),
        ODD_TRIGGER.format("DEFINER = ghost@localhost", "INSERT INTO odd_base (id) VALUES (NEW.id)"),
    )
    try:
        yield Bad(lambda: [pipeline.enqueue_insert(_odd(), owner=1)], ("DROP TRIGGER odd_before",))
    finally:
        everywhere(target, *GONE, "DROP USER ghost@localhost")


@contextmanager
def _column_to_come(target: Target, purchase: Any) -> Iterator[Bad]:
    newer = DAL("sqlite:memory", migrate=False, bigint_id=True).define_table(
        TABLE, Field("customer", "bigint"), Field("colour")
    )
    try:
        mend = f"ALTER TABLE {TABLE} ADD COLUMN colour VARCHAR(512)"
        yield Bad(lambda: [pipeline.enqueue_insert(newer, customer=BAD_KEY, colour="red")], (mend,))
    finally:
        everywhere(target, f"ALTER TABLE {TABLE} DROP COLUMN IF EXISTS colour")


@contextmanager
def _four_behind(target: Target, purchase: Any) -> Iterator[Bad]:
    """Let four tables lack a column at once."""
    names = [f"odd_{n}" for n in range(1, 5)]
    everywhere(target, *(ODD.format(", body TEXT").replace("odd", name) for name in names))
    newer = [_odd(name, Field("colour")) for name in names]
    try:
        mend = tuple(f"ALTER TABLE {name} ADD COLUMN colour TEXT" for name in names)
        yield Bad(
            lambda: [pipeline.enqueue_insert(one, owner=n, colour="red") for one in newer for n in range(3)], mend
        )
    finally:
        everywhere(target, *GONE)


@contextmanager
def _table_away(target: Target, purchase: Any) -> Iterator[Bad]:
    everywhere(target, ODD.format(", body TEXT"))
    pipeline.enqueue_insert(_odd(), owner=1).wait(30)
    everywhere(target, "RENAME TABLE odd TO odd_away")
    try:
        mend = ("RENAME TABLE odd_away TO odd",)
        yield Bad(lambda: [pipeline.enqueue_upsert(_odd(), key=["id"], id=2**40 + n, owner=n) for n in range(3)], mend)
    finally:
        everywhere(target, *GONE)


@contextmanager
def _index_added(target: Target, purchase: Any) -> Iterator[Bad]:
    """Add a unique index that the workers have not seen; values that are there go and come again.

    Which of two ops has a value that both want is not promised between buckets, so the first ones are there before.
    """
    everywhere(target, ODD.format(", body TEXT"))
    table = _odd()
    there = [pipeline.enqueue_insert(table, owner=1, n=n) for n in range(8)]  # some of them on one shard
    pipeline.wait_all(there, timeout_s=30)
    everywhere(target, "CREATE UNIQUE INDEX n ON odd (n)")

    def send() -> list[Any]:
        made = []
        for n, row in enumerate(there):
            made += [pipeline.enqueue_delete(table.id == row.id), pipeline.enqueue_insert(table, owner=1, n=n)]
        return made

    try:
        yield Bad(send)
    finally:
        everywhere(target, *GONE)


def _raw(payload: bytes) -> Case:
    """Return the case of an entry that stands in the log as it is."""

    @contextmanager
    def case(target: Target, purchase: Any) -> Iterator[Bad]:
        client = Client(target.config)

        def send() -> list[Any]:
            receipt = pipeline.enqueue_insert(purchase, customer=BAD_KEY)
            bucket = receipt.bucket
            shard = client.topology.shard_of(bucket)
            epoch = client.log.epoch(shard)[0]
            sender = time.time_ns() % 2**40
            client.log.line().append(Scope(shard, (shard,)), epoch, sender, [Append(bucket, 1, [payload])], "", 0)
            return [receipt]

        bad = Bad(send)

        try:
            yield bad
        finally:
            if bad.receipts and payload.startswith(b"["):  # nobody could apply what follows it
                key = client.log.keys.log(bad.receipts[0].bucket)
                [(place, _)] = target.redis().xrevrange(key, count=1)
                target.redis().xdel(key, place)
            client.close()

    return case


def _newer() -> bytes:
    op = json.loads(encode(Op(INSERT, TABLE, "0" * 16, 0, 5)))
    op[0], op[-1] = "frobnicate", 99
    return json.dumps(op).encode()


@contextmanager
def _large(target: Target, purchase: Any) -> Iterator[Bad]:
    """Let another host send large ops: this one's spool would keep the small ones behind them."""
    everywhere(target, ODD.format(", body LONGTEXT"))
    config = target.config.with_name("other-host.toml")
    config.write_text(target.config.read_text().replace("pipeline.spool", "other-host.spool"))

    def send() -> list[Any]:
        sending = f"from {__name__} import send_large; send_large({LARGE}, {LARGE_BYTES})"
        argv = [sys.executable, "-c", sending]
        environment = {**target.environment(), "PIPELINE_CONFIG": str(config)}
        sent = subprocess.run(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
        return [pipeline.Receipt.parse(text) for text in sent.split()]

    try:
        yield Bad(send)
    finally:
        everywhere(target, *GONE)


def send_large(count: int, size_bytes: int) -> None:
    """Send large ops, wait until they are applied, and print their receipts.

    Args:
        count: how many.
        size_bytes: of each.
    """
    pipeline.configure(os.environ["PIPELINE_CONFIG"])
    receipts = [pipeline.enqueue_insert(_odd(), owner=n, body="x" * size_bytes) for n in range(count)]
    for receipt in receipts:
        receipt.wait(60)
        print(receipt)
    pipeline.close()


@contextmanager
def _keys(target: Target, purchase: Any) -> Iterator[Bad]:
    words = ("k", "k ", "K", "k\0", "\u212a", "é", "e\u0301", "\U0001f600")
    yield Bad(
        lambda: [
            pipeline.enqueue_insert(purchase, {"customer": BAD_KEY, "qty": n}, idempotency_key=word)
            for n, word in enumerate(words)
        ]
    )


@contextmanager
def _locked(target: Target, purchase: Any) -> Iterator[Bad]:
    """Hold a row as another program would."""
    receipt = pipeline.enqueue_insert(purchase, customer=BAD_KEY, qty=0)
    receipt.wait(30)
    for shard in range(len(target.primaries)):
        connection = target.connect(shard)
        connection.begin()
        with connection.cursor() as cursor:
            if cursor.execute(f"SELECT id FROM {TABLE} WHERE id = {receipt.id} FOR UPDATE"):
                break
        connection.close()
    try:
        yield Bad(lambda: [pipeline.enqueue_update(purchase.id == receipt.id, qty=1)], release=connection.rollback)
    finally:
        connection.close()


@contextmanager
def _killing(target: Target, purchase: Any) -> Iterator[Bad]:
    ended = threading.Event()
    killer = threading.Thread(target=_kill, args=(target, ended))
    with trigger(SLEEP)(target, purchase) as bad:
        killer.start()
        try:
            yield bad
        finally:
            ended.set()
            killer.join()


def _kill(target: Target, ended: threading.Event) -> None:
    """Kill each worker process that is within the statement that sleeps; the server sleeps on for one that is gone."""
    connections = [target.connect(shard) for shard in range(len(target.primaries))]
    while not ended.wait(LOOK_S):
        for connection in connections:
            with connection.cursor() as cursor:
                cursor.execute(SLEEPS)
                for (host,) in cursor.fetchall():
                    process = process_of_port(int(host.rpartition(":")[2]))
                    if process:
                        with suppress(ProcessLookupError):
                            os.kill(process, signal.SIGKILL)


_LARGE = ", ".join(f"c{n} TEXT DEFAULT REPEAT('x', 900)" for n in range(12))
#: By the name of each: what is made, and what `status` then says: ops that were refused, or why others wait; None:
#: nothing is wrong.
CASES: dict[str, tuple[Case, str | None]] = {
    "no partition for the value (1526)": (
        odd(ODD.format(", body TEXT") + " PARTITION BY RANGE (id) (PARTITION p VALUES LESS THAN (1000))"),
        "rejected",
    ),
    "a view's check option (1369)": (
        odd(
            ODD.format(", body TEXT").replace("odd", "odd_base"),
            "CREATE VIEW odd AS SELECT * FROM odd_base WHERE n < 10 WITH CHECK OPTION",
            n=11,
        ),
        "rejected",
    ),
    "a generated column (1906)": (
        odd("CREATE TABLE odd (id BIGINT PRIMARY KEY, owner INT, n INT AS (owner + 1) STORED, body TEXT)", n=1),
        "rejected",
    ),
    "a trigger's own SIGNAL": (trigger(SIGNAL), "rejected"),
    "a trigger whose function is gone (1305)": (
        odd(
            ODD.format(", body TEXT"),
            "CREATE OR REPLACE FUNCTION odd_f() RETURNS INT DETERMINISTIC RETURN 1",
            ODD_TRIGGER.format("", "SET NEW.n = odd_f()"),
            "DROP FUNCTION odd_f",
        ),
        "rejected",
    ),
    "a trigger whose definer is gone (1449)": (
        odd(ODD.format(", body TEXT"), ODD_TRIGGER.format("DEFINER = nobody@localhost", "SET NEW.n = 1")),
        "rejected",
    ),
    "a row too large (1118)": (
        odd(
            "SET SESSION innodb_strict_mode = OFF",
            ODD.format(f", body TEXT, {_LARGE}") + " ROW_FORMAT = COMPACT",
        ),
        "rejected",
    ),
    "a missing right (1142)": (_no_right, "right"),
    "a CHECK constraint (4025)": (
        odd(ODD.format(", body TEXT, CHECK (n < 10)"), n=11),
        "rejected",
    ),
    "a column to come (1054)": (_column_to_come, "schema"),
    "four tables with a column to come": (_four_behind, "schema"),
    "a required column that the model lacks (1364)": (
        odd(ODD.format(", body TEXT, needed INT NOT NULL"), mend=("ALTER TABLE odd DROP COLUMN needed",)),
        "schema",
    ),
    "a table away for a moment (1146)": (_table_away, "schema"),
    "a table that is full (1114)": (
        odd(
            "SET SESSION max_heap_table_size = 16384",
            ODD.format(", body VARCHAR(200), pad VARCHAR(2000) DEFAULT ''") + " ENGINE = MEMORY",
            "INSERT INTO odd (id) VALUES (1)",
            times=3,
            mend=("ALTER TABLE odd ENGINE = InnoDB",),
        ),
        "unwritable",
    ),
    "a table whose file is gone (1814)": (
        odd(
            ODD.format(", body TEXT"),
            "ALTER TABLE odd DISCARD TABLESPACE",
            times=3,
            mend=("DROP TABLE odd", ODD.format(", body TEXT")),
        ),
        "unwritable",
    ),
    "junk in the log": (_raw(b'\xff\xfe{"an op of": "nobody"'), "rejected"),
    "idempotency keys alike but for blanks and case": (_keys, None),
    "a unique index added meanwhile": (_index_added, None),
    f"{LARGE} ops of {LARGE_BYTES // 10**6} MB": (_large, None),
    "a table that refuses all (the breaker)": (
        odd(
            ODD.format(", body TEXT, CONSTRAINT few CHECK (n < 10)"),
            times=IN_A_ROW,
            mend=("ALTER TABLE odd DROP CONSTRAINT few",),
            resume="odd",
            n=11,
        ),
        "breaker",
    ),
    "a locked row": (_locked, "locked"),
    "a statement that takes too long": (trigger("DO SLEEP(60)"), "poison"),
    "a statement that ends its worker": (_killing, "poison"),
    # the last: what is in its bucket waits for good
    "an op of a newer release": (_raw(_newer()), "newer"),
}
