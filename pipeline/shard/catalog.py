"""Read every table of an existing MySQL or MariaDB database from its information_schema, for `adopt` to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.shard.reach import ForeignKey, foreign_keys_in
from pipeline.shard.session import NodeSession, brief

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
