"""Read what a worker must know of a table on one shard: constraints, encoders, what a write may reach.

Find which other tables a write may reach: through foreign keys that a database enforces, and through its triggers.
What cannot be seen counts as reaching everything. MySQL and MariaDB show triggers only to a user with the privilege
TRIGGER, and routines only to one that may run them.

Grouping must respect unique indexes and foreign keys. Constraints are read from the database, not from the model: an
index that was added by hand counts too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any, NamedTuple

from pipeline.model.schema import TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.dialect import Dialect
from pipeline.shard.literals import JsonForm, encoder, json_form
from pipeline.shard.records import text_literal

_RULE = "(RESTRICT|CASCADE|SET NULL|NO ACTION|SET DEFAULT)"
#: A foreign key in the words of SHOW CREATE TABLE.
_WRITTEN = re.compile(
    rf"CONSTRAINT `((?:[^`]|``)+)` FOREIGN KEY [^\n]*?\)(?: ON DELETE {_RULE})?(?: ON UPDATE {_RULE})?,?$", re.MULTILINE
)
#: (event, tables that matter to a table's triggers on that event); `@` are the variables of the session.
Reach = tuple[tuple[str, tuple[str, ...]], ...]
_EVENTS = ("DELETE", "INSERT", "UPDATE")
#: What is before the body of SQLite's CREATE TRIGGER; its event.
_SQLITE_HEAD = re.compile(r"(?is).*?\b(insert|update|delete)\b.*?\bon\s+\S+")
#: The statements that write rows: a trigger without one of these words, and without a routine, writes its own row only.
_WRITES = frozenset(("insert", "update", "delete", "replace", "load", "truncate"))
#: What servers call a table of which all is known that a name in a trigger may do.
_TABLE_TYPES = ("table", "base table")
_WORD = re.compile(r"[\w$]+")
#: What may be the call of a routine, and whether it names a database.
_CALL = re.compile(r"(\.\s*)?`?([\w$]+)`?\s*\(")
#: Words before a bracket that call no routine of the application's. The list need not be whole: another word counts as
#: a routine, which costs speed.
_BUILT_IN = frozenset(
    re.findall(
        r"\w+",
        """
        and as between by case distinct else elseif exists if in insert into key mod not on or return select set then
        until using values when where while xor
        bigint char date datetime decimal enum int integer json text time timestamp varchar year
        abs ascii avg cast ceil ceiling char_length coalesce concat concat_ws convert convert_tz count curdate
        current_date current_time current_timestamp current_user curtime database date_add date_format date_sub datediff
        day dayofweek elt extract field find_in_set floor format from_unixtime greatest hex hour ifnull instr isnull
        json_array json_extract json_object json_quote json_set json_unquote json_value last_insert_id least left length
        locate lower lpad ltrim max md5 min minute month now nullif position power quarter rand replace reverse right
        round row_count rpad rtrim second sha1 sha2 sign str_to_date strcmp substr substring substring_index sum sysdate
        time_format timediff timestampadd timestampdiff to_days trim truncate unix_timestamp upper user utc_date
        utc_time utc_timestamp uuid week weekday
        """,
    )
)
#: A line of SHOW GRANTS that is about tables: what, on which database, on which table. Names as the server writes them.
_GRANT = re.compile(r"(GRANT|REVOKE) (.+?) ON (?:TABLE )?(\*|`(?:[^`]|``)+`)\.(\*|`(?:[^`]|``)+`) (?:TO|FROM) ")


# foreign keys -----------------------------------------------------------------------------------------------------
#: What a collation compares.
_TEXTS = frozenset(("string", "text", "json", "list:string"))


class ForeignKey(NamedTuple):
    """One foreign key, with a single column or several; names are the database's, and SQLite's have none."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...] = ("id",)
    table: str = ""
    name: str = ""
    on_delete: str = "RESTRICT"
    on_update: str = "RESTRICT"


