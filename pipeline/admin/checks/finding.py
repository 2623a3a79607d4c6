"""A finding: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. An error keeps ops from being applied, or from being exact; a warning is a risk.

    Attributes:
        place: a table, a column, a setting or a key of the configuration.
        what: what is there, a sentence that goes on from its place.
        fix: the SQL, the setting or the command.
        nodes: the servers concerned; empty where the whole deployment is.
    """

    severity: str
    place: str
    what: str
    fix: str
    nodes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Nodes and place in one text."""
        return ": ".join(part for part in (", ".join(self.nodes), self.place) if part)

    def as_json(self) -> dict[str, object]:
        """Return the finding for programs."""
        return {
            "severity": self.severity,
            "nodes": list(self.nodes),
            "place": self.place,
            "what": self.what,
            "fix": self.fix,
        }


def merged(findings: Iterable[Finding], replicas: dict[str, str]) -> list[Finding]:
    """Return errors before warnings, one for what several nodes share.

    A replica's finding is left out where its primary has the same: mending the primary mends both.

    Args:
        replicas: the primary of each replica.
    """
    together: dict[Finding, dict[str, None]] = {}
    for finding in findings:
        nodes = together.setdefault(replace(finding, nodes=()), {})
        nodes.update(dict.fromkeys(finding.nodes))
    kept = []
    for finding, nodes in together.items():
        own = tuple(node for node in nodes if replicas.get(node) not in nodes)
        kept.append(replace(finding, nodes=own))
    return sorted(kept, key=lambda finding: finding.severity != ERROR)
