"""Replicas that were away for too long: the log no longer keeps what they lack."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import ERROR, Finding


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield each unfit replica."""
    for node in evidence.unfit:
        yield Finding(
            ERROR,
            "",
            "is unfit: it was away for longer than [apply] replica_away_s, so the log no longer keeps what it lacks",
            f"rebuild it from its primary, then run pipeline rebuilt {node}",
            (node,),
        )
