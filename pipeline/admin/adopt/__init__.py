"""Read an existing database and say what must change before the pipeline can take its tables; change nothing.

The sections `[tables.*]` of a configuration are suggested too, and marked as a guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from pipeline.admin.adopt.changes import adoption_script, findings
from pipeline.admin.adopt.shard_key_guess import Case, Soft, guess_shard_keys
from pipeline.admin.adopt.soft_references import model_lines, soft_references
from pipeline.admin.check.finding import ERROR, Finding, merged_findings
from pipeline.config.settings import RedisSettings, Settings, ShardSettings, TableSettings
from pipeline.config.topology import Topology
from pipeline.errors import ConfigError
from pipeline.shard.catalog import CATALOG_S, catalog
from pipeline.shard.dialect import dialect_of
from pipeline.shard.session import brief
from pipeline.shard.survey import survey


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
            if unique := _unique(case, name):
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


def _unique(case: Case, name: str) -> tuple[str, ...] | None:
    """Return the columns of the only unique index if the shard key is among them, as an upsert may use it then."""
    table = case.catalog.tables[name]
    # a primary key that an id replaces stays unique
    indexes = [*table.unique.values(), *([table.primary] if table.primary and table.id is None else [])]
    return indexes[0] if len(indexes) == 1 and case.guess.tables[name].shard_key in indexes[0] else None
