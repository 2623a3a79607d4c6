"""Run every peer and probe in turn; the pipeline and the best of each family three times, interleaved."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from benchmarks.figure import CPU, Figures, collect, cpu_figure, median_figure
from benchmarks.peer import Peer, Sample, measure_rate, rows_for, rows_of
from benchmarks.probes import Probe
from benchmarks.table import Table
from benchmarks.target import Target

ROUNDS = 3

Say = Callable[[str], None]


@dataclass(slots=True)
class Run:
    """The figures of a run, and what failed, by name."""

    figures: Figures = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def run_all(
    target: Target, table: Table, peers: Iterable[Peer], probes: Iterable[Probe], rows: int, rounds: int, say: Say
) -> Run:
    """Measure all peers and probes; one that fails is reported and does not stop the others."""
    run = Run()
    samples: dict[str, list[Sample]] = {}
    contenders = list(peers)
    for turn in range(rounds):
        for peer in contenders:
            say(f"{peer.name}: {rows_of(peer, rows):,} rows, round {turn + 1}")
            _try(run, peer.name, partial(_add_rate, samples, peer, target, table, rows))
        contenders = best_of_families(contenders, samples)
    for name, found in samples.items():
        rate = median_figure(name, [one.rate for one in found], "rows/s", _detail(name, peers, rows))
        run.figures |= collect([rate, cpu_figure(CPU.format(name), [one.cpu for one in found])])
    for probe in probes:
        say(probe.name)
        _try(run, probe.name, partial(_add_figures, run, probe, target, table, rows, say))
    return run


def best_of_families(peers: Iterable[Peer], samples: dict[str, list[Sample]]) -> list[Peer]:
    """Return the fastest peer of each family so far, in the given order."""
    best: dict[str, Peer] = {}
    for peer in peers:
        rival = best.get(peer.family)
        if peer.name in samples and (rival is None or samples[peer.name][0].rate > samples[rival.name][0].rate):
            best[peer.family] = peer
    return [peer for peer in peers if best.get(peer.family) is peer]


def _add_rate(samples: dict[str, list[Sample]], peer: Peer, target: Target, table: Table, rows: int) -> None:
    found = measure_rate(peer, target, table, rows_for(peer, rows))  # where it fails, the peer has no samples
    samples.setdefault(peer.name, []).append(found)


def _add_figures(run: Run, probe: Probe, target: Target, table: Table, rows: int, say: Say) -> None:
    found = probe.measure(target, table, rows)
    for figure in found:  # said at once: a later probe may never end
        say(f"{figure.name}: {figure.value:.3g} {figure.unit}; {figure.detail}")
    run.figures.update(collect(found))


def _try(run: Run, name: str, measure: Callable[[], None]) -> None:
    try:
        measure()
    except Exception as error:
        traceback.print_exc()
        run.failures[name] = f"{type(error).__name__}: {error}"


def _detail(name: str, peers: Iterable[Peer], rows: int) -> str:
    return next(f"{rows_of(peer, rows):,} rows" for peer in peers if peer.name == name)
