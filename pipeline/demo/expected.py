"""The state that must be on the shards at the end, computed from the file alone.

Nothing here knows what was sent, or how: a cancelled flight is gone, a corrected one has the file's delays, any other
has none yet, and planes and weather are as in the file. Only *where* a key lives is asked of the topology.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

from pipeline.demo.corrections import is_cancelled, is_corrected
from pipeline.demo.fingerprint import Fingerprint
from pipeline.demo.flights import COLUMNS, Dataset, Row, shard_key

#: Tells the shard of a (table, shard key).
Place = Callable[[str, str], str]
#: By (table, shard).
Fingerprints = dict[tuple[str, str], Fingerprint]


def expected_fingerprints(dataset: Dataset, place: Place, shards: Iterable[str]) -> Fingerprints:
    """Return what each table on each of *shards* must look like, empty ones included."""
    found = {(table, shard): Fingerprint() for table in COLUMNS for shard in shards}
    place = cache(place)
    for table in COLUMNS:
        for row in final_rows(dataset, table):
            found[table, place(table, shard_key(table, row))].add(row.values())
    return found


def final_rows(dataset: Dataset, table: str) -> Iterator[Row]:
    """Yield the table's rows as they must be at the end."""
    return _final_flights(dataset) if table == "flight" else dataset.rows(table)


def _final_flights(dataset: Dataset) -> Iterator[Row]:
    for number, flight in enumerate(dataset.rows("flight")):
        if is_cancelled(flight):
            continue
        if not is_corrected(number, flight):
            flight["dep_delay"] = flight["arr_delay"] = None
        yield flight
