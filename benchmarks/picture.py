"""Draw a run: bars of the CPU and of the time that a row takes, ours beside the peers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from benchmarks.figure import CPU, Figure, Figures

#: The groups of bars: what is said of each, and its peers. A group has a scale of its own.
GROUPS = {
    "many rows in a call": ("pipeline", "streams by hand, packed", "streams by hand", "executemany", "LOAD DATA"),
    "one write in a call": (
        "pipeline, one by one",
        *("celery -c 1", "celery -c 2", "celery -c 4", "celery 2 × -c 2", "dramatiq 2 × 4"),
        *("huey 2 processes", "huey 8 threads", "pyDAL insert + commit"),
    ),
}
#: What of the CPU each colour is.
WHO = ("caller", "Redis", "workers", "MariaDB")
WIDTH, LEFT, BAR, LINE, TOP = 960, 250, 560, 40, 76
STYLE = """
.ground{fill:#fff}text{fill:#1f2328;font:13px "DejaVu Sans",Verdana,sans-serif}
.h{font-weight:bold;font-size:15px}.s{fill:#59636e;font-size:12px}.e{text-anchor:end}.o{font-weight:bold}
.caller{fill:#3c64a8}.Redis{fill:#b0393e}.workers{fill:#2e7d3a}.MariaDB{fill:#b0720a}.wall{fill:#8b949e}
@media (prefers-color-scheme:dark){.ground{fill:#0d1117}text{fill:#e6edf3}.s{fill:#9198a1}.caller{fill:#6f9bea}
.Redis{fill:#e5686d}.workers{fill:#57ab64}.MariaDB{fill:#d89b35}.wall{fill:#6e7681}}
"""


def picture(figures: Figures, when: datetime) -> str:
    """Return the picture as SVG, light or dark as its reader's screen is; peers without a figure are left out."""
    y, parts = TOP, list[str]()
    for title, names in GROUPS.items():
        rows = [(name, figures[name], figures[CPU.format(name)]) for name in names if name in figures]
        if not rows:
            continue
        parts.append(f'<text class="h" x="20" y="{y}">{title}: µs a row</text>')
        longest = max(max(cpu.value, _wall_us(rate)) for _, rate, cpu in rows)
        for number, (name, rate, cpu) in enumerate(rows):
            parts += _bars(name, rate, cpu, y + 14 + number * LINE, BAR / longest)
        y += 14 + len(rows) * LINE + 40
    box = f'viewBox="0 0 {WIDTH} {y - 20}" role="img" aria-label="{_words(figures)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    ground = f'<style>{STYLE}</style><rect class="ground" width="{WIDTH}" height="{y - 20}"/>'
    about = (
        f"Measured {when.astimezone(UTC):%Y-%m-%d %H:%M} UTC: two durable MariaDB primaries and a Redis on one machine"
    )
    return "\n".join([head, ground, f'<text class="s" x="20" y="24">{about}</text>', *_legend(), *parts, "</svg>", ""])


def _bars(name: str, rate: Figure, cpu: Figure, y: int, scale: float) -> Iterable[str]:
    """Return a peer's name, its CPU in parts, and below them the time from the first enqueue to the last commit."""
    ours = " o" if name.startswith("pipeline") else ""
    yield f'<text class="e{ours}" x="{LEFT - 10}" y="{y + 17}">{escape(name)}</text>'
    x = float(LEFT)
    for who in WHO:
        width = cpu.parts.get(who, 0.0) * scale
        yield f'<rect class="{who}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="14"/>'
        x += width
    yield f'<text class="s{ours}" x="{x + 6:.1f}" y="{y + 12}">{_short(cpu.value)} CPU</text>'
    wall = _wall_us(rate) * scale
    yield f'<rect class="wall" x="{LEFT}" y="{y + 15}" width="{wall:.1f}" height="9"/>'
    yield f'<text class="s" x="{LEFT + wall + 6:.1f}" y="{y + 26}">{_short(_wall_us(rate))} time</text>'


def _legend() -> Iterable[str]:
    x = 20
    for name, text in (*((f"{who}", f"CPU: {who}") for who in WHO), ("wall", "time, first enqueue to last commit")):
        yield f'<rect class="{name}" x="{x}" y="36" width="12" height="12"/>'
        yield f'<text class="s" x="{x + 17}" y="46">{text}</text>'
        x += 130


def _words(figures: Figures) -> str:
    """Return the picture in words."""
    names = [name for group in GROUPS.values() for name in group if CPU.format(name) in figures]
    return "CPU per row in µs: " + ", ".join(f"{name} {_short(figures[CPU.format(name)].value)}" for name in names)


def _wall_us(rate: Figure) -> float:
    return 1e6 / rate.value


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"
