"""The sections `[tables.*]` of a configuration, as they were guessed; said to be a guess."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pipeline.admin.adopt.case import Case
from pipeline.config.settings import TableSettings


def suggestion(case: Case, decided: Mapping[str, TableSettings]) -> str:
    """Return TOML; what the configuration decided already is left out."""
    return "\n".join(_lines(case, decided))


def _lines(case: Case, decided: Mapping[str, TableSettings]) -> Iterator[str]:
    kin, tables = case.kin, case.kin.tables
    guessed = [name for name in kin.taken if name in tables and name not in decided]
    if guessed:
        yield f"# A guess: most tables refer to {kin.anchor}, so all go by their {kin.anchor}. Yours to judge."
    for name in guessed:
        yield f"[tables.{name}]"
        if tables[name].reference:
            yield f"reference = true            # small ({case.catalog.tables[name].rows} rows), and others refer to it"
        else:
            yield f'shard_key = "{tables[name].shard_key}"'
            if unique := _unique(case, name):
                yield f"unique = {json.dumps([list(unique)])}"
        yield ""
    if by_id := [name for name in kin.taken if name not in tables]:
        yield f"# by their own id, with no section: {', '.join(by_id)}"
    if left := [name for name in case.catalog.tables if name not in kin.taken]:
        yield f"# left in their database, written as ever: {', '.join(left)}"
    for table, column, _ in kin.added:
        yield f'# add to the model: {table}: Field("{column}", "bigint")'


def _unique(case: Case, name: str) -> tuple[str, ...] | None:
    """Return the columns of the only unique index, if they hold the shard key: then an upsert may use it."""
    table = case.catalog.tables[name]
    # a primary key that gives way to an id stays unique
    indexes = [*table.unique.values(), *([table.primary] if table.primary and table.id is None else [])]
    return indexes[0] if len(indexes) == 1 and case.kin.tables[name].shard_key in indexes[0] else None
