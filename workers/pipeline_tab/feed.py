"""Read what workers publish, once a second or two for all browsers together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.admin.observe.published import NO_HISTORY, History, nothing_known, read_histories, read_record
from pipeline.admin.observe.record import Record
from pipeline.config.settings import load
from pipeline.errors import PipelineError
from pipeline.oplog.groups import log_of
from pipeline.oplog.redis.server_info import ANSWER_S
from pipeline.per_process import PerProcess

#: The time between two readings, s; and of more than `MANY` shards: one of 64 takes 5 ms of processor time. Histories
#: have a point every five.
EVERY_S, EVERY_OF_MANY_S, MANY, HISTORY_S = 1.0, 2.0, 16, 5.0
NO_RECORD = "no worker has published a record within the last ten minutes; run: celery -A workers worker"


class Seen(NamedTuple):
    """What is shown.

    Attributes:
        number: grows with each reading.
        record: the newest.
        age_ms: of the record; None where workers have published none.
        histories: of each shard.
    """

    number: int
    record: Record
    age_ms: int | None
    histories: Mapping[str, History]


class Feed:
    """Reads the record and the histories of the configured deployment."""

    def __init__(self) -> None:
        settings = load()
        self._shards = tuple(settings.shards)
        #: The time between two readings, s.
        self.every_s = EVERY_OF_MANY_S if len(self._shards) > MANY else EVERY_S
        self._log = log_of(settings, read_s=ANSWER_S)
        self._lock = asyncio.Lock()
        self._seen: Seen | None = None
        self._read_s = self._history_s = -HISTORY_S

    async def newest(self) -> Seen:
        """Return what is shown now; whoever comes while it is read waits for that reading."""
        async with self._lock:
            if self._seen is None or clock.mono_s() - self._read_s >= 0.9 * self.every_s:
                self._seen = await asyncio.get_running_loop().run_in_executor(None, self._read)
                self._read_s = clock.mono_s()
            return self._seen

    def _read(self) -> Seen:
        number = self._seen.number + 1 if self._seen is not None else 0
        histories = self._seen.histories if self._seen is not None else {}
        try:
            newest = read_record(self._log, self._shards)
            if clock.mono_s() - self._history_s >= HISTORY_S:
                histories = read_histories(
                    self._log, {shard: histories.get(shard, NO_HISTORY) for shard in self._shards}
                )
                self._history_s = clock.mono_s()
        except PipelineError as error:
            return Seen(number, nothing_known(str(error), clock.wall_ms(), self._shards), None, histories)
        if newest is None:
            return Seen(number, nothing_known(NO_RECORD, clock.wall_ms(), self._shards), None, histories)
        return Seen(number, newest.record, newest.age_ms, histories)


feed = PerProcess(Feed)
