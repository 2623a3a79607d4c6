"""Publish the record of the deployment once a second, from whichever worker holds the lease.

While nothing happens at any shard, every third second will do.
"""

from __future__ import annotations

import logging
import secrets

from pipeline import clock
from pipeline.admin.observe.observer import Observer
from pipeline.admin.observe.published import Point, point_of, publish, summary
from pipeline.admin.observe.record import Record
from pipeline.config.settings import Settings
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.oplog.groups import log_of
from pipeline.oplog.redis.server_info import ANSWER_S

logger = logging.getLogger("pipeline.observer")

#: The lease of the worker that publishes, and how long it lasts without a sign of life, ms.
LEASE, LEASE_MS = "observe", 3000
#: The time between two records, s.
EVERY_S = 1.0
#: The time between two points of the last minutes, and of the last hours, s.
RECENT_S, DAY_S = 5.0, 300.0


class Spans:
    """What a history's next points are made of: the records since the last ones.

    Args:
        now_s: the time, by this process's steady clock.
    """

    def __init__(self, now_s: float):
        self._recent_s, self._day_s = now_s, now_s
        self._recent: dict[str, list[Point]] = {}
        self._day: dict[str, list[Point]] = {}

    def add(self, record: Record, now_s: float) -> dict[str, tuple[Point | None, Point | None]]:
        """Take a record; return the points of each shard whose span has ended.

        Args:
            record: the newest.
            now_s: the time, by this process's steady clock.
        """
        ended, day = now_s - self._recent_s >= RECENT_S, now_s - self._day_s >= DAY_S
        self._recent_s, self._day_s = now_s if ended else self._recent_s, now_s if day else self._day_s
        points: dict[str, tuple[Point | None, Point | None]] = {}
        for shard in record.shards:
            recent = self._recent.setdefault(shard.shard, [])
            recent.append(point_of(shard))
            if ended:
                hours = self._day.setdefault(shard.shard, [])
                hours.append(summary(recent))
                points[shard.shard] = hours[-1], summary(hours) if day else None
                recent.clear()
                if day:
                    hours.clear()
        return points


class Recorder:
    """The turns of one worker. It has connections of its own.

    Args:
        settings: name the nodes, and Redis.
    """

    def __init__(self, settings: Settings):
        self._settings, self._token = settings, secrets.token_hex(8)
        self._log = log_of(settings, read_s=ANSWER_S)
        self._observer: Observer | None = None
        self._spans = Spans(clock.mono_s())

    def turn(self) -> float:
        """Publish a record if the lease is ours or free; return the seconds to the next turn."""
        started_s = clock.mono_s()
        try:
            if not self._log.hold_lease(LEASE, self._token, LEASE_MS):
                self._stand_down()
                return EVERY_S
            if self._observer is None:
                self._observer, self._spans = Observer(self._settings), Spans(started_s)
            if self._observer.will_do():
                return EVERY_S
            record = self._observer.follow()
            publish(self._log, record, self._spans.add(record, started_s))
        except PipelineError as error:
            logger.warning(Event("record_not_published", error=error))
        return max(0.1, started_s + EVERY_S - clock.mono_s())

    def close(self) -> None:
        """Let another worker publish, and close the connections."""
        held = self._observer is not None
        self._stand_down()
        try:
            if held:
                self._log.release_lease(LEASE, self._token)
        except PipelineError as error:
            logger.info(Event("lease_not_released", lease=LEASE, error=error))
        self._log.close()

    def _stand_down(self) -> None:
        if self._observer is not None:
            self._observer.close()
            self._observer = None
