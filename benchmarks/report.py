"""Print a run as tables: for the terminal, for `docs/benchmarks.md`, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.figure import CPU, Figure
from benchmarks.goals import GOALS
from benchmarks.peers import PEERS
from benchmarks.run import Run

OURS = "pipeline"
TableRows = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def print_run(run: Run, facts: dict[str, str], console: Console) -> None:
    """Print the tables of a run."""
    for title, head, rows in _tables(run):
        table = RichTable(title=title, title_justify="left")
        for number, column in enumerate(head):
            table.add_column(column, justify="right" if number in _NUMBERS else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for name, fact in facts.items():
        console.print(f"[dim]{name}: {fact}[/]", highlight=False)


def as_markdown(run: Run, facts: dict[str, str], when: datetime) -> str:
    """Return the dated section of a run."""
    lines = [f"## {when.astimezone(UTC):%Y-%m-%d %H:%M} UTC", ""]
    lines += [f"- {name}: {fact}" for name, fact in facts.items()]
    for title, head, rows in _tables(run):
        marks = ["---:" if number in _NUMBERS else "---" for number in range(len(head))]
        lines += ["", f"### {title}", "", *(f"| {' | '.join(row)} |" for row in (head, tuple(marks), *rows))]
    return "\n".join([*lines, ""])


def as_json(run: Run, facts: dict[str, str], when: datetime) -> dict[str, Any]:
    """Return everything that was measured, for programs."""
    return {
        "when": when.isoformat(),
        "conditions": facts,
        "figures": [asdict(figure) for figure in run.figures.values()],
        "goals": [
            {"label": goal.label, "measured": value, "bound": goal.bound, "reached": goal.reached(value)}
            for goal in GOALS
            if (value := goal.measured(run.figures)) is not None
        ],
        "failures": run.failures,
    }


#: Columns with numbers are right-aligned in every table.
_NUMBERS = (1, 2)


def _tables(run: Run) -> list[TableRows]:
    rates = [figure for figure in run.figures.values() if figure.unit == "rows/s"]
    beside = {CPU.format(rate.name) for rate in rates}
    others = [one for name, one in run.figures.items() if one.unit != "rows/s" and name not in beside]
    ours = run.figures.get(OURS)
    tables: list[TableRows] = [
        (
            "From enqueue to committed",
            ("peer", "rows/s", "pipeline is", "CPU, µs a row", "of which", "what it keeps", "conditions"),
            [(rate.name, number(rate.value), _times(ours, rate), *_cpu(run, rate), _runs(rate)) for rate in rates],
        ),
        (
            "This pipeline, and what it is compared with",
            ("what", "value", "unit", "conditions"),
            [(other.name, number(other.value), other.unit, other.detail) for other in others],
        ),
        ("Targets", ("target", "measured", "bound", "result"), _goals(run)),
        ("Failed", ("what", "why"), list(run.failures.items())),
    ]
    return [table for table in tables if table[2]]


def _goals(run: Run) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for goal in GOALS:
        measured = goal.measured(run.figures)
        bound = f"{'≥' if goal.at_least else '≤'} {number(goal.bound)} {goal.unit}"
        if measured is None:
            rows.append((goal.label, "", bound, "not measured"))
        else:
            rows.append((goal.label, number(measured), bound, "met" if goal.reached(measured) else "**missed**"))
    return rows


def _cpu(run: Run, rate: Figure) -> tuple[str, str, str]:
    cpu = run.figures.get(CPU.format(rate.name))
    keeps = next((peer.keeps for peer in PEERS if peer.name == rate.name), "")
    return (number(cpu.value), cpu.detail, keeps) if cpu is not None else ("", "", keeps)


def _times(ours: Figure | None, rate: Figure) -> str:
    return f"{number(ours.value / rate.value)} ×" if ours and ours is not rate else ""


def _runs(rate: Figure) -> str:
    if len(rate.samples) < 2:
        return rate.detail
    return f"{rate.detail}; median of {', '.join(number(sample) for sample in rate.samples)}"


def number(value: float) -> str:
    """Return the value with three significant digits or more, thousands separated."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
