"""What the prober and readers tell one another through Redis: news of the nodes, for counts of reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from pipeline.log.keys import Keys
from pipeline.log.replies import hash_of

#: Counts of reads are forgotten when no process reads for so long: a day, ms.
READS_MS = 86_400_000


def exchange(client: redis.Redis, keys: Keys, counted: Mapping[str, int]) -> tuple[int, dict[str, tuple[int, str]]]:
    """Add counts of reads, return the server's time and the news, in one round trip; see `contract.Log.health`."""
    pipe: Any = client.pipeline(transaction=False)
    pipe.hgetall(keys.health)
    pipe.time()
    for what, more in counted.items():
        pipe.hincrby(keys.reads, what, more)
    if counted:
        pipe.pexpire(keys.reads, READS_MS)
    # a server that is full refuses the counts: no reason to do without the news
    found, time, *_ = pipe.execute(raise_on_error=False)
    for failed in (found, time):
        if isinstance(failed, Exception):
            raise failed
    told = {node: text.partition(" ") for node, text in hash_of(found).items()}
    seconds, micros = time
    return seconds * 1000 + micros // 1000, {node: (int(at), text) for node, (at, _, text) in told.items()}
