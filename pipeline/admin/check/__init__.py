"""Find everything that would keep ops from being applied exactly, once and in order; change nothing.

Evidence is gathered first. Each subject is a function from evidence to findings, with no I/O but for the spool's
folder.

Check that every bucket is active on exactly one shard, and that unique indexes and foreign keys fit the shards.
A bucket belongs to the shard that the configuration names. An upsert needs one unique index, and no foreign key may
leave its shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.admin.check import schemas, servers, surroundings
from pipeline.admin.check.evidence import ERROR, WARNING, Evidence, Finding, gather, merged_findings, uwsgi_findings
from pipeline.admin.observe.record import MAX_AGE_S
from pipeline.config import Topology
from pipeline.config.buckets import numbers_text
from pipeline.config.settings import load
from pipeline.errors import ConfigError
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import ddl
from pipeline.shard.co_location import in_database, refused, together, unheld
from pipeline.shard.records import APPLYING, Mark
from pipeline.shard.survey import Survey, SurveyedTable

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
        yield from _shared(evidence.topology, node.node, node.marks)
    yield from _doubled(active, evidence.topology)


def _faults(evidence: Evidence, node: str, known: Set[int], here: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the buckets of one node, and what to do.

    Args:
        known: the buckets that have a row.
        here: the epoch of each active bucket.
    """
    topology, reference = evidence.topology, evidence.topology.reference_bucket
    pieces = topology.placement.pieces
    wanted = {*topology.applied_by(node)}
    if evidence.topology.placement.moves:  # a key that is under way may be further than the map
        wanted |= {number for number in topology.placement.moves if number in pieces and number in here}
    newest = evidence.epochs.get(node)
    if newest is not None and (ahead := {b for b, epoch in here.items() if epoch > newest and b != reference}):
        yield (
            f"{numbers_text(ahead, pieces)} were applied from another Redis, or under another prefix: both deployments "
            "take ops for applied that are not",
            "stop one of them, or give each databases of its own; then enqueue again what receipts call lost",
        )
    if missing := wanted - known:
        keys = missing & pieces.keys()
        fix = f"pipeline restore {node}" if keys else "pipeline migrate"
        yield f"{numbers_text(missing, pieces)} have no watermark row here", fix
    if idle := (wanted & known) - here.keys():
        yield f"{numbers_text(idle, pieces)} have moved away, but the configuration gives them to this shard", _MAP
    if stray := here.keys() - wanted:
        yield f"{numbers_text(stray, pieces)} are active here, but the configuration gives them to another shard", _MAP


def _shared(topology: Topology, node: str, marks: Mapping[int, Mark]) -> Iterator[Finding]:
    """Yield the buckets that are applied with a key which another shard has."""
    for number, piece in topology.placement.pieces.items():
        bucket = piece.of.bucket
        is_home, moves = topology.shard_of(bucket) == node != piece.shard, number in topology.placement.moves
        if is_home and not moves and bucket in marks and marks[bucket].state in APPLYING:
            what = f"bucket {bucket} is applied with {piece.of}, which {piece.shard} has: its ops are applied twice"
            fix = f"pause {node}: it was restored from a backup, or is another database"
            yield Finding(ERROR, "buckets", what, fix, (node,))


