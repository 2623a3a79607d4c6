"""Unique indexes and foreign keys: what an upsert needs, what makes it ambiguous, what leaves the shard."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import ERROR, Finding
from pipeline.config.topology import Topology
from pipeline.model.schema import TableSchema
from pipeline.shard import repairs
from pipeline.shard.survey import Survey, SurveyedTable
from pipeline.shard.table_facts import plain


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is wrong with the constraints of each primary."""
    schemas = {schema.name: schema for schema in evidence.schemas}
    for name in dict.fromkeys([*schemas, *evidence.topology.configured]):
        schema = schemas.get(name)
        database_name = plain(schema.rname or name) if schema else name
        for node in evidence.primaries:
            table = node.tables.get(database_name.lower())
            if table is not None:
                yield from _unique(evidence, name, schema, node, table)
                yield from _foreign(evidence, name, node, table, schemas)


def _unique(
    evidence: Evidence, name: str, schema: TableSchema | None, node: Survey, table: SurveyedTable
) -> Iterator[Finding]:
    wanted = evidence.topology.table(name).unique
    there = [frozenset(column.lower() for column in columns) for columns in table.constraints.unique]
    for fields in wanted:
        columns = [_column(schema, field) for field in fields]
        if frozenset(column.lower() for column in columns) not in there:
            yield Finding(
                ERROR,
                f"{table.name} ({', '.join(columns)})",
                "is not unique, but the configuration says so: an upsert would insert twice",
                repairs.unique_index(table.name, columns, node.engine),
                (node.node,),
            )
    if wanted and len(there) > 1 and node.engine == "mysql":
        listed = "; ".join(", ".join(columns) for columns in table.constraints.unique)
        yield Finding(
            ERROR,
            table.name,
            f"has {len(there)} unique indexes ({listed}): an upsert could hit the wrong row, and is rejected",
            f"keep the one of [tables.{name}] unique, and drop the others (DROP INDEX … ON {table.name})",
            (node.node,),
        )


def _foreign(
    evidence: Evidence, name: str, node: Survey, table: SurveyedTable, schemas: dict[str, TableSchema]
) -> Iterator[Finding]:
    by_database_name = {plain(schema.rname or schema.name).lower(): schema.name for schema in schemas.values()}
    for own, parent, _ in table.constraints.parents:
        parent_name = by_database_name.get(parent.lower(), parent)
        if not together(evidence.topology, name, own, parent_name, schemas.get(name)):
            yield Finding(
                ERROR,
                f"{table.name}.{', '.join(own)}",
                f"has a foreign key to {parent}, whose rows may be on another shard: such rows are rejected",
                f"drop the foreign key; or [tables.{parent_name}] reference = true; or shard both by one key",
                (node.node,),
            )


def together(
    topology: Topology, name: str, own: tuple[str, ...], parent_name: str, schema: TableSchema | None = None
) -> bool:
    """Return whether a row always stands on the shard of the row it refers to."""
    child, parent = topology.table(name), topology.table(parent_name)
    if parent.reference or len(topology.shards) == 1:
        return True
    if child.reference:
        return False
    if child.shard_key is None:
        return False
    same_rule = (child.rule, child.bounds, child.lookup) == (parent.rule, parent.bounds, parent.lookup)
    if child.shard_key == parent.shard_key:
        return same_rule
    # an id carries its bucket, and the rule hash reads it from there
    by_parent_id = own == (_column(schema, child.shard_key),)
    return by_parent_id and parent.shard_key in (None, "id") and same_rule


def _column(schema: TableSchema | None, field: str) -> str:
    """Return a field's name in the database."""
    if schema is None or field not in schema.index:
        return field
    return plain(schema.columns[schema.index[field]].rname or field)
