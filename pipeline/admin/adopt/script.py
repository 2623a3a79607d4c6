"""The statements that make a database ready, in an order that works: foreign keys off, tables altered, keys on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from pipeline.admin.adopt.case import Case
from pipeline.admin.checks import schemas
from pipeline.admin.checks.finding import ERROR
from pipeline.shard import repairs
from pipeline.shard.catalog import CatalogColumn, CatalogTable, ForeignKey

#: What does not fit is refused, so no value is cut; dates that MySQL calls zero pass as they are.
STRICT = "SET SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'"


def script(case: Case) -> list[str]:
    """Return the statements; none where nothing must change."""
    altered = {name: merged(fixes) for name in case.catalog.tables if (fixes := list(table_fixes(case, name)))}
    crossing = [key for key in case.catalog.foreign_keys if not case.stays(key)]
    moved = [key for key in case.catalog.foreign_keys if case.stays(key) and {key.table, key.parent} & altered.keys()]
    steps = [
        *(repairs.drop_foreign_key(key.table, key.name) for key in [*crossing, *moved]),
        *altered.values(),
        *chain.from_iterable(key_fixes(case).values()),
        *map(readded, moved),
        *(finding.fix for finding in schemas.database(case.survey)),
    ]
    return [STRICT, *steps] if steps else []


def table_fixes(case: Case, name: str) -> Iterator[str]:
    """Yield the ALTER TABLE statements of one table."""
    if name in case.kin.taken and (found := case.survey.tables.get(name.lower())):
        # the engine first: its name ends what it alters
        storage = [one.fix for one in schemas.storage(case.survey, found, ERROR) if one.severity == ERROR]
        yield from storage
        if storage:
            yield repairs.dynamic(name)
        yield from id_fixes(case.catalog.tables[name])
    for (table, column), kind in case.narrow().items():
        if table == name:
            yield widened(case.catalog.tables[name], column, kind)


def id_fixes(table: CatalogTable) -> Iterator[str]:
    """Yield what gives a table an id that pyDAL can use."""
    if table.id is None:
        found = table.columns.get("id")
        if found is None:
            for column in table.columns.values():
                if column.automatic:  # there can be one only
                    rest = _rest(column._replace(automatic=False, default=None))
                    yield repairs.wide_reference(table.name, column.name, column.type, rest)
            yield repairs.new_id(table.name, table.primary)
        elif "int" in found.type and not table.primary:
            yield repairs.primary_key(table.name, "id")


def key_fixes(case: Case) -> dict[str, list[str]]:
    """Return by table what gives it the shard key that it lacks, parents before children."""
    found = {}
    for table, column, via in case.kin.added:
        parent = case.catalog.tables[via.parent]
        source = case.kin.tables[via.parent].shard_key
        if parent.id and source:
            found[table] = repairs.add_key(table, column, via.column, via.parent, parent.id, source)
    return found


def widened(table: CatalogTable, column: str, kind: str) -> str:
    """Return the statement that makes a column hold 64 bits, all else as it is."""
    found = table.columns[column]
    if found.automatic and kind == "BIGINT":
        return repairs.wide_id(table.name, column)
    return repairs.wide_reference(table.name, column, kind, _rest(found))


def readded(key: ForeignKey) -> str:
    """Return the statement that adds a foreign key as it was."""
    rules = f" ON DELETE {key.on_delete} ON UPDATE {key.on_update}"
    return repairs.add_foreign_key(key.table, key.name, key.columns, key.parent, key.parent_columns, rules)


def merged(statements: Iterable[str]) -> str:
    """Return ALTER TABLE statements of one table as one: the table is rebuilt once."""
    first, *others = dict.fromkeys(statements)
    head = first[: first.index("`", len("ALTER TABLE `")) + 2]
    return ", ".join([first, *(other.removeprefix(head) for other in others)])


def _rest(column: CatalogColumn) -> str:
    parts = [" NULL" if column.nullable else " NOT NULL"]
    if column.automatic:
        parts.append(" AUTO_INCREMENT")
    elif column.default is not None:
        parts.append(f" DEFAULT {column.default}")
    if column.comment:
        parts.append(" COMMENT '" + column.comment.replace("\\", "\\\\").replace("'", "''") + "'")
    return "".join(parts)
