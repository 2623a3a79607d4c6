"""Write the SQL that gives a row's bucket; judge which references a shard's foreign keys can hold.

Write the SQL that gives the bucket of a row: `config/buckets` for what is stored, computed by the database.
Rows are found by it while a bucket moves. So a rule that a database does not compute exactly is refused. A row with a
wrong bucket would be left behind, or be read twice.

A reference table has all its rows on every shard, and a deployment of one shard has all rows on it. Else a table must
be sharded by the reference, or both tables by one key.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import product

from pipeline.config import Topology
from pipeline.config.buckets import canonical, spelt_by
from pipeline.config.settings import TableSettings
from pipeline.errors import PipelineError
from pipeline.model import END, SMALLEST
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession, ddl
from pipeline.shard.columns import columns_of
from pipeline.shard.dialect import Dialect
from pipeline.shard.table_facts import constraints_of

#: Kinds of columns whose values are whole numbers, and kinds whose values are texts.
WHOLE, TEXTS = ("id", "integer", "bigint", "reference"), ("string", "text")
#: A key that a column of whole numbers may have: others are keys of texts.
_WHOLE_KEY = re.compile(r"0|-?[1-9][0-9]{0,18}")
#: What pyDAL's `ondelete` may say that a server takes.
RULES = ("CASCADE", "SET NULL", "RESTRICT", "NO ACTION")


def bucket_sql(
    dialect: Dialect, settings: TableSettings, schema: TableSchema, buckets: int, qualifier: str = ""
) -> str:
    """Return the SQL expression of a row's bucket.

    A row without one has NULL: its key is NULL, or a lookup lists neither the key nor '*'. So a condition that must
    keep such rows is written `(… IN (…)) IS NOT TRUE`.

    Args:
        dialect: of the database; its session is a `NodeSession`.
        settings: how the table is spread.
        schema: the table's definition.
        buckets: how many there are; a reference table has the bucket of this number.
        qualifier: the table or its alias, quoted, where the column's name alone may mean another.

    Raises:
        PipelineError: the database cannot compute the rule.
    """
    if settings.reference:
        return str(buckets)
    column = _key(settings, schema)
    name = dialect.quote(column.name_there)
    name = f"{qualifier}.{name}" if qualifier else name
    key = _Whole(name) if column.kind in WHOLE else _Text(dialect, name)
    settings = spelt_by(column, settings)
    if settings.rule == "hash":
        return key.hashed(buckets)
    if settings.rule == "modulo" and column.kind in WHOLE:
        return f"(({name} % {buckets} + {buckets}) % {buckets})"
    if settings.rule == "lookup":
        return _cases(key, _looked_up(key, settings), settings.lookup.get("*"))
    if settings.rule == "range" and all(isinstance(bound, int) == (column.kind in WHOLE) for bound in settings.bounds):
        below = ((f"{key.value} < {key.literal(bound, settings)}", n) for n, bound in enumerate(settings.bounds))
        return _cases(key, below, len(settings.bounds))
    raise PipelineError(
        f"[tables.{schema.name}] rule = {settings.rule!r} of {column.name!r}, which is {column.type!r}: a database "
        "cannot compute its buckets exactly; spread the table by hash, by a lookup, by modulo of whole numbers, or by "
        "a range whose bounds are of the column's type"
    )


def key_sql(dialect: Dialect, settings: TableSettings, schema: TableSchema, key: str, qualifier: str = "") -> str:
    """Return the SQL condition for the rows of one shard key; a row whose key is NULL has NULL.

    Args:
        dialect: of the database; its session is a `NodeSession`.
        settings: how the table is spread; it is no reference table.
        schema: the table's definition.
        key: the text by which the key is hashed, see `bucket_rules.key_text`.
        qualifier: as for `bucket_sql`.

    Raises:
        PipelineError: the database cannot compare it exactly.
    """
    column = _key(settings, schema)
    name = dialect.quote(column.name_there)
    name = f"{qualifier}.{name}" if qualifier else name
    if column.kind in WHOLE:
        return f"{name} = {key}" if _WHOLE_KEY.fullmatch(key) else "1 = 0"
    return f"{_Text(dialect, name).value} = X'{key.encode(errors='surrogateescape').hex()}'"


class _Whole:
    """A shard key that is a whole number.

    Args:
        name: the column, quoted.
    """

    def __init__(self, name: str):
        self.value = name

    def hashed(self, buckets: int) -> str:
        """Return the SQL of the rule `hash`; the sum rids the digits of ZEROFILL."""
        id_bucket = f"({self.value} & 1023) % {buckets}"
        return f"(CASE WHEN {_is_id(self.value)} THEN {id_bucket} ELSE CRC32({self.value} + 0) % {buckets} END)"

    def literal(self, key: object, settings: TableSettings) -> str:
        """Return a *key* of the file's as SQL, which may be a text where the column's kind takes one."""
        return canonical(key, settings).decode()


class _Text:
    """A shard key that is a text: UTF-8 without blanks at its end, compared byte by byte.

    Args:
        dialect: of the database.
        name: the column, quoted.
    """

    def __init__(self, dialect: Dialect, name: str):
        self._mysql = dialect.name == "mysql"
        self._text = f"RTRIM(CONVERT({name} USING utf8mb4))" if self._mysql else f"RTRIM({name})"
        self.value = f"CAST({self._text} AS {'BINARY' if self._mysql else 'BLOB'})"

    def hashed(self, buckets: int) -> str:
        """Return the SQL of the rule `hash`: digits of an id have its bucket."""
        text, number = self._text, f"CAST({self._text} AS {'SIGNED' if self._mysql else 'INTEGER'})"
        other = "REGEXP '[^0-9]'" if self._mysql else "GLOB '*[^0-9]*'"
        digits = f"LENGTH({text}) BETWEEN 15 AND 16 AND NOT {text} {other} AND SUBSTR({text}, 1, 1) <> '0'"
        # cast only digits: a strict session that changes rows fails on other texts
        id_bucket = f"CASE WHEN {digits} THEN CASE WHEN {_is_id(number)} THEN ({number} & 1023) % {buckets} END END"
        return f"COALESCE({id_bucket}, CRC32({text}) % {buckets})"

    def literal(self, key: object, settings: TableSettings) -> str:
        """Return a *key* of the file's as SQL."""
        return f"X'{canonical(key, settings).hex()}'"


