"""Let producers append to Redis: their lines, the epochs of scopes, the claims of idempotency keys.

`enqueue.lua` gives out every position in a log, on one lineage of the server (its `master_replid`), under an epoch
above every watermark. A server that restarted or was promoted accepts nothing before a new epoch is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from operator import itemgetter
from typing import Any

from pipeline.bounds import portions
from pipeline.errors import LogUnavailable, PipelineFull
from pipeline.model.op import Position
from pipeline.oplog.appends import EVERYWHERE
from pipeline.oplog.redis.connection import (
    CUT_AT_ONCE_BYTES,
    MOST_REASON,
    RedisServer,
    by_bucket,
    numbers_of,
    text_of,
    translated,
)
from pipeline.oplog.redis.line import RedisLine
from pipeline.oplog.ttls import IDEMPOTENCY_TTL_MS

#: What an epoch key begins with, as in `raise_epoch.lua`.
_EPOCH = re.compile(r"\d{1,15} [\w:]{1,60}", re.ASCII)
#: Names of keys in one answer of Redis, which does nothing else meanwhile.
SCAN = 500


class RedisAppends(RedisServer):
    """See `appends.Appends`."""

    def line(self, *, patient: bool = False) -> RedisLine:
        if patient:
            return RedisLine(self.keys, self._leisurely, sign_keys=self._sign_keys)
        return RedisLine(self.keys, self._lines, self._reply_s, self._wait_budgets, self._sign_keys)

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        with translated():
            given, info = self._soon(lambda redis: (redis.mget([self.keys.epoch(scope)])[0], redis.info("replication")))
        epoch, given_on, *_ = [*text_of(given).split(" "), "", ""]
        replid: str = info["master_replid"]
        if not _EPOCH.fullmatch(f"{epoch} {given_on}"):  # nobody of ours has written it: `raise_epoch` replaces it
            return 0, False, replid
        return int(epoch), given_on == replid, f"{replid} {epoch} {given_on}"

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        replid, _, value = seen.partition(" ")
        return bool(self._run("raise_epoch", [self.keys.epoch(scope)], [value, epoch, replid]))

    def deployment(self, scope: str = EVERYWHERE) -> str:
        with translated():
            found: Any = self._soon(lambda redis: redis.mget([self.keys.deployment])[0])
        return str(found, errors="surrogateescape") if found is not None else ""

    def note_deployment(self, seen: str, text: str, scope: str = EVERYWHERE) -> bool:
        known = seen.encode(errors="surrogateescape")  # byte by byte, whatever it is
        return bool(self._run("note_deployment", [self.keys.deployment], [known, text]))

    def placement(self) -> str:
        with translated():
            found: Any = self._soon(lambda redis: redis.mget([self.keys.map])[0])
        return str(found, errors="surrogateescape") if found is not None else ""

    def note_placement(self, seen: str, text: str) -> bool:
        known = seen.encode(errors="surrogateescape")
        return bool(self._run("note_deployment", [self.keys.map], [known, text]))

    def audit(self, scope: str, marks: Mapping[int, Position]) -> str:
        # the server reads the first and the last op of each log
        sizes = {**dict.fromkeys(marks, 0), **self._large(marks)}
        for some in portions(sorted(sizes.items(), key=itemgetter(1)), CUT_AT_ONCE_BYTES):
            words = [word for bucket in some for word in (bucket, *marks[bucket])]
            if found := text_of(self._run("audit", [self.keys.epoch(scope), *map(self.keys.log, some)], words)):
                return found
        return ""

    def senders(self, scope: str = EVERYWHERE) -> Iterator[tuple[int, dict[int, tuple[int, int]]]]:
        with translated():
            every = self._client.scan_iter(self.keys.producer("*"), count=SCAN)
            while names := list(islice(every, SCAN)):
                pipe: Any = self._client.pipeline(transaction=False)
                for name in names:
                    pipe.hgetall(name)
                for name, sent in zip(names, pipe.execute(), strict=True):
                    words = {b: numbers_of(value, " ", 3) for b, value in by_bucket(sent).items()}
                    producer = numbers_of(text_of(name).rpartition(":")[2], " ", 1)
                    if producer:
                        yield producer[0], {b: (of[0], of[1]) for b, of in words.items() if of}

    def sender(self, producer: int) -> str | None:
        with translated():
            found: Any = self._client.hget(self.keys.producer(producer), "who")
        return text_of(found)[:MOST_REASON] if found is not None else None

    def claim_key(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        name = self.keys.claim(bucket, idempotency_key)
        try:
            with translated():
                found = self._soon(lambda redis: redis.set(name, row_id, nx=True, get=True, px=IDEMPOTENCY_TTL_MS))
        except PipelineFull:
            with translated():
                found = self._soon(lambda redis: redis.get(name))
            if found is None:
                raise
        except LogUnavailable as error:
            if "WRONGTYPE" in str(error):  # no claim of ours; `enqueue.lua` writes over it
                return row_id
            raise
        claimed = numbers_of(text_of(found).rpartition(" ")[2], " ", 1) if found is not None else None
        return claimed[0] or row_id if claimed and claimed[0] < 2**63 else row_id
