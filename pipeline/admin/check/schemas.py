"""Check tables and columns: present, alike on every node, and able to hold what the published definitions promise."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

from pipeline.admin.check.evidence import ERROR, WARNING, Evidence, Finding, without_copies
from pipeline.errors import PipelineError
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import ddl
from pipeline.shard.columns import (
    Widening,
    holds_64_bits,
    own_columns,
    own_tables,
    plain_type,
    refused_type,
    tells_apart,
    text_key,
    type_fault,
    widening,
)
from pipeline.shard.survey import Survey, SurveyedTable

MISSING = "missing"
MIGRATE = "pipeline migrate"
_NOT_REPLICATED = "its primary has it: look at SHOW SLAVE STATUS; rebuild the replica if it was altered by hand"
_WIDE_CHARSETS = ("utf8mb4", "utf16", "utf16le", "utf32", "ucs4")
_TIMESTAMP = "is a TIMESTAMP, which the server converts from the zone of a session and to it"
_NOW = "is filled by the database with the time in the zone of a session"
_TRIGGER = "asks for the time in the zone of a session"
_SAME_ZONE = (
    "write the zone of the application's own sessions below its shard: time_zone = \"SYSTEM\" for the server's, "
    'else such as "+00:00"'
)


class Drift(NamedTuple):
    """One column that is not the same on all nodes that have its table: type or `missing`, and the nodes."""

    table: str
    column: str
    by_type: dict[str, list[str]]

    @property
    def listed(self) -> str:
        """What each node has, in one text."""
        return ", ".join(f"{kind} on {' and '.join(nodes)}" for kind, nodes in self.by_type.items())


def drift_of(table: str, nodes: Sequence[Survey]) -> Iterator[Drift]:
    """Yield the columns of a table that differ between nodes; a node without the table does not count.

    Args:
        table: its name in the database.
        nodes: what the servers answered.
    """
    present = {node.node: node.tables[table.lower()].columns for node in nodes if table.lower() in node.tables}
    for column in dict.fromkeys(name for columns in present.values() for name in columns):
        by_type: dict[str, list[str]] = {}
        for node, columns in present.items():
            kind = plain_type(columns[column].type) if column in columns else MISSING
            by_type.setdefault(kind, []).append(node)
        if len(by_type) > 1:
            yield Drift(table, column, by_type)


def drift_lines(evidence: Evidence) -> list[str]:
    """Return the diff of all published tables as text: a line per column, aligned.

    Args:
        evidence: what the servers answered.
    """
    names = [schema.name_there for schema in evidence.schemas]
    found = [drift for name in names for drift in drift_of(name, evidence.surveys)]
    places = [f"{drift.table}.{drift.column}" for drift in found]
    width = max(map(len, places), default=0)
    return [f"{place:{width}}  {drift.listed}" for place, drift in zip(places, found, strict=True)]


def schema_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is wrong with any table.

    Args:
        evidence: what the servers answered.
    """
    return without_copies(_everywhere(evidence), evidence.primary_of)


def _everywhere(evidence: Evidence) -> Iterator[Finding]:
    yield from _own_tables(evidence)
    for schema in evidence.schemas:
        yield from _published(evidence, schema)
    published = {schema.name for schema in evidence.schemas}
    unpublished = [name for name in evidence.topology.configured if name not in published]
    for name in unpublished:
        yield from _drifted(name, evidence.surveys, ())
    for node in evidence.surveys:
        yield from database(node)
        for name in unpublished:
            if name.lower() in node.tables:
                yield from _id(evidence, name, "id", node, node.tables[name.lower()])
        for table in node.tables.values():
            yield from storage(node, table, ERROR)
        shard = evidence.settings.shards.get(evidence.primary_of.get(node.node, node.node))
        if shard is not None and shard.time_zone is None:
            yield from moments(node, node.tables, ERROR)
        for name, engine in node.others.items():
            yield from _engine(node, name, engine, WARNING)


def database(node: Survey) -> Iterator[Finding]:
    """Yield a default character set that new tables should not get.

    Args:
        node: what one server answered.
    """
    if node.charset in ("utf8", "utf8mb3"):
        yield Finding(
            WARNING,
            f"database {node.database}",
            f"has the default character set {node.charset}: a new table cannot hold every character",
            ddl.database_utf8mb4(node.database),
            (node.node,),
        )


