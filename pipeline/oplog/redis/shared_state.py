"""Keep in Redis what processes share beside the ops: leases, the full flag, the secret, reports, waits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from pipeline import clock
from pipeline.errors import LogUnavailable
from pipeline.model import EPOCH_MS, PER_MS, SPAN, Given, counter_at
from pipeline.oplog.appends import Scope
from pipeline.oplog.redis.connection import (
    MOST_REASON,
    RedisServer,
    by_bucket,
    hash_of,
    numbers_of,
    result_of,
    setting,
    text_of,
    translated,
)
from pipeline.oplog.shared_state import (
    ALIVE,
    BATCHES,
    HISTORY_MS,
    HOST_MS,
    MOST_HOSTS,
    MOST_OF_DAY,
    MOST_RECENT,
    ORDERS,
    READS_MS,
    RECORD_MS,
    Note,
    Noted,
)

#: The lineage in Redis's INFO.
_REPLID = re.compile(r"^master_replid:(\w+)", re.MULTILINE)
#: A secret of ours is as long at least, and as `MOST_REASON` at most, bytes.
LEAST_SECRET = 16
#: Bytes of a text, or fields of a hash, that none of ours has.
MOST_OURS = 1_000_000
#: Types of the keys of a deployment, of a shard, and of a bucket, by their names in `Keys`; see `mend.lua`.
_TYPES = {"schemas": "hash", "newest_schemas": "hash", "ids": "hash", "full": "string!", "room": "string!"}
_TYPES |= {"reads": "hash", "unfit": "hash", "seen": "hash", "health": "hash!", "hosts": "hash!"}
_TYPES |= {"deployment": "string", "map": "string", "secret": "string"}
_OF_SHARD = {"epoch": "string", "dirty": "zset", "bell": "string!", "marks": "hash", "attempts": "hash"}
_OF_SHARD |= {"wake": "list!", "notes": "list", "waits": "hash!", "counts": "hash", "batches": "list"}
_OF_SHARD |= {"record": "string!", "recent": "list!", "day": "list!"}
_OF_BUCKET = {"log": "stream"}


class RedisSharedState(RedisServer):
    """See `oplog.shared_state.SharedState`."""

    def take_lease(self, name: str, for_ms: int) -> bool:
        return bool(self._run("hold_lease", [self.keys.lease(name)], ["1", for_ms, 1]))

    def hold_lease(self, name: str, token: str, for_ms: int) -> bool:
        return bool(self._run_own("hold_lease", [self.keys.lease(name)], [token, for_ms, 0]))

    def hold_leases(self, names: Iterable[str], token: str, for_ms: int) -> None:
        self._run_own("hold_lease", [*map(self.keys.lease, names)], [token, for_ms, 0])

    def look(self, leases: Iterable[str], scopes: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
        names, of = list(leases), list(scopes)
        keys = [*map(self.keys.lease, names), *map(self.keys.epoch, of)]
        values, info = map(result_of, self._told(("MGET", *keys), ("INFO", "replication")))
        lineages = [text_of(value).split(" ")[1:2] for value in values[len(names) :]]
        held = frozenset(name for name, value in zip(names, values, strict=False) if value is not None)
        here = _REPLID.findall(text_of(info))
        return held, frozenset(name for name, lineage in zip(of, lineages, strict=True) if lineage == here)

    def stirs(self, shards: Iterable[str]) -> dict[str, str]:
        keys, names = self.keys, list(shards)
        of_shards = [key for one in names for key in (keys.dirty(one), keys.bell(one), keys.counts(one))]
        return dict(zip(names, map(text_of, self._run_own("stirs", of_shards, [BATCHES, ORDERS])), strict=True))

    def release_lease(self, name: str, token: str) -> None:
        self._run("hold_lease", [self.keys.lease(name)], [token, 0, 0])

    def give_ids(self, shard: str, wanted: Mapping[int, int], new_span: int = 0) -> Given:
        clocks = (counter_at(clock.wall_ms()), EPOCH_MS, PER_MS)
        counts = [part for pair in wanted.items() for part in pair]
        fixed = (f"span {shard}", new_span, SPAN, *clocks)
        # a second try, as a line does; a span whose first try has no answer may be in use on a server that is lost
        again = (f"span {shard}", 0, SPAN, *clocks)

        def ask(redis: redis.Redis) -> Any:
            try:
                return self._run("give_ids", [self.keys.ids], [*fixed, *counts], redis)
            except LogUnavailable:
                return self._run("give_ids", [self.keys.ids], [*again, *counts], redis)

        with translated():
            span, due, *starts = self._soon(ask)
        return Given(span, due, dict(zip(wanted, starts, strict=True)) if len(starts) == len(wanted) else None)

    def mend(self, scope: Scope, buckets: Iterable[int], leases: Iterable[str], *, delete: bool) -> list[str]:
        keys = self.keys
        types = {getattr(keys, name): kind for name, kind in _TYPES.items()}
        types |= {getattr(keys, name)(scope.name): kind for name, kind in _OF_SHARD.items()}
        types |= {getattr(keys, name)(bucket): kind for name, kind in _OF_BUCKET.items() for bucket in buckets}
        types |= {keys.lease(name): "string!" for name in leases}
        found = self._run("mend", list(types), [int(delete), MOST_OURS, *types.values()])
        return [text_of(name) for name in found]

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        if reason is None:
            self._despite_oom("DEL", self.keys.full)
        else:
            self._despite_oom("SET", self.keys.full, reason, "PX", for_ms)

    def full(self) -> str | None:
        with translated():
            found = self._client.mget([self.keys.full])[0]
        return text_of(found)[:MOST_REASON] if found is not None else None

    def memory(self) -> tuple[float, int]:
        with translated():
            memory = self._client.info("memory")
        used, most = memory["used_memory"], memory.get("maxmemory")
        return used / most if most else 0.0, used

    def largest_bytes(self) -> int:
        with translated():
            return int(setting(self._client, "proto-max-bulk-len") or 0)

    def secret(self, proposed: str) -> str:
        def first(redis: redis.Redis) -> Any:
            pipe: Any = redis.pipeline(transaction=False)
            pipe.set(self.keys.secret, proposed, nx=True)
            pipe.mget([self.keys.secret])
            return pipe.execute()[1][0]

        with translated():
            found = self._soon(first)
        if found is None or not LEAST_SECRET <= len(found) <= MOST_REASON:  # nobody of ours has written it
            self._run("note_deployment", [self.keys.secret], [found or "", proposed])
            with translated():
                found = self._soon(first)
        return text_of(found)

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        self._run_own(
            "publish_health", [self.keys.health], [for_ms, *(part for pair in nodes.items() for part in pair)]
        )

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]], str]:
        with translated():
            found, (seconds, micros), [placement] = self._exchanged(counted)
        text = str(placement, errors="surrogateescape") if placement is not None else ""
        return seconds * 1000 + micros // 1000, _stamped(hash_of(found)), text

    def reads(self) -> dict[str, int]:
        counted = self._own_hash(self.keys.reads).items()
        whole = {what: numbers_of(n, " ", 1) for what, n in counted if what.count(" ") == 2}
        return {what: n[0] for what, n in whole.items() if n}

    def note_host(self, host: str, text: str) -> None:
        self._run("note_host", [self.keys.hosts], [HOST_MS, MOST_HOSTS, host, text])

    def hosts(self) -> dict[str, tuple[int, str]]:
        return _stamped(self._own_hash(self.keys.hosts))

    def publish_records(self, records: Mapping[str, str], points: Mapping[str, tuple[str, str]] = {}) -> None:
        names = (self.keys.record, self.keys.recent, self.keys.day)
        words = [word for name, text in records.items() for word in (text, *points.get(name, ("", "")))]
        fixed = (RECORD_MS, HISTORY_MS, MOST_RECENT, MOST_OF_DAY)
        self._run_own("publish_records", [key(name) for name in records for key in names], [*fixed, *words])

    def records(self, names: Iterable[str]) -> tuple[int, dict[str, tuple[int, str]]]:
        wanted = list(names)
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            pipe.mget([self.keys.record(name) for name in wanted])
            pipe.time()
            found, (seconds, micros) = pipe.execute()
        texts = {name: text_of(one) for name, one in zip(wanted, found, strict=True) if one is not None}
        return seconds * 1000 + micros // 1000, _stamped(texts)

    def histories(self, names: Iterable[str], most: int | None = None) -> dict[str, tuple[list[str], list[str]]]:
        wanted = list(names)
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            for name in wanted:
                pipe.lrange(self.keys.recent(name), 0, (most or MOST_RECENT) - 1)
                pipe.lrange(self.keys.day(name), 0, (most or MOST_OF_DAY) - 1)
            answers = iter([[text_of(one) for one in reversed(answer)] for answer in pipe.execute()])
        return {name: (recent, day) for name, recent, day in zip(wanted, answers, answers, strict=True)}

    def seen(self, node: str) -> str | None:
        with translated():
            return text_of(self._client.hget(self.keys.seen, node)) or None

    def note_seen(self, node: str, text: str) -> None:
        self._despite_oom("HSET", self.keys.seen, node, text)

    def unfit(self) -> dict[str, str]:
        return self._own_hash(self.keys.unfit)

    def publish_unfit(self, shard: str, text: str) -> None:
        self._despite_oom("HSET", self.keys.unfit, shard, text)

    def _exchanged(self, counted: Mapping[str, int]) -> tuple[Any, Any, Any]:
        """Add counts of reads, return the reports, the server's time and the map, in one round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.hgetall(self.keys.health)
        pipe.time()
        pipe.mget([self.keys.map])
        for what, more in counted.items():
            pipe.hincrby(self.keys.reads, what, more)
        if counted:
            pipe.pexpire(self.keys.reads, READS_MS)
        # a full server refuses the counts: no reason to do without the reports
        found, time, placement, *_ = pipe.execute(raise_on_error=False)
        for failed in (found, time, placement):
            if isinstance(failed, Exception):
                raise failed
        return found, time, placement


