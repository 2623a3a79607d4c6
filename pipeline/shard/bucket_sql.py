"""Write the SQL that gives the bucket of a row: `config/bucket_rules` for what is stored, computed by the database.

Rows are found by it while a bucket moves. So a rule that a database does not compute exactly is refused. A row with a
wrong bucket would be left behind, or be read twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.config.bucket_rules import canonical, spelt_by
from pipeline.config.settings import TableSettings
from pipeline.errors import PipelineError
from pipeline.model.ids import END, SMALLEST
from pipeline.model.schema import Column, TableSchema
from pipeline.shard.dialect import Dialect

#: Kinds of columns whose values are whole numbers, and kinds whose values are texts.
WHOLE, TEXTS = ("id", "integer", "bigint", "reference"), ("string", "text")


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
