"""Read an existing database and say what must change before the pipeline can take its tables, each with its SQL.

Say what must change in a database and what is good to know, each with its SQL; no I/O.
One function per subject yields findings. The script's statements are in an order that works: foreign keys off, tables
altered, keys on.

Read an existing database and say what must change before the pipeline can take its tables; change nothing.
The sections `[tables.*]` of a configuration are suggested too, and marked as a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from pipeline.admin.adopt_guesses import USABLE_NAME, Case, Soft, guess_shard_keys, model_lines, soft_references
from pipeline.admin.check import schemas, servers
from pipeline.admin.check.evidence import ERROR, WARNING, Finding, merged_findings
from pipeline.config import Topology
from pipeline.config.settings import RedisSettings, Settings, ShardSettings, TableSettings
from pipeline.errors import ConfigError
from pipeline.shard import brief, ddl
from pipeline.shard.columns import EXACT, tells_apart
from pipeline.shard.dialect import dialect_of
from pipeline.shard.survey import CATALOG_S, CatalogColumn, CatalogTable, SurveyedTable, catalog, survey
from pipeline.shard.table_facts import ForeignKey

#: A value that does not fit is refused, never cut; MySQL's zero dates pass unchanged.
STRICT = "SET SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'"


#: A boolean of pyDAL, which holds T or F.
_FLAG = "char(1)"


def findings(case: Case) -> Iterator[Finding]:
    """Yield all findings about a database, in the order in which a person would go through them.

    Args:
        case: the database.
    """
    for subject in _SUBJECTS:
        yield from subject(case)


def adoption_script(case: Case) -> list[str]:
    """Return the statements that make a database ready, in order; none where nothing must change.

    Args:
        case: the database.
    """
    altered = {
        name: _merged_statements(fixes) for name in case.catalog.tables if (fixes := list(_table_fixes(case, name)))
    }
    crossing = [key for key in case.catalog.foreign_keys if not case.stays(key)]
    moved = [key for key in case.catalog.foreign_keys if case.stays(key) and {key.table, key.parent} & altered.keys()]
    steps = [
        *(ddl.drop_foreign_key(key.table, key.name) for key in [*crossing, *moved]),
        *altered.values(),
        *(finding.fix for finding in _loose(case)),  # behind what converts the whole table
        *chain.from_iterable(_key_fixes(case).values()),
        *map(_readded, moved),
        *(finding.fix for finding in schemas.database(case.survey)),
    ]
    return [STRICT, *steps] if steps else []


def _server(case: Case) -> Iterator[Finding]:
    yield from servers.server(case.survey)
    for finding in schemas.database(case.survey):
        # a warning where the pipeline makes the tables, an error here: the application makes its own
        yield Finding(ERROR, finding.place, finding.what, finding.fix)


def _storage(case: Case) -> Iterator[Finding]:
    for table in _taken(case):
        yield from schemas.storage(case.survey, table, ERROR)


def _moments(case: Case) -> Iterator[Finding]:
    yield from schemas.moments(case.survey, case.guess.taken, WARNING)


def _names(case: Case) -> Iterator[Finding]:
    for name in case.catalog.tables:
        if not USABLE_NAME.fullmatch(name):
            what = "has a name that pyDAL cannot use as it is: nothing is said of it here"
            fix = f"rename it; or define it under another name with rname='`{name}`', and look at its columns yourself"
            yield Finding(WARNING, f"table {name!r}", what, fix)


def _primary_keys(case: Case) -> Iterator[Finding]:
    for name in case.guess.taken:
        table = case.catalog.tables[name]
        if table.id is not None:
            continue
        there = f"its primary key is ({', '.join(table.primary)})" if table.primary else "has no primary key"
        fix = (
            "; ".join(_id_fixes(table)) or "make `id` a whole number and the primary key; its meaning is yours to keep"
        )
        yield Finding(ERROR, name, f"{there}: the pipeline names each row by one id", fix)


def _narrow(case: Case) -> Iterator[Finding]:
    ids = {(name, table.id) for name, table in case.catalog.tables.items()}
    refers = {(ref.table, ref.column): ref for ref in case.guess.references}
    soft = {(one.table, one.column): one for one in case.soft}
    for (table, column), kind in case.narrow().items():
        found = case.catalog.tables[table].columns[column]
        ref = refers.get((table, column))
        what = f"is {found.type}, which cannot hold a 53-bit id"
        if (table, column) not in ids and ref:
            what = f"is {found.type}, but refers to {ref.parent}, whose ids have 64 bits"
            what += "" if ref.declared else " (guessed by its name)"
        elif found_soft := soft.get((table, column)):
            what = f"is {found.type}, and holds {_whose(found_soft)}: an id of 53 bits is cut to 2147483647 or refused"
        yield Finding(ERROR, f"{table}.{column}", what, _widened(case.catalog.tables[table], column, kind))


def _whose(soft: Soft) -> str:
    if soft.parents:
        return f"ids of {' or '.join(soft.parents)} (by its {'name and its ' if soft.named else ''}values)"
    return "ids by its name"


def _soft(case: Case) -> Iterator[Finding]:
    for soft in case.soft:
        if not soft.named:
            table, parent = case.catalog.tables[soft.table], soft.parents[0]
            what = f"is {table.columns[soft.column].type}, and all its values are ids of {parent}"
            wider = "; ".join([_widened(table, soft.column, "BIGINT"), *model_lines(soft)])
            fix = f"if it refers to {parent}: {wider}"
            yield Finding(WARNING, f"{soft.table}.{soft.column}", what, fix)


def _torn(case: Case) -> Iterator[Finding]:
    """Yield the tables that refer to several tables of which they can be with one only."""
    for name, (near, far) in case.torn().items():
        others = list(dict.fromkeys(ref.parent for ref in far))
        copies = [f"[tables.{one}] reference = true ({case.catalog.tables[one].rows} rows)" for one in others]
        yield Finding(
            WARNING,
            f"{name} ({', '.join(ref.column for ref in [near, *far])})",
            f"refers to {near.parent} and {' and '.join(others)}, and can be on the shard of one only: it goes with "
            f"its {near.parent}. Nothing checks the other references, and their ondelete does nothing",
            f"{'; or '.join(copies)}, which copies the table to every shard; or no foreign key, and the application "
            "changes these rows before it deletes the row that they refer to",
        )


def _loose(case: Case) -> Iterator[Finding]:
    for name in case.guess.taken:
        found = case.survey.tables.get(name.lower())
        column = found and found.columns.get((case.topology.table(name).shard_key or "").lower())
        if found and column and column.type != _FLAG and not tells_apart(column.collation):
            key = str(case.topology.table(name).shard_key)
            fix = _widened(case.catalog.tables[name], key, f"{column.type.upper()} {EXACT}")
            yield Finding(ERROR, f"{name}.{key}", schemas.loose(column.collation), fix)


def _foreign(case: Case) -> Iterator[Finding]:
    for key in case.catalog.foreign_keys:
        if not {key.table, key.parent} & set(case.guess.taken):
            continue
        place = f"{key.table}.{', '.join(key.columns)}"
        if not case.stays(key):
            left = (
                "which stays in this database"
                if key.parent not in case.guess.taken
                else "whose rows may be on another shard"
            )
            what = f"has a foreign key to {key.parent}, {left}: such a row is rejected"
            if key.on_delete in ("CASCADE", "SET NULL"):
                what += f". Without the key nobody does its ON DELETE {key.on_delete}, if not the application"
            yield Finding(ERROR, place, what, ddl.drop_foreign_key(key.table, key.name))
        elif key.on_delete in ("CASCADE", "SET NULL"):
            what = (
                f"is changed by the database when a row of {key.parent} is deleted (ON DELETE {key.on_delete}): "
                "ops queued for it by then find no row"
            )
            yield Finding(WARNING, place, what, "keep it, if the application deletes parents last")


def _keys(case: Case) -> Iterator[Finding]:
    for table, column, via in case.guess.added:
        steps = _key_fixes(case).get(table, [])
        what = f"has no column {column}: its rows could not follow their {via.parent} to a shard"
        yield Finding(ERROR, table, what, "; ".join(steps) or f"add the column, and fill it from {via.parent}")


def _unique(case: Case) -> Iterator[Finding]:
    for name in case.guess.taken:
        rules, table = case.topology.table(name), case.catalog.tables[name]
        if len(case.topology.shards) == 1 or rules.reference:
            continue
        for index, columns in table.unique.items():
            if (rules.shard_key or table.id) not in columns:
                key = rules.shard_key or "its id"
                what = f"is unique without {key}, by which the table is sharded: it holds within a shard only"
                fix = "check it in a table that is not sharded; or let the shard key be one of its columns"
                yield Finding(WARNING, f"{name} ({', '.join(columns)}), index {index}", what, fix)


def _triggers(case: Case) -> Iterator[Finding]:
    for table, trigger in case.catalog.triggers:
        if table in case.guess.taken:
            what = "runs when a worker applies the op, as the worker's user, and on this server only"
            yield Finding(
                WARNING,
                f"trigger {trigger} on {table}",
                what,
                "move it into the application; or create it on each primary",
            )


def _counters(case: Case) -> Iterator[Finding]:
    counted = [n for n in case.guess.taken if (t := case.catalog.tables[n]).id and t.columns[t.id].automatic]
    if counted:
        what = "goes on behind the largest id: a direct insert gets one next to the pipeline's, and may take one of its"
        yield Finding(
            WARNING,
            f"AUTO_INCREMENT of {', '.join(counted)}",
            what,
            "once the pipeline has inserted into a table, let all inserts come through it (pipeline.attach)",
        )


def _order(case: Case) -> Iterator[Finding]:
    """Yield the tables whose rows take turns among the buckets, each of which counts its ids by itself."""
    rules = {name: case.topology.table(name) for name in case.guess.taken}
    spread = {name: own.shard_key for name, own in rules.items() if not own.reference}
    turning = [name for name, key in spread.items() if key in (None, case.catalog.tables[name].id)]
    if turning:
        what = "grow from second to second: rows of one second are not in the order of their inserts"
        fix = "order a page, or a grid without orderby, by a column of your own where that matters: docs/attach.md"
        yield Finding(WARNING, f"ids of {', '.join(turning)}", what, fix)


def _taken(case: Case) -> Iterator[SurveyedTable]:
    return (case.survey.tables[name.lower()] for name in case.guess.taken if name.lower() in case.survey.tables)


_SUBJECTS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _server, _names, _storage, _moments, _primary_keys, _narrow, _soft, _loose, _foreign, _torn, _keys, _unique,
    _triggers, _counters, _order,
)  # fmt: skip


def _table_fixes(case: Case, name: str) -> Iterator[str]:
    """Yield the ALTER TABLE statements of one table."""
    if name in case.guess.taken and (found := case.survey.tables.get(name.lower())):
        # the engine comes first: the other changes are appended to its statement
        storage = [one.fix for one in schemas.storage(case.survey, found, ERROR) if one.severity == ERROR]
        yield from storage
        if storage:
            yield ddl.dynamic(name)
        yield from _id_fixes(case.catalog.tables[name])
    for (table, column), kind in case.narrow().items():
        if table == name:
            yield _widened(case.catalog.tables[name], column, kind)


def _id_fixes(table: CatalogTable) -> Iterator[str]:
    """Yield what gives a table an id that pyDAL can use."""
    if table.id is None:
        found = table.columns.get("id")
        if found is None:
            for column in table.columns.values():
                if column.automatic:  # there can be one only
                    rest = _rest(column._replace(automatic=False, default=None))
                    yield ddl.wide_reference(table.name, column.name, column.type, rest)
            yield ddl.new_id(table.name, table.primary)
        elif "int" in found.type and not table.primary:
            yield ddl.primary_key(table.name, "id")


def _key_fixes(case: Case) -> dict[str, list[str]]:
    """Return by table what gives it the shard key that it lacks, parents before children."""
    found, kinds = {}, dict[str, str]()
    for table, column, via in case.guess.added:
        parent = case.catalog.tables[via.parent]
        source = case.guess.tables[via.parent].shard_key
        if parent.id and source:
            there = parent.columns.get(source)
            kinds[table] = kind = _key_kind(there.type) if there else kinds.get(via.parent, "BIGINT")
            found[table] = ddl.add_key(table, column, kind, via.column, via.parent, parent.id, source)
    return found


def _key_kind(kind: str) -> str:
    """Return the type of a copy of a shard key."""
    if "int" in kind.lower():
        return "BIGINT"
    return f"{kind.upper()} {EXACT}" if re.match(r"(?i)(var)?char|\w*text", kind) else kind


def _widened(table: CatalogTable, column: str, kind: str) -> str:
    """Return the statement that makes a column hold 64 bits and leaves all else as it is."""
    found = table.columns[column]
    if found.automatic and kind == "BIGINT":
        return ddl.wide_id(table.name, column)
    return ddl.wide_reference(table.name, column, kind, _rest(found))


def _readded(key: ForeignKey) -> str:
    """Return the statement that adds a foreign key as it was."""
    rules = f" ON DELETE {key.on_delete} ON UPDATE {key.on_update}"
    return ddl.add_foreign_key_again(key.table, key.name, key.columns, key.parent, key.parent_columns, rules)


def _merged_statements(statements: Iterable[str]) -> str:
    """Return ALTER TABLE statements of one table as one, so that the table is rebuilt once."""
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


class Advice(NamedTuple):
    """What to do.

    Attributes:
        findings: errors are what must change.
        sql: statements in order; empty where nothing must change.
        tables: TOML for the configuration.
        looked_at: counts of what was read.
    """

    findings: list[Finding]
    sql: list[str]
    tables: str
    looked_at: str

    @property
    def ready(self) -> bool:
        """Whether nothing must change."""
        return not any(finding.severity == ERROR for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """Return the advice for programs."""
        found = [finding.as_json() for finding in self.findings]
        return {"ready": self.ready, "findings": found, "sql": self.sql, "tables": self.tables}


def adopt(uri: str, shards: int = 2, decided: Mapping[str, TableSettings] | None = None) -> Advice:
    """Read a database in sessions that refuse every write, and judge it.

    Args:
        uri: a MySQL or MariaDB, as pyDAL writes it.
        shards: how many there shall be; with one, rows need not be spread.
        decided: the tables of a configuration.

    Raises:
        ConfigError: another database than MySQL or MariaDB.
        ShardUnavailable: the database did not answer in time.
    """
    if dialect_of(uri).name != "mysql":
        raise ConfigError(
            ["adopt looks at MySQL and MariaDB; in SQLite every id has 64 bits: pipeline check is enough"]
        )
    decided = decided or {}
    found = catalog(uri)
    known = survey("database", uri, list(found.tables), primary=False)
    guess = guess_shard_keys(found, decided, shards)
    settings = Settings(
        redis=RedisSettings("redis://unused.invalid"),
        shards={f"s{n}": ShardSettings(f"s{n}", f"sqlite://{n}") for n in range(shards)},
        tables=guess.tables,
    )
    with brief("database", uri, statement_s=CATALOG_S) as session:
        soft = tuple(soft_references(session, found, guess.references, guess.taken))
    case = Case(known, found, guess, Topology(settings), soft)
    looked_at = f"{len(found.tables)} tables of {known.database}, {len(guess.taken)} of them for the pipeline"
    return Advice(merged_findings(_nameless(case)), adoption_script(case), suggestion(case, decided), looked_at)


def _nameless(case: Case) -> list[Finding]:
    """Return the findings without the node's name: there is one database only."""
    return [finding.__class__(finding.severity, finding.place, finding.what, finding.fix) for finding in findings(case)]


