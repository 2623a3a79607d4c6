"""Write the small parts of a page as HTML: numbers, ages, cells, cards, charts, and what is wrong with what mends it.

Every text from outside goes through `escape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple, TypeVar

from pipeline.admin.observe.record import LATE_MS

UNKNOWN = '<span class="pl-unknown">unknown</span>'
_N = TypeVar("_N", int, float)


def span(ms: int) -> str:
    """Return a length of time for people.

    Args:
        ms: milliseconds.
    """
    if ms < 1_000:
        return f"{ms} ms"
    seconds = ms / 1_000
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Trouble(NamedTuple):
    """One thing that is wrong.

    Attributes:
        head: its sentence.
        detail: more, unless the sentence has it.
        fix: what mends it; behind `run: ` a command.
        page: the address of the page with the buttons, from the page that shows this; empty: none.
        open: what the link to that page says.
        resume: what a button resumes, as `table:x`; empty: there is none.
    """

    head: str
    detail: str = ""
    fix: str = ""
    page: str = ""
    open: str = ""
    resume: str = ""


def fault_list(items: Iterable[Trouble], fine: str) -> str:
    """Return what is wrong, each with what mends it.

    Args:
        items: the worst first.
        fine: the sentence where nothing is.
    """
    found = "".join(f"<li>{_fault_item(item)}</li>" for item in items)
    return f"<ul>{found}</ul>" if found else f'<p class="pl-fine"><span aria-hidden="true">✓</span> {fine}</p>'


def _fault_item(item: Trouble) -> str:
    head, detail, fix = item.head, item.detail, item.fix
    more = f' <span class="pl-detail">{escape(detail)}</span>' if detail and detail not in head else ""
    words, run, command = fix.rpartition("run: ")
    if not run:
        words, command = fix, ""
    said = f' <span class="pl-fix-words">{escape(words + run)}</span>' if words else ""
    mend = f' <code class="pl-fix">{escape(command)}</code>' if command else ""
    link = f' <a class="pl-go" href="{escape(item.page)}">{escape(item.open)}</a>' if item.page else ""
    return f"<strong>{escape(head)}</strong>{more}{said}{mend}{link}{_resume_button(item.resume)}"


def _resume_button(what: str) -> str:
    if not what:
        return ""
    kind, _, name = what.partition(":")
    words = f"Resume {name} on all shards" if kind == "table" else f"Resume {name}"
    return (
        f' <button class="btn btn-primary btn-sm pl-go" form="pl-stop" name="resume" value="{escape(what)}">'
        f"{escape(words)}</button>"
    )


def number_card(label: str, value: str, style: str, more: str = "") -> str:
    """Return a card with one number.

    Args:
        label: HTML of what it is.
        value: HTML of the number.
        style: of Flower's cards: `active`, `success`, `danger` or none.
        more: HTML below the number.
    """
    below = f'<p class="pl-more">{more}</p>' if more else ""
    kind = f" metric-card-{style}" if style else ""
    return (
        f'<article class="metric-card{kind}"><p class="metric-label">{label}</p>'
        f'<p class="metric-value">{value}</p>{below}</article>'
    )


def table_row(head: str, *cells: str) -> str:
    """Return a row of a table.

    Args:
        head: HTML of its first cell, which names the row.
        cells: HTML of the others.
    """
    return f'<tr><th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def empty_row(columns: int, words: str) -> str:
    """Return the row of a table that has none.

    Args:
        columns: how many the table has.
        words: why it is empty.
    """
    return f'<tr><td colspan="{columns}" class="pl-none">{words}</td></tr>'


def number_text(number: int | None, sign: str = "", *, bad: bool = False) -> str:
    """Return a count.

    Args:
        number: None: unknown.
        sign: before it.
        bad: whether it is worth a look.
    """
    if number is None:
        return UNKNOWN
    return f'<span class="pl-alarm">{number:,}</span>' if bad else f"{sign}{number:,}"


def rate_text(rate: float | None) -> str:
    """Return a rate.

    Args:
        rate: a second; None: unknown.
    """
    if rate is None:
        return UNKNOWN
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:,.1f}"


def age_text(ms: int | None, *, none: str | None) -> str:
    """Return an age; one that is late stands out.

    Args:
        ms: None: there is nothing to be old.
        none: the text for that; None: then the age is unknown.
    """
    if ms is None:
        return UNKNOWN if none is None else none
    return f'<span class="pl-late">{span(ms)}</span>' if ms > LATE_MS else span(ms)


def size_text(number: int | None) -> str:
    """Return a size.

    Args:
        number: bytes; None: unknown.
    """
    return UNKNOWN if number is None else f"{number / 1e6:,.1f} MB"


def sum_known(numbers: Iterable[_N | None]) -> _N | None:
    """Return a sum; None where a part is unknown.

    Args:
        numbers: the parts.
    """
    found = list(numbers)
    return None if None in found else sum(one for one in found if one is not None)


#: Sizes of the drawing, in units of its own; the page scales it.
WIDTH, HEIGHT = 640, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 10, 24
_SPARK = (120, 28)

Values = Sequence[float | None]


class Curve(NamedTuple):
    """One line of a chart: its name, its style's number, and a value for each moment; None: unknown."""

    name: str
    style: int
    values: Values