def _own_tables(evidence: Evidence) -> Iterator[Finding]:
    """Yield the pipeline's own tables, or columns of them, where they are missing: a finding per node."""
    own = {name: own_columns(create) for name, create in own_tables("mysql")}
    for node in evidence.surveys:
        lacking = [name for name in own if not _has(node, name) and ("SELECT", name) not in node.denied]
        old = [f"{name}.{c}" for name in own if _has(node, name) for c in own[name] if not _has(node, name, c)]
        if lacking or old:
            primary = _primary(evidence, node)
            there = all(_has(primary, *place.split(".")) for place in [*lacking, *old])
            fix = _NOT_REPLICATED if there else MIGRATE
            first, *others = [*lacking, *old]
            listed = f"{first} and {len(others)} others" if others else first
            yield Finding(ERROR, "the pipeline's own tables", f"are missing here ({listed})", fix, (node.node,))
    for name, columns in own.items():
        yield from _drifted(name, evidence.surveys, columns)


def _published(evidence: Evidence, schema: TableSchema) -> Iterator[Finding]:
    name = schema.name_there
    present = [node for node in evidence.surveys if name.lower() in node.tables]
    if not present:
        what = "is published, but exists on no shard: its ops wait"
        if evidence.primaries:
            yield Finding(ERROR, name, what, MIGRATE)
        return
    yield from _missing(evidence, name, evidence.surveys, "is published, but missing here", MIGRATE)
    for node in present:
        table = node.tables[name.lower()]
        if node.engine == "mysql" and not table.engine:
            yield Finding(
                ERROR, name, "is a view: rows are written to its tables", ddl.ignore_it(schema.name), (node.node,)
            )
            continue
        yield from _id(evidence, schema.name, _own(schema.columns[schema.id_index]), node, table)
        yield from _columns(evidence, schema, node, table)
    yield from _drifted(name, present, {_own(column).lower() for column in schema.columns})


def _missing(evidence: Evidence, name: str, nodes: Sequence[Survey], what: str, fix: str) -> Iterator[Finding]:
    for node in nodes:
        readable = ("SELECT", name) not in node.denied
        if name.lower() not in node.tables and readable:
            cause = _NOT_REPLICATED if _has(_primary(evidence, node), name) else ""
            yield Finding(ERROR, name, what, cause or fix, (node.node,))


def _columns(evidence: Evidence, schema: TableSchema, node: Survey, table: SurveyedTable) -> Iterator[Finding]:
    known = set()
    for column in schema.columns:
        own = _own(column)
        known.add(own.lower())
        place, found = f"{table.name}.{own}", table.columns.get(own.lower())
        if found is None:
            cause = _NOT_REPLICATED if _has(_primary(evidence, node), table.name, own) else ""
            yield Finding(ERROR, place, "is missing here: ops that name it wait", cause or MIGRATE, (node.node,))
        elif node.engine == "mysql" and column.name != schema.id_name and (why := type_fault(column, found.type)):
            yield Finding(ERROR, place, why, _wider(schema, column, found.type), (node.node,))
        elif text_key(schema, evidence.topology) == column and not tells_apart(found.collation):
            yield Finding(ERROR, place, loose(found.collation), MIGRATE, (node.node,))
        if found is not None and found.filled == "generated":
            what = "is computed by the database: an op that gives it a value is rejected"
            yield Finding(
                WARNING,
                place,
                what,
                "give the field no default, update= or compute=, and write it nowhere",
                (node.node,),
            )
    for name, extra in table.columns.items():
        if name not in known and extra.required and node.engine == "mysql":
            yield Finding(
                ERROR,
                f"{table.name}.{name}",
                "needs a value, but the published definition does not know it: every insert is rejected",
                f"{ddl.default_for(table.name, name, extra.type)}; or add the field to the model",
                (node.node,),
            )


def loose(collation: str | None) -> str:
    """Return what is wrong with the collation of a shard key; the sentence continues after the column's name.

    Args:
        collation: its name.
    """
    return f"is the shard key, and {collation} takes different texts for equal: their rows are in different buckets"


def _wider(schema: TableSchema, column: Column, there: str) -> str:
    """Return how a column comes to hold what its definition promises."""
    try:
        wanted = ddl.column_type(schema, column, ddl.MYSQL).lower()
    except PipelineError as error:
        return str(error)
    return MIGRATE if widening(there, wanted) is Widening.EXACT else refused_type(there, wanted)


