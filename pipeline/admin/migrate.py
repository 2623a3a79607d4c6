"""Create what is missing on every primary, shard by shard: the pipeline's own tables, then the published ones.

Creates tables, and indexes that a table lacks; no column is altered. A second run changes nothing. Replicas follow by
replication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.client import Client
from pipeline.config.bucket_ranges import format_ranges
from pipeline.config.topology import Topology
from pipeline.errors import PipelineError
from pipeline.model.schema import TableSchema
from pipeline.shard import columns, ledger_queries
from pipeline.shard.ddl import create_index, create_table, indexes, own_name
from pipeline.shard.own_tables import own_tables, upgrades
from pipeline.shard.session import NodeSession, brief
from pipeline.shard.table_facts import bare_name

#: How long one statement may take, s: an index on a large table is slow.
ALTER_S = 3_600


class Step(NamedTuple):
    """One statement on one shard.

    Attributes:
        shard: the shard's name.
        what: the table, index or buckets that the statement makes.
        sql: the statement.
    """

    shard: str
    what: str
    sql: str


def migration_steps(pipeline: Client) -> Iterator[Step]:
    """Yield what is missing, in order: tables, indexes, and the watermark rows of each shard's buckets.

    Args:
        pipeline: its published definitions and its primaries are read.

    Raises:
        ShardUnavailable: a primary did not answer; nothing has been done.
    """
    topology = pipeline.topology
    schemas = _parents_first([TableSchema.from_json(text) for _, text in sorted(pipeline.log.newest_schemas().items())])
    for shard in topology.shards:
        session = pipeline.nodes.primary(shard)
        fresh = set()
        for name, sql in own_tables(session.dialect.name):
            if not columns.columns_of(session, name):
                fresh.add(name)
                yield Step(shard, name, sql)
            else:
                yield from (Step(shard, *upgrade) for upgrade in upgrades(session, name, sql))
        marks = {} if "pipeline_watermarks" in fresh else ledger_queries.marks_of(session)
        lacking = sorted({*topology.buckets_of(shard), topology.reference_bucket} - marks.keys())
        if lacking:
            yield Step(shard, f"buckets {format_ranges(lacking)}", ledger_queries.buckets_sql(session.dialect, lacking))
        for schema in schemas:
            yield from _table(session, shard, schema, topology)


def migrate(pipeline: Client, report: Callable[[Step], None] = lambda step: None) -> int:
    """Create what is missing and give each shard its buckets; return how many statements ran.

    A run may be killed anywhere and repeated: the next one does what is left.

    Args:
        pipeline: the deployment.
        report: called with each step before it runs.

    Raises:
        PipelineError: a bucket is active on another shard than the configuration says, or a primary does not answer:
            nothing is changed then. Or a statement failed: the message says which, and which shards are finished.
    """
    _refuse_moved(pipeline)
    steps = list(migration_steps(pipeline))
    texts = list(map(TableSchema.from_json, pipeline.log.newest_schemas().values()))
    kept = {schema.hash: (schema.name, schema.to_json()) for schema in texts}
    finished: list[str] = []
    for shard, uri in ((name, shard.primary) for name, shard in pipeline.settings.shards.items()):
        what = "its table definitions"
        try:
            with brief(shard, uri, read_only=False, statement_s=ALTER_S) as session:
                for step in (step for step in steps if step.shard == shard):
                    what = step.what
                    report(step)
                    with session.translated(), session.transaction():
                        session.execute(step.sql)
                what = "its table definitions"
                if kept:
                    ledger_queries.keep_schemas(session, kept)
        except PipelineError as error:
            raise PipelineError(_stopped(shard, what, error, finished)) from error
        finished.append(shard)
    return len(steps)


def _table(session: NodeSession, shard: str, schema: TableSchema, topology: Topology) -> Iterator[Step]:
    """Yield what a published table lacks: all of it, or indexes that a killed run or a new rule left out."""
    name, dialect = bare_name(schema.rname or schema.name), session.dialect
    if not columns.columns_of(session, name):
        for sql in create_table(schema, topology, dialect):
            yield Step(shard, schema.name, sql)
        return
    there = columns.indexes_of(session, name)
    for index in indexes(schema, topology):
        wanted = tuple(own_name(schema, field).lower() for field in index.fields)
        unique = any(one and set(found) == set(wanted) for one, found in there)
        leading = not index.unique and any(found[: len(wanted)] == wanted for _, found in there)
        if not (unique or leading):
            kind = "unique index" if index.unique else "index"
            what = f"{schema.name}: {kind} on {', '.join(index.fields)}"
            yield Step(shard, what, create_index(schema, index, dialect))


def _stopped(shard: str, what: str, error: PipelineError, finished: list[str]) -> str:
    done = f"finished before: {', '.join(finished)}" if finished else "no shard was finished"
    return f"shard {shard!r} stopped at {what}: {error}; {done}; mend it and run pipeline migrate again"


def _refuse_moved(pipeline: Client) -> None:
    """Raise if a bucket is active on two shards, as both would apply its ops."""
    for shard in pipeline.topology.shards:
        session = pipeline.nodes.primary(shard)
        if not columns.columns_of(session, "pipeline_watermarks"):
            continue
        allowed = {*pipeline.topology.buckets_of(shard), pipeline.topology.reference_bucket}
        stray = sorted(b for b, m in ledger_queries.marks_of(session).items() if m.owned and b not in allowed)
        if stray:
            raise PipelineError(
                f"shard {shard!r} holds {len(stray)} buckets (the first: {stray[0]}) that the configuration gives to "
                'another shard. Adding a shard changes the even split: write the old map as buckets = "…" under each '
                f"[shards.…]; {shard!r} keeps {pipeline.topology.ranges_of(shard) or 'none'} by the configuration"
            )


def _parents_first(schemas: list[TableSchema]) -> list[TableSchema]:
    """Order tables so that a referenced one comes before those that refer to it."""
    by_name = {schema.name: schema for schema in schemas}
    done: dict[str, TableSchema] = {}

    def visit(schema: TableSchema, path: tuple[str, ...]) -> None:
        if schema.name in done or schema.name in path:
            return
        for column in schema.columns:
            parent = column.type.partition("reference ")[2].split(".")[0]
            if parent in by_name and not column.type.startswith("list:"):
                visit(by_name[parent], (*path, schema.name))
        done[schema.name] = schema

    for schema in schemas:
        visit(schema, ())
    return list(done.values())
