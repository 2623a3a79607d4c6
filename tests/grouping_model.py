"""Random ops on tables with every kind of constraint, applied in one batch and one by one: I18 says it is the same.

Used over SQLite and over MariaDB. Ids, values and texts come from small pools, so that ops collide all the time.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pipeline.admin.migrate import own_tables
from pipeline.column import Column
from pipeline.log.contract import Append, Scope
from pipeline.log.memory import MemoryLog
from pipeline.op import DELETE, GROUP, INSERT, UPDATE, UPSERT, Op, encode
from pipeline.schema import TableSchema
from pipeline.settings import ApplySettings
from pipeline.shard import inquiry
from pipeline.shard.session import Session
from pipeline.write.apply import Applier

BUCKET, EPOCH, PRODUCER = 0, 1, 77
SCOPE = Scope("s0", ("s0",))
ID = Column("id", "id")
PLAIN = TableSchema("plain", (ID, Column("n", "integer"), Column("t", "string", 20)))
PARENT = TableSchema("parent", (ID, Column("name", "string", 20, unique=True), Column("n", "integer")))
CHILD = TableSchema("child", (ID, Column("up", "reference parent"), Column("n", "integer", notnull=True)))
ITEM = TableSchema("item", (ID, Column("up", "reference parent"), Column("n", "integer")))
NODE = TableSchema("node", (ID, Column("up", "reference node"), Column("n", "integer")))
TWO = TableSchema("two", (ID, Column("a", "string", 20), Column("b", "integer"), Column("n", "integer")))
DAY = TableSchema("day", (ID, Column("who", "string", 20), Column("d", "integer"), Column("n", "integer")))
#: Parents first, so that they are dropped last.
TABLES = (PLAIN, PARENT, CHILD, ITEM, NODE, TWO, DAY)
#: What an example is about.
FAMILIES = ((PLAIN,), (PARENT, CHILD), (PARENT, ITEM), (PARENT, NODE), (TWO,), (DAY,), TABLES)
#: By which columns a table's rows are upserted; into `two` that is ambiguous, and rejected.
UPSERT_KEYS = {"plain": (0,), "parent": (1,), "two": (1,), "day": (1, 2)}
#: `plain` refuses an n of 9, so that the database rejects updates too.
CREATE = (
    "CREATE TABLE plain (id {id}, n INT, t VARCHAR(20), CHECK (n <> 9))",
    "CREATE TABLE parent (id {id}, name VARCHAR(20) UNIQUE, n INT)",
    "CREATE TABLE child (id {id}, up BIGINT, n INT NOT NULL, FOREIGN KEY (up) REFERENCES parent (id))",
    "CREATE TABLE item (id {id}, up BIGINT, n INT, FOREIGN KEY (up) REFERENCES parent (id) ON DELETE CASCADE)",
    "CREATE TABLE node (id {id}, up BIGINT, n INT, FOREIGN KEY (up) REFERENCES node (id))",
    "CREATE TABLE two (id {id}, a VARCHAR(20) UNIQUE, b INT UNIQUE, n INT)",
    "CREATE TABLE day (id {id}, who VARCHAR(20), d INT, n INT, UNIQUE (who, d))",
)
ID_TYPES = {"sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT", "mysql": "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"}

#: As `migrate` makes tables. Here every emoji is every other, あ is ア, and control characters are nothing.
COLLATED = " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"

ids = st.integers(1, 6)
new_ids = st.integers(1000, 10**6)
numbers = st.none() | st.integers(0, 9)
# equal under some collation or other: case, accents, kana, signs that have no weight or all the same, trailing blanks
texts = st.none() | st.sampled_from(
    ["a", "A", "a ", "ä", "b", "ae", "æ", "ø", "o", "\U0001f600", "\U0001f601", "a\x01"]
)


def _value(column: Column) -> st.SearchStrategy[Any]:
    if column.kind == "reference":
        return st.none() | ids
    return texts if column.kind == "string" else numbers


@st.composite
def values(draw: st.DrawFn, schema: TableSchema, least: int = 0) -> dict[int, Any]:
    """Values of some columns, most often of all."""
    every = range(1, len(schema.columns))
    chosen = draw(st.just(list(every)) | st.lists(st.sampled_from(every), unique=True, min_size=least))
    return {column: draw(_value(schema.columns[column])) for column in sorted(chosen)}


@st.composite
def expressions(draw: st.DrawFn, schema: TableSchema) -> tuple[int, list[Any]]:
    column = draw(st.integers(1, len(schema.columns) - 1))
    if schema.columns[column].kind == "string":
        return column, ["||", ["c", column], ["v", draw(st.sampled_from(["a", " ", "x" * 7]))]]
    return column, [draw(st.sampled_from("+-*")), ["c", column], ["v", draw(st.integers(0, 3))]]


@st.composite
def wheres(draw: st.DrawFn, schema: TableSchema) -> list[Any]:
    column = draw(st.integers(1, len(schema.columns) - 1))
    value = draw(_value(schema.columns[column]))
    if value is None:
        return ["null", column]
    return draw(st.sampled_from([["=", column, value], [">=", column, value], ["in", column, [value]]]))


@st.composite
def inserts(draw: st.DrawFn, tables: tuple[TableSchema, ...], numbered: bool) -> Op:
    schema = draw(st.sampled_from(tables))
    given = draw(values(schema))
    return _op(INSERT, schema, draw(ids | ids | ids | st.none() if numbered else ids), given)


@st.composite
def updates(draw: st.DrawFn, tables: tuple[TableSchema, ...]) -> Op:
    schema = draw(st.sampled_from(tables))
    row = draw(ids | ids | st.none())
    computed = (draw(expressions(schema)),) if draw(st.booleans()) else ()
    given = {} if computed else draw(values(schema, least=1))
    where = None if row is not None else draw(wheres(schema))
    return _op(UPDATE, schema, row, given, where=where, expressions=computed)


@st.composite
def deletes(draw: st.DrawFn, tables: tuple[TableSchema, ...]) -> Op:
    schema = draw(st.sampled_from(tables))
    row = draw(ids | ids | st.none())
    return _op(DELETE, schema, row, {}, where=None if row is not None else draw(wheres(schema)))


@st.composite
def upserts(draw: st.DrawFn, tables: tuple[TableSchema, ...], numbered: bool) -> Op:
    schema = draw(st.sampled_from([table for table in tables if table.name in UPSERT_KEYS]))
    key = UPSERT_KEYS[schema.name]
    given = draw(values(schema))
    for column in key:
        if column:
            given[column] = draw(_value(schema.columns[column]).filter(lambda value: value is not None))
    columns = sorted(given)
    renew = tuple(column for column in columns if column not in key and draw(st.booleans()))
    # a new row's id is never one that exists, unless the key is the id
    row = draw(ids) if key == (0,) else draw(new_ids | st.none() if numbered else new_ids)
    return _op(UPSERT, schema, row, {column: given[column] for column in columns}, key=key, renew=renew)


def _op(kind: str, schema: TableSchema, row: int | None, given: dict[int, Any], **more: Any) -> Op:
    return Op(kind, schema.name, schema.hash, 0, row, tuple(given), tuple(given.values()), **more)


@st.composite
def ops(draw: st.DrawFn, numbered: bool = True) -> list[Op]:
    """Ops on a few tables that have to do with each other; if *numbered*, the database gives some rows their ids."""
    tables = draw(st.sampled_from(FAMILIES))
    single = st.one_of(
        inserts(tables, numbered),
        inserts(tables, numbered),
        updates(tables),
        deletes(tables),
        upserts(tables, numbered),
    )
    group = st.lists(single, min_size=2, max_size=4).map(_group)
    keyed = st.tuples(inserts(tables, numbered), st.sampled_from("xy")).map(lambda pair: _keyed(*pair))
    return draw(st.lists(st.one_of(*[single] * 8, group, keyed), min_size=2, max_size=30))


def _group(ops: list[Op]) -> Op:
    return Op(GROUP, ops[0].table, ops[0].schema, 0, ops=tuple(ops))


def _keyed(op: Op, key: str) -> Op:
    return Op(op.kind, op.table, op.schema, op.at_ms, op.id, op.columns, op.values, idempotency_key=key)


class Database:
    """A shard with these tables, that starts anew for each example."""

    def __init__(self, uri: str):
        self.session = Session("s0", uri)
        self._mysql = self.session.dialect.name == "mysql"
        for _, sql in own_tables(self.session.dialect.name):
            self._run(sql)
        for sql in CREATE:
            self._run(sql.format(id=ID_TYPES[self.session.dialect.name]) + (COLLATED if self._mysql else ""))
        inquiry.add_buckets(self.session, [BUCKET])

    def apply(self, ops: list[Op], *, at_once: int) -> dict[str, Any]:
        """Apply ops to empty tables, so many in one batch at most; return all that is in the tables afterwards."""
        self._empty()
        log = MemoryLog()
        for schema in TABLES:
            log.publish_schema(schema.name, schema.hash, schema.to_json())
        log.raise_epoch("s0", log.epoch("s0")[2], EPOCH)
        log.line().append(SCOPE, EPOCH, PRODUCER, [Append(BUCKET, 1, [encode(op) for op in ops])], "", 0)
        applier = Applier("s0", self.session, log, ApplySettings(max_rows=at_once, target_ms=10_000))
        while log.due("s0", 1):
            outcome = applier.apply()
            assert not outcome.waiting, outcome.waiting
        return self._found()

    def _empty(self) -> None:
        with self.session.transaction() as session:
            if self._mysql:
                session.execute("SET foreign_key_checks = 0")
            else:
                session.execute("PRAGMA defer_foreign_keys = 1")
                session.execute("DELETE FROM sqlite_sequence")
            for table in (*(schema.name for schema in TABLES), *OWN):
                session.execute(f"DELETE FROM {table}")
            session.execute("UPDATE pipeline_watermarks SET epoch = 0, seq = -1")
        if self._mysql:
            self._run("SET foreign_key_checks = 1")

    def _found(self) -> dict[str, Any]:
        found: dict[str, Any] = {t.name: self.session.query(f"SELECT * FROM {t.name} ORDER BY id") for t in TABLES}
        found["rejects"] = self.session.query("SELECT producer_seq FROM pipeline_rejects ORDER BY producer_seq")
        found["ids"] = self.session.query("SELECT producer_seq, row_id FROM pipeline_ids ORDER BY producer_seq")
        found["watermark"] = inquiry.marks_of(self.session)[BUCKET]
        return found

    def _run(self, sql: str) -> None:
        with self.session.transaction() as session:
            session.execute(sql)

    def close(self) -> None:
        self.session.discard()


OWN = ("pipeline_producers", "pipeline_rejects", "pipeline_lost", "pipeline_idempotency", "pipeline_ids")
