"""Draw small charts as SVG, which needs no library in the browser. A gap is a time of which nothing is known."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

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
