"""Survey a node once for `check`: version, settings, replication, privileges; for `adopt`, all of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipeline import clock
from pipeline.config import Topology
from pipeline.errors import NotMigrated
from pipeline.model.schema import TableSchema
from pipeline.shard import BRIEF_STATEMENT_S, NodeSession, brief
from pipeline.shard.co_location import old_ids_in
from pipeline.shard.columns import columns_of
from pipeline.shard.records import Mark, ledger_queries
from pipeline.shard.survey import mysql
from pipeline.shard.survey.mysql import Traits
from pipeline.shard.table_facts import (
    Constraints,
    ForeignKey,
    constraints_in,
    constraints_of,
    foreign_keys_in,
    sees_triggers,
)

#: A catalog of many tables takes its time, s.
CATALOG_S = 30


class CatalogColumn(NamedTuple):
    """One column. `default`: the text behind DEFAULT as this server would take it back, None for none."""

    name: str
    type: str
    nullable: bool
    default: str | None
    automatic: bool
    comment: str


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """One table. `rows` is the server's estimate; `unique` has the columns of each unique index by its name."""

    name: str
    rows: int
    columns: Mapping[str, CatalogColumn]
    primary: tuple[str, ...]
    unique: Mapping[str, tuple[str, ...]]

    @property
    def id(self) -> str | None:
        """The column that pyDAL can use as the id: the only one of the primary key, and a whole number."""
        [*columns] = self.primary
        if len(columns) == 1 and "int" in self.columns[columns[0]].type:
            return columns[0]
        return None


@dataclass(frozen=True, slots=True)
class Catalog:
    """One database. The keys of `tables` are the names as the server writes them."""

    tables: Mapping[str, CatalogTable]
    foreign_keys: Sequence[ForeignKey]
    triggers: Sequence[tuple[str, str]]  # (table, trigger)


def catalog(uri: str, node: str = "database") -> Catalog:
    """Read all of a database's catalog in a session in which the server refuses every write.

    Args:
        uri: the database's address.
        node: its name, for messages.

    Raises:
        ShardUnavailable: the node did not answer in time.
    """
    with brief(node, uri, statement_s=CATALOG_S) as session:
        rows: dict[str, int] = {
            name: int(count or 0)
            for name, count in _ask(session, "table_name, table_rows", "tables", "table_type = 'BASE TABLE'")
        }
        columns = _columns(session)
        indexes = _indexes(session)
        tables = {name: _table(name, rows[name], columns[name], indexes.get(name, {})) for name in sorted(rows)}
        triggers = _ask(session, "event_object_table, trigger_name", "triggers", "1=1", "trigger_schema")
        with session.translated():
            keys = foreign_keys_in(session, "table_schema = DATABASE()")
        return Catalog(tables, keys, sorted((str(a), str(b)) for a, b in triggers))


def _table(
    name: str, rows: int, columns: dict[str, CatalogColumn], indexes: dict[str, tuple[bool, list[str]]]
) -> CatalogTable:
    unique = {index: tuple(on) for index, (single, on) in indexes.items() if single and index != "PRIMARY"}
    return CatalogTable(name, rows, columns, tuple(indexes.get("PRIMARY", (True, []))[1]), unique)


def _columns(session: NodeSession) -> dict[str, dict[str, CatalogColumn]]:
    what = "table_name, column_name, column_type, is_nullable, column_default, extra, column_comment"
    is_mariadb = "mariadb" in str(session.query("SELECT VERSION()")[0][0]).lower()
    found: dict[str, dict[str, CatalogColumn]] = {}
    for table, name, kind, nullable, default, extra, comment in _ask(
        session, what, "columns", "1=1 ORDER BY table_name, ordinal_position"
    ):
        text = _default(default, is_mariadb)
        found.setdefault(table, {})[name] = CatalogColumn(
            name, str(kind).lower(), nullable == "YES", text, "auto_increment" in extra.lower(), comment
        )
    return found


def _default(default: Any, is_mariadb: bool) -> str | None:
    """Return a default as SQL. MariaDB writes a default as SQL, MySQL as a bare text; NULL is none for both."""
    if default is None or default == "NULL":
        return None
    return str(default) if is_mariadb else "'" + str(default).replace("'", "''") + "'"


def _indexes(session: NodeSession) -> dict[str, dict[str, tuple[bool, list[str]]]]:
    found: dict[str, dict[str, tuple[bool, list[str]]]] = {}
    order = "1=1 ORDER BY table_name, index_name, seq_in_index"
    for table, index, many, column in _ask(
        session, "table_name, index_name, non_unique, column_name", "statistics", order
    ):
        found.setdefault(table, {}).setdefault(index, (not int(many), []))[1].append(column)
    return found


def _ask(session: NodeSession, what: str, view: str, where: str, schema: str = "table_schema") -> list[tuple[Any, ...]]:
    return session.query(f"SELECT {what} FROM information_schema.{view} WHERE {schema} = DATABASE() AND {where}")


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
        takes_several: of a primary, by `NodeSession.takes_several`.
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
    takes_several: bool = True

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
        takes_several=not primary or session.takes_several(),
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
