"""Read what a worker must know of a table on one shard: its constraints in the database, and its value encoders.

Grouping must respect unique indexes and foreign keys. Constraints are read from the database, not from the model: an
index that was added by hand counts too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from pipeline.model.schema import TableSchema
from pipeline.shard.dialect import Dialect
from pipeline.shard.foreign_keys import ForeignKey, descendants, foreign_keys_in, joined
from pipeline.shard.literals import encoder
from pipeline.shard.records.ledger import text_literal
from pipeline.shard.session import NodeSession

#: What is before the body of SQLite's CREATE TRIGGER; its event.
_SQLITE_HEAD = re.compile(r"(?is).*?\b(insert|update|delete)\b.*?\bon\s+\S+")
#: What a collation compares.
_TEXTS = frozenset(("string", "text", "json", "list:string"))


@dataclass(frozen=True)
class Facts:
    """One schema on one shard. Column numbers are those of the schema.

    Attributes:
        encode: the encoder of each column.
        names: the columns' names, quoted.
        table: the table's name, quoted.
        in_order: whether an UPDATE or a DELETE can meet its rows in the order of its ops.
    """

    schema: TableSchema
    constraints: Constraints
    encode: tuple[Callable[[Any], str], ...]
    names: tuple[str, ...]  # quoted as the database wants them
    table: str  # quoted
    in_order: bool = False

    @cached_property
    def unique(self) -> tuple[tuple[int, ...], ...]:
        """The unique indexes whose columns the schema knows, the id left out."""
        known = [self._numbers(columns) for columns in self.constraints.unique]
        return tuple(columns for columns in known if columns and columns != (self.schema.id_index,))

    @cached_property
    def hidden_unique(self) -> bool:
        """Whether a unique index has columns that the schema does not know."""
        return any(self._numbers(columns) is None for columns in self.constraints.unique)

    @cached_property
    def unique_columns(self) -> frozenset[int]:
        """The columns that take part in a unique index."""
        return frozenset(column for columns in self.unique for column in columns)

    @cached_property
    def texts(self) -> frozenset[int]:
        """The columns with texts: only the collation knows which of these are equal."""
        return frozenset(number for number, column in enumerate(self.schema.columns) if column.kind in _TEXTS)

    @cached_property
    def parents(self) -> tuple[tuple[int | None, str], ...]:
        """(column, parent table) of each foreign key to a parent's id; column None where it is another kind."""
        found = []
        for key in self.constraints.parents:
            numbers = self._numbers(key.columns)
            simple = numbers is not None and len(numbers) == 1 and key.parent_columns == ("id",)
            found.append((numbers[0] if simple and numbers else None, key.parent))
        return tuple(found)

    @cached_property
    def database_name(self) -> str:
        """The table's name in the database, for conflict keys."""
        return self.schema.name_there

    @cached_property
    def plain(self) -> bool:
        """Whether an insert can conflict on nothing but its id and the ids of its parents."""
        return not (
            self.unique
            or self.hidden_unique
            or any(column is None for column, _ in self.parents)
            or self.constraints.fired("INSERT")
        )

    def has(self, column: str | None) -> bool:
        """Return whether the schema has a column.

        Args:
            column: its name in the database; None is no column.
        """
        return column is not None and self._numbers((column,)) is not None

    def _numbers(self, columns: tuple[str, ...]) -> tuple[int, ...] | None:
        by_name = {c.name_there.lower(): i for i, c in enumerate(self.schema.columns)}
        numbers = [by_name.get(column.lower()) for column in columns]
        return None if None in numbers else tuple(n for n in numbers if n is not None)


def facts_of(session: NodeSession, schema: TableSchema) -> Facts:
    """Read what a database enforces on a table.

    Args:
        session: of the shard's primary.
        schema: the table's schema.
    """
    quote = session.dialect.quote
    return Facts(
        schema,
        constraints_of(session, schema.name_there),
        tuple(encoder(session.adapter, column) for column in schema.columns),
        tuple(quote(column.name_there) for column in schema.columns),
        quote(schema.name_there),
        session.dialect.in_order is not None,
    )


def rows_about(names: Iterable[str]) -> str:
    """Return the condition on a view of information_schema for the rows of some tables of the session's database.

    Args:
        names: the tables.
    """
    texts = ", ".join(map(text_literal, names))
    return f"table_schema = DATABASE() AND table_name IN ({texts})" if texts else "1=0"


@dataclass(frozen=True, slots=True)
class Constraints:
    """The constraints of one table; names are the database's.

    Attributes:
        unique: the columns of each unique index, the primary key left out.
        parents: its foreign keys.
        children: tables whose foreign keys point here, and their children: a delete may reach all of them.
        triggers: (event, tables that its triggers may reach), as far as the account may see triggers.
    """

    unique: tuple[tuple[str, ...], ...] = ()
    parents: tuple[ForeignKey, ...] = ()
    children: tuple[str, ...] = ()
    triggers: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def fired(self, *events: str) -> frozenset[str]:
        """Return the tables that triggers may read or write.

        Args:
            events: INSERT, UPDATE or DELETE.
        """
        return frozenset(table for event, tables in self.triggers if event in events for table in tables)


def constraints_of(session: NodeSession, table: str) -> Constraints:
    """Read a table's constraints.

    Args:
        session: of the node.
        table: its name in the database.
    """
    return constraints_in(session, [table])[table]


