"""Know since when nothing has happened at a shard, so that workers look at it less often.

One round trip a second for all shards of a Redis takes the place of several a shard. Whoever knows nothing of a shard
takes it for one at which something happens.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline import clock
from pipeline.errors import LogUnavailable
from pipeline.oplog.shared_state import SharedState

#: A shard is quiet once nothing has happened at it for so long, s: then its last report and its last record are of now.
QUIET_S = 10.0


class Quiet:
    """What one thread of a worker has seen of all shards.

    Args:
        log: says what happens.
        shards: their names.
    """

    def __init__(self, log: SharedState, shards: Iterable[str]):
        self._log, self._shards = log, tuple(shards)
        #: By shard at which nothing happens: what the log said, and since when, by this process's steady clock.
        self._since: dict[str, tuple[str, float]] = {}
        self._looked_s = 0.0

    def look(self) -> None:
        """Ask the log; call this once a second."""
        try:
            found = self._log.stirs(self._shards)
        except LogUnavailable:
            found = {}
        self._looked_s, before = clock.mono_s(), self._since
        same = {shard for shard, said in found.items() if shard in before and before[shard][0] == said}
        self._since = {
            shard: before[shard] if shard in same else (said, self._looked_s) for shard, said in found.items() if said
        }

    def is_quiet(self, shard: str) -> bool:
        """Return whether nothing had happened at a shard for a while at the last look.

        Args:
            shard: its name.
        """
        said = self._since.get(shard)
        return said is not None and self._looked_s - said[1] > QUIET_S
