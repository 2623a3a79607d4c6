"""Privileges: the primary's user reads and writes, a replica's user reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import ERROR, Finding
from pipeline.shard import repairs


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what users may not do."""
    for node in evidence.surveys:
        verbs = defaultdict(list)
        for verb, table in node.denied:
            verbs[table].append(verb)
        tables = defaultdict(list)
        for table, missing in verbs.items():
            tables[tuple(missing)].append(table)
        for missing_verbs, names in tables.items():
            wanted = ("SELECT",) if node.node in evidence.primary_of else ("SELECT", "INSERT", "UPDATE", "DELETE")
            yield Finding(
                ERROR,
                ", ".join(names),
                f"the user {node.account} may not {', '.join(missing_verbs)}",
                repairs.grant(wanted, node.database, node.account),
                (node.node,),
            )