def suggestion(case: Case, decided: Mapping[str, TableSettings]) -> str:
    """Return TOML for the tables that the configuration does not name yet.

    Args:
        case: the database.
        decided: the tables of a configuration.
    """
    return "\n".join(_lines(case, decided))


def _lines(case: Case, decided: Mapping[str, TableSettings]) -> Iterator[str]:
    guess, tables = case.guess, case.guess.tables
    guessed = [name for name in guess.taken if name in tables and name not in decided]
    if guessed:
        yield f"# A guess: most tables refer to {guess.anchor}, so they go by their {guess.anchor}. Any other goes with"
        yield "# the table that it refers to. Yours to judge."
    for name in guessed:
        yield f"[tables.{name}]"
        if tables[name].reference:
            yield f"reference = true            # small ({case.catalog.tables[name].rows} rows), and others refer to it"
        else:
            key = tables[name].shard_key
            parent = next((ref.parent for ref in guess.references if ref[:2] == (name, key)), None)
            yield f'shard_key = "{key}"{f"    # on the shard of its {parent}" if parent else ""}'
            if unique := _key_of_upserts(case, name):
                yield f"unique = {json.dumps([list(unique)])}"
        yield ""
    if by_id := [name for name in guess.taken if name not in tables]:
        yield f"# by their own id, with no section: {', '.join(by_id)}"
    if left := [name for name in case.catalog.tables if name not in guess.taken]:
        yield f"# left in their database, written as ever: {', '.join(left)}"
    for table, column, _ in guess.added:
        yield f'# add to the model: {table}: Field("{column}", "bigint")'
    narrow = case.narrow()
    by_name = [ref for ref in guess.references if not ref.declared and (ref.table, ref.column) in narrow]
    soft = [*case.soft, *(Soft(ref.table, ref.column, (ref.parent,), named=True) for ref in by_name)]
    for line in chain.from_iterable(map(model_lines, soft)):
        yield f"# change in the model: {line}"


def _key_of_upserts(case: Case, name: str) -> tuple[str, ...] | None:
    """Return the columns of the only unique index if the shard key is among them, as an upsert may use it then."""
    table = case.catalog.tables[name]
    # a primary key that an id replaces stays unique
    indexes = [*table.unique.values(), *([table.primary] if table.primary and table.id is None else [])]
    return indexes[0] if len(indexes) == 1 and case.guess.tables[name].shard_key in indexes[0] else None
