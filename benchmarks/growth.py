"""Draw how a third shard gets its share under load: run `pipeline demo --grow`, or read the JSON of such a run.

`python -m benchmarks.growth --engine mariadb --out docs/img/growth.svg`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click

WIDTH, LEFT, RIGHT = 960, 70, 24
#: Top and height of both panels.
ROWS, RATES = (64, 250), (372, 150)
#: Readable on white and on a dark page: the file brings its own ground for both.
STYLE = """\
svg{--ground:#fff;--ink:#24292f;--dim:#57606a;--grid:#d8dee4;--band:#f0f3f6;--a:#0969da;--b:#8250df;--c:#1a7f37;--d:#bc4c00}
@media(prefers-color-scheme:dark){svg{--ground:#0d1117;--ink:#e6edf3;--dim:#9da7b3;--grid:#30363d;--band:#161b22;\
--a:#58a6ff;--b:#bc8cff;--c:#3fb950;--d:#f0883e}}
text{fill:var(--ink)}.m{fill:var(--dim);font-size:12px}.h{font-weight:bold}.e{text-anchor:end}.g{stroke:var(--grid)}
.band{fill:var(--band)}.l{fill:none;stroke-width:2.4}.s0{stroke:var(--a)}.s1{stroke:var(--b)}.s2{stroke:var(--c)}
.in{stroke:var(--dim);stroke-width:1.4;stroke-dasharray:4 3}.out{stroke:var(--d)}.t0{fill:var(--a)}.t1{fill:var(--b)}
.t2{fill:var(--c)}.t3{fill:var(--d)}.c{text-anchor:middle}"""
#: What the stages of a move are to a reader.
PHASES = {"adding": "added", "workers": "restarts", "cleaning": "cleaning"}


class Scale(NamedTuple):
    """From a number to a place on the page."""

    least: float
    most: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a number."""
        return self.begin + (value - self.least) / (self.most - self.least) * (self.end - self.begin)


@click.command()
@click.option("--engine", type=click.Choice(["embedded", "mariadb"]), default="mariadb", show_default=True)
@click.option("--json", "path", type=click.Path(exists=True, path_type=Path), help="Of a run that was; runs none.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The picture.")
def main(engine: str, path: Path | None, out: Path) -> None:
    """Draw the flights of each shard, and the ops a second, over the time of a run."""
    if path is not None:
        text = path.read_text()
    else:
        command = [sys.executable, "-m", "pipeline", "demo", "--grow", "--engine", engine, "--json"]
        text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    out.write_text(picture(json.loads(text)))


def picture(result: dict[str, Any]) -> str:
    """Return the SVG of a run's result."""
    samples = result["growth"]["samples"]
    x = Scale(0, samples[-1]["at_s"], LEFT, WIDTH - RIGHT)
    title = f"A third shard under load: {result['ops']:,} ops, {result['growth']['buckets_moved']} of 64 buckets moved"
    height = RATES[0] + RATES[1] + 56
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-size="14" role="img" '
        f'font-family="DejaVu Sans, Verdana, sans-serif" aria-label="{title}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="var(--ground)"/>',
        f'<text class="h" x="{LEFT}" y="24">{title}</text>',
        *_bands(samples, x),
        *_shards(samples, x),
        *_rates(samples, x),
        *(
            f'<text class="m c" x="{x(at):.0f}" y="{RATES[0] + RATES[1] + 20}">{at} s</text>'
            for at in range(0, int(samples[-1]["at_s"]) + 1, 20)
        ),
        f'<text class="m" x="{LEFT}" y="{height - 10}">pipeline demo --grow, {result["engine"]} engine, '
        f"all of it on {os.cpu_count()} cores; sampled once a second</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _bands(samples: Sequence[dict[str, Any]], x: Scale) -> Iterator[str]:
    """Yield a band for each phase of the growth, with its name above."""
    phases = [(one["at_s"], "" if not one["stage"] else PHASES.get(one["stage"], "buckets move")) for one in samples]
    ends = [at for at, _ in phases[1:]] + [phases[-1][0]]
    spans = [(begin, end, name) for (begin, name), end in zip(phases, ends, strict=True)]
    shade = False
    for name, group in groupby(spans, lambda span: span[2]):
        found = list(group)
        if not name:
            continue
        begin, end, shade = x(found[0][0]), x(found[-1][1]), not shade
        if shade:
            bottom = RATES[0] + RATES[1]
            yield f'<rect class="band" x="{begin:.1f}" y="48" width="{end - begin:.1f}" height="{bottom - 48}"/>'
        if end - begin > 6 * len(name):
            yield f'<text class="m c" x="{(begin + end) / 2:.1f}" y="44">{name}</text>'


def _shards(samples: Sequence[dict[str, Any]], x: Scale) -> Iterator[str]:
    top, tall = ROWS
    most = max(rows for one in samples for rows in one["flights"].values())
    y = Scale(0, _round_up(most), top + tall, top)
    yield from _axis(y, "flights on each shard", top)
    names = sorted(samples[-1]["flights"])
    for nth, name in enumerate(names):
        points = [(one["at_s"], one["flights"][name]) for one in samples if name in one["flights"]]
        yield _line(f"l s{nth}", [(x(at), y(rows)) for at, rows in points])
        yield f'<text class="h t{nth}" x="{LEFT + 12 + 44 * nth}" y="{top + 18}">{name}</text>'


def _rates(samples: Sequence[dict[str, Any]], x: Scale) -> Iterator[str]:
    top, tall = RATES
    series = {name: list(_per_second(samples, name)) for name in ("enqueued", "applied")}
    y = Scale(0, _round_up(max(rate for points in series.values() for _, rate in points)), top + tall, top)
    yield from _axis(y, "ops a second", top)
    yield _line("l out", [(x(at), y(rate)) for at, rate in series["applied"]])
    yield _line("l in", [(x(at), y(rate)) for at, rate in series["enqueued"]])
    yield f'<text class="h t3" x="{WIDTH - RIGHT - 90}" y="{top + 18}">applied</text>'
    yield f'<text class="m e" x="{WIDTH - RIGHT - 104}" y="{top + 18}">enqueued (dashes)</text>'


def _per_second(samples: Sequence[dict[str, Any]], name: str, over: int = 3) -> Iterator[tuple[float, float]]:
    """Yield rates, each over a few samples."""
    thinned = [one for nth, one in enumerate(samples) if nth % over == 0]
    for before, after in pairwise(thinned):
        yield after["at_s"], (after[name] - before[name]) / (after["at_s"] - before["at_s"])


def _axis(y: Scale, words: str, top: float) -> Iterator[str]:
    for part in range(5):
        value = y.most * part / 4
        at = y(value)
        yield f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="m e" x="{LEFT - 8}" y="{at + 4:.1f}">{value:,.0f}</text>'
    yield f'<text class="m" x="{LEFT}" y="{top - 6}">{words}</text>'


def _line(kind: str, points: Iterable[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'


def _round_up(most: float) -> float:
    """Return four times a round number, at least so large."""
    tens = 10 ** (len(str(int(most / 4))) - 1)
    return next(4 * part * tens for part in (1, 2, 2.5, 5, 10) if 4 * part * tens >= most)


if __name__ == "__main__":
    main()
