"""Check that every bucket is active on exactly one shard, and that unique indexes and foreign keys fit the shards.

A bucket belongs to the shard that the configuration names. An upsert needs one unique index, and no foreign key may
leave its shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from pipeline.admin.check.evidence import Evidence
from pipeline.admin.check.finding import ERROR, Finding
from pipeline.config.bucket_ranges import format_ranges
from pipeline.config.topology import Topology
from pipeline.model.schema import TableSchema
from pipeline.shard import repairs
from pipeline.shard.survey import Survey, SurveyedTable
from pipeline.shard.table_facts import bare_name, dotted_name

_MAP = 'write the map as it is: buckets = "…" under each [shards.…]'


def bucket_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield buckets that no shard, two shards, another shard or another deployment would apply.

    Args:
        evidence: what the servers answered.
    """
    if evidence.misfits:
        return  # the map of a configuration that does not fit the deployment is no measure
    active: dict[int, list[str]] = {}
    for node in evidence.primaries:
        if node.marks is None:
            continue
        here = {bucket: mark.position.epoch for bucket, mark in node.marks.items() if mark.owned}
        for bucket in here:
            active.setdefault(bucket, []).append(node.node)
        for what, fix in _faults(evidence, node.node, node.marks.keys(), here):
            yield Finding(ERROR, "buckets", what, fix, (node.node,))
    yield from _doubled(active, evidence.topology.reference_bucket)


def _faults(evidence: Evidence, node: str, known: Set[int], here: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the buckets of one node, and what to do.

    Args:
        known: the buckets that have a row.
        here: the epoch of each active bucket.
    """
    reference = evidence.topology.reference_bucket
    wanted = {*evidence.topology.buckets_of(node), reference}
    newest = evidence.epochs.get(node)
    if newest is not None and (ahead := {b for b, epoch in here.items() if epoch > newest and b != reference}):
        yield (
            f"{format_ranges(ahead)} were applied from another Redis, or under another prefix: both deployments "
            "take ops for applied that are not",
            "stop one of them, or give each databases of its own; then enqueue again what receipts call lost",
        )
    if missing := wanted - known:
        yield f"{format_ranges(missing)} have no watermark row here", "pipeline migrate"
    if idle := (wanted & known) - here.keys():
        yield f"{format_ranges(idle)} have moved away, but the configuration gives them to this shard", _MAP
    if stray := here.keys() - wanted:
        yield f"{format_ranges(stray)} are active here, but the configuration gives them to another shard", _MAP


def _doubled(active: Mapping[int, list[str]], reference: int) -> Iterator[Finding]:
    doubled: dict[tuple[str, ...], list[int]] = {}
    for bucket, shards in active.items():
        if len(shards) > 1 and bucket != reference:
            doubled.setdefault(tuple(shards), []).append(bucket)
    for nodes, buckets in doubled.items():
        yield Finding(
            ERROR,
            "buckets",
            f"{format_ranges(buckets)} are active on more than one shard: their ops are applied twice",
            "stop the workers, and set state = 'moved' where they do not belong (UPDATE pipeline_watermarks …)",
            nodes,
        )


def constraint_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is wrong with the constraints of each primary.

    Args:
        evidence: what the servers answered.
    """
    schemas = {schema.name: schema for schema in evidence.schemas}
    for name in dict.fromkeys([*schemas, *evidence.topology.configured]):
        schema = schemas.get(name)
        database_name = dotted_name(schema.rname or name) if schema else name
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
    by_database_name = {bare_name(schema.rname or schema.name).lower(): schema.name for schema in schemas.values()}
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
    """Return whether each row is always on the shard of the row that it refers to.

    Args:
        topology: the rules of all tables.
        name: the referring table.
        own: the columns of the foreign key, by their names in the database.
        parent_name: the table that is referred to.
        schema: the referring table's published definition, where there is one.
    """
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
    return bare_name(schema.columns[schema.index[field]].rname or field)