class RedisWaits(RedisServer):
    """See `waits.Waits`."""

    def note_waits(self, shard: str, notes: Mapping[int, tuple[str, str]], for_ms: int) -> None:
        words = [word for bucket, (cause, text) in notes.items() for word in (bucket, cause, text)]
        self._run("note_waits", [self.keys.waits(shard)], [for_ms, *words])

    def waits(self, shard: str) -> Noted:
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            pipe.exists(self.keys.lease(ALIVE.format(shard)))
            pipe.hgetall(self.keys.waits(shard))
            pipe.time()
            alive, found, (seconds, micros) = pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        parts = {bucket: [*text.split(" ", 3), "", "", "", ""] for bucket, text in by_bucket(found).items()}
        spans = {bucket: numbers_of(f"{ends} {since}", " ", 2) for bucket, (ends, since, *_) in parts.items()}
        return Noted(bool(alive), {b: Note(at[1], parts[b][3]) for b, at in spans.items() if at and at[0] > now_ms})


def _stamped(texts: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Split texts that begin with a time in ms; what nobody of ours has written is left out."""
    parts = {name: text.partition(" ") for name, text in texts.items()}
    stamped = {name: (numbers_of(at, " ", 1), text) for name, (at, _, text) in parts.items()}
    return {name: (at[0], text) for name, (at, text) in stamped.items() if at}