def sparkline(values: Values, title: str) -> str:
    """Return a line without axes, for a cell of a table.

    Args:
        values: the oldest first.
        title: what it shows, for who cannot see it.
    """
    width, height = _SPARK
    known = [value for value in values if value is not None]
    top = max(known, default=0.0) or 1.0
    paths = "".join(_path(part, 1) for part in _parts(values, (0, 2, width, height - 4), top))
    return (
        f'<svg class="pl-spark" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"'
        f' preserveAspectRatio="none">{paths}</svg>'
    )


def chart(lines: Sequence[Curve], at_ms: Sequence[int], title: str, words: Sequence[str]) -> str:
    """Return a chart with a time axis.

    Args:
        lines: what it shows; all have a value for each moment.
        at_ms: the moments, ms since 1970, the oldest first.
        title: what it shows.
        words: the texts of the greatest value, and of the half.
    """
    if len(at_ms) < 2:
        return f'<p class="pl-none">{escape(title)}: nothing is recorded yet</p>'
    top = greatest(lines) or 1.0
    box = (_LEFT, _TOP, WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM)
    span_s = (at_ms[-1] - at_ms[0]) / 1000
    grid = "".join(
        f'<line class="pl-grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="pl-axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(word)}</text>'
        for y, word in zip((_TOP, _TOP + box[3] / 2, _TOP + box[3]), (*words, "0"), strict=True)
    )
    times = "".join(
        f'<text class="pl-axis" x="{_LEFT + share * box[2]:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{word}</text>'
        for share, anchor, word in (
            (0, "start", ago(span_s)),
            (0.5, "middle", ago(span_s / 2)),
            (1, "end", "now"),
        )
    )
    paths = "".join(_path(part, line.style) for line in lines for part in _parts(line.values, box, top))
    names = ", ".join(line.name for line in lines)
    return (
        f'<svg class="pl-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(title)}: {escape(names)}, at most {escape(words[0])}">{grid}{times}{paths}</svg>'
    )


def greatest(lines: Sequence[Curve]) -> float:
    """Return the greatest value of some lines; 0.0 where none is known.

    Args:
        lines: of one chart.
    """
    return max((value for line in lines for value in line.values if value is not None), default=0.0)


def ago(seconds: float) -> str:
    """Return how long ago something was, in the largest whole unit.

    Args:
        seconds: how long.
    """
    if seconds < 90:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 5400 else f"{seconds / 3600:.0f} h ago"


def _parts(values: Values, box: tuple[float, float, float, float], top: float) -> list[list[tuple[float, float]]]:
    """Return the points of each piece of a line between two gaps."""
    left, upper, width, height = box
    step = width / max(1, len(values) - 1)
    parts: list[list[tuple[float, float]]] = [[]]
    for n, value in enumerate(values):
        if value is None:
            parts.append([])
        else:
            parts[-1].append((left + n * step, upper + height - value / top * height))
    return [part for part in parts if part]


def _path(points: Sequence[tuple[float, float]], style: int) -> str:
    if len(points) == 1:
        return f'<circle class="pl-dot pl-line{style}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="1.5"/>'
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="pl-line pl-line{style}" points="{corners}"/>'
