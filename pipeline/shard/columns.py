"""Read a table's columns and indexes; judge whether a type holds what a field promises; hold our own tables.

Hold the pipeline's own tables: how each is made, and what an older release's table lacks.
The files `sql/tables.*.sql` are the truth: one column or key a line, columns first. A table that is there already is
compared with its file. `CREATE TABLE IF NOT EXISTS` would leave it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from functools import partial
from importlib.resources import files
from typing import NamedTuple

from pipeline.config import Topology
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.dialect import Dialect
from pipeline.shard.records import text_literal
from pipeline.shard.table_facts import pragma, rows_about

#: The collation of a text by which rows are spread: all others take different texts for equal.
EXACT = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
_TEXT_KINDS = ("string", "text", "json")
_TYPE = re.compile(r"([a-z]+)(?:\(([0-9,]+)\))?(.*)")
#: Bytes of whole numbers, and how many digits the largest has.
_INTEGERS = {"tinyint": (1, 3), "smallint": (2, 5), "mediumint": (3, 8), "int": (4, 10), "bigint": (8, 20)}
#: Bytes that a type without a length of its own holds, texts and bytes apart.
_TEXTS = {"tinytext": 2**8 - 1, "text": 2**16 - 1, "mediumtext": 2**24 - 1, "longtext": 2**32 - 1}
_BLOBS = {"tinyblob": 2**8 - 1, "blob": 2**16 - 1, "mediumblob": 2**24 - 1, "longblob": 2**32 - 1}
#: Of a character, utf8mb4.
_MOST_BYTES = 4
#: A DOUBLE is exact for whole numbers of up to so many bytes.
_DOUBLE_BYTES = 4
#: Opens a line that is a key. The first word of any other line is a column.
_KEY = re.compile(r"(?:UNIQUE KEY|UNIQUE|KEY)\b[^(]*\(([^)]*)\)")
_OWN_TYPE = re.compile(r"\w+(?:\([\d,]+\))?")
_COLLATION = re.compile(r"COLLATE (\w+)\s*$")


class DatabaseColumn(NamedTuple):
    """One column of a table: type in lower case as the database writes it; character set and collation of a text."""

    name: str
    type: str
    nullable: bool
    charset: str | None
    collation: str | None


def columns_of(session: NodeSession, table: str) -> list[DatabaseColumn]:
    """Return a table's columns in order; an empty list where there is no such table.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        found = session.query(pragma(session.dialect, table, "table_info"))
        return [DatabaseColumn(row[1], str(row[2]).lower(), not row[3], None, None) for row in found]
    found = session.query(
        "SELECT column_name, column_type, is_nullable, character_set_name, collation_name"
        f" FROM information_schema.columns WHERE {rows_about([table])} ORDER BY ordinal_position"
    )
    return [DatabaseColumn(name, kind.lower(), nullable == "YES", *rest) for name, kind, nullable, *rest in found]


def is_view(session: NodeSession, table: str) -> bool:
    """Return whether what has a table's name is a view.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        found = session.query("SELECT name FROM sqlite_master WHERE type = 'view'")
        return table in {name for (name,) in found}
    views = f"SELECT 1 FROM information_schema.tables WHERE {rows_about([table])} AND table_type LIKE '%VIEW'"
    return bool(session.query(views))


def bytes_of(session: NodeSession, table: str) -> int:
    """Return how large a table is with its indexes, as its database estimates it; 0 where the database does not say.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        return 0
    sizes = f"SELECT SUM(data_length + index_length) FROM information_schema.tables WHERE {rows_about([table])}"
    return int(session.query(sizes)[0][0] or 0)


class DatabaseIndex(NamedTuple):
    """One index of a table, the primary key too; its columns in lower case."""

    name: str
    unique: bool
    columns: tuple[str, ...]


