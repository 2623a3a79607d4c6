"""Read the foreign keys that a database enforces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from pipeline.shard.session import NodeSession

_RULE = "(RESTRICT|CASCADE|SET NULL|NO ACTION|SET DEFAULT)"
#: A foreign key in the words of SHOW CREATE TABLE.
_WRITTEN = re.compile(
    rf"CONSTRAINT `((?:[^`]|``)+)` FOREIGN KEY [^\n]*?\)(?: ON DELETE {_RULE})?(?: ON UPDATE {_RULE})?,?$", re.MULTILINE
)


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