def _id(evidence: Evidence, table_name: str, id_name: str, node: Survey, table: SurveyedTable) -> Iterator[Finding]:
    """Yield an id column that is too narrow."""
    found = table.columns.get(id_name.lower())
    narrow = found is not None and not holds_64_bits(found.type)
    if found and narrow and node.engine == "mysql" and evidence.topology.table(table_name).ids == "pipeline":
        yield Finding(
            ERROR,
            f"{table.name}.{id_name}",
            f"is {found.type}, which cannot hold a 53-bit id",
            f'{ddl.wide_id(table.name, id_name)}; or [tables.{table_name}] ids = "database"',
            (node.node,),
        )


def _drifted(table: str, nodes: Sequence[Survey], known: Container[str]) -> Iterator[Finding]:
    """Yield the columns that are not alike on all nodes that have the table; *known* ones are missed elsewhere."""
    for drift in drift_of(table, nodes):
        if drift.column in known and len(drift.by_type.keys() - {MISSING}) == 1:
            continue
        fix = "make it alike on all primaries (ALTER TABLE)"
        yield Finding(ERROR, f"{table}.{drift.column}", f"differs: {drift.listed}", fix)


def storage(node: Survey, table: SurveyedTable, severity: str) -> Iterator[Finding]:
    """Yield an engine or a character set that a table cannot keep.

    Args:
        node: what one server answered.
        table: one table of it.
        severity: the severity of a wrong engine.
    """
    if node.engine != "mysql":
        return
    yield from _engine(node, table.name, table.engine, severity)
    charsets: dict[str, list[str]] = {}
    for name, column in table.columns.items():
        if column.charset and column.charset not in _WIDE_CHARSETS:
            charsets.setdefault(column.charset, []).append(name)
        if column.type.startswith("float"):
            yield Finding(
                WARNING,
                f"{table.name}.{name}",
                f"is {column.type}: it gives back 6 digits",
                ddl.widen_to_double(table.name, name),
                (node.node,),
            )
    for charset, names in charsets.items():
        yield Finding(
            ERROR if charset in ("utf8", "utf8mb3") else WARNING,
            f"{table.name}.{names[0]}" if len(names) == 1 else f"{table.name} ({', '.join(names)})",
            f"is {charset}, which cannot hold every character: such a text is rejected",
            ddl.utf8mb4(table.name),
            (node.node,),
        )


def moments(node: Survey, names: Iterable[str], severity: str) -> Iterator[Finding]:
    """Yield what the server's time zone decides, where sessions of the pipeline have another one.

    Args:
        node: what one server answered.
        names: the tables.
        severity: of each finding.
    """
    tables = {name.lower(): table for name in names if (table := node.tables.get(name.lower()))}
    places = [
        (f"{table.name}.{name}", _TIMESTAMP if column.type.startswith("timestamp") else _NOW)
        for table in tables.values()
        for name, column in table.columns.items()
        if column.type.startswith("timestamp") or column.filled == "now"
    ]
    places += [(f"trigger {name} on {table}", _TRIGGER) for table, name in node.clocks if table.lower() in tables]
    for place, what in places if node.zone else ():
        zones = f"the pipeline's sessions are not, but the server is at {node.zone}, and so may the application be"
        yield Finding(severity, place, f"{what}: {zones}", _SAME_ZONE, (node.node,))


def _engine(node: Survey, table: str, engine: str, severity: str) -> Iterator[Finding]:
    if engine and engine.lower() != "innodb":
        yield Finding(
            severity,
            table,
            f"is {engine}: it cannot roll back, so a retry would write twice",
            ddl.innodb(table),
            (node.node,),
        )


def _primary(evidence: Evidence, node: Survey) -> Survey | None:
    """Return the primary of a replica, if it answered."""
    found = evidence.nodes.get(evidence.primary_of.get(node.node, ""))
    return found if isinstance(found, Survey) else None


def _has(node: Survey | None, table: str, column: str | None = None) -> bool:
    found = node.tables.get(table.lower()) if node else None
    return found is not None and (column is None or column.lower() in found.columns)


def _own(column: Column) -> str:
    return column.name_there
