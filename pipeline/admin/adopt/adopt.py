"""Look at an existing database, and say what must change before the pipeline can take its tables; change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.admin.adopt.case import Case
from pipeline.admin.adopt.changes import findings
from pipeline.admin.adopt.kin import kin
from pipeline.admin.adopt.script import script
from pipeline.admin.adopt.suggestion import suggestion
from pipeline.admin.checks.finding import ERROR, Finding, merged
from pipeline.config.settings import RedisSettings, Settings, ShardSettings, TableSettings
from pipeline.config.topology import Topology
from pipeline.errors import ConfigError
from pipeline.shard.catalog import catalog
from pipeline.shard.dialect import dialect_of
from pipeline.shard.survey import survey


class Advice(NamedTuple):
    """What to do. `sql`: statements in order; empty where nothing must change. `tables`: for the configuration."""

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
        uri: of MySQL or MariaDB, as pyDAL writes it.
        shards: how many there shall be; with one, rows need not be spread.
        decided: the tables of a configuration.

    Raises:
        ConfigError: another database than MySQL or MariaDB.
        ShardUnavailable: it did not answer in time.
    """
    if dialect_of(uri).name != "mysql":
        raise ConfigError(
            ["adopt looks at MySQL and MariaDB; in SQLite every id has 64 bits: pipeline check is enough"]
        )
    decided = decided or {}
    found = catalog(uri)
    known = survey("database", uri, list(found.tables), primary=False)
    relations = kin(found, decided, shards)
    settings = Settings(
        redis=RedisSettings("redis://unused.invalid"),
        shards={f"s{n}": ShardSettings(f"s{n}", f"sqlite://{n}") for n in range(shards)},
        tables=relations.tables,
    )
    case = Case(known, found, relations, Topology(settings))
    looked_at = f"{len(found.tables)} tables of {known.database}, {len(relations.taken)} of them for the pipeline"
    return Advice(merged(_nameless(case)), script(case), suggestion(case, decided), looked_at)


def _nameless(case: Case) -> list[Finding]:
    """Return the findings without the node's name: there is one database only."""
    return [finding.__class__(finding.severity, finding.place, finding.what, finding.fix) for finding in findings(case)]
