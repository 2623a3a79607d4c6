"""Show numbers as Prometheus reads them, by the names of `families`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from workers.metrics.families import Family
from workers.metrics.tally import Name


def families_of(families: Mapping[str, Family], totals: Mapping[Name, float], prefix: str) -> Iterator[Metric]:
    """Yield families with their numbers; one that has none is there, and empty.

    Args:
        families: by name.
        totals: by the family's name and the values of its labels; of a histogram by its bucket too.
        prefix: begins each metric's name.
    """
    for name, family in families.items():
        if family.bounds:
            yield _histogram(prefix + name, family, name, totals)
            continue
        counter = CounterMetricFamily(prefix + name, family.help, labels=family.labels)
        for (found, *labels), value in totals.items():
            if found == name:
                counter.add_metric(labels, value)
        yield counter


def _histogram(title: str, family: Family, name: str, totals: Mapping[Name, float]) -> HistogramMetricFamily:
    metric = HistogramMetricFamily(title, family.help, labels=family.labels)
    bounds = [*map(floatToGoString, family.bounds), "+Inf"]
    for (found, *labels), total in totals.items():
        if found == f"{name}.sum":
            counts = accumulate(totals.get((name, *labels, str(n)), 0.0) for n in range(len(bounds)))
            metric.add_metric(labels, list(zip(bounds, counts, strict=True)), total)
    return metric