def foreign_keys_in(session: NodeSession, where: str) -> list[ForeignKey]:
    """Read foreign keys of the session's database, MySQL or MariaDB.

    Args:
        session: of the node.
        where: which, as a condition on the tables that have them; see `table_facts.rows_about`.
    """
    columns = session.rows(
        "SELECT table_name, constraint_name, column_name, referenced_table_name, referenced_column_name"
        f" FROM information_schema.key_column_usage WHERE {where}"
        " AND referenced_table_name IS NOT NULL ORDER BY table_name, constraint_name, ordinal_position"
    )
    rules = session.rows(
        "SELECT table_name, constraint_name, delete_rule, update_rule"
        f" FROM information_schema.referential_constraints WHERE {where.replace('table_schema', 'constraint_schema')}"
    ) if columns else []  # fmt: skip
    rule_of = {(row[0], row[1]): row[2:] for row in rules}
    hidden = {table for table, name, *_ in columns if (table, name) not in rule_of}
    rule_of |= {key: rules for table in sorted(hidden) for key, rules in _written_rules(session, table)}
    return list(
        joined(
            (name, table, own, parent, theirs, *rule_of.get((table, name), ()))
            for table, name, own, parent, theirs in columns
        )
    )


def _written_rules(session: NodeSession, table: str) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
    """Yield (table, name) and the rules of each foreign key from the table's definition.

    To a user who may only read, MariaDB 10.11 shows keys in `key_column_usage`, and none in `referential_constraints`.
    """
    [(_, text)] = session.rows(f"SHOW CREATE TABLE {session.dialect.quote(table)}")
    for found in _WRITTEN.finditer(str(text)):
        name, on_delete, on_update = found.groups()
        yield (table, name.replace("``", "`")), (on_delete or "RESTRICT", on_update or "RESTRICT")


def joined(rows: Iterable[Sequence[Any]], *, named: bool = True) -> Iterator[ForeignKey]:
    """Yield the foreign keys of rows: name, table, column, parent, its column, rules; a row is one of its columns.

    Args:
        rows: those of one foreign key side by side, in the order of its columns.
        named: whether the name is the database's, or a number of this list.
    """
    for _, found in groupby(rows, key=lambda row: row[:2]):
        parts = list(found)
        name, table, _, parent, _, *rules = parts[0]
        own, theirs = (tuple(str(part[at]) for part in parts) for at in (2, 4))
        yield ForeignKey(own, str(parent), theirs, str(table), str(name) if named else "", *map(str, rules))


