"""Survey a node once for `check`: version, settings, tables, replication, privileges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pipeline import clock
from pipeline.config.topology import Topology
from pipeline.errors import NotMigrated
from pipeline.model.schema import TableSchema
from pipeline.shard.co_location import old_ids_in
from pipeline.shard.columns import columns_of
from pipeline.shard.reach import sees_triggers
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger import Mark
from pipeline.shard.session import BRIEF_STATEMENT_S, NodeSession, brief
from pipeline.shard.survey import mysql
from pipeline.shard.survey.likeness import Traits
from pipeline.shard.table_facts import Constraints, constraints_in, constraints_of


class SurveyedColumn(NamedTuple):
    """One column.

    Attributes:
        required: an INSERT that does not name it fails.
        filled: what the database itself fills it with: `now`, `generated` from other columns, or the empty string.
    """

    type: str
    charset: str | None
    required: bool
    filled: str = ""
    collation: str | None = None


@dataclass(frozen=True, slots=True)
class SurveyedTable:
    """One table as a node has it; its columns by their names in lower case."""

    name: str
    engine: str
    columns: Mapping[str, SurveyedColumn]
    constraints: Constraints = field(default_factory=Constraints)


@dataclass(frozen=True, slots=True)
class Survey:
    """One node. The keys of `tables` are names in lower case.

    Attributes:
        variables: global server settings, names and values in lower case.
        skew_ms: the server's clock minus this machine's; 0 where the time of the query explains the difference.
        others: engine of each other table in the database that cannot roll back.
        denied: (verb, table) of what the user may not do.
        marks: None where the table is missing or may not be read.
        replication: None on a primary.
        traits: what decides whether a replica shows what its primary has.
        old_ids: of a primary, by `co_location.old_ids_in`.
        zone: the server's own time zone in winter and in summer, where the pipeline's sessions have another.
        clocks: (table, trigger) of each trigger in the database that asks what time it is.
        sees_triggers: whether the user may see all triggers of the database.
    """

    node: str
    engine: str
    version: str
    account: str = ""
    database: str = ""
    charset: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    skew_ms: int = 0
    tables: Mapping[str, SurveyedTable] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    denied: Sequence[tuple[str, str]] = ()
    marks: Mapping[int, Mark] | None = None
    replication: mysql.Replication | None = None
    traits: Traits | None = None
    old_ids: frozenset[str] = frozenset()
    zone: str = ""
    clocks: Sequence[tuple[str, str]] = ()
    sees_triggers: bool = True

    @property
    def release(self) -> tuple[str, tuple[int, ...]]:
        """mariadb, mysql or sqlite, and the first two numbers of its version."""
        numbers = tuple(int(part) for part in self.version.split("-")[0].split(".")[:2] if part.isdigit())
        return ("mariadb" if "mariadb" in self.version.lower() else self.engine), numbers


def survey(
    node: str,
    uri: str,
    tables: Sequence[str],
    *,
    primary: bool,
    statement_s: float = BRIEF_STATEMENT_S,
    schemas: Sequence[TableSchema] = (),
    topology: Topology | None = None,
) -> Survey:
    """Survey one node.

    Args:
        node: its name, for messages.
        uri: pyDAL's URI.
        tables: the names in the database of the tables to survey closely.
        primary: whether the node is the primary, where writes are checked too; else its replication is.
        statement_s: the longest wait for the answer to a statement, seconds.
        schemas: the published definitions; without a topology nothing is asked about their ids.
        topology: the rules of all tables.

    Raises:
        ShardUnavailable: the node did not answer in time.
    """
    # EXPLAIN of a write needs a session that may write
    with brief(node, uri, read_only=not primary, statement_s=statement_s) as session:
        if session.dialect.name == "sqlite":
            return _sqlite(session, tables)
        found = _mysql(session, tables, primary)
        old_ids = old_ids_in(session, schemas, topology) if topology and primary else ()
        return replace(found, old_ids=frozenset(old_ids))


def _mysql(session: NodeSession, tables: Sequence[str], primary: bool) -> Survey:
    with session.translated():
        found = _tables(session, tables)
    denied = mysql.denied(session, tables, found, writes=primary)
    return Survey(
        session.node,
        "mysql",
        **mysql.about(session),
        variables=mysql.variables(session),
        skew_ms=_skew_ms(session),
        tables=found,
        others=mysql.unsafe_engines(session, tables),
        denied=denied,
        marks=None if ("SELECT", "pipeline_watermarks") in denied else _marks(session),
        replication=None if primary else mysql.replication(session),
        traits=mysql.traits(session),
        zone=mysql.other_zone(session),
        clocks=mysql.clock_triggers(session),
        sees_triggers=_sees_triggers(session),
    )


def _sqlite(session: NodeSession, tables: Sequence[str]) -> Survey:
    version = session.query("SELECT sqlite_version()")[0][0]
    found = {}
    for table in tables:
        columns = {c.name.lower(): SurveyedColumn(c.type, None, False) for c in columns_of(session, table)}
        if columns:
            with session.translated():
                found[table.lower()] = SurveyedTable(table, "sqlite", columns, constraints_of(session, table))
    return Survey(session.node, "sqlite", version, tables=found, marks=_marks(session))


def _tables(session: NodeSession, tables: Sequence[str]) -> dict[str, SurveyedTable]:
    """Return the tables that are there: in a few queries, as an application may have hundreds."""
    columns: dict[str, dict[str, SurveyedColumn]] = {}
    for table, name, kind, charset, required, filled, collation in mysql.columns(session, tables):
        columns.setdefault(table, {})[name.lower()] = SurveyedColumn(kind, charset, required, filled, collation)
    engines = mysql.engines(session, tables)
    there = [table for table in tables if table.lower() in columns]
    constraints = constraints_in(session, there)
    return {
        table.lower(): SurveyedTable(table, engines.get(table.lower(), ""), columns[table.lower()], constraints[table])
        for table in there
    }


def _sees_triggers(session: NodeSession) -> bool:
    with session.translated():
        return sees_triggers(session)


def _marks(session: NodeSession) -> dict[int, Mark] | None:
    try:
        return ledger_queries.marks_of(session)
    except NotMigrated:
        return None


def _skew_ms(session: NodeSession) -> int:
    before = clock.wall_ms()
    there = int(session.query(f"SELECT {session.dialect.now_ms}")[0][0])
    return there - min(max(there, before), clock.wall_ms())
