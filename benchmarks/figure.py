"""Hold what a run measures: named figures, each with its unit and its single samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number; `samples` holds the runs that `value` is the median of, `parts` what it is the sum of."""

    name: str
    value: float
    unit: str
    detail: str = ""
    samples: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)


Figures = dict[str, Figure]


def collect(figures: Iterable[Figure]) -> Figures:
    """Return the figures by name."""
    return {figure.name: figure for figure in figures}


def median_figure(name: str, samples: Sequence[float], unit: str, detail: str) -> Figure:
    """Return the median of the samples as a figure."""
    return Figure(name, median(samples), unit, detail, tuple(samples))


#: The name of a figure of the CPU that a row takes of a peer, and its unit.
CPU, CPU_UNIT = "CPU, {}", "µs CPU per row"


def cpu_figure(name: str, samples: Sequence[Mapping[str, float]], detail: str = "") -> Figure:
    """Return the median of CPU times that are given by who used them."""
    parts = {who: median(one[who] for one in samples) for who in samples[0]}
    text = ", ".join(f"{who} {value:.3g}" for who, value in parts.items())
    sums = tuple(sum(one.values()) for one in samples)
    return Figure(name, median(sums), CPU_UNIT, f"{text}; {detail}" if detail else text, sums, parts)


def percentile_figures(name: str, samples_s: Sequence[float], detail: str) -> list[Figure]:
    """Return p50 and p99 of durations in seconds as figures in milliseconds."""
    cuts = quantiles(samples_s, n=100, method="inclusive")
    return [
        Figure(f"{name} p50", cuts[49] * 1000, "ms", detail),
        Figure(f"{name} p99", cuts[98] * 1000, "ms", detail),
    ]
