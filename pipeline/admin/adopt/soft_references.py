"""Find columns that hold another table's ids without being declared so, by their names and by their values.

Only columns that cannot hold 53 bits matter here: a server cuts an id there to 2147483647, or refuses it. The newest
rows are read, and no more of a table.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from pipeline.admin.adopt.shard_key_guess import Reference, Soft
from pipeline.shard.catalog import Catalog, CatalogTable
from pipeline.shard.columns import holds_64_bits
from pipeline.shard.ddl import MYSQL
from pipeline.shard.session import NodeSession

#: A column that is named like an id.
_NAMED = re.compile(r"(.+_)?(record|row|object|item)?_?(id|ref|fk)|(id|fk)_.+|record|current_record", re.IGNORECASE)
#: A column beside it that says which table the ids are of.
_WHICH = re.compile(r"(.+_)?(table|tablename|model|entity|kind_of)(_?name)?|object_type|content_type", re.IGNORECASE)
#: How many rows of a table are read, and how many different values of a column are compared.
ROWS, VALUES = 10_000, 200
#: Without a name that says so, fewer different values show nothing: a quantity too is 1, 2 or 3.
LEAST = 5
_quote = MYSQL.quote


def soft_references(
    session: NodeSession, catalog: Catalog, references: Collection[Reference], taken: Collection[str]
) -> list[Soft]:
    """Return the columns of all tables that seem to hold ids of the pipeline's tables, and cannot hold new ones.

    Args:
        session: of the database; it only reads.
        catalog: the whole database.
        references: what is declared, or known by a table's name.
        taken: the tables that the pipeline takes.
    """
    known = {(ref.table, ref.column) for ref in references}
    parents = {name: span for name in taken if (span := _span(session, catalog.tables[name]))}
    found = []
    for table in catalog.tables.values():
        beside = any(_WHICH.fullmatch(column) for column in table.columns)
        for column in table.columns.values():
            whole = "int" in column.type and not holds_64_bits(column.type) and "(1)" not in column.type
            own = column.automatic or column.name.lower() == "id" or table.primary == (column.name,)
            if not whole or own or (table.name, column.name) in known:
                continue
            named = bool(_NAMED.fullmatch(column.name))
            values = _values(session, table, column.name)
            fitting = tuple(
                name
                for name, (least, most) in parents.items()
                if values
                and least <= min(values)
                and max(values) <= most
                and _has(session, catalog.tables[name], values)
            )
            if named and (fitting or not values or beside):
                found.append(Soft(table.name, column.name, () if beside else fitting, named=True))
            elif len(fitting) == 1 and len(values) >= LEAST:
                found.append(Soft(table.name, column.name, fitting, named=False))
    return found


def model_lines(soft: Soft) -> Iterator[str]:
    """Yield what the model must say of a column.

    Args:
        soft: the column.
    """
    if soft.table.startswith("auth_"):
        field = f"db.{soft.table}.{soft.column}"
        yield f'{field}.type, {field}.requires = "bigint", None  # behind auth.define_tables()'
    else:
        kinds = [f'"reference {parent}"' for parent in soft.parents[:1]]
        yield f'{soft.table}: Field("{soft.column}", {" or ".join([*kinds, chr(34) + "bigint" + chr(34)])})'


def _span(session: NodeSession, table: CatalogTable) -> tuple[int, int] | None:
    """Return the smallest and the largest id of a table; None where it has no rows or no id."""
    if table.id is None:
        return None
    [(least, most)] = session.query(
        f"SELECT MIN({_quote(table.id)}), MAX({_quote(table.id)}) FROM {_quote(table.name)}"
    )
    return None if least is None else (int(least), int(most))


def _values(session: NodeSession, table: CatalogTable, column: str) -> list[int]:
    """Return different values of the newest rows; web2py writes 0 where no row is meant."""
    newest = f" ORDER BY {_quote(table.id)} DESC" if table.id else ""
    rows = f"SELECT {_quote(column)} AS held FROM {_quote(table.name)}{newest} LIMIT {ROWS}"
    return [
        int(v) for (v,) in session.query(f"SELECT DISTINCT held FROM ({rows}) AS newest WHERE held > 0 LIMIT {VALUES}")
    ]


def _has(session: NodeSession, table: CatalogTable, ids: list[int]) -> bool:
    """Return whether a table has a row of each id."""
    listed = ", ".join(map(str, ids))
    where = f"{_quote(table.id or 'id')} IN ({listed})"
    return bool(session.query(f"SELECT COUNT(*) FROM {_quote(table.name)} WHERE {where}")[0][0] == len(ids))