def _key(settings: TableSettings, schema: TableSchema) -> Column:
    name = settings.shard_key or schema.id_name
    where = f"[tables.{schema.name}] shard_key = {name!r}"
    if name not in schema.index:
        raise PipelineError(f"{where} is no field of the table: name one that is")
    column = schema.columns[schema.index[name]]
    if column.kind not in (*WHOLE, *TEXTS):
        raise PipelineError(
            f"{where} is of type {column.type!r}, whose buckets a database cannot compute exactly: spread the table by "
            "a whole number, a reference or a text"
        )
    return column


def _is_id(number: str) -> str:
    return f"{number} BETWEEN {SMALLEST} AND {END - 1}"


def _looked_up(key: _Whole | _Text, settings: TableSettings) -> Iterable[tuple[str, int]]:
    """Yield the condition and the number of each bucket of a lookup: a list that the server searches in halves."""
    listed: dict[int, list[str]] = {}
    for one, bucket in settings.lookup.items():
        if one != "*":
            listed.setdefault(bucket, []).append(key.literal(one, settings))
    return ((f"{key.value} IN ({', '.join(literals)})", bucket) for bucket, literals in listed.items())


def _cases(key: _Whole | _Text, cases: Iterable[tuple[str, int]], other: int | None) -> str:
    whens = " ".join(f"WHEN {condition} THEN {bucket}" for condition, bucket in cases)
    return f"(CASE WHEN {key.value} IS NULL THEN NULL {whens} ELSE {'NULL' if other is None else other} END)"


def together(
    topology: Topology,
    name: str,
    own: tuple[str, ...],
    parent_name: str,
    schema: TableSchema | None = None,
    *,
    made_here: bool = False,
) -> bool:
    """Return whether each row is always on the shard of the row that it refers to.

    Args:
        topology: the rules of all tables.
        name: the referring table.
        own: the columns of the foreign key, by their names in the database.
        parent_name: the table that is referred to.
        schema: the referring table's published definition, where there is one.
        made_here: whether the pipeline has made all ids of the parent's rows: each carries the bucket of its row.
    """
    child, parent = topology.table(name), topology.table(parent_name)
    if parent.reference or len(topology.shards) == 1:
        return True
    if child.reference:
        return False
    if sum(bool(topology.buckets_of(shard)) for shard in topology.shards) == 1:
        return True
    id_name = schema.id_name if schema else "id"
    if child.shard_key in (None, id_name):
        return False
    same_rule = (child.rule, child.bounds, child.lookup) == (parent.rule, parent.bounds, parent.lookup)
    if own == (in_database(schema, child.shard_key),):
        by_id = parent.shard_key in (None, "id") or (name == parent_name and parent.shard_key == id_name)
        return (by_id and same_rule) or (made_here and child.rule == "hash" and parent.ids == "pipeline")
    return child.shard_key == parent.shard_key and same_rule


