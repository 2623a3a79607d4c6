"""Show how the nodes' columns differ, column by column: a diff for people, and one finding per column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.admin.check.evidence import Evidence
from pipeline.shard.survey import Survey
from pipeline.shard.widening import plain_type

MISSING = "missing"


class Drift(NamedTuple):
    """One column that is not the same on all nodes that have its table: type or `missing`, and the nodes."""

    table: str
    column: str
    by_type: dict[str, list[str]]

    @property
    def listed(self) -> str:
        """What each node has, in one text."""
        return ", ".join(f"{kind} on {' and '.join(nodes)}" for kind, nodes in self.by_type.items())


def drift_of(table: str, nodes: Sequence[Survey]) -> Iterator[Drift]:
    """Yield the columns of a table that differ between nodes; a node without the table does not count.

    Args:
        table: its name in the database.
        nodes: what the servers answered.
    """
    present = {node.node: node.tables[table.lower()].columns for node in nodes if table.lower() in node.tables}
    for column in dict.fromkeys(name for columns in present.values() for name in columns):
        by_type: dict[str, list[str]] = {}
        for node, columns in present.items():
            kind = plain_type(columns[column].type) if column in columns else MISSING
            by_type.setdefault(kind, []).append(node)
        if len(by_type) > 1:
            yield Drift(table, column, by_type)


def drift_lines(evidence: Evidence) -> list[str]:
    """Return the diff of all published tables as text: a line per column, aligned.

    Args:
        evidence: what the servers answered.
    """
    names = [schema.name_there for schema in evidence.schemas]
    found = [drift for name in names for drift in drift_of(name, evidence.surveys)]
    places = [f"{drift.table}.{drift.column}" for drift in found]
    width = max(map(len, places), default=0)
    return [f"{place:{width}}  {drift.listed}" for place, drift in zip(places, found, strict=True)]
