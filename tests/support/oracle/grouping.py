"""Random ops on tables with every kind of constraint, applied in one batch and one by one: I18 says it is the same.

Used over SQLite and over MariaDB. Ids, values and texts come from small pools, so that ops collide all the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec

from pipeline.apply.applier import Applier
from pipeline.clock import polls
from pipeline.config.settings import ApplySettings
from pipeline.model import COPY, DELETE, GROUP, INSERT, READ, UPDATE, UPSERT, Op, encode
from pipeline.model.schema import Column, TableSchema
from pipeline.oplog.appends import Append, Scope
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard import NodeSession
from pipeline.shard.columns import own_tables
from pipeline.shard.records import ledger_queries

BUCKET, BUCKETS, EPOCH, PRODUCER = 0, 5, 1, 77
#: More than an example has ops: all in one batch.
MANY = 10_000
SCOPE = Scope("s0", ("s0",))
ID = Column("id", "id")
PLAIN = TableSchema("plain", (ID, Column("n", "integer"), Column("t", "string", 20)))
PARENT = TableSchema("parent", (ID, Column("name", "string", 20, unique=True), Column("n", "integer")))
CHILD = TableSchema("child", (ID, Column("up", "reference parent"), Column("n", "integer", notnull=True)))
ITEM = TableSchema("item", (ID, Column("up", "reference parent"), Column("n", "integer")))
NODE = TableSchema("node", (ID, Column("up", "reference node"), Column("n", "integer")))
TWO = TableSchema("two", (ID, Column("a", "string", 20), Column("b", "integer"), Column("n", "integer")))
DAY = TableSchema("day", (ID, Column("who", "string", 20), Column("d", "integer"), Column("n", "integer")))
#: Copies of rows of `plain`: with a foreign key to their source, and with a unique value of their own.
PAST = TableSchema("past", (ID, Column("up", "reference plain"), Column("n", "integer"), Column("t", "string", 20)))
ONCE = TableSchema("once", (ID, Column("up", "bigint"), Column("a", "string", 10, unique=True), Column("n", "integer")))
#: Whose triggers write rows of `plain`, and refuse what these refuse.
LOUD = TableSchema("loud", (ID, Column("n", "integer"), Column("t", "string", 20)))
#: Whose trigger reads rows of `plain`.
WARY = TableSchema("wary", (ID, Column("n", "integer"), Column("t", "string", 20)))
#: Parents first, so that they are dropped last.
TABLES = (PLAIN, PARENT, CHILD, ITEM, NODE, TWO, DAY, PAST, ONCE, LOUD, WARY)
#: What an example is about.
FAMILIES = (
    (PLAIN,), (PARENT, CHILD), (PARENT, ITEM), (PARENT, NODE), (TWO,), (DAY,), (PLAIN, PAST), (PLAIN, ONCE),
    (PLAIN, LOUD), (PLAIN, WARY), TABLES,
)  # fmt: skip
#: What an example of versioned updates is about.
VERSIONED = ((PLAIN, PAST), (PLAIN, ONCE), (PLAIN, PAST, ONCE))
#: Of which table another keeps copies, and which of its columns go where.
COPIES = {
    "past": (PLAIN, ((1, ["c", 0]), (2, ["c", 1]), (3, ["c", 2]))),
    "once": (PLAIN, ((1, ["c", 0]), (2, ["c", 2]), (3, ["c", 1]))),
}
#: By which columns a table's rows are upserted; into `two` that is ambiguous, and rejected.
UPSERT_KEYS = {"plain": (0,), "loud": (0,), "parent": (1,), "two": (1,), "day": (1, 2)}
#: `plain` refuses an n of 9, so that the database rejects updates too.
CREATE = (
    "CREATE TABLE plain (id {id}, n INT, t VARCHAR(20), CHECK (n <> 9))",
    "CREATE TABLE parent (id {id}, name VARCHAR(20) UNIQUE, n INT)",
    "CREATE TABLE child (id {id}, up BIGINT, n INT NOT NULL, FOREIGN KEY (up) REFERENCES parent (id))",
    "CREATE TABLE item (id {id}, up BIGINT, n INT, FOREIGN KEY (up) REFERENCES parent (id) ON DELETE CASCADE)",
    "CREATE TABLE node (id {id}, up BIGINT, n INT, FOREIGN KEY (up) REFERENCES node (id))",
    "CREATE TABLE two (id {id}, a VARCHAR(20) UNIQUE, b INT UNIQUE, n INT)",
    "CREATE TABLE day (id {id}, who VARCHAR(20), d INT, n INT, UNIQUE (who, d))",
    "CREATE TABLE past (id {id}, up BIGINT, n INT, t VARCHAR(20), "
    "FOREIGN KEY (up) REFERENCES plain (id) ON DELETE CASCADE, CHECK (n <> 7))",
    "CREATE TABLE once (id {id}, up BIGINT, a VARCHAR(10) UNIQUE, n INT)",
    "CREATE TABLE loud (id {id}, n INT, t VARCHAR(20))",
    "CREATE TABLE wary (id {id}, n INT, t VARCHAR(20))",
)
TRIGGERS = (
    "CREATE TRIGGER made AFTER INSERT ON loud FOR EACH ROW BEGIN UPDATE plain SET n = n + 1 WHERE id = NEW.n; END",
    "CREATE TRIGGER changed AFTER UPDATE ON loud FOR EACH ROW "
    "BEGIN UPDATE plain SET n = n * 2 + NEW.id % 2 WHERE id > NEW.n; END",
    "CREATE TRIGGER gone AFTER DELETE ON loud FOR EACH ROW BEGIN DELETE FROM plain WHERE id = OLD.n; END",
)
#: A row of `wary` is refused without the row of `plain` that it names.
READS = {
    "sqlite": "CREATE TRIGGER asked BEFORE INSERT ON wary WHEN NEW.n > 2"
    " AND NOT EXISTS (SELECT 1 FROM plain WHERE id = NEW.n) BEGIN SELECT RAISE(ABORT, 'no such'); END",
    "mysql": "CREATE TRIGGER asked BEFORE INSERT ON wary FOR EACH ROW BEGIN IF NEW.n > 2"
    " AND NOT EXISTS (SELECT 1 FROM plain WHERE id = NEW.n) THEN SIGNAL SQLSTATE '45000'; END IF; END",
}
ID_TYPES = {"sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT", "mysql": "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"}

#: As `migrate` makes tables. Here every emoji is every other, あ is ア, and control characters are nothing.
COLLATED = " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"

#: Equal under some collation or other: case, accents, kana, signs that have no weight or all the same, trailing blanks.
TEXTS = ("a", "A", "a ", "ä", "b", "あ", "ア", "\U0001f600", "\U0001f601", "a\x01")


class Maker:
    """Makes ops on a few tables that have to do with each other, so that they are in each other's way.

    Each example has habits of its own: which kinds of ops are frequent, how often rows are named by a condition, which
    columns are given. Evenly mixed, ops would hardly ever meet in one statement (see "swarm testing", Groce 2012).
    """

    def __init__(self, random: Random, numbered: bool, versioned: bool = False):
        """Args: numbered: the database may give ids. versioned: most ops are versioned updates."""
        self._random = random
        self._tables = random.choice(VERSIONED if versioned else FAMILIES)
        self._ids = range(1, random.choice((4, 8, 40)))
        # an id that is not given comes from the database
        self._unnumbered = random.choice((0.0, 0.3)) if numbered else 0.0
        self._by_condition = random.choice((0.0, 0.0, 0.05, 0.3))
        self._computed = random.choice((0.0, 0.3))
        self._narrowed = random.choice((0.0, 0.3, 1.0))
        # how often a version's id is one that other ops name too
        self._met = random.choice((0.1, 0.8))
        self._weights = {kind: random.choice((0, 1, 4)) for kind in (INSERT, UPDATE, DELETE, UPSERT)}
        self._weights[INSERT] = random.choice((2, 4, 8))
        self._weights[COPY] = random.choice((1, 4))
        self._grouped = random.choice((0.0, 0.0, 0.1, 0.6))
        kept = any(schema.name in COPIES for schema in self._tables)
        self._versioned = random.choice((0.5, 0.8) if versioned else (0.0, 0.2)) if kept else 0.0
        self._shapes = {schema.name: self._two_shapes(schema) for schema in self._tables}

    def ops(self) -> list[Op]:
        return [self._any() for _ in range(self._random.randint(6, 40))]

    def _two_shapes(self, schema: TableSchema) -> list[list[int]]:
        every = range(1, len(schema.columns))
        return [list(every), sorted(self._random.sample(every, self._random.randint(1, len(every))))]

    def _any(self) -> Op:
        if self._chance(self._grouped):
            members = tuple(self._single() for _ in range(self._random.randint(2, 4)))
            return Op(GROUP, members[0].table, members[0].schema, 0, ops=members)
        if self._chance(self._versioned):
            return self._version(self._random.choice([schema for schema in self._tables if schema.name in COPIES]))
        op = self._single()
        return msgspec.structs.replace(op, idempotency_key=self._random.choice("xy")) if self._chance(0.03) else op

    def _single(self) -> Op:
        schema = self._random.choice(self._tables)
        makers = {INSERT: self._insert, UPDATE: self._update, DELETE: self._delete}
        if schema.name in UPSERT_KEYS:
            makers[UPSERT] = self._upsert
        if schema.name in COPIES:
            makers[COPY] = self._copy
        [make] = self._random.choices(list(makers.values()), [self._weights[kind] for kind in makers])
        return make(schema)

    def _insert(self, schema: TableSchema) -> Op:
        return _op(INSERT, schema, None if self._chance(self._unnumbered) else self._id(), self._values(schema))

    def _update(self, schema: TableSchema) -> Op:
        row, where = self._target(schema)
        if self._chance(self._computed):
            return _op(UPDATE, schema, row, {}, where=where, expressions=(self._expression(schema),))
        return _op(UPDATE, schema, row, self._values(schema), where=where)

    def _delete(self, schema: TableSchema) -> Op:
        row, where = self._target(schema)
        return _op(DELETE, schema, row, {}, where=where)

    def _target(self, schema: TableSchema) -> tuple[int | None, list[Any] | None]:
        return (None, self._where(schema)) if self._chance(self._by_condition) else (self._id(), None)

    def _upsert(self, schema: TableSchema) -> Op:
        key = UPSERT_KEYS[schema.name]
        given = self._values(schema)
        for column in key:
            while column and given.get(column) is None:
                given[column] = self._value(schema.columns[column])
        columns = sorted(given)
        renew = tuple(column for column in columns if column not in key and self._chance(0.8))
        if key == (0,):
            row: int | None = self._id()
        else:  # a new row's id is never one that exists
            row = None if self._chance(self._unnumbered) else self._random.randint(1000, 10**6)
        return _op(UPSERT, schema, row, {column: given[column] for column in columns}, key=key, renew=renew)

    def _copy(self, schema: TableSchema) -> Op:
        source, expressions = COPIES[schema.name]
        row, where = self._target(source)
        read = Op(READ, source.name, source.hash, 0, row, where=where)
        return Op(COPY, schema.name, schema.hash, 0, self._id(), expressions=expressions, source=read)

    def _version(self, schema: TableSchema) -> Op:
        """Return a versioned update as the door makes it; its rows may be narrowed, by a common filter as it were."""
        source, expressions = COPIES[schema.name]
        row, where = self._target(source)
        if row is not None and self._chance(self._narrowed):
            row, where = None, ["and", ["=", 0, row], self._where(source)]
        if self._chance(self._computed):
            update = _op(UPDATE, source, row, {}, where=where, expressions=(self._expression(source),))
            read = Op(READ, source.name, source.hash, 0, row, where=where)
        else:
            update = _op(UPDATE, source, row, self._values(source), where=where)
            same = [["same", column, value] for column, value in zip(update.columns, update.values, strict=True)]
            changed = ["and", where or ["=", 0, row], ["not", ["and", *same]]]
            read = Op(READ, source.name, source.hash, 0, where=changed)
        made = self._id() if self._chance(self._met) else self._random.randint(1000, 10**6)
        copy = Op(COPY, schema.name, schema.hash, 0, made, expressions=expressions, source=read)
        return Op(GROUP, copy.table, copy.schema, 0, ops=(copy, update))

    def _values(self, schema: TableSchema) -> dict[int, Any]:
        return {c: self._value(schema.columns[c]) for c in self._random.choice(self._shapes[schema.name])}

    def _value(self, column: Column) -> Any:
        if self._chance(0.15):
            return None
        if column.kind == "reference":
            return self._id()
        return self._random.choice(TEXTS) if column.kind == "string" else self._random.randint(0, 9)

    def _expression(self, schema: TableSchema) -> tuple[int, list[Any]]:
        column = self._random.randrange(1, len(schema.columns))
        if schema.columns[column].kind == "string":
            return column, ["||", ["c", column], ["v", self._random.choice(["a", " ", "x" * 7])]]
        return column, [self._random.choice("+-*"), ["c", column], ["v", self._random.randint(0, 3)]]

    def _where(self, schema: TableSchema) -> list[Any]:
        column = self._random.randrange(1, len(schema.columns))
        value = self._value(schema.columns[column])
        if value is None:
            return ["null", column]
        return self._random.choice([["=", column, value], [">=", column, value], ["in", column, [value]]])

    def _id(self) -> int:
        return self._random.choice(self._ids)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share


def _op(kind: str, schema: TableSchema, row: int | None, given: dict[int, Any], **more: Any) -> Op:
    return Op(kind, schema.name, schema.hash, 0.0, row, tuple(given), tuple(given.values()), **more)


def difference(database: Database, ops: list[Op]) -> str:
    """Return where grouped and one by one part, with the fewest ops that show it; the empty string if nowhere."""
    settled = len(ops) // 3
    if not _differ(database, ops, settled):
        return ""
    at = 0
    while at < len(ops):
        fewer, still = ops[:at] + ops[at + 1 :], settled - (at < settled)
        if _differ(database, fewer, still):
            ops, settled = fewer, still
        else:
            at += 1
    one, many = (database.apply(ops, at_once=most, settled=settled) for most in (1, MANY))
    parts = [f"{name}: one by one {one[name]}, grouped {many[name]}" for name in one if one[name] != many[name]]
    return "\n".join([f"{settled} settled", *map(str, ops), *parts])


def _differ(database: Database, ops: list[Op], settled: int) -> bool:
    one, many = (database.apply(ops, at_once=most, settled=settled) for most in (1, MANY))
    return one != many


class Database:
    """A shard with these tables, that starts anew for each example."""

    def __init__(self, uri: str):
        self.session = NodeSession("s0", uri)
        self._mysql = self.session.dialect.name == "mysql"
        for _, sql in own_tables(self.session.dialect.name):
            self._run(sql)
        for sql in CREATE:
            self._run(sql.format(id=ID_TYPES[self.session.dialect.name]) + (COLLATED if self._mysql else ""))
        for sql in (*TRIGGERS, READS[self.session.dialect.name]):
            self._run(sql)
        self._run(ledger_queries.buckets_sql(self.session.dialect, range(BUCKETS)))

    def apply(self, ops: list[Op], *, at_once: int, settled: int = 0) -> dict[str, Any]:
        """Apply ops to empty tables, so many in one batch at most; return all that is in the tables afterwards.

        The *settled* first ones come one by one in any case: so there are rows of which the batch knows nothing.
        """
        log, first = self._begun(), 1
        line = log.line()
        for part, most in ((ops[:settled], 1), (ops[settled:], at_once)):
            if part:
                line.append(SCOPE, EPOCH, PRODUCER, [Append(BUCKET, first, [encode(op) for op in part])], "", 0)
            first += len(part)
            applier = Applier("s0", self.session, log, ApplySettings(max_rows=most, target_ms=10_000, breaker=False))
            while log.due("s0", 1):
                outcome = applier.apply()
                assert not outcome.waiting, outcome.waiting
        return self._found()

    def spread(self, ops: Sequence[Op], appliers: Sequence[ApplySettings]) -> dict[str, Any]:
        """Apply ops that have ids, each in the bucket of its id, by appliers in turn; return all that is then there."""
        log, counts = self._begun(), Counter[int]()
        line = log.line()
        for op in ops:
            bucket = op.members[0].id % BUCKETS
            counts[bucket] += 1
            line.append(SCOPE, EPOCH, PRODUCER, [Append(bucket, counts[bucket], [encode(op)])], "", 0)
        workers = [Applier("s0", self.session, log, settings) for settings in appliers]
        for _ in polls(60):
            for worker in workers:
                worker.apply()
            if not any(log.queued(ledger_queries.positions_of(self.session)).values()):
                return self._found()
        raise AssertionError("not all is applied")

    def _begun(self) -> MemoryLog:
        """Return a log for empty tables."""
        self._empty()
        log = MemoryLog()
        for schema in TABLES:
            log.publish_schemas([(schema.name, schema.hash, schema.to_json())])
        log.raise_epoch("s0", log.epoch("s0")[2], EPOCH)
        return log

    def _empty(self) -> None:
        with self.session.transaction() as session:
            if self._mysql:
                session.execute("SET foreign_key_checks = 0")
            else:
                session.execute("PRAGMA defer_foreign_keys = 1")
                session.execute("DELETE FROM sqlite_sequence")
            for table in (*(schema.name for schema in TABLES), *OWN):
                session.execute(f"DELETE FROM {table}")
            session.execute("UPDATE pipeline_watermarks SET epoch = 0, seq = -1, state = 'active'")
        if self._mysql:
            self._run("SET foreign_key_checks = 1")

    def _found(self) -> dict[str, Any]:
        found: dict[str, Any] = {t.name: self.session.query(f"SELECT * FROM {t.name} ORDER BY id") for t in TABLES}
        found["rejects"] = self.session.query("SELECT producer_seq FROM pipeline_rejects ORDER BY producer_seq")
        found["aside"] = self.session.query("SELECT producer_seq, state, reason FROM pipeline_rejects ORDER BY 1")
        found["held"] = self.session.query("SELECT row_key, epoch, seq FROM pipeline_held ORDER BY 1, 2, 3")
        found["ids"] = self.session.query("SELECT producer_seq, row_id FROM pipeline_ids ORDER BY producer_seq")
        found["watermark"] = ledger_queries.marks_of(self.session)[BUCKET]
        return found

    def _run(self, sql: str) -> None:
        with self.session.transaction() as session:
            session.execute(sql)

    def close(self) -> None:
        self.session.discard()


OWN = (
    "pipeline_producers",
    "pipeline_rejects",
    "pipeline_held",
    "pipeline_lost",
    "pipeline_idempotency",
    "pipeline_ids",
)