def indexes_of(session: NodeSession, table: str) -> list[DatabaseIndex]:
    """Return a table's indexes.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        about = partial(pragma, session.dialect, table)
        found = [
            (str(row[1]), not row[2], column[2])
            for row in session.query(about("index_list"))
            for column in session.query(about("index_info", str(row[1])))
        ]
    else:
        found = session.query(
            "SELECT index_name, non_unique, column_name FROM information_schema.statistics"
            f" WHERE {rows_about([table])} ORDER BY index_name, seq_in_index"
        )
    indexes: dict[str, tuple[bool, list[str]]] = {}
    for name, many, column in found:
        indexes.setdefault(name, (not int(many), []))[1].append(str(column).lower())
    return [DatabaseIndex(name, unique, tuple(columns)) for name, (unique, columns) in indexes.items()]


def text_key(schema: TableSchema, topology: Topology) -> Column | None:
    """Return the column by which a table's rows are spread, if it is a text; else None.

    Args:
        schema: the table's schema.
        topology: the rules of all tables.
    """
    at = schema.index.get(topology.table(schema.name).shard_key or "")
    return schema.columns[at] if at is not None and schema.columns[at].kind in _TEXT_KINDS else None


def tells_apart(collation: str | None) -> bool:
    """Return whether a collation finds only the same characters equal, blanks at the end aside.

    Args:
        collation: its name; None where the column is no text, or the database knows no collations.
    """
    return collation is None or collation.endswith("_bin")


def unusable(session: NodeSession, schema: TableSchema, topology: Topology) -> str | None:
    """Return why no op of a table can be taken, and what to do; None where one can, or the table is missing.

    Args:
        session: of the node.
        schema: the table's schema.
        topology: the rules of all tables.
    """
    found = {column.name.lower(): column for column in columns_of(session, schema.name_there)}

    def of(column: Column) -> DatabaseColumn | None:
        return found.get(column.name_there.lower())

    name, id = schema.name, of(schema.columns[schema.id_index])
    if id and topology.table(name).ids == "pipeline" and not holds_64_bits(id.type):
        return (
            f"table {name!r} keeps its ids in a column of type {id.type}, which cannot hold a 53-bit id: "
            f"run ALTER TABLE {name} MODIFY {schema.id_name} BIGINT NOT NULL AUTO_INCREMENT, "
            f'or set [tables.{name}] ids = "database"'
        )
    key = text_key(schema, topology)
    there = of(key) if key else None
    if key is None or there is None or tells_apart(there.collation):
        return None
    return (
        f"{name}.{key.name} is the shard key, and its collation {there.collation} takes different texts for equal: "
        f"their rows would be in different buckets. Run pipeline migrate, which makes the column {EXACT}"
    )


def holds_rows(session: NodeSession, table: str) -> bool:
    """Return whether a table of the application exists and has a row.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if not columns_of(session, table):
        return False
    name = session.dialect.quote(table)
    return bool(session.query(f"SELECT 1 FROM {name} LIMIT 1"))


def holds_64_bits(kind: str) -> bool:
    """Return whether an id column of the type *kind* holds ids of 53 bits; every INTEGER of SQLite does."""
    return kind.startswith("bigint") or kind == "integer"


class Widening(Enum):
    """What a change of a type does to the values that are there."""

    EXACT = "every value stays what it is"
    NARROWS = "the server refuses the change while a value does not fit"
    LOSSY = "values are bent, cut or told apart otherwise"


class _Type(NamedTuple):
    word: str
    sizes: tuple[int, ...]
    unsigned: bool


def plain_type(there: str) -> str:
    """Return a type without the display width, which MySQL 8 no longer shows.

    Args:
        there: a type as the database shows it, such as `int(11)`.
    """
    return re.sub(r"\b((?:tiny|small|medium|big)?int)\(\d+\)", r"\1", there.replace(" zerofill", ""))


def widening(there: str, wanted: str) -> Widening:
    """Return what changing a column's type does.

    Args:
        there: the type as the database shows it, in lower case.
        wanted: the new type, in lower case.
    """
    before, after = _parsed(there), _parsed(wanted)
    if before == after or _widens(before, after):
        return Widening.EXACT
    both_whole = before.word in _INTEGERS and after.word in _INTEGERS
    same = (before.word, before.unsigned) == (after.word, after.unsigned)
    refusing = before.word in ("varchar", "varbinary") or (
        before.word == "decimal" and before.sizes[1:] == after.sizes[1:]
    )
    return Widening.NARROWS if both_whole or (same and refusing) else Widening.LOSSY


def refused_type(there: str, wanted: str) -> str:
    """Return why a column does not become another type, and what to do.

    Args:
        there: the type in the database.
        wanted: the type that the definition asks for.
    """
    return (
        f"changing {there} to {wanted} is no widening: values could be cut or bent. Add a field of the new type under "
        "another name, copy the values, and drop the old field later; or take the old type back into the model"
    )


def _parsed(kind: str) -> _Type:
    match = _TYPE.match(plain_type(kind))
    assert match is not None, kind
    sizes = tuple(int(part) for part in match[2].split(",")) if match[2] else ()
    if match[1] == "decimal":
        sizes = (*(sizes or (10,)), 0)[:2]
    return _Type(match[1], sizes, "unsigned" in match[3])


