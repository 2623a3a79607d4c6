"""Define a table's schema as a value: taken from a pyDAL table, sent as JSON, named by a hash.

Every op carries the hash of its table's schema. A worker that does not know the hash waits; it never guesses. The hash
is SHA-256 in 43 letters, so nobody finds another schema for it. A schema that exists is valid. The schema's names are
names of one database, which a dialect quotes. Such names are never those of tables that belong to the pipeline or to a
database itself.

A column holds what pyDAL's `Field` says about storage, and nothing else. A column's type is pyDAL's own text
(`decimal(10,2)`, `reference person`), so a worker hands it back to pyDAL unchanged.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import BadOp

#: pyDAL types that are kept exactly like another type. `big-` is pyDAL's own word for 64-bit keys.
SAME_AS = {"password": "string", "upload": "string", "big-id": "id", "big-reference": "reference"}
#: What pyDAL does to the rows that refer to a deleted one, where a field says nothing else.
CASCADE = "CASCADE"
_DECIMAL = re.compile(r"decimal\((\d{1,2}),\s*(\d{1,2})\)")
#: A type as pyDAL writes it; of those that the pipeline does not know, no value travels and no column is made.
_TYPE = re.compile(r"[a-z][\w:-]*( ?\([\w ,]*\))?( [\w. ]+)?")
_HASH = re.compile(r"[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"\w{1,128}")
#: A name in a database: without a database before it, without quotes, without what no terminal shows.
_NAME_THERE = re.compile(r"[^.`\"'\[\]\\/\x00-\x1f\x7f]{1,64}")
_QUOTED = re.compile(r"""`([^`]*)`|"([^"]*)"|\[([^\]]*)\]|'([^']*)'""")
_ON_DELETE = (CASCADE, "NO ACTION", "RESTRICT", "SET NULL", "SET DEFAULT")
#: What begins the names of tables that are not for ops, whatever the letters' case.
NOT_FOR_OPS = {"pipeline_": "belongs to the pipeline", "sqlite_": "belongs to SQLite"}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TableSchema:
    """One table's schema. `rname` is the table's name in the database, without quotes, where that differs.

    Raises:
        BadOp: it is none that the pipeline takes.
    """

    name: str
    columns: tuple[Column, ...]
    rname: str | None = None
    hash: str = field(init=False, compare=False)
    index: Mapping[str, int] = field(init=False, compare=False, repr=False)
    id_index: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        for fault in _faults(self):
            raise BadOp(f"table {self.name!r:.80} cannot be queued: {fault}")
        ids = [i for i, column in enumerate(self.columns) if column.type in ("id", "big-id")]
        if len(ids) != 1:
            raise BadOp(f"table {self.name!r} has no id column (keyed tables are not supported): give it an 'id' field")
        object.__setattr__(self, "id_index", ids[0])
        object.__setattr__(self, "index", {column.name: i for i, column in enumerate(self.columns)})
        object.__setattr__(self, "hash", _hash_of(self.to_json()))

    @property
    def name_there(self) -> str:
        """The table's name in the database, without quotes."""
        return self.rname or self.name

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
    def from_json(cls, text: str | bytes, hash: str | None = None) -> TableSchema:
        """Read a schema from the JSON that `to_json` makes of one.

        Args:
            text: the JSON.
            hash: the hash by which it was found; None: not known.

        Raises:
            BadOp: it is no schema that the pipeline takes, or not the one of the hash.
        """
        try:
            shape = json.loads(text)
            columns = (
                Column(n, t, length, bool(notnull), bool(unique), rname, *ondelete)
                for n, t, length, notnull, unique, rname, *ondelete in shape["columns"]
            )
            found = cls(shape["table"], tuple(columns), shape["rname"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadOp(f"no definition of a table: {type(error).__name__}: {error}") from error
        if hash is not None and found.hash != hash:
            raise BadOp(f"the definition of {found.name!r} is another than the one of the hash {hash:.43}")
        return found


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
    def name_there(self) -> str:
        """The column's name in the database, without quotes."""
        return self.rname or self.name

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


def is_hash(text: str) -> bool:
    """Return whether a text may be the hash of a schema.

    Args:
        text: what an op names its schema by.
    """
    return _HASH.fullmatch(text) is not None


def is_hash_of(hash: str, text: str) -> bool:
    """Return whether a hash is the one of a schema as JSON.

    Args:
        hash: the hash.
        text: what was found by it.
    """
    return _hash_of(text) == hash


def _hash_of(text: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(text.encode("utf-8", "replace")).digest()).decode().rstrip("=")


def _own_rname(rname: str | None, name: str) -> str | None:
    """Return the rname without its quotes if the user set one; pyDAL fills it with the quoted name."""
    match = _QUOTED.fullmatch(rname) if rname is not None else None
    own = next(filter(None, match.groups()), "") if match else rname
    return None if own == name else own


def _faults(schema: TableSchema) -> Iterator[str]:
    """Yield what a schema has that no table of the pipeline has; whoever writes to Redis may have made it."""
    yield from _name_faults(schema.name, schema.rname)
    if type(schema.name) is str:
        yield from _reserved(schema.name)
        yield from _reserved(schema.name_there)
    for column in schema.columns:
        yield from _name_faults(column.name, column.rname)
        if type(column.type) is not str or not _TYPE.fullmatch(column.type):
            yield f"{column.type!r:.80} is no type of a field"
        if not (column.length is None or (type(column.length) is int and 0 <= column.length < 2**32)):
            yield f"{column.length!r:.80} is no length of a field"
        if column.ondelete not in _ON_DELETE:
            yield f"ondelete={column.ondelete!r:.80}; write {', '.join(_ON_DELETE[:-1])} or {_ON_DELETE[-1]}"
    names = [str(column.name_there).lower() for column in schema.columns]
    if len(set(names)) < len(names):
        yield "two of its fields are one column"


def _name_faults(name: object, there: object) -> Iterator[str]:
    if type(name) is not str or not _NAME.fullmatch(name):
        yield f"{name!r:.80} is no name of a table or a field"
    if there is not None and (type(there) is not str or not _NAME_THERE.fullmatch(there) or there != there.strip()):
        yield f"rname={there!r:.80} is no name without a database, a dot or quotes within"


def _reserved(name: str) -> Iterator[str]:
    """Yield whose a name is if it is not for ops: to a server some letters of other alphabets are those of ASCII."""
    plain = unicodedata.normalize("NFKD", name).casefold().encode("ascii", "ignore").decode()
    yield from (f"the name {name!r:.80} {whose}" for start, whose in NOT_FOR_OPS.items() if plain.startswith(start))
