"""Create tables on every primary, shard by shard: the pipeline's own, and those that were published.

Creates only; altering is not built yet. Running it twice changes nothing. Replicas follow by replication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import NamedTuple

from pipeline.client import Pipeline
from pipeline.errors import PipelineError
from pipeline.schema import TableSchema
from pipeline.shard import columns, inquiry
from pipeline.shard.facts import plain
from pipeline.shard.tables import create_table


class Step(NamedTuple):
    """One statement on one shard."""

    shard: str
    what: str
    sql: str


def plan(pipeline: Pipeline) -> Iterator[Step]:
    """Return what is missing, in order.

    Raises:
        ShardUnavailable: a primary did not answer; nothing has been done.
    """
    schemas = [TableSchema.from_json(text) for _, text in sorted(pipeline.log.tables().items())]
    for shard in pipeline.topology.shards:
        session = pipeline.nodes.primary(shard)
        for name, sql in own_tables(session.dialect.name):
            if not columns.columns_of(session, name):
                yield Step(shard, name, sql)
        for schema in _parents_first(schemas):
            if not columns.columns_of(session, plain(schema.rname or schema.name)):
                for sql in create_table(schema, pipeline.topology, session.dialect):
                    yield Step(shard, schema.name, sql)


def migrate(pipeline: Pipeline, report: Callable[[Step], None] = lambda step: None) -> int:
    """Create what is missing and give each shard its buckets; return how many statements ran.

    Raises:
        PipelineError: a bucket is active on another shard than the map says; nothing is changed then.
    """
    _refuse_moved(pipeline)
    done = 0
    for step in list(plan(pipeline)):
        report(step)
        session = pipeline.nodes.primary(step.shard)
        with session.translated(), session.transaction():
            session.execute(step.sql)
        done += 1
    schemas = {s.hash: (s.name, s.to_json()) for s in map(TableSchema.from_json, pipeline.log.tables().values())}
    for shard in pipeline.topology.shards:
        session = pipeline.nodes.primary(shard)
        inquiry.add_buckets(session, (*pipeline.topology.buckets_of(shard), pipeline.topology.reference_bucket))
        if schemas:
            inquiry.keep_schemas(session, schemas)
    return done


def own_tables(dialect: str) -> Iterator[tuple[str, str]]:
    """Yield name and CREATE TABLE of each of the pipeline's own tables."""
    text = (files("pipeline.shard") / "sql" / f"tables.{dialect}.sql").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    for sql in "\n".join(lines).split(";"):
        if sql.strip():
            yield sql.split("EXISTS", 1)[1].split()[0], sql.strip()


def _refuse_moved(pipeline: Pipeline) -> None:
    """A bucket must be active on one shard only: two would apply its ops twice."""
    for shard in pipeline.topology.shards:
        session = pipeline.nodes.primary(shard)
        if not columns.columns_of(session, "pipeline_watermarks"):
            continue
        allowed = {*pipeline.topology.buckets_of(shard), pipeline.topology.reference_bucket}
        stray = sorted(b for b, m in inquiry.marks_of(session).items() if m.state == "active" and b not in allowed)
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
