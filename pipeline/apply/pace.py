"""Choose how much one transaction takes: rows by the time of earlier ones, entries of each bucket by their bytes.

Invariant: a worker reads `max_bytes` at most, and one op more. What is larger waits in the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.settings import ApplySettings
from pipeline.model.op import Position
from pipeline.oplog.appends import BIG_BYTES
from pipeline.oplog.contract import Work

#: Rows of the first batch of a process, before any commit was timed.
FIRST_ROWS = 1000
LEAST_ROWS = 50


class Pace:
    """Additive-increase, multiplicative-decrease on the time of a batch, as TCP does on the loss of a packet.

    Args:
        settings: the time that a batch aims at, and its limits.
        log: measures large ops before they are read.
    """

    def __init__(self, settings: ApplySettings, log: Work):
        self._settings, self._log = settings, log
        self.rows = min(FIRST_ROWS, settings.max_rows)

    def learn(self, rows: int, took_ms: int) -> None:
        """Note how long a batch took.

        Args:
            rows: how many ops it applied.
            took_ms: from the first step to the last.
        """
        if took_ms > self._settings.target_ms:
            self.rows = max(LEAST_ROWS, int(self.rows * max(0.5, self._settings.target_ms / took_ms)))
        elif rows >= self.rows * 0.8:
            self.rows = min(self._settings.max_rows, self.rows + FIRST_ROWS // 2)

    def counts(self, after: Mapping[int, Position], largest_bytes: Mapping[int, int]) -> dict[int, int]:
        """Return how many entries to read of each bucket. Buckets for which there is no room are left out.

        What has been due for the longest time goes first: what is left out now comes first in the next batch.

        Args:
            after: of each bucket that is locked, its watermark.
            largest_bytes: of each due bucket the size of its largest op of late, 0 if none is large; the oldest first.
        """
        order = [bucket for bucket in largest_bytes if bucket in after]
        share = max(1, -(-self.rows // max(1, len(order))))
        room = self._settings.max_bytes
        large = {bucket: after[bucket] for bucket in order if largest_bytes[bucket]}
        small = [bucket for bucket in order if bucket not in large]
        if not large or not largest_bytes[order[0]]:
            counts = _unmeasured(small, share, room)
            measured, _ = self._measured(large, share, room - sum(counts.values()) * BIG_BYTES)
            return counts | measured
        counts, size_bytes = self._measured(large, share, room)
        return counts | _unmeasured(small, share, room - size_bytes)

    def most(self, bucket: int, after: Position, entries: int) -> int:
        """Return how many entries of one bucket to read.

        Args:
            bucket: the bucket.
            after: its watermark.
            entries: the most entries.
        """
        counts, _ = self._measured({bucket: after}, entries, self._settings.max_bytes)
        return counts[bucket]

    def _measured(self, after: Mapping[int, Position], share: int, room_bytes: int) -> tuple[dict[int, int], int]:
        """Return how many entries of each bucket fit, and their bytes."""
        if not after or room_bytes <= 0:
            return {}, 0
        found = self._log.sizes(after, share, room_bytes)
        return {bucket: max(1, len(sizes)) for bucket, sizes in found.items()}, sum(map(sum, found.values()))


def _unmeasured(buckets: Sequence[int], share: int, room_bytes: int) -> dict[int, int]:
    """Return how many entries of each bucket fit if all are as large as an unmeasured op may be."""
    if not buckets or room_bytes <= 0:
        return {}
    return dict.fromkeys(buckets, max(1, min(share, room_bytes // (BIG_BYTES * len(buckets)))))