def unheld(
    schema: TableSchema,
    column: Column,
    schemas: Mapping[str, TableSchema],
    topology: Topology,
    old_ids: Container[str] = (),
) -> str:
    """Return why no foreign key can hold a reference, as the end of a sentence; empty where one can.

    Args:
        schema: the table's published definition.
        column: one of its references.
        schemas: all published definitions, by the table's name.
        topology: the rules of all tables.
        old_ids: the tables some of whose ids the pipeline has not made.
    """
    parent = column.parent or ""
    if parent not in schemas:
        return "which the pipeline does not write"
    own = (in_database(schema, column.name),)
    if not together(topology, schema.name, own, parent, schema, made_here=parent not in old_ids):
        return "whose rows may be on another shard"
    return ""


def held(
    schema: TableSchema, schemas: Mapping[str, TableSchema], topology: Topology, old_ids: Container[str] = ()
) -> dict[str, TableSchema]:
    """Return the parent of each reference that a foreign key can hold, by the field's name; the others as `unheld`."""
    return {
        column.name: schemas[column.parent]
        for column in schema.columns
        if column.parent and not refused(column) and not unheld(schema, column, schemas, topology, old_ids)
    }


def refused(column: Column) -> str:
    """Return why no server takes what a reference asks for where its parent's row is deleted; empty where it does.

    Args:
        column: a reference.
    """
    if column.ondelete not in RULES:
        return f"ondelete={column.ondelete!r} is none of {', '.join(RULES)}"
    if column.ondelete == "SET NULL" and column.notnull:
        return "ondelete='SET NULL' needs a field that may be NULL: drop notnull=True, or choose another ondelete"
    return ""


def crossing(sessions: Sequence[NodeSession], schemas: Sequence[TableSchema], topology: Topology) -> dict[str, str]:
    """Return the foreign keys of shards that may refer to a row of another one, each with the SQL that drops it.

    Args:
        sessions: of the shards' primaries.
        schemas: all published definitions.
        topology: the rules of all tables.
    """
    old_ids, found = set().union(*(old_ids_in(one, schemas, topology) for one in sessions)), dict[str, str]()
    names = {schema.name_there.lower(): schema.name for schema in schemas}
    for schema, session in product(schemas, sessions):
        with session.translated():
            keys = constraints_of(session, schema.name_there).parents
        for key in keys:
            parent = names.get(key.parent.lower(), key.parent)
            made_here = parent not in old_ids
            if not together(topology, schema.name, key.columns, parent, schema, made_here=made_here):
                place = f"{schema.name}.{', '.join(key.columns)} to {parent}"
                found[place] = ddl.drop_foreign_key(schema.name_there, key.name)
    return found


def old_ids_in(session: NodeSession, schemas: Iterable[TableSchema], topology: Topology) -> set[str]:
    """Return the tables that have ids which the pipeline has not made, of those where that matters.

    It matters where a table is sharded by a reference, and the parent by another key than its id.

    Args:
        session: of a shard's primary.
        schemas: all published definitions.
        topology: the rules of all tables.
    """
    schemas = list(schemas)
    parents = {
        column.parent
        for schema in schemas
        for column in schema.columns
        if column.parent and column.name == topology.table(schema.name).shard_key
    }
    return {
        schema.name
        for schema in schemas
        if schema.name in parents and topology.table(schema.name).shard_key and _has_old_ids(session, schema)
    }


def _has_old_ids(session: NodeSession, schema: TableSchema) -> bool:
    name, quote = schema.name_there, session.dialect.quote
    if not columns_of(session, name):
        return False
    table = quote(name)
    of_id = quote(in_database(schema, schema.id_name))
    return bool(session.query(f"SELECT 1 FROM {table} WHERE {of_id} < {SMALLEST} LIMIT 1"))


def in_database(schema: TableSchema | None, field: str) -> str:
    """Return a field's name in the database.

    Args:
        schema: the table's definition; without one the names are alike.
        field: its name in the model.
    """
    if schema is None or field not in schema.index:
        return field
    return schema.columns[schema.index[field]].name_there
