"""Apply what shards' logs hold without the broker, and end: `python -m workers SHARD…`, which a sweeper runs.

One thread per shard, so that none waits for another. Any number of these may run beside any number of workers.
"""

from __future__ import annotations

import logging
import sys
import threading

from pipeline import clock
from pipeline.config.settings import load
from pipeline.events import Event, log_to_stderr
from workers.process import applier

#: How long one run may take, s: by then the broker may be back, and its tasks are shown in Flower.
ALONE_S = 30.0
logger = logging.getLogger("pipeline.alone")


def main(shards: list[str]) -> None:
    """Apply until nothing is due.

    Args:
        shards: their names.
    """
    log_to_stderr(load().log.format, logging.INFO)
    threads = [threading.Thread(target=apply_due, args=(shard,), name=f"pipeline-{shard}") for shard in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def apply_due(shard: str) -> None:
    """Apply a shard's batches while they get on.

    Args:
        shard: the shard's name.
    """
    deadline, applied = clock.Deadline(ALONE_S), 0
    try:
        while not deadline.passed:
            outcome = applier(shard).apply()
            applied += outcome.applied
            if not (outcome.applied or outcome.rejected or outcome.seen or outcome.lost):
                break
    except Exception as error:  # the outermost loop: one shard's error stops no other's thread
        logger.warning(Event("apply_failed", shard=shard, error=error))
    logger.info(Event("applied_without_broker", shard=shard, ops=applied))


if __name__ == "__main__":
    main(sys.argv[1:])