def _widens(before: _Type, after: _Type) -> bool:
    if before.word in _INTEGERS:
        return _holds_whole_numbers(before, after)
    if before.word == "decimal" and after.word == "decimal":
        (digits, scale), (more, finer) = before.sizes, after.sizes
        return finer >= scale and more - finer >= digits - scale and (before.unsigned or not after.unsigned)
    if before.word in ("char", "varchar", *_TEXTS):
        return _holds_texts(before, after, _TEXTS, "varchar", _MOST_BYTES)
    if before.word in ("varbinary", *_BLOBS):
        return _holds_texts(before, after, _BLOBS, "varbinary", 1)
    if before.word in ("time", "datetime", "timestamp") and before.word == after.word:
        return (after.sizes or (0,)) >= (before.sizes or (0,))
    return (before.word, after.word) in (("float", "double"), ("date", "datetime"))


def _holds_whole_numbers(before: _Type, after: _Type) -> bool:
    own_bytes, own_digits = _INTEGERS[before.word]
    if after.word == "double":
        return own_bytes <= _DOUBLE_BYTES
    if after.word == "decimal":
        digits, scale = after.sizes
        return digits - scale >= own_digits and (before.unsigned or not after.unsigned)
    if after.word not in _INTEGERS:
        return False
    bytes_after = _INTEGERS[after.word][0]
    if before.unsigned == after.unsigned:
        return bytes_after >= own_bytes
    return before.unsigned and bytes_after > own_bytes


def _holds_texts(before: _Type, after: _Type, unlimited: dict[str, int], limited: str, most_bytes: int) -> bool:
    """Return whether texts, or bytes, fit. CHAR cuts blanks at the end, so only CHAR becomes CHAR."""
    if before.word in unlimited:
        return unlimited.get(after.word, -1) >= unlimited[before.word]
    [size] = before.sizes or (1,)
    if after.word in unlimited:
        return unlimited[after.word] >= size * most_bytes
    kept = after.word == limited or (before.word == after.word == "char")
    return kept and (after.sizes or (1,))[0] >= size


def type_fault(column: Column, there: str) -> str | None:
    """Return what is wrong with a column; the sentence continues after the column's name.

    Args:
        column: the published definition.
        there: the column's type in the database.

    Returns:
        None if every value of the field fits.
    """
    match = _TYPE.match(there)
    word, size = (match[1], match[2] or "") if match else (there, "")
    kind = column.kind
    if kind == "string":
        return _string(column, there, word, size)
    if kind == "decimal":
        return _decimal(column, there, word, size)
    wanted = _accepted(kind)
    if not wanted or word in wanted:
        return None
    return f"is {there}, but the published definition is {column.type!r}"


def _string(column: Column, there: str, word: str, size: str) -> str | None:
    length = column.length or 512
    room = _TEXTS.get(word) or (int(size) if word in ("varchar", "char") and size else None)
    if room is None:
        return f"is {there}, but the published definition is {column.type!r}"
    if room < length:
        return f"is {there}, but the published length is {length}: longer texts are rejected"
    return None


def _decimal(column: Column, there: str, word: str, size: str) -> str | None:
    digits, scale = column.digits
    numbers = [int(part) for part in size.split(",")] if size else [0, 0]
    if word == "decimal" and numbers[1] >= scale and numbers[0] - numbers[1] >= digits - scale:
        return None
    return f"is {there}, but the published definition is {column.type!r}"


def _accepted(kind: str) -> tuple[str, ...]:
    """Return the types that hold a kind; nothing for an unknown kind."""
    if kind.startswith("list:") or kind in ("text", "json"):
        return ("text", "mediumtext", "longtext", "json")
    return {
        "boolean": ("char", "varchar"),
        "integer": ("int", "bigint"),
        "bigint": ("bigint",),
        "reference": ("bigint",),
        # a FLOAT keeps about 6 digits: `admin/check/schemas.py` warns
        "float": ("double", "float", "decimal"),
        "double": ("double", "float"),
        "blob": ("blob", "mediumblob", "longblob"),
        "date": ("date",),
        "time": ("time",),
        "datetime": ("datetime", "timestamp"),
    }.get(kind, ())


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


def create_own_tables(session: NodeSession) -> None:
    """Create those of the pipeline's own tables that are missing.

    Args:
        session: of a primary.
    """
    with session.translated(), session.transaction():
        for _, sql in own_tables(session.dialect.name):
            session.execute(sql)


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
    kind = _OWN_TYPE.match(definition)
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