def _doubled(active: Mapping[int, list[str]], topology: Topology) -> Iterator[Finding]:
    doubled: dict[tuple[str, ...], list[int]] = {}
    for bucket, shards in active.items():
        if len(shards) > 1 and bucket != topology.reference_bucket:
            doubled.setdefault(tuple(shards), []).append(bucket)
    for nodes, buckets in doubled.items():
        yield Finding(
            ERROR,
            "buckets",
            f"{numbers_text(buckets, topology.placement.pieces)} are active on more than one shard: their ops are "
            "applied twice",
            "stop the workers; where one was restored from a backup, run: pipeline restore SHARD; else set "
            "state = 'moved' where they do not belong (UPDATE pipeline_watermarks …)",
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
        database_name = schema.name_there if schema else name
        for node in evidence.primaries:
            table = node.tables.get(database_name.lower())
            if table is not None:
                yield from _unique(evidence, name, schema, node, table)
                yield from _foreign(evidence, name, node, table, schemas)
                if schema is not None:
                    yield from _asked(evidence, schema, node, table, schemas)
        for node in evidence.surveys:
            if (primary := evidence.nodes.get(evidence.primary_of.get(node.node, ""))) and isinstance(primary, Survey):
                yield from _unlike(database_name.lower(), primary, node)


def _unique(
    evidence: Evidence, name: str, schema: TableSchema | None, node: Survey, table: SurveyedTable
) -> Iterator[Finding]:
    wanted = evidence.topology.table(name).unique
    there = [frozenset(column.lower() for column in columns) for columns in table.constraints.unique]
    for fields in wanted:
        columns = [in_database(schema, field) for field in fields]
        if frozenset(column.lower() for column in columns) not in there:
            yield Finding(
                ERROR,
                f"{table.name} ({', '.join(columns)})",
                "is not unique, but the configuration says so: an upsert would insert twice",
                ddl.unique_index(table.name, columns, node.engine),
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
    """Yield the foreign keys that may reach into another shard, or do not do what the model says."""
    by_database_name = {schema.name_there.lower(): schema.name for schema in schemas.values()}
    schema = schemas.get(name)
    for key in table.constraints.parents:
        parent_name = by_database_name.get(key.parent.lower(), key.parent)
        place = f"{table.name}.{', '.join(key.columns)}"
        made_here = parent_name not in evidence.old_ids
        if not together(evidence.topology, name, key.columns, parent_name, schema, made_here=made_here):
            yield Finding(
                ERROR,
                place,
                f"has a foreign key to {key.parent}, whose rows may be on another shard: such rows are rejected",
                f"{ddl.drop_foreign_key(table.name, key.name)}; or [tables.{parent_name}] reference = true; or "
                f'[tables.{name}] shard_key = "{_field(schema, key.columns[0])}"',
                (node.node,),
            )


def _asked(
    evidence: Evidence, schema: TableSchema, node: Survey, table: SurveyedTable, schemas: dict[str, TableSchema]
) -> Iterator[Finding]:
    """Yield the references of a definition for which the database does not do what pyDAL's `ondelete` says."""
    standing = {key.columns: key for key in table.constraints.parents}
    for column in schema.columns:
        if not column.parent or _keeps_versions(schema, column, schemas.get(column.parent)):
            continue
        own, place = in_database(schema, column.name), f"{table.name}.{in_database(schema, column.name)}"
        key, why = standing.get((own,)), unheld(schema, column, schemas, evidence.topology, evidence.old_ids)
        effect = f"ondelete={column.ondelete!r} does nothing: {_left(column)}"
        added = "" if why else ddl.add_foreign_key(schema, column, schemas[column.parent])
        if key is not None:
            if not why and _rule(key.on_delete) != _rule(column.ondelete) and node.engine == "mysql":
                what = f"refers to {column.parent} ON DELETE {key.on_delete}, but the model says {column.ondelete}"
                fix = f"{ddl.drop_foreign_key(table.name, key.name)}; {added}"
                yield Finding(WARNING, place, what, fix, (node.node,))
        elif why:
            what = f"refers to {column.parent}, {why}: it has no foreign key, and {effect}"
            yield Finding(WARNING, place, what, _cure(schema, column, schemas), (node.node,))
        elif node.engine == "mysql":
            fix = refused(column) or f"{added}; rows without their {column.parent} keep it from that"
            yield Finding(WARNING, place, f"has no foreign key to {column.parent}, and {effect}", fix, (node.node,))


def _keeps_versions(schema: TableSchema, column: Column, parent: TableSchema | None) -> bool:
    """Return whether a column names a version's row: versions are on the shard of their row, and may outlive it."""
    named = column.name == "current_record" or schema.name == f"{column.parent}_archive"
    return named and parent is not None and parent.index.keys() <= schema.index.keys()


def _left(column: Column) -> str:
    match column.ondelete:
        case "CASCADE":
            return f"rows outlive the {column.parent} that they refer to"
        case "SET NULL":
            return f"rows keep the id of a {column.parent} that is deleted"
    return f"a {column.parent} to which rows refer can be deleted"


def _cure(schema: TableSchema, column: Column, schemas: Mapping[str, TableSchema]) -> str:
    by_hand = f"let the application change the rows before it deletes their {column.parent}"
    if column.parent not in schemas:
        return f"{by_hand}; or attach {column.parent}, if it is no table of the framework"
    together = f'[tables.{schema.name}] shard_key = "{column.name}"; or [tables.{column.parent}] reference = true'
    return f"{together}; or {by_hand}"


def _rule(words: str) -> str:
    """Return a rule by the name that means the same to InnoDB."""
    return "RESTRICT" if words == "NO ACTION" else words


def _unlike(table: str, primary: Survey, replica: Survey) -> Iterator[Finding]:
    """Yield the foreign keys that a replica lacks: what they change is not in the binary log."""
    if table not in primary.tables or table not in replica.tables:
        return
    there = {(key.columns, _rule(key.on_delete)) for key in replica.tables[table].constraints.parents}
    for key in primary.tables[table].constraints.parents:
        if (key.columns, _rule(key.on_delete)) not in there:
            what = (
                f"has a foreign key ON DELETE {key.on_delete} on its primary and not here, where its rows will differ"
            )
            place = f"{primary.tables[table].name}.{', '.join(key.columns)}"
            yield Finding(ERROR, place, what, "rebuild the replica from its primary", (replica.node,))


def _field(schema: TableSchema | None, column: str) -> str:
    """Return a column's name in the model."""
    fields = [field for field in schema.index if in_database(schema, field) == column] if schema else []
    return fields[0] if fields else column


#: What has happened to ops already, then in the order in which an operator would repair.
SUBJECTS: tuple[Callable[[Evidence], Iterable[Finding]], ...] = (
    surroundings.op_findings,
    surroundings.deployment_findings,
    surroundings.configuration_findings,
    servers.transport_findings,
    surroundings.redis_findings,
    surroundings.spool_findings,
    servers.server_findings,
    servers.absence_findings,
    servers.privilege_findings,
    bucket_findings,
    schemas.schema_findings,
    constraint_findings,
    surroundings.worker_findings,
    surroundings.foreign_findings,
    uwsgi_findings,
    surroundings.clock_findings,
)


class Verdict(NamedTuple):
    """All findings, errors first.

    Attributes:
        findings: one per fault.
        looked_at: counts of what was checked; empty if the configuration could not be used.
    """

    findings: list[Finding]
    looked_at: str

    @property
    def errors(self) -> int:
        """How many errors there are."""
        return sum(finding.severity == ERROR for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """Return the verdict for programs."""
        return {"ok": not self.errors, "findings": [finding.as_json() for finding in self.findings]}


def check(source: str | Path | Mapping[str, Any] | None = None, max_age_s: float = MAX_AGE_S) -> Verdict:
    """Find every fault at once; takes a few seconds and 20 ms per table at most, however many servers are dead.

    Args:
        source: a path, a dict of the same shape, or None: see `settings.load`.
        max_age_s: the age from which on a waiting op is a fault, seconds.
    """
    try:
        settings = load(source)
    except ConfigError as error:
        return Verdict(list(surroundings.faults(error)), "")
    evidence = gather(settings, max_age_s)
    found = (finding for subject in SUBJECTS for finding in subject(evidence))
    topology = evidence.topology
    counts = (
        f"{len(topology.shards)} shards, {len(evidence.nodes)} nodes, {topology.buckets} buckets, "
        f"{len(evidence.schemas)} published tables"
    )
    return Verdict(merged_findings(found), counts)
