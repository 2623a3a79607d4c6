"""Run the peer that an expert writes by hand: a Redis stream per shard, a consumer group, `executemany`, XACK.

It applies each row at least once: what was read and not acknowledged comes again after a crash, and is inserted again.
It keeps no order of a key once two consumers share a stream, and knows no failover, no replica and no other shard.
`packed` puts up to 1,000 rows of a call into one entry, which is lost or doubled as a whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from redis.exceptions import ResponseError

from benchmarks.peer import Enqueue
from benchmarks.processes import running
from benchmarks.rows import PURCHASE, Row, Shape
from benchmarks.target import STREAMS_DATABASE, Target

#: Entries of one XREADGROUP and rows of one statement; rows of one pipeline of XADDs, or of one packed entry.
READ_ENTRIES, SEND_ROWS = 1000, 1000
GROUP, FIELD = "shops", "rows"


def consumers(packed: bool, shape: Shape = PURCHASE) -> Callable[[Target], AbstractContextManager[Enqueue]]:
    """Return the peer, with a consumer for each shard, as a process of its own."""

    @contextmanager
    def open_peer(target: Target) -> Iterator[Enqueue]:
        redis = target.redis(STREAMS_DATABASE)
        redis.flushdb()
        shards = range(len(target.primaries))
        command = [sys.executable, "-c", "from benchmarks.peers import streams; streams.main()", shape.table]
        with running(target, *([*command, str(shard), str(int(packed))] for shard in shards)):
            yield lambda rows: _enqueue(redis, len(shards), rows, packed=packed)

    return open_peer


def _enqueue(redis: Any, shards: int, rows: Sequence[Row], *, packed: bool) -> None:
    for first in range(0, len(rows), SEND_ROWS):
        pipe = redis.pipeline(transaction=False)
        part = rows[first : first + SEND_ROWS]
        by_shard = [[[*row.values()] for row in part if row["customer"] % shards == shard] for shard in range(shards)]
        for shard, mine in enumerate(by_shard):
            for entry in [mine] if packed else mine:
                pipe.xadd(f"rows:{shard}", {FIELD: json.dumps(entry, default=str)})
        pipe.execute()


def consume(target: Target, shape: Shape, shard: int, *, packed: bool) -> None:
    """Insert what comes in a shard's stream, for ever."""
    stream, redis = f"rows:{shard}", target.redis(STREAMS_DATABASE)
    with suppress(ResponseError):  # the group is there
        redis.xgroup_create(stream, GROUP, "0", mkstream=True)
    connection = target.connect(shard)
    connection.autocommit(False)
    while True:
        found: Any = redis.xreadgroup(GROUP, "c", {stream: ">"}, count=10 if packed else READ_ENTRIES, block=500)
        entries = found[0][1] if found else []
        rows = [json.loads(fields[FIELD.encode()]) for _, fields in entries]
        if packed:
            rows = [row for each in rows for row in each]
        if rows:
            with connection.cursor() as cursor:
                cursor.executemany(shape.insert, rows)
            connection.commit()
        if entries:
            redis.xack(stream, GROUP, *(name for name, _ in entries))


def main() -> None:
    """Consume as the arguments say: the table, the number of the shard, whether entries are packed."""
    from benchmarks.peers.purchases import target  # the module reads PIPELINE_CONFIG
    from benchmarks.rows import SHAPES

    consume(target, SHAPES[sys.argv[1]], int(sys.argv[2]), packed=sys.argv[3] == "1")
