"""Look for everything that would keep ops from being applied exactly, once and in order; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.admin.checks import (
    away,
    buckets,
    clocks,
    configuration,
    constraints,
    privileges,
    redis,
    schemas,
    servers,
    spool,
    workers,
)
from pipeline.admin.checks.evidence import Evidence, gather
from pipeline.admin.checks.finding import ERROR, Finding, merged
from pipeline.config.settings import load
from pipeline.errors import ConfigError

#: In the order in which an operator would mend.
SUBJECTS: tuple[Callable[[Evidence], Iterable[Finding]], ...] = (
    configuration.findings,
    redis.findings,
    spool.findings,
    servers.findings,
    away.findings,
    privileges.findings,
    buckets.findings,
    schemas.findings,
    constraints.findings,
    workers.findings,
    clocks.findings,
)


class Verdict(NamedTuple):
    """All findings, errors first, and what was looked at: empty if the configuration could not be used."""

    findings: list[Finding]
    looked_at: str

    @property
    def errors(self) -> int:
        """How many errors there are."""
        return sum(finding.severity == ERROR for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """Return the verdict for programs."""
        return {"ok": not self.errors, "findings": [finding.as_json() for finding in self.findings]}


def check(source: str | Path | Mapping[str, Any] | None = None) -> Verdict:
    """Find every fault at once; takes a few seconds at most, however many servers are dead.

    Args:
        source: a path, a dict of the same shape, or None: see `settings.load`.
    """
    try:
        settings = load(source)
    except ConfigError as error:
        return Verdict(list(configuration.faults(error)), "")
    evidence = gather(settings)
    found = (finding for subject in SUBJECTS for finding in subject(evidence))
    topology = evidence.topology
    counts = (
        f"{len(topology.shards)} shards, {len(evidence.nodes)} nodes, {topology.buckets} buckets, "
        f"{len(evidence.schemas)} published tables"
    )
    return Verdict(merged(found), counts)
