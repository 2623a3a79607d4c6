"""Judge which references a shard's foreign keys can hold: those whose parent's row is on the shard of the row itself.

A reference table has all its rows on every shard, and a deployment of one shard has all rows on it. Else a table must
be sharded by the reference, or both tables by one key.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import product

from pipeline.config.topology import Topology
from pipeline.model.ids import SMALLEST
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import repairs
from pipeline.shard.columns import columns_of
from pipeline.shard.session import NodeSession
from pipeline.shard.table_facts import constraints_of

#: What pyDAL's `ondelete` may say that a server takes.
RULES = ("CASCADE", "SET NULL", "RESTRICT", "NO ACTION")


def together(
    topology: Topology,
    name: str,
    own: tuple[str, ...],
    parent_name: str,
    schema: TableSchema | None = None,
    *,
    made_here: bool = False,
) -> bool:
    """Return whether each row is always on the shard of the row that it refers to.

    Args:
        topology: the rules of all tables.
        name: the referring table.
        own: the columns of the foreign key, by their names in the database.
        parent_name: the table that is referred to.
        schema: the referring table's published definition, where there is one.
        made_here: whether the pipeline has made all ids of the parent's rows: each carries the bucket of its row.
    """
    child, parent = topology.table(name), topology.table(parent_name)
    if parent.reference or len(topology.shards) == 1:
        return True
    if child.reference:
        return False
    if sum(bool(topology.buckets_of(shard)) for shard in topology.shards) == 1:
        return True
    id_name = schema.id_name if schema else "id"
    if child.shard_key in (None, id_name):
        return False
    same_rule = (child.rule, child.bounds, child.lookup) == (parent.rule, parent.bounds, parent.lookup)
    if own == (in_database(schema, child.shard_key),):
        by_id = parent.shard_key in (None, "id") or (name == parent_name and parent.shard_key == id_name)
        return (by_id and same_rule) or (made_here and child.rule == "hash" and parent.ids == "pipeline")
    return child.shard_key == parent.shard_key and same_rule


def unheld(
    schema: TableSchema,
    column: Column,
    schemas: Mapping[str, TableSchema],
    topology: Topology,
    old_ids: Container[str] = (),
) -> str:
    """Return why no foreign key can hold a reference, as the end of a sentence; empty where one can.

    Args:
        schema: the table's published definition.
        column: one of its references.
        schemas: all published definitions, by the table's name.
        topology: the rules of all tables.
        old_ids: the tables some of whose ids the pipeline has not made.
    """
    parent = column.parent or ""
    if parent not in schemas:
        return "which the pipeline does not write"
    own = (in_database(schema, column.name),)
    if not together(topology, schema.name, own, parent, schema, made_here=parent not in old_ids):
        return "whose rows may be on another shard"
    return ""


def held(
    schema: TableSchema, schemas: Mapping[str, TableSchema], topology: Topology, old_ids: Container[str] = ()
) -> dict[str, TableSchema]:
    """Return the parent of each reference that a foreign key can hold, by the field's name; the others as `unheld`."""
    return {
        column.name: schemas[column.parent]
        for column in schema.columns
        if column.parent and not refused(column) and not unheld(schema, column, schemas, topology, old_ids)
    }


def refused(column: Column) -> str:
    """Return why no server takes what a reference asks for where its parent's row is deleted; empty where it does.

    Args:
        column: a reference.
    """
    if column.ondelete not in RULES:
        return f"ondelete={column.ondelete!r} is none of {', '.join(RULES)}"
    if column.ondelete == "SET NULL" and column.notnull:
        return "ondelete='SET NULL' needs a field that may be NULL: drop notnull=True, or choose another ondelete"
    return ""


def crossing(sessions: Sequence[NodeSession], schemas: Sequence[TableSchema], topology: Topology) -> dict[str, str]:
    """Return the foreign keys of shards that may refer to a row of another one, each with the SQL that drops it.

    Args:
        sessions: of the shards' primaries.
        schemas: all published definitions.
        topology: the rules of all tables.
    """
    old_ids, found = set().union(*(old_ids_in(one, schemas, topology) for one in sessions)), dict[str, str]()
    names = {schema.name_there.lower(): schema.name for schema in schemas}
    for schema, session in product(schemas, sessions):
        with session.translated():
            keys = constraints_of(session, schema.name_there).parents
        for key in keys:
            parent = names.get(key.parent.lower(), key.parent)
            made_here = parent not in old_ids
            if not together(topology, schema.name, key.columns, parent, schema, made_here=made_here):
                place = f"{schema.name}.{', '.join(key.columns)} to {parent}"
                found[place] = repairs.drop_foreign_key(schema.name_there, key.name)
    return found


def old_ids_in(session: NodeSession, schemas: Iterable[TableSchema], topology: Topology) -> set[str]:
    """Return the tables that have ids which the pipeline has not made, of those where that matters.

    It matters where a table is sharded by a reference, and the parent by another key than its id.

    Args:
        session: of a shard's primary.
        schemas: all published definitions.
        topology: the rules of all tables.
    """
    schemas = list(schemas)
    parents = {
        column.parent
        for schema in schemas
        for column in schema.columns
        if column.parent and column.name == topology.table(schema.name).shard_key
    }
    return {
        schema.name
        for schema in schemas
        if schema.name in parents and topology.table(schema.name).shard_key and _has_old_ids(session, schema)
    }


def _has_old_ids(session: NodeSession, schema: TableSchema) -> bool:
    name, quote = schema.name_there, session.dialect.quote
    if not columns_of(session, name):
        return False
    table = quote(name)
    of_id = quote(in_database(schema, schema.id_name))
    return bool(session.query(f"SELECT 1 FROM {table} WHERE {of_id} < {SMALLEST} LIMIT 1"))


def in_database(schema: TableSchema | None, field: str) -> str:
    """Return a field's name in the database.

    Args:
        schema: the table's definition; without one the names are alike.
        field: its name in the model.
    """
    if schema is None or field not in schema.index:
        return field
    return schema.columns[schema.index[field]].name_there
