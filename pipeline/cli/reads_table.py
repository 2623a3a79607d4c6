"""Reads by node and reason, as a table: `pipeline status` and the demo show it alike."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

#: What is no plain success stands out.
_STYLES = {"replica": "green", "primary": "", "stale": "yellow", "error": "bold red"}
#: What became of a read, in words.
_WORDS = {"replica": "replica", "primary": "primary", "stale": "stale, marked", "error": "refused"}


def reads_table(counts: Iterable[tuple[str, str, str, int]]) -> Table:
    """Return the table of (node, kind, reason, reads)."""
    rows = sorted(counts)
    total = sum(reads for *_, reads in rows)
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for name in ("reads on", "answer", "reason"):
        table.add_column(name, no_wrap=True)
    table.add_column("reads", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for node, kind, reason, reads in rows:
        style = _STYLES.get(kind, "")
        answer = Text(_WORDS.get(kind, kind), style=style)
        table.add_row(Text(node), answer, Text(reason), Text(f"{reads:,}"), Text(f"{reads / total:.1%}", style="dim"))
    return table
