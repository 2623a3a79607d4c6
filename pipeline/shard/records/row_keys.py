"""Name the rows that an op writes, so that a later op of the same row can be recognised without its database.

Two ops of one row have a key in common where each names the row by its id, or each by the same upsert key. An op whose
rows only the database knows has no key.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.dal.trees import pinned
from pipeline.model.op import UPSERT, Op
from pipeline.model.schema import TableSchema

#: The longest key, bytes: InnoDB's oldest row format indexes 767 bytes, 191 characters of utf8mb4.
MOST_BYTES = 190
_HASH_DIGITS = 16


def row_keys(op: Op, schemas: Mapping[str, TableSchema]) -> frozenset[str]:
    """Return the keys of all rows that an op is known to write, or to copy.

    Args:
        op: a row write, or an atomic group of row writes.
        schemas: every schema that the op names, by hash.
    """
    return frozenset(key for one in op.named for key in _keys(one, schemas[one.schema]))


def written_row(op: Op, schema: TableSchema) -> int | None:
    """Return the id of the one row that an op writes, if at all; None where there may be others, or it has no id yet.

    Args:
        op: a row write.
        schema: of its table.
    """
    row = pinned(op.where, schema.id_index) if op.id is None and op.where else op.id
    return row if type(row) is int else None


def table_keys(op: Op) -> frozenset[str]:
    """Return the keys that stand for all rows of each table that an op writes or reads.

    Args:
        op: a row write, or an atomic group of row writes.
    """
    return frozenset(f"{one.table} *" for one in op.named)


def _keys(op: Op, schema: TableSchema) -> Iterator[str]:
    table = schema.name_there
    if (row := written_row(op, schema)) is not None:
        yield _short(f"{table} {row}")
    if op.kind == UPSERT and op.key != (schema.id_index,):
        given = dict(zip(op.columns, op.values, strict=True))
        # by name and sorted: another version of the table may number its columns otherwise
        named = {schema.columns[column].name: alike(given.get(column)) for column in op.key}
        yield _short(f"{table} {json.dumps(named, sort_keys=True)}")


def alike(value: Any) -> Any:
    """Return a value that is equal wherever the database's collation may find two texts equal.

    Args:
        value: in canonical form.
    """
    if isinstance(value, list):
        return tuple(map(alike, value))
    if not isinstance(value, str):
        return value
    if value.isascii():
        return value.lower().rstrip()
    bare = unicodedata.normalize("NFKD", value).casefold().rstrip()
    return "".join(c for c in bare if not unicodedata.combining(c))


def _short(key: str) -> str:
    whole = key.encode()
    if len(whole) <= MOST_BYTES:
        return key
    digest = hashlib.sha256(whole).hexdigest()[:_HASH_DIGITS]
    return f"{whole[: MOST_BYTES - _HASH_DIGITS - 1].decode(errors='ignore')} {digest}"
