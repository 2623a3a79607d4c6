"""Hold a finding: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. An error keeps ops from being applied, or from being exact; a warning is a risk.

    Attributes:
        severity: `error` or `warning`.
        place: a table, a column, a setting or a key of the configuration.
        what: what is there; the sentence continues after the place.
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


def merged_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Return errors before warnings, and one finding for what several nodes share.

    Args:
        findings: of any order.
    """
    together: dict[Finding, dict[str, None]] = {}
    for finding in findings:
        together.setdefault(replace(finding, nodes=()), {}).update(dict.fromkeys(finding.nodes))
    found = [replace(finding, nodes=tuple(nodes)) for finding, nodes in together.items()]
    return sorted(found, key=lambda finding: finding.severity != ERROR)


def without_copies(findings: Iterable[Finding], primary_of: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings without those that a replica has from its primary: a repair of the primary repairs both.

    Args:
        findings: of all nodes.
        primary_of: the primary of each replica.
    """
    for finding in merged_findings(findings):
        own = tuple(node for node in finding.nodes if primary_of.get(node) not in finding.nodes)
        yield replace(finding, nodes=own)
