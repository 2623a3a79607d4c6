"""All rows of an application with a word in place of each id, so that two copies of it can be compared.

The word is the row's natural key: `sale_line(sale(2026-1), 1)`. A row is looked for on all shards of its copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from support.applications.ground import Ground


class Model(NamedTuple):
    """What identifies the rows of each table, and what refers to them.

    Attributes:
        keys: by table, the columns that name a row; the tables of the application are these.
        references: by (table, column), the table whose ids the column holds; a column with a table's name needs none.
        by_chance: columns that differ in two runs: moments and hashes. That there is one is compared.
    """

    keys: Mapping[str, tuple[str, ...]]
    references: Mapping[tuple[str, str], str]
    by_chance: frozenset[str]

    def parent(self, table: str, column: str) -> str | None:
        return self.references.get((table, column)) or (column if column in self.keys else None)


class Copy:
    """The rows of one copy, once everything that was queued is applied."""

    def __init__(self, ground: Ground, model: Model, places: Sequence[tuple[str, str]], references: Iterable[str]):
        self._model = model
        self._rows: dict[str, dict[int, dict[str, Any]]] = {}
        for table in model.keys:
            held = places[:1] if table.startswith("auth_") else places
            first, *others = [ground.rows(shard, database, table) for shard, database in held]
            if table in references:
                assert all(one == first for one in others), f"the shards have different rows of {table}"
                others = []
            found = [row for rows in (first, *others) for row in rows]
            self._rows[table] = {row["id"]: row for row in found}
            assert len(self._rows[table]) == len(found), f"a row of {table} is on two shards"

    @cached_property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """By table, the rows as words and values, in the order of their words."""
        return {table: sorted(self._words(table), key=repr) for table in self._rows}

    def _words(self, table: str) -> Iterator[dict[str, Any]]:
        for row in self._rows[table].values():
            yield {column: self._value(table, column, row) for column in row}

    def word(self, table: str, row_id: int) -> str:
        """Return what names a row in all copies; an id that no row has is an orphan's parent."""
        row = self._rows[table].get(row_id)
        if row is None:
            return f"{table}: no row"
        return f"{table}({', '.join(str(self._value(table, key, row)) for key in self._model.keys[table])})"

    def _value(self, table: str, column: str, row: Mapping[str, Any]) -> Any:
        value = row[column]
        if column == "id":
            return self.word(table, value)
        if value is not None and column in self._model.by_chance:
            return "by chance"
        parent = self._model.parent(table, column)
        if not parent or value is None:
            return value
        if isinstance(value, str):  # a list of references
            return [self.word(parent, int(one)) for one in value.strip("|").split("|") if one]
        return self.word(parent, value)


def differing_rows(plain: Copy, moved: Copy) -> list[str]:
    """Return a line for each row that only one of two copies has; columns that the plain one lacks do not count."""
    found = []
    for table, rows in plain.rows.items():
        columns = list(rows[0]) if rows else ["id"]
        ours = [{column: row[column] for column in columns} for row in moved.rows[table]]
        found += [f"lost: {row}" for row in rows if row not in ours]
        found += [f"too much: {row}" for row in ours if row not in rows]
        found += [f"{table}: {len(rows)} rows became {len(ours)}"] if len(rows) != len(ours) else []
    return found
