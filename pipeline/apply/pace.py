"""How much one transaction takes: so many rows that it commits in about the time aimed at, never above the caps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.config.settings import ApplySettings

#: Rows of the first batch of a process, before any commit was timed.
FIRST_ROWS = 1000
LEAST_ROWS = 50


class Pace:
    """Additive-increase, multiplicative-decrease on the time of a batch, as TCP does on the loss of a packet."""

    def __init__(self, settings: ApplySettings):
        self._settings = settings
        self.rows = min(FIRST_ROWS, settings.max_rows)

    def learn(self, rows: int, size_bytes: int, took_ms: int) -> None:
        """Take in how long a batch took."""
        if took_ms > self._settings.target_ms:
            self.rows = max(LEAST_ROWS, int(self.rows * max(0.5, self._settings.target_ms / took_ms)))
        elif rows >= self.rows * 0.8:
            self.rows = min(self._settings.max_rows, self.rows + FIRST_ROWS // 2)

    def counts(self, buckets: Iterable[int], largest_bytes: Mapping[int, int]) -> dict[int, int]:
        """Return how many entries to read of each bucket.

        Buckets with large ops are read few at a time: the log tells the size of the largest, and entries that do not
        fit into the batch would be read for nothing.
        """
        buckets = list(buckets)
        share = max(1, -(-self.rows // max(1, len(buckets))))
        room = self._settings.max_bytes // max(1, len(buckets))
        counts = {}
        for bucket in buckets:
            large = largest_bytes.get(bucket, 0)
            counts[bucket] = max(1, min(share, room // large)) if large else share
        return counts
