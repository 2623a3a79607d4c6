"""Clocks. Nothing is ordered by them; but ages, lags and time stamps that people read are wrong with them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import WARNING, Finding
from pipeline.oplog.redis.server_info import Health

#: More than this is no matter of drift.
MOST_SKEW_MS = 2_000


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield servers whose clock differs from this machine's."""
    skews = {found.node: found.skew_ms for found in evidence.surveys}
    if isinstance(evidence.log, Health):
        skews = {"redis": evidence.log.skew_ms, **skews}
    for node, skew_ms in skews.items():
        if abs(skew_ms) > MOST_SKEW_MS:
            which = "ahead of" if skew_ms > 0 else "behind"
            yield Finding(
                WARNING,
                "clock",
                f"is {abs(skew_ms) / 1000:.1f} s {which} this machine's",
                "run an NTP client such as chrony on both machines",
                (node,),
            )
