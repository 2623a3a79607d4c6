"""The log over Redis or Valkey.

Every position in a log was given out by `enqueue.lua` on one lineage of the server (its `master_replid`), under an
epoch above every watermark; a server that restarted or was promoted takes nothing before a new epoch is raised.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import redis

from pipeline.errors import NoProducerNumber
from pipeline.ids import HOSTS, PRODUCERS, SPAN_MS, Lease
from pipeline.log import news
from pipeline.log.connection import connect, script, translated
from pipeline.log.keys import Keys
from pipeline.log.line import RedisLine
from pipeline.log.link import Link
from pipeline.log.patience import Patience
from pipeline.log.replies import entries_of, hash_of, position_of, ring_of, text_of
from pipeline.op import Entry, Position

Result = TypeVar("Result")
#: As in `enqueue.lua`: a Celery message that nobody fetched for so long no longer counts as on its way, ms.
BELL_MS = 1000
#: As in `enqueue.lua`.
IDEMPOTENCY_TTL_MS = 86_400_000
#: A producer number comes free this long after its process has gone, ms.
LEASE_MS = 60_000
#: The number that a host has in reserve comes free this long after its last refill: behind all that it may have used.
HOST_LEASE_MS = 2 * 86_400_000
#: Time between two notes of a shard's watermarks, ms.
NOTE_MS = 60_000
#: A budget that nobody has used for so long is full again, ms.
BUDGET_MS = 60_000


class RedisLog:
    """A `contract.Log`.

    Args:
        url: see `connection.connect`.
        prefix: of every key.
        timeout_s: the longest that one append may take in all, its second try included.
        read_s: the longest that any other call may take.
        patience: of the callers, where there is a spool to go to: then also what a web request needs beside appends
            (definitions, ids, epochs) ends with it.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "pl",
        timeout_s: float = 0.25,
        read_s: float = 5.0,
        patience: Patience | None = None,
    ):
        self.keys = Keys(prefix)
        self._client = connect(url, read_s=read_s, connect_s=min(read_s, 2.0))
        # raw replies: the driver would make a dict of every entry
        for command in ("XRANGE", "XREVRANGE"):
            self._client.response_callbacks.pop(command, None)
        self._leisurely = connect(url, read_s=read_s, connect_s=min(read_s, 2.0)).connection_pool
        # two tries: read, then connect and read again
        self._reply_s = timeout_s * 0.4
        self._quick = connect(url, read_s=self._reply_s, connect_s=timeout_s * 0.2)
        self._lines = self._quick.connection_pool
        self._patience = patience

    def line(self, *, patient: bool = False) -> RedisLine:
        """See `contract.Log`; so are all below."""
        if patient:
            return RedisLine(Link(self._leisurely, 0, None), self.keys)
        return RedisLine(Link(self._lines, self._reply_s, self._patience), self.keys)

    # epochs -------------------------------------------------------------------------------------------------

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        with translated():
            given, info = self._soon(lambda redis: (redis.get(self.keys.epoch(scope)), redis.info("replication")))
        seen, replid = text_of(given), info["master_replid"]
        epoch, _, given_on = seen.partition(" ")
        return int(epoch or 0), given_on == replid, f"{replid} {seen}"

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        replid, _, value = seen.partition(" ")
        return bool(self._run("raise_epoch", [self.keys.epoch(scope)], [value, epoch, replid]))

    def earlier(self, bucket: int, idempotency_key: str) -> str | None:
        with translated():
            found = self._soon(lambda redis: redis.get(self.keys.same(bucket, idempotency_key)))
        return text_of(found) if found is not None else None

    def note_earlier(self, bucket: int, idempotency_key: str, receipt: str) -> None:
        with translated():
            key = self.keys.same(bucket, idempotency_key)
            self._soon(lambda redis: redis.set(key, receipt, nx=True, px=IDEMPOTENCY_TTL_MS))

    # table definitions --------------------------------------------------------------------------------------

    def publish_schema(self, name: str, hash: str, text: str) -> None:
        def publish(redis: redis.Redis) -> None:
            pipe = redis.pipeline()
            pipe.hset(self.keys.schemas, hash, text)
            pipe.hset(self.keys.tables, name, hash)
            pipe.execute()

        with translated():
            self._soon(publish)

    def schema(self, hash: str) -> str | None:
        with translated():
            found = self._soon(lambda redis: redis.hget(self.keys.schemas, hash))
        return text_of(found) if found is not None else None

    def tables(self) -> dict[str, str]:
        with translated():
            names = hash_of(self._client.hgetall(self.keys.tables))
            texts = self._client.hmget(self.keys.schemas, list(names.values())) if names else []
        return {name: text_of(text) for name, text in zip(names, texts, strict=True) if text is not None}

    # draining -----------------------------------------------------------------------------------------------

    def due(self, shard: str, limit: int) -> dict[int, int]:
        flat = self._run("due", [self.keys.dirty(shard), self.keys.bell(shard)], [limit, self.keys.bigs])
        return {int(flat[i]): int(flat[i + 1]) for i in range(0, len(flat), 2)}

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            for bucket, (epoch, seq) in after.items():
                pipe.execute_command("XRANGE", self.keys.log(bucket), f"{epoch}-{seq + 1}", "+", "COUNT", count[bucket])
            replies = pipe.execute()
        return {bucket: entries_of(bucket, reply) for bucket, reply in zip(after, replies, strict=True)}

    def finish(self, shard: str, marks: Mapping[int, Position], *, delay_ms: int = 0) -> tuple[bool, int]:
        keys = [self.keys.dirty(shard), self.keys.bell(shard), self.keys.marks(shard), *map(self.keys.log, marks)]
        arguments: list[Any] = [BELL_MS, delay_ms]
        for bucket, (epoch, seq) in marks.items():
            arguments += (bucket, epoch, max(seq, 0) if epoch else 0)
        return ring_of(self._run("finish", keys, arguments))

    def sweep(self, shard: str, *, due_ms: int) -> tuple[bool, int]:
        return ring_of(self._run("sweep", [self.keys.dirty(shard), self.keys.bell(shard)], [BELL_MS, due_ms]))

    def mark_dirty(self, shard: str, buckets: Iterable[int]) -> None:
        self._rest(shard, "NX", 0, buckets)

    def postpone(self, shard: str, buckets: Iterable[int], delay_ms: int) -> None:
        with translated():
            seconds, micros = self._client.time()
        self._rest(shard, "XX", seconds * 1000 + micros // 1000 + delay_ms, buckets)

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        return self._ends("XREVRANGE", dict.fromkeys(buckets, ("+", "-")))

    def queued(self, after: Mapping[int, Position]) -> dict[int, int]:
        counted = dict.fromkeys(after, 0)
        # from the tail back, an epoch at a time: within one, positions are dense and need not be counted
        ends: dict[int, str] = dict.fromkeys(after, "+")
        while ends:
            lasts = self._ends("XREVRANGE", {b: (end, "-") for b, end in ends.items()})
            lasts = {b: last for b, last in lasts.items() if last > after[b]}
            older = {b: (f"{last.epoch}-0", "+") for b, last in lasts.items() if last.epoch > after[b].epoch}
            firsts = self._ends("XRANGE", older)
            for bucket, last in lasts.items():
                counted[bucket] += last.seq - (firsts[bucket].seq - 1 if bucket in firsts else after[bucket].seq)
            ends = {bucket: f"({first}" for bucket, first in firsts.items()}
        return counted

    def dirty(self, shard: str) -> int:
        with translated():
            return int(self._client.zcard(self.keys.dirty(shard)))

    def marks(self, shard: str) -> dict[int, Position]:
        with translated():
            found = hash_of(self._client.hgetall(self.keys.marks(shard)))
        return {int(bucket): Position.parse(text) for bucket, text in found.items()}

    def mark(self, shard: str, bucket: int) -> Position | None:
        with translated():
            found = self._client.hget(self.keys.marks(shard), str(bucket))
        return Position.parse(text_of(found)) if found is not None else None

    def trim(self, behind: Mapping[int, Position]) -> int:
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            for bucket, (epoch, seq) in behind.items():
                # `~` frees whole nodes only: cheap, and up to 100 entries too many may stay
                pipe.execute_command("XTRIM", self.keys.log(bucket), "MINID", "~", f"{epoch}-{seq + 1}")
            return int(sum(pipe.execute()))

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        key = self.keys.notes(shard)
        with translated():
            notes = [text_of(note).partition(" ") for note in self._client.lrange(key, 0, -1)]
        if not notes or now_ms - int(notes[0][0]) >= NOTE_MS:
            self._despite_oom("LPUSH", key, f"{now_ms} {text}")
            self._despite_oom("LTRIM", key, 0, older_than_ms // NOTE_MS + 1)
        return next((note for at, _, note in notes if now_ms - int(at) >= older_than_ms), None)

    # chores -------------------------------------------------------------------------------------------------

    def lease_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        return self._lease(token, lease, until_ms, LEASE_MS, PRODUCERS, 0)

    def lease_host_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        return self._lease(token, lease, until_ms, HOST_LEASE_MS, HOSTS, PRODUCERS)

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        if reason is None:
            self._despite_oom("DEL", self.keys.full)
        else:
            self._despite_oom("SET", self.keys.full, reason, "PX", for_ms)

    def full(self) -> str | None:
        with translated():
            found = self._client.get(self.keys.full)
        return text_of(found) if found is not None else None

    def memory_share(self) -> float:
        with translated():
            memory = self._client.info("memory")
        return memory["used_memory"] / memory["maxmemory"] if memory.get("maxmemory") else 0.0

    def claim(self, name: str, for_ms: int) -> bool:
        return bool(self._despite_oom("SET", self.keys.chore(name), "1", "NX", "PX", for_ms))

    # reads --------------------------------------------------------------------------------------------------

    def hold(self, name: str, token: str, for_ms: int) -> bool:
        return bool(self._run("hold", [self.keys.chore(name)], [token, for_ms]))

    def release(self, name: str, token: str) -> None:
        self._run("hold", [self.keys.chore(name)], [token, 0])

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        self._run("publish_health", [self.keys.health], [for_ms, *(part for pair in nodes.items() for part in pair)])

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]]]:
        with translated():
            return news.exchange(self._client, self.keys, counted)

    def reads(self) -> dict[str, int]:
        with translated():
            return {what: int(n) for what, n in hash_of(self._client.hgetall(self.keys.reads)).items()}

    def seen(self, node: str) -> str | None:
        with translated():
            return text_of(self._client.hget(self.keys.seen, node)) or None

    def note_seen(self, node: str, text: str) -> None:
        self._despite_oom("HSET", self.keys.seen, node, text)

    def unfit(self) -> dict[str, str]:
        with translated():
            return hash_of(self._client.hgetall(self.keys.unfit))

    def publish_unfit(self, shard: str, text: str) -> None:
        self._despite_oom("HSET", self.keys.unfit, shard, text)

    def earn(self, shard: str, reads: float, most: float, *, take: bool) -> bool:
        arguments = [f"{reads:.6f}", f"{most:.6f}", int(take), BUDGET_MS]
        return bool(self._run("earn", [self.keys.budget(shard)], arguments, self._quick))

    def secret(self, proposed: str) -> str:
        def first(redis: redis.Redis) -> Any:
            pipe: Any = redis.pipeline(transaction=False)
            pipe.set(self.keys.secret, proposed, nx=True)
            pipe.get(self.keys.secret)
            return pipe.execute()[1]

        with translated():
            return text_of(self._soon(first))

    def server(self) -> dict[str, Any]:
        """Return the server's INFO, for `check` and `status`."""
        with translated():
            return dict(self._client.info())

    def setting(self, name: str) -> str | None:
        """Return one CONFIG value, or None where the server does not tell it."""
        try:
            return text_of(self._client.config_get(name).get(name)) or None
        except redis.exceptions.ResponseError:
            return None

    def close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()
        self._lines.disconnect()
        self._leisurely.disconnect()

    def _soon(self, work: Callable[[redis.Redis], Result]) -> Result:
        """Do what a web request may be waiting for; then a thread does it, and the request leaves in time."""
        patience = self._patience
        if patience is None or patience.here.budget is None:
            return work(self._client)
        return patience.aside(lambda: work(self._quick))

    def _lease(self, token: str, lease: Lease | None, until_ms: int, for_ms: int, numbers: int, base: int) -> Lease:
        held, start = lease.number if lease else -1, random.randrange(numbers)
        arguments = [token, held, until_ms, for_ms, numbers, start, SPAN_MS, base]
        with translated():
            reply = self._soon(lambda redis: self._run("lease_ids", [self.keys.ids], arguments, redis))
        if not reply:
            raise NoProducerNumber
        return Lease(*map(int, reply))

    def _rest(self, shard: str, which: str, until_ms: int, buckets: Iterable[int]) -> None:
        pairs = [word for bucket in buckets for word in (until_ms, bucket)]
        if pairs:
            self._despite_oom("ZADD", self.keys.dirty(shard), which, *pairs)

    def _despite_oom(self, command: str, key: str, *rest: Any) -> Any:
        return self._run("despite_oom", [key], [command, *rest])

    def _ends(self, command: str, ranges: Mapping[int, tuple[str, str]]) -> dict[int, Position]:
        """Return the first position that each log has in a range."""
        if not ranges:
            return {}
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            for bucket, (start, end) in ranges.items():
                pipe.execute_command(command, self.keys.log(bucket), start, end, "COUNT", 1)
            replies = pipe.execute()
        return {bucket: position_of(reply[0][0]) for bucket, reply in zip(ranges, replies, strict=True) if reply}

    def _run(self, name: str, keys: list[str], arguments: list[Any], client: redis.Redis | None = None) -> Any:
        client, (text, sha) = client or self._client, script(name)
        with translated():
            try:
                return client.evalsha(sha, len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                return client.eval(text, len(keys), *keys, *arguments)
