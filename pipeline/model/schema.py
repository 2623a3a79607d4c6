"""Define a table's schema as a value: taken from a pyDAL table, sent as JSON, named by a hash.

Every op carries the hash of its table's schema. A worker that does not know the hash waits; it never guesses.

A column holds what pyDAL's `Field` says about storage, and nothing else. A column's type is pyDAL's own text
(`decimal(10,2)`, `reference person`), so a worker hands it back to pyDAL unchanged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import BadOp

#: pyDAL types that are kept exactly like another type. `big-` is pyDAL's own word for 64-bit keys.
SAME_AS = {"password": "string", "upload": "string", "big-id": "id", "big-reference": "reference"}
#: What pyDAL does to the rows that refer to a deleted one, where a field says nothing else.
CASCADE = "CASCADE"
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One table's schema. `rname` is the table's name in the database, where that differs."""

    name: str
    columns: tuple[Column, ...]
    rname: str | None = None
    hash: str = field(init=False, compare=False)
    index: Mapping[str, int] = field(init=False, compare=False, repr=False)
    id_index: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        ids = [i for i, column in enumerate(self.columns) if column.type in ("id", "big-id")]
        if len(ids) != 1:
            raise BadOp(f"table {self.name!r} has no id column (keyed tables are not supported): give it an 'id' field")
        object.__setattr__(self, "id_index", ids[0])
        object.__setattr__(self, "index", {column.name: i for i, column in enumerate(self.columns)})
        object.__setattr__(self, "hash", hashlib.blake2b(self.to_json().encode(), digest_size=6).hexdigest())

    @property
    def id_name(self) -> str:
        """The name of the id column."""
        return self.columns[self.id_index].name

    def to_json(self) -> str:
        """Return the schema as JSON, always the same text for the same schema."""
        rows = [
            [c.name, c.type, c.length, int(c.notnull), int(c.unique), c.rname, *({c.ondelete} - {CASCADE})]
            for c in self.columns
        ]
        return json.dumps({"table": self.name, "rname": self.rname, "columns": rows}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> TableSchema:
        """Read a schema from the JSON that `to_json` makes of one.

        Args:
            text: the JSON.
        """
        shape = json.loads(text)
        columns = (
            Column(n, t, length, bool(notnull), bool(unique), rname, *ondelete)
            for n, t, length, notnull, unique, rname, *ondelete in shape["columns"]
        )
        return cls(shape["table"], tuple(columns), shape["rname"])


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. `length` counts characters and limits string, password and upload only.

    `ondelete` is what a reference asks the database to do where the row that it refers to is deleted.
    """

    name: str
    type: str
    length: int | None = None
    notnull: bool = False
    unique: bool = False
    rname: str | None = None
    ondelete: str = CASCADE

    @property
    def kind(self) -> str:
        """The family of the type, without its parameters: `decimal`, `reference`, `list:reference`, `string`, …

        A reference to a keyed table (`reference t.code`) keeps its whole text: its values are not ids. A decimal
        without its digits is `decimal(?)`.
        """
        word, _, target = self.type.partition(" ")
        if "." in target:
            return self.type
        if word.startswith("decimal"):
            return "decimal" if _DECIMAL.fullmatch(self.type) else "decimal(?)"
        return SAME_AS.get(word, word)

    @property
    def parent(self) -> str | None:
        """The table whose ids the column holds; None where it holds none."""
        return self.type.partition(" ")[2].strip() if self.kind == "reference" else None

    @property
    def digits(self) -> tuple[int, int]:
        """How many digits a decimal keeps: in all, and after the point.

        Raises:
            ValueError: the type is not `decimal(p,s)`.
        """
        match = _DECIMAL.fullmatch(self.type)
        if match is None:
            raise ValueError(f"{self.name!r} is {self.type!r}, not a decimal(p,s)")
        return int(match[1]), int(match[2])


def signature_of(table: Any) -> tuple[Any, ...]:
    """Return what identifies the schema of a pyDAL table; cheap, since web2py makes its tables anew at each request.

    Args:
        table: a pyDAL table.
    """
    return (
        table._tablename,
        table._rname,
        *((f.name, f.type, f.length, f.notnull, f.unique, f._rname, f.ondelete) for f in table),
    )


def schema_of(table: Any) -> TableSchema:
    """Return the schema of a pyDAL table, of either pyDAL line; the database is not used.

    Args:
        table: a pyDAL table.

    Raises:
        BadOp: the table has no id column, or a column of a custom type.
    """
    columns = tuple(column_of(f) for f in table)
    return TableSchema(table._tablename, columns, _own_rname(table._rname, table._tablename))


def column_of(f: Any) -> Column:
    """Return the column of a pyDAL field.

    Args:
        f: the field.

    Raises:
        BadOp: it has a custom type.
    """
    if not isinstance(f.type, str):
        raise BadOp(f"field {f.name!r} has a type made by SQLCustomType, which the log cannot carry")
    length = f.length if f.type in ("string", "password", "upload") else None
    rname, ondelete = _own_rname(f._rname, f.name), CASCADE
    if f.type.startswith(("reference ", "big-reference ")):
        ondelete = str(f.ondelete or CASCADE).upper()
    return Column(f.name, f.type, length, bool(f.notnull), bool(f.unique), rname, ondelete)


def _own_rname(rname: str | None, name: str) -> str | None:
    """Return the rname if the user set one; pyDAL fills it with the quoted name in the web side's dialect."""
    return None if rname is None or rname.strip("\"'`[]") == name else rname
