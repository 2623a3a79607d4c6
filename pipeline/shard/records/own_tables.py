"""Hold the pipeline's own tables: how each is made, and what an older release's table lacks.

The files `sql/tables.*.sql` are the truth: one column or key a line, columns first. A table that is there already is
compared with its file. `CREATE TABLE IF NOT EXISTS` would leave it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from pipeline.shard.columns import columns_of, indexes_of
from pipeline.shard.dialect import Dialect
from pipeline.shard.records.ledger import text_literal
from pipeline.shard.session import NodeSession
from pipeline.shard.widening import Widening, plain_type, widening

#: Opens a line that is a key. The first word of any other line is a column.
_KEY = re.compile(r"(?:UNIQUE KEY|UNIQUE|KEY)\b[^(]*\(([^)]*)\)")
_TYPE = re.compile(r"\w+(?:\([\d,]+\))?")
_COLLATION = re.compile(r"COLLATE (\w+)\s*$")


class Upgrade(NamedTuple):
    """One statement that makes a table of an older release like the file says.

    Attributes:
        what: the column or the key.
        sql: the statement.
    """

    what: str
    sql: str


def own_tables(dialect: str) -> Iterator[tuple[str, str]]:
    """Yield name and CREATE TABLE of each of the pipeline's own tables.

    Args:
        dialect: `mysql` or `sqlite`.
    """
    text = (files("pipeline.shard.records") / "sql" / f"tables.{dialect}.sql").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    for sql in "\n".join(lines).split(";"):
        if sql.strip():
            yield sql.split("EXISTS", 1)[1].split()[0], sql.strip()


def own_columns(create: str) -> dict[str, str]:
    """Return each column's definition by its name in lower case, as a CREATE TABLE of ours has them.

    Args:
        create: the statement.
    """
    lines = (line for line in _lines(create) if not line.startswith(("PRIMARY KEY", "UNIQUE", "KEY")))
    return {name.lower(): rest for name, _, rest in (line.partition(" ") for line in lines)}


def upgrades(session: NodeSession, name: str, create: str) -> Iterator[Upgrade]:
    """Yield what makes a table of ours, which is there, like its CREATE TABLE: columns, wider types, collation, keys.

    Nothing is dropped or narrowed: workers of the release before may still run. A primary key stays as it is.

    Args:
        session: of the primary.
        name: the table.
        create: its CREATE TABLE.
    """
    there = {column.name.lower(): column for column in columns_of(session, name)}
    table, mysql = session.dialect.quote(name), session.dialect.name == "mysql"
    if mysql and (collation := _COLLATION.search(create)) and _collated_otherwise(session, name, collation[1]):
        sql = f"ALTER TABLE {table} CONVERT TO CHARACTER SET {collation[1].split('_')[0]} COLLATE {collation[1]}"
        yield Upgrade(f"{name}: {collation[1]}", sql)
    for column, definition in own_columns(create).items():
        new = f"{session.dialect.quote(column)} {definition}"
        if column not in there:
            yield Upgrade(f"{name}.{column}", f"ALTER TABLE {table} ADD COLUMN {new}")
        elif mysql and _narrower(there[column].type, definition, nullable=there[column].nullable):
            yield Upgrade(f"{name}.{column}", f"ALTER TABLE {table} MODIFY {new}")
    yield from _keys(session, name, create)


def _lines(create: str) -> list[str]:
    body = create[create.index("(") + 1 : create.rindex(")")]
    return [line.strip().rstrip(",") for line in body.splitlines() if line.strip()]


def _narrower(there: str, definition: str, *, nullable: bool) -> bool:
    """Return whether a column holds less than its definition says. What holds more is of a newer release."""
    kind = _TYPE.match(definition)
    wanted = plain_type(kind[0].lower() if kind else definition)
    if plain_type(there) != wanted:
        return widening(there, wanted) is Widening.EXACT
    return not nullable and not re.search(r"NOT NULL|PRIMARY KEY", definition)


def _collated_otherwise(session: NodeSession, name: str, collation: str) -> bool:
    found = session.query(
        "SELECT 1 FROM information_schema.columns WHERE table_schema = DATABASE()"
        f" AND table_name = {text_literal(name)} AND collation_name <> {text_literal(collation)} LIMIT 1"
    )
    return bool(found)


def _keys(session: NodeSession, name: str, create: str) -> Iterator[Upgrade]:
    """Yield the keys that are missing, known by their columns."""
    there = [(index.unique, index.columns) for index in indexes_of(session, name)]
    for line in _lines(create):
        if match := _KEY.match(line):
            columns = tuple(part.strip().lower() for part in match[1].split(","))
            if (line.startswith("UNIQUE"), columns) not in there:
                yield Upgrade(f"{name}: key on {', '.join(columns)}", _add_key(session.dialect, name, line, columns))


def _add_key(dialect: Dialect, name: str, line: str, columns: tuple[str, ...]) -> str:
    if dialect.name == "mysql":
        return f"ALTER TABLE {dialect.quote(name)} ADD {line}"
    index = "_".join(("uk", name, *columns))
    return f"CREATE UNIQUE INDEX {dialect.quote(index)} ON {name} ({', '.join(columns)})"
