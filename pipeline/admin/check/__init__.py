"""Find everything that would keep ops from being applied exactly, once and in order; change nothing.

Evidence is gathered first. Each subject is a function from evidence to findings, with no I/O but for the spool's
folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.admin.check import buckets, schemas, servers, surroundings
from pipeline.admin.check.evidence import Evidence, gather
from pipeline.admin.check.finding import ERROR, Finding, merged_findings
from pipeline.admin.check.uwsgi import uwsgi_findings
from pipeline.admin.observe.faults import MAX_AGE_S
from pipeline.config.settings import load
from pipeline.errors import ConfigError

#: What has happened to ops already, then in the order in which an operator would repair.
SUBJECTS: tuple[Callable[[Evidence], Iterable[Finding]], ...] = (
    surroundings.op_findings,
    surroundings.deployment_findings,
    surroundings.configuration_findings,
    servers.transport_findings,
    surroundings.redis_findings,
    surroundings.spool_findings,
    servers.server_findings,
    servers.absence_findings,
    servers.privilege_findings,
    buckets.bucket_findings,
    schemas.schema_findings,
    buckets.constraint_findings,
    surroundings.worker_findings,
    surroundings.foreign_findings,
    uwsgi_findings,
    surroundings.clock_findings,
)


class Verdict(NamedTuple):
    """All findings, errors first.

    Attributes:
        findings: one per fault.
        looked_at: counts of what was checked; empty if the configuration could not be used.
    """

    findings: list[Finding]
    looked_at: str

    @property
    def errors(self) -> int:
        """How many errors there are."""
        return sum(finding.severity == ERROR for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """Return the verdict for programs."""
        return {"ok": not self.errors, "findings": [finding.as_json() for finding in self.findings]}


def check(source: str | Path | Mapping[str, Any] | None = None, max_age_s: float = MAX_AGE_S) -> Verdict:
    """Find every fault at once; takes a few seconds and 20 ms per table at most, however many servers are dead.

    Args:
        source: a path, a dict of the same shape, or None: see `settings.load`.
        max_age_s: the age from which on a waiting op is a fault, seconds.
    """
    try:
        settings = load(source)
    except ConfigError as error:
        return Verdict(list(surroundings.faults(error)), "")
    evidence = gather(settings, max_age_s)
    found = (finding for subject in SUBJECTS for finding in subject(evidence))
    topology = evidence.topology
    counts = (
        f"{len(topology.shards)} shards, {len(evidence.nodes)} nodes, {topology.buckets} buckets, "
        f"{len(evidence.schemas)} published tables"
    )
    return Verdict(merged_findings(found), counts)