def constraints_in(session: NodeSession, tables: Sequence[str]) -> dict[str, Constraints]:
    """Read the constraints of several tables at once.

    Args:
        session: of the node.
        tables: their names in the database.
    """
    if session.dialect.name == "sqlite":
        return {table: _sqlite(session, table) for table in tables}
    return _mysql(session, tables)


def _mysql(session: NodeSession, tables: Sequence[str]) -> dict[str, Constraints]:
    unique = session.rows(
        "SELECT table_name, index_name, column_name FROM information_schema.statistics"
        f" WHERE {rows_about(tables)} AND non_unique = 0 AND index_name <> 'PRIMARY'"
        " ORDER BY index_name, seq_in_index"
    )
    keys = foreign_keys_in(session, rows_about(tables))
    pairs = session.rows(
        "SELECT DISTINCT referenced_table_name, table_name FROM information_schema.key_column_usage"
        " WHERE referenced_table_schema = DATABASE() AND referenced_table_name IS NOT NULL"
    )
    children: dict[str, list[str]] = {}
    for parent, child in pairs:
        children.setdefault(parent.lower(), []).append(child)
    reach = _reach_of_triggers(session, children)
    indexes: dict[str, dict[str, list[str]]] = {}
    for table, index, column in unique:
        indexes.setdefault(table.lower(), {}).setdefault(index, []).append(column)
    return {
        table: Constraints(
            tuple(map(tuple, indexes.get(table.lower(), {}).values())),
            tuple(key for key in keys if key.table.lower() == table.lower()),
            descendants(table, children),
            reach.get(table.lower(), ()),
        )
        for table in tables
    }


def _sqlite(session: NodeSession, table: str) -> Constraints:
    about = partial(pragma, session.dialect, table)
    unique = []
    for row in session.rows(about("index_list")):
        if row[2] and row[3] != "pk":
            unique.append(tuple(column[2] for column in session.rows(about("index_info", row[1]))))
    keys = [
        (row[0], table, row[3], row[2], row[4] or "id", row[6], row[5])
        for row in session.rows(about("foreign_key_list"))
    ]
    children: dict[str, list[str]] = {}
    for (other,) in session.rows("SELECT name FROM sqlite_master WHERE type = 'table'"):
        for row in session.rows(pragma(session.dialect, other, "foreign_key_list")):
            children.setdefault(row[2].lower(), []).append(other)
    reach = _reach_of_triggers(session, children).get(table.lower(), ())
    return Constraints(tuple(unique), tuple(joined(keys, named=False)), descendants(table, children), reach)


def _reach_of_triggers(
    session: NodeSession, children: Mapping[str, Sequence[str]]
) -> dict[str, tuple[tuple[str, tuple[str, ...]], ...]]:
    """Return what the triggers of each table may read or write, by event: what they name, and what that reaches."""
    triggers = _triggers(session)
    if not triggers:
        return {}
    if session.dialect.name == "sqlite":
        tables, routines = session.rows("SELECT name FROM sqlite_master WHERE type = 'table'"), set[str]()
    else:
        tables = session.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()")
        found = session.rows("SELECT routine_name FROM information_schema.routines WHERE routine_schema = DATABASE()")
        routines = {"call", *(str(name).lower() for (name,) in found)}
    names = {str(name).lower(): str(name) for (name,) in tables if not str(name).startswith("pipeline_")}
    named: dict[tuple[str, str], set[str]] = {}
    for table, event, body in triggers:
        words = {word.lower() for word in re.findall(r"[\w$]+", body)}
        # what a routine does is not known, and a session's variable is what the last trigger made of it
        reached = set(names) if words & routines else words & names.keys()
        named.setdefault((table, event), set()).update(reached, "@" if "@" in body else ())
    further = {name: {child.lower() for child in children.get(name, ())} for name in names}
    for (table, _), reached in named.items():
        further.setdefault(table, set()).update(reached)
    reach: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {}
    for (table, event), reached in sorted(named.items()):
        all_of_it = reached | {name.lower() for one in reached for name in descendants(one, further)}
        reach[table] = (*reach.get(table, ()), (event, tuple(sorted(names.get(one, one) for one in all_of_it))))
    return reach


def _triggers(session: NodeSession) -> list[tuple[str, str, str]]:
    """Return table, event and body of each trigger."""
    if session.dialect.name == "sqlite":
        found = session.rows("SELECT tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")
        heads = [(table, _SQLITE_HEAD.match(sql), sql) for table, sql in found]
        return [(table.lower(), head[1].upper(), sql[head.end() :]) for table, head, sql in heads if head]
    rows = session.rows(
        "SELECT event_object_table, event_manipulation, action_statement FROM information_schema.triggers"
        " WHERE trigger_schema = DATABASE()"
    )
    return [(str(table).lower(), str(event), str(body)) for table, event, body in rows]


def pragma(dialect: Dialect, table: str, what: str, of: str | None = None) -> str:
    """Return SQLite's question about a table or one of its indexes.

    Args:
        dialect: SQLite's.
        table: its name in the database.
        what: such as `table_info`.
        of: the index; None for the table.
    """
    return f"PRAGMA {what}({dialect.quote(of or table)})"