def descendants(table: str, children: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return the tables that a delete may reach through foreign keys: the children, and the children of those.

    Args:
        table: where rows are deleted; its bare name.
        children: the tables with foreign keys to a table, by its name in lower case.
    """
    found: dict[str, None] = {}
    waiting = [table]
    while waiting:
        new = [child for child in children.get(waiting.pop().lower(), ()) if child not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return tuple(found)


# triggers ---------------------------------------------------------------------------------------------------------


class TriggerReach(NamedTuple):
    """The tables that matter to the triggers of one table, by event.

    Attributes:
        reached: the tables that they may read or write.
        sources: the tables an op on which may change what they do with the same row: those, and what may change these.
        writing: the events of those that may write, or of which nothing is known.
    """

    reached: Reach = ()
    sources: Reach = ()
    writing: tuple[str, ...] = ()


def reach_of_triggers(session: NodeSession, children: Mapping[str, Sequence[str]]) -> dict[str, TriggerReach]:
    """Return the tables that matter to the triggers of each table, by its name in lower case.

    A table without triggers is left out. Where the user may not see triggers, every table has some that reach all.

    Args:
        session: of the node.
        children: the tables with foreign keys to a table, by its name in lower case.
    """
    unseen = not sees_triggers(session)
    triggers = [] if unseen else _triggers(session)
    if not (triggers or unseen):
        return {}
    sqlite = session.dialect.name == "sqlite"
    rows = session.rows(
        "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')"
        if sqlite
        else "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = DATABASE()"
    )
    names = {str(name).lower(): str(name) for name, _ in rows if not str(name).startswith("pipeline_")}
    opaque = {str(name).lower() for name, what in rows if str(what).lower() not in _TABLE_TYPES}
    if unseen:
        all_of_it = tuple((event, (*sorted(names.values()), "@")) for event in _EVENTS)
        return dict.fromkeys(names, TriggerReach(all_of_it, all_of_it, _EVENTS))
    named, writing = _in_bodies(triggers, names, opaque, sqlite=sqlite)
    further = {name: {child.lower() for child in children.get(name, ())} for name in names}
    changed_by: dict[str, set[str]] = {}
    for name, changed in [*further.items(), *((table, named[table, event]) for table, event in writing)]:
        for one in changed:
            changed_by.setdefault(one, set()).add(name)
    for (table, _), directly in named.items():
        further.setdefault(table, set()).update(directly)
    reach: dict[str, TriggerReach] = {}
    for (table, event), directly in sorted(named.items()):
        writes = (table, event) in writing
        reached = _closure(directly, further) if writes else directly
        there, sources = reach.get(table, TriggerReach()), _closure(reached, changed_by)
        reach[table] = TriggerReach(
            (*there.reached, (event, tuple(sorted(names.get(one, one) for one in reached)))),
            (*there.sources, (event, tuple(sorted(names.get(one, one) for one in sources)))),
            (*there.writing, event) if writes else there.writing,
        )
    return reach


def _in_bodies(
    triggers: Iterable[tuple[str, str, str]], names: Collection[str], opaque: Collection[str], *, sqlite: bool
) -> tuple[dict[tuple[str, str], set[str]], set[tuple[str, str]]]:
    """Return what the triggers of each table and event name, and of which tables and events they may write.

    Args:
        triggers: table, event and body of each.
        names: of all tables, in lower case.
        opaque: of those, what is no plain table.
        sqlite: whether it is SQLite, which has no routines.
    """
    named: dict[tuple[str, str], set[str]] = {}
    writing = set[tuple[str, str]]()
    for table, event, body in triggers:
        words = {word.lower() for word in _WORD.findall(body)}
        # what a view shows, a sequence has given or a routine does is not known; a variable is the last trigger's
        hidden = any(_names(body, words, name) for name in opaque) or (not sqlite and _calls(body, names))
        reached = set(names) if hidden else {name for name in names if _names(body, words, name)}
        named.setdefault((table, event), set()).update(reached, "@" if hidden or "@" in body else ())
        if hidden or not words.isdisjoint(_WRITES):
            writing.add((table, event))
    return named, writing


def _closure(names: Iterable[str], further: Mapping[str, Iterable[str]]) -> set[str]:
    """Return some names and all to which these lead, in lower case."""
    some = set(names)
    return some | {name.lower() for one in some for name in descendants(one, further)}


def sees_triggers(session: NodeSession) -> bool:
    """Return whether the user may see all triggers of the session's database.

    Args:
        session: of the node.
    """
    if session.dialect.name == "sqlite":
        return True
    [(database,)] = session.rows("SELECT DATABASE()")
    return may_see_triggers([str(line) for (line,) in session.rows("SHOW GRANTS")], str(database))


def may_see_triggers(grants: Iterable[str], database: str) -> bool:
    """Return whether grants let their user see all triggers of a database; in doubt they do not.

    A grant on the database by its own name decides before any on a pattern of names. Patterns must agree: the server
    takes one of them.

    Args:
        grants: the lines of SHOW GRANTS.
        database: its name.
    """
    named, patterns = list[bool](), list[bool]()
    for verb, what, where, table in (match.groups() for match in map(_GRANT.match, grants) if match):
        has = bool({"TRIGGER", "ALL", "ALL PRIVILEGES"} & {one.strip() for one in what.split(",")})
        if table != "*":
            continue
        if where == "*":
            if has and verb == "GRANT":
                named.append(True)
        elif not _fits(where, database):
            continue
        elif verb == "REVOKE":  # of MySQL: what a grant on all databases gives, this one is without
            if has:
                return False
        else:
            (patterns if re.search(r"(?<!\\)[%_]", where) else named).append(has)
    return any(named) if named else bool(patterns) and all(patterns)


def _fits(pattern: str, database: str) -> bool:
    r"""Return whether a database's name fits a grant's, where `_` and `%` are any characters, `\_` and `\%` these."""
    parts = re.split(r"(\\.|[%_])", pattern[1:-1].replace("``", "`"))
    written = "".join({"%": ".*", "_": "."}.get(part) or re.escape(part.removeprefix("\\")) for part in parts)
    return re.fullmatch(written, database, re.IGNORECASE | re.DOTALL) is not None


def _names(body: str, words: Collection[str], table: str) -> bool:
    """Return whether a trigger's body may name a table; a name that is no word stands in quotes."""
    return table in words or (_WORD.fullmatch(table) is None and table.replace("`", "``") in body.lower())


def _calls(body: str, tables: Iterable[str]) -> bool:
    """Return whether a trigger's body may call a routine: a procedure, or a function that is not the server's own."""
    found = {(bool(dot), word.lower()) for dot, word in _CALL.findall(body)}
    known = {*tables, *_BUILT_IN}
    return re.search(r"(?i)\bcall\b", body) is not None or any(
        word not in known or (dot and word in _BUILT_IN) for dot, word in found
    )


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


@dataclass(frozen=True)
class Facts:
    """One schema on one shard. Column numbers are those of the schema.

    Attributes:
        encode: the encoder of each column.
        names: the columns' names, quoted.
        table: the table's name, quoted.
        in_order: whether an UPDATE or a DELETE can meet its rows in the order of its ops.
        json_forms: of each column, which values JSON writes as the database reads them; None: none.
    """

    schema: TableSchema
    constraints: Constraints
    encode: tuple[Callable[[Any], str], ...]
    names: tuple[str, ...]  # quoted as the database wants them
    table: str  # quoted
    in_order: bool = False
    json_forms: tuple[JsonForm | None, ...] = ()

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
        return not (self._needs_more or self.constraints.fired("INSERT"))

    @cached_property
    def read_by_inserts(self) -> frozenset[str] | None:
        """The other tables on which an insert may depend; None where it may conflict on more than these and its id."""
        tables = self.constraints.fired("INSERT") | {parent for _, parent in self.parents}
        more = self._needs_more or self.constraints.writes("INSERT")
        return None if more or not tables.isdisjoint((self.database_name, "@")) else tables

    @cached_property
    def _needs_more(self) -> bool:
        """Whether an insert may conflict on more than its id, ids of parents, and what triggers do."""
        return bool(self.unique) or self.hidden_unique or any(column is None for column, _ in self.parents)

    def has(self, column: str | None) -> bool:
        """Return whether the schema has a column.

        Args:
            column: its name in the database; None is no column.
        """
        return column is not None and self._numbers((column,)) is not None

    def of_numbers(self, columns: Iterable[int]) -> list[int]:
        """Return those of some columns that get numbers where pyDAL writes texts.

        Args:
            columns: their numbers.
        """
        return [column for column in columns if (form := self.json_forms[column]) and form.of_numbers]

    def still_of_numbers(self, session: NodeSession, columns: Iterable[int]) -> bool:
        """Return whether columns have types still that read a number as its text; 0.3 ms.

        Once a transaction has written the table, no other connection can alter it before the commit.

        Args:
            session: of the shard's primary, inside the transaction.
            columns: of `of_numbers`.
        """
        types = _column_types(session, self.schema.name_there)
        pairs = [(types.get(self.schema.columns[one].name_there.lower()), self.json_forms[one]) for one in columns]
        return all(form is not None and type_ in form.of_numbers for type_, form in pairs)

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
    quote, types = session.dialect.quote, _column_types(session, schema.name_there)
    encode = tuple(encoder(session.adapter, column) for column in schema.columns)
    pairs = zip(encode, schema.columns, strict=True)
    return Facts(
        schema,
        constraints_of(session, schema.name_there),
        encode,
        tuple(quote(column.name_there) for column in schema.columns),
        quote(schema.name_there),
        session.dialect.in_order is not None,
        tuple(json_form(one, column, types.get(column.name_there.lower())) for one, column in pairs),
    )


def _column_types(session: NodeSession, table: str) -> dict[str, str]:
    """Return the type of each column that may be written as JSON, both in lower case; none on SQLite."""
    if session.dialect.name == "sqlite":  # double quotes are for names there
        return {}
    about = f"information_schema.columns WHERE {rows_about([table])}"
    return dict(session.rows(f"SELECT LOWER(column_name), LOWER(data_type) FROM {about}"))


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
        triggers: by event, the tables that its triggers may reach; all of them where the user may not see triggers.
        sources: by event, the tables an op on which may change what its triggers do with the same row.
        writing: the events on which its triggers may write other rows, or do what nobody knows.
        reached: of the table and its parents, in lower case, those that a trigger of any table may write.
    """

    unique: tuple[tuple[str, ...], ...] = ()
    parents: tuple[ForeignKey, ...] = ()
    children: tuple[str, ...] = ()
    triggers: Reach = ()
    sources: Reach = ()
    writing: tuple[str, ...] = ()
    reached: frozenset[str] = frozenset()

    @property
    def apart(self) -> bool:
        """Whether no other row of the table has a say in what becomes of a row: no unique index, no trigger."""
        return not (self.unique or self.triggers)

    def has_triggers(self, *events: str) -> bool:
        """Return whether the table has triggers on some events, or may have, as the user may not see them.

        Args:
            events: INSERT, UPDATE or DELETE.
        """
        return any(event in events for event, _ in self.triggers)

    def fired(self, *events: str) -> frozenset[str]:
        """Return the tables that triggers may read or write.

        Args:
            events: INSERT, UPDATE or DELETE.
        """
        return _of_events(self.triggers, events)

    def changed_by(self, *events: str) -> frozenset[str]:
        """Return the tables an op on which may change what triggers do with the same row.

        Args:
            events: INSERT, UPDATE or DELETE.
        """
        return _of_events(self.sources, events)

    def writes(self, *events: str) -> bool:
        """Return whether triggers may write other rows, or do what nobody knows.

        Args:
            events: INSERT, UPDATE or DELETE.
        """
        return not set(events).isdisjoint(self.writing)


def _of_events(reach: Reach, events: Collection[str]) -> frozenset[str]:
    return frozenset(table for event, tables in reach if event in events for table in tables)


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
    reach = reach_of_triggers(session, children)
    indexes: dict[str, dict[str, list[str]]] = {}
    for table, index, column in unique:
        indexes.setdefault(table.lower(), {}).setdefault(index, []).append(column)
    return {
        table: Constraints(
            tuple(map(tuple, indexes.get(table.lower(), {}).values())),
            tuple(key for key in keys if key.table.lower() == table.lower()),
            descendants(table, children),
            *reach.get(table.lower(), TriggerReach()),
            _reached(table, keys, reach),
        )
        for table in tables
    }


def _reached(table: str, keys: Iterable[ForeignKey], reach: Mapping[str, TriggerReach]) -> frozenset[str]:
    own = {table.lower(), *(key.parent.lower() for key in keys if key.table.lower() == table.lower())}
    written = (tables for theirs in reach.values() for event, tables in theirs.reached if event in theirs.writing)
    return frozenset(own & {one.lower() for tables in written for one in tables})


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
    reach, parents = reach_of_triggers(session, children), tuple(joined(keys, named=False))
    return Constraints(
        tuple(unique),
        parents,
        descendants(table, children),
        *reach.get(table.lower(), TriggerReach()),
        _reached(table, parents, reach),
    )


def pragma(dialect: Dialect, table: str, what: str, of: str | None = None) -> str:
    """Return SQLite's question about a table or one of its indexes.

    Args:
        dialect: SQLite's.
        table: its name in the database.
        what: such as `table_info`.
        of: the index; None for the table.
    """
    return f"PRAGMA {what}({dialect.quote(of or table)})"
