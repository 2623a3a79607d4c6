"""Keep the log in Redis or Valkey: a stream per bucket. Schemas are texts by their hashes, and hashes by table."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from typing import Any

import redis
from hiredis import pack_command

from pipeline import clock
from pipeline.bounds import portions
from pipeline.errors import BadOp
from pipeline.events import Event
from pipeline.model import HEAD_BYTES, Entry, Position, new_producer
from pipeline.model.schema import TableSchema
from pipeline.model.sheet import Read, count_ops, singly
from pipeline.oplog import RECONCILE, SLICE_S, Looked
from pipeline.oplog.appends import Append, Scope
from pipeline.oplog.redis.connection import (
    CUT_AT_ONCE_BYTES,
    RedisServer,
    by_bucket,
    hash_of,
    numbers_of,
    position_of,
    position_or_none,
    result_of,
    ring_of,
    script,
    text_of,
    translated,
)
from pipeline.oplog.redis.keys import DEFINITION, MOST_OPS, cut_entry, read_of, signed, verified
from pipeline.oplog.redis.line import RedisAppends
from pipeline.oplog.redis.shared_state import RedisSharedState, RedisWaits
from pipeline.oplog.shared_state import BELL_MS, HELD_MS, MOST_AHEAD_MS, MOST_COUNTERS, MOST_NOTES, NOTE_MS

logger = logging.getLogger("pipeline.log")
#: How many entries of a log are asked for before it is known how many ops they hold.
FIRST_ENTRIES = 128
#: So long a log of large ops counts as ending where it ended, if no more has come behind that, s.
LAST_S = 30.0
#: What a note of past watermarks begins with, see `admin/upkeep`.
_NOTE = re.compile(r"\d{1,15} .*", re.ASCII | re.DOTALL)
_SCOPE = Scope("check", ("check",))


class RedisEntries(RedisServer):
    """See `contract.Entries`."""

    #: How many ops an entry had that was read of late.
    _ops_an_entry = 1

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        return {bucket: singly(entries) for bucket, entries in self.read_whole(after, count).items()}

    def read_whole(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Read]]:
        asked = self._asked(after, count)
        return self._read_on(after, count, asked, self._ranges(after, asked))

    def _asked(self, after: Iterable[int], count: Mapping[int, int]) -> dict[int, int]:
        """Return how many entries of each log to ask for at first: each has one op or many, see `packs`."""
        dense = self._ops_an_entry
        return {bucket: min(FIRST_ENTRIES, -(-count[bucket] // dense) + (count[bucket] > 1)) for bucket in after}

    def _read_on(
        self, after: Mapping[int, Position], count: Mapping[int, int], asked: Mapping[int, int], replies: Iterable[Any]
    ) -> dict[int, list[Read]]:
        """Return the ops of entries that were asked for; ask for more where they hold too few."""
        found: dict[int, list[Read]] = {bucket: [] for bucket in after}
        left, ends, keys = dict(count), dict(after), self._sign_keys
        while asked:
            entries, ops, full = 0, 0, []
            for (bucket, most), reply in zip(asked.items(), replies, strict=True):
                more = read_of(bucket, reply, keys, unsigned=self._unsigned, after=ends[bucket], most=left[bucket])
                found[bucket] += more
                left[bucket] -= count_ops(more)
                if not reply:
                    continue
                last = position_of(reply[-1][0])
                entries, ops = entries + len(reply), ops + (last.seq - more[0].position.seq + 1 if more else 1)
                if len(reply) == most and left[bucket] > 0:
                    ends[bucket] = last
                    full.append(bucket)
            if entries:
                self._ops_an_entry = max(1, ops // entries)
            asked = {bucket: -(-left[bucket] // self._ops_an_entry) for bucket in full}
            replies = self._ranges(ends, asked)
        return found

    def _ranges(self, after: Mapping[int, Position], asked: Mapping[int, int]) -> list[Any]:
        if not asked:
            return []
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            for command in self._asking(after, asked):
                pipe.execute_command(*command)
            return list(pipe.execute())

    def _asking(self, after: Mapping[int, Position], asked: Mapping[int, int]) -> list[tuple[Any, ...]]:
        return [
            ("XRANGE", self.keys.log(bucket), f"{after[bucket].epoch}-{after[bucket].seq + 1}", "+", "COUNT", most)
            for bucket, most in asked.items()
        ]

    def heads(self, after: Mapping[int, Position]) -> dict[int, Entry]:
        large, keys = self._large(after), self._sign_keys
        small = {bucket: mark for bucket, mark in after.items() if bucket not in large}
        found = {bucket: one[0] for bucket, one in self.read(small, dict.fromkeys(small, 1)).items() if one}
        behind = {bucket: (f"{epoch}-{seq + 1}", "+") for bucket, (epoch, seq) in after.items()}
        for bucket, [(id, fields)] in self._cut("XRANGE", behind, large).items():
            if max(map(len, fields)) == HEAD_BYTES:
                found[bucket] = cut_entry(bucket, id, fields)
            else:
                reply, after_ = [(id, fields)], after[bucket]
                [found[bucket]] = singly(read_of(bucket, reply, keys, unsigned=self._unsigned, after=after_, most=1))
        return found

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        return self._ends(dict.fromkeys(buckets, ("+", "-")))

    def queued(self, after: Mapping[int, Position], up_to: Mapping[int, Position] = {}) -> dict[int, int]:
        counted = dict.fromkeys(after, 0)
        # from the tail back, an epoch at a time: within one, positions are dense and need not be counted
        ends, lasts = {bucket: "+" for bucket in after if bucket not in up_to}, dict(up_to)
        behind = after
        while ends or lasts:
            lasts |= self._ends({b: (end, "-") for b, end in ends.items()}, behind)
            lasts = {b: last for b, last in lasts.items() if last > after[b]}
            older = [bucket for bucket, last in lasts.items() if last.epoch > after[bucket].epoch]
            # from a position on that is given, what has been deleted since counts too: an epoch begins with 0
            firsts = {b: Position(lasts[b].epoch, 0) for b in older if b in up_to}
            firsts |= self._firsts_from({b: lasts[b] for b in older if b not in firsts})
            for bucket, last in lasts.items():
                counted[bucket] += last.seq - (firsts[bucket].seq - 1 if bucket in firsts else after[bucket].seq)
            ends, lasts, behind = {bucket: f"({first}" for bucket, first in firsts.items()}, {}, {}
        return counted

    def _firsts_from(self, lasts: Mapping[int, Position]) -> dict[int, Position]:
        """Return where the first op stands of the epoch that each log ends in; of large ops it counts for a while."""
        now_s = clock.mono_s()
        late = {bucket: self._firsts[bucket] for bucket in lasts if bucket in self._firsts}
        firsts = {b: at for b, (at, until_s) in late.items() if now_s < until_s and at.epoch == lasts[b].epoch}
        new = {b: (f"{last.epoch}-0", "+") for b, last in lasts.items() if b not in firsts}
        found = {b: singly(read_of(b, reply))[0].position for b, reply in self._found("XRANGE", new).items()}
        self._firsts |= {bucket: (found[bucket], now_s + LAST_S) for bucket in self._large(found)}
        return firsts | found

    def trim(self, behind: Mapping[int, Position]) -> int:
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            for bucket, (epoch, seq) in behind.items():
                # `~` frees whole nodes only: cheap, and up to 100 entries too many may stay
                pipe.execute_command("XTRIM", self.keys.log(bucket), "MINID", "~", f"{epoch}-{seq + 1}")
            return int(sum(pipe.execute()))

    def trimmed(self, bucket: int) -> bool:
        with translated():
            if not self._client.exists(self.keys.log(bucket)):
                return False
            found: Any = self._client.xinfo_stream(self.keys.log(bucket))
        return bool(found["entries-added"] > found["length"])

    def publish_schemas(self, schemas: Iterable[tuple[str, str, str]]) -> None:
        found = list(schemas)
        if not found:
            return

        def publish(redis: redis.Redis) -> None:
            pipe = redis.pipeline()
            texts: Any = {hash: signed(self._sign_keys, DEFINITION, text.encode()) for _, hash, text in found}
            pipe.hset(self.keys.schemas, mapping=texts)
            pipe.hset(self.keys.newest_schemas, mapping={name: hash for name, hash, _ in found})
            pipe.execute()

        with translated():
            self._soon(publish)

    def withdraw_schema(self, name: str) -> None:
        with translated():
            self._client.hdel(self.keys.newest_schemas, name)

    def schema(self, hash: str) -> str | None:
        with translated():
            found: Any = self._soon(lambda redis: redis.hget(self.keys.schemas, hash))
        return self._definition(found)

    def _definition(self, found: bytes | None) -> str | None:
        """Return the text of a definition, None where there is none of this deployment."""
        text = verified(self._sign_keys, DEFINITION, found, unsigned=self._unsigned) if found is not None else None
        return text.decode("utf-8", "replace") if text is not None else None

    def newest_schemas(self) -> dict[str, str]:
        with translated():
            names = hash_of(self._client.hgetall(self.keys.newest_schemas))
            texts: Any = self._client.hmget(self.keys.schemas, list(names.values())) if names else []
        found: dict[str, str] = {}
        for (name, hash), text in zip(names.items(), map(self._definition, texts), strict=True):
            if text is not None and (fault := _fault_of(name, hash, text)):
                logger.warning(Event("definition_passed_over", table=f"{name:.80}", error=fault))
            elif text is not None:
                found[name] = text
        return found

    def marks(self, shard: str) -> dict[int, Position]:
        with translated():
            found = hash_of(self._client.hgetall(self.keys.marks(shard)))
        marks = {bucket: position_or_none(text) for bucket, text in by_bucket(found).items()}
        return {bucket: mark for bucket, mark in marks.items() if mark is not None}

    def mark(self, shard: str, bucket: int) -> Position | None:
        with translated():
            found = self._client.hget(self.keys.marks(shard), str(bucket))
        return position_or_none(text_of(found))

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        key = self.keys.notes(shard)
        with translated():
            found = [text_of(note) for note in self._client.lrange(key, 0, -1)]
        notes = [note.partition(" ") for note in found if _NOTE.fullmatch(note)]
        # of before the clock was set back, so that its age is not known; or put there by somebody else
        if len(notes) != len(found) or (notes and int(notes[0][0]) - now_ms > NOTE_MS):
            self._despite_oom("DEL", key)
            notes = []
        if not notes or now_ms - int(notes[0][0]) >= NOTE_MS:
            self._despite_oom("LPUSH", key, f"{now_ms} {text}")
            self._despite_oom("LTRIM", key, 0, older_than_ms // NOTE_MS + 1)
        old = notes[max(0, older_than_ms // NOTE_MS - 1) :]  # by their number, too: a clock may have been set on
        return next((note for at, _, note in old if now_ms - int(at) >= older_than_ms), None)

    def _ends(self, ranges: Mapping[int, tuple[str, str]], behind: Mapping[int, Position] = {}) -> dict[int, Position]:
        """Return where the last entry stands that each log has in a range; see `_cut`."""
        found = self._found("XREVRANGE", ranges, behind)
        return {bucket: position_of(reply[0][0]) for bucket, reply in found.items()}

    def _found(
        self, command: str, ranges: Mapping[int, tuple[str, str]], behind: Mapping[int, Position] = {}
    ) -> dict[int, Any]:
        """Return the first entry that each log has in a range, as its server gives it; where ops are large, cut."""
        if not ranges:
            return {}
        large = self._large(ranges)
        small = [bucket for bucket in ranges if bucket not in large]
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            for bucket in small:
                pipe.execute_command(command, self.keys.log(bucket), *ranges[bucket], "COUNT", 1)
            replies = pipe.execute()
        found = {bucket: reply for bucket, reply in zip(small, replies, strict=True) if reply}
        return found | self._cut(command, ranges, large, behind)

    def _cut(
        self,
        command: str,
        ranges: Mapping[int, tuple[str, str]],
        large: Mapping[int, int],
        behind: Mapping[int, Position] = {},
    ) -> dict[int, Any]:
        """Return what `_found` does of logs with large ops: few in a round trip, since the server reads the ops.

        Args:
            command: XRANGE or XREVRANGE.
            ranges: of each log.
            large: how large the ops of each are.
            behind: a place in each, if it is wanted where they end behind that. Where none is behind it, or behind the
                last entry of late, no entry is read.
        """
        now_s, found = clock.mono_s(), dict[int, Any]()
        late = {bucket: self._late(bucket, behind[bucket], now_s) for bucket in large if bucket in behind}
        for some in portions(large.items(), CUT_AT_ONCE_BYTES):
            calls = [([self.keys.log(b)], [command, *ranges[b], HEAD_BYTES, late.get(b, b"")]) for b in some]
            found |= {b: reply for b, reply in zip(some, self._run_each("cut", calls), strict=True) if reply}
        for bucket in late.keys() & found.keys():
            [(id, _)] = found[bucket]
            if id != late[bucket]:
                self._lasts[bucket] = id, now_s + LAST_S
        return found

    def _late(self, bucket: int, mark: Position, now_s: float) -> bytes:
        """Return where a log of large ops ended of late, or where it is asked for behind, whichever is later."""
        last, until_s = self._lasts.get(bucket, (b"", 0.0))
        if now_s < until_s and position_of(last) > mark:
            return last
        return b"%d-%d" % mark if mark.seq >= 0 else b""


class RedisWork(RedisEntries):
    """See `contract.Work`."""

    def due(self, shard: str, limit: int, holder: str = "") -> dict[int, int]:
        return _due_of(self._run_own("due", self._bell(shard), self._looking(limit, holder)))

    def _looking(self, limit: int, holder: str) -> list[Any]:
        """Return the arguments of `due.lua`."""
        return [limit, self.keys.bigs, holder, HELD_MS, BELL_MS]

    def sizes(self, after: Mapping[int, Position], count: int, most_bytes: int) -> dict[int, list[int]]:
        begins = [f"{epoch}-{seq + 1}" for epoch, seq in after.values()]
        found = self._run("sizes", list(map(self.keys.log, after)), [most_bytes, count, MOST_OPS, *begins])
        return dict(zip(after, found, strict=False))

    def finish(
        self,
        shard: str,
        marks: Mapping[int, Position],
        *,
        delay_ms: int = 0,
        counts: Mapping[str, int] = {},
        note: str = "",
        holder: str = "",
        own: Mapping[int, str] = {},
    ) -> tuple[bool, int]:
        of_shard = (self.keys.dirty(shard), self.keys.bell(shard), self.keys.marks(shard), self.keys.attempts(shard))
        counted = (self.keys.lease(RECONCILE.format(shard)), self.keys.counts(shard), self.keys.batches(shard))
        keys = [*of_shard, *counted, *map(self.keys.log, marks)]
        arguments: list[Any] = [BELL_MS, delay_ms, MOST_COUNTERS, note, MOST_NOTES, holder, self.keys.bigs]
        for bucket, (epoch, seq) in marks.items():
            arguments += (bucket, epoch, max(seq, 0) if epoch else 0, own.get(bucket, ""))
        arguments += (word for pair in counts.items() for word in pair)
        return ring_of(self._run_own("finish", keys, arguments))

    def batches(self, shard: str) -> list[str]:
        with translated():
            return [text_of(note) for note in self._client.lrange(self.keys.batches(shard), 0, MOST_NOTES - 1)]

    def counts(self, shard: str) -> dict[str, int]:
        counted = self._own_hash(self.keys.counts(shard)).items()
        whole = {name: numbers_of(n, " ", 1) for name, n in counted}
        return {name: n[0] for name, n in whole.items() if n}

    def note_attempts(self, shard: str, notes: Mapping[int, str], *, anew: bool = False) -> dict[int, str]:
        if not notes:
            return {}
        flat = self._run("note_attempts", [self.keys.attempts(shard)], _noting(notes, anew=anew))
        return _notes_of(flat)

    def read_noted(
        self,
        shard: str,
        after: Mapping[int, Position],
        count: Mapping[int, int],
        notes: Mapping[int, str],
        *,
        anew: bool,
    ) -> tuple[dict[int, list[Read]], dict[int, str]]:
        if not after:
            return {}, {}
        asked = self._asked(after, count)
        keys, noting = [self.keys.attempts(shard)], _noting(notes, anew=anew)
        note = ("EVALSHA", script("note_attempts")[1], 1, *keys, *noting)
        earlier, *replies = self._told(note, *self._asking(after, asked))
        if isinstance(earlier, redis.exceptions.NoScriptError):
            earlier = self._run("note_attempts", keys, noting)
        return self._read_on(after, count, asked, map(result_of, replies)), _notes_of(result_of(earlier))

    def attempts(self, shard: str) -> dict[int, str]:
        return by_bucket(self._own_hash(self.keys.attempts(shard)))

    def listen(self, shard: str, holder: str, for_s: float, limit: int) -> Generator[Looked]:
        names, looking = self._bell(shard), self._looking(limit, holder)
        # the look is answered with the wake-up, in one round trip
        wait: tuple[Any, ...] = ("BLPOP", self.keys.wake(shard), for_s)
        look: tuple[Any, ...] = ("EVALSHA", script("due")[1], len(names), *names, *looking)
        with translated(), self._wire() as wire:  # one that is left before it has answered is dropped
            wire.send(pack_command(wait) + pack_command(look))
            # a server that idles ends a wait up to 100 ms late, as its timers run so often
            while not wire.readable(SLICE_S):
                yield False
            woken, found = wire.replies(2)
        result_of(woken)
        if isinstance(found, redis.exceptions.NoScriptError):
            found = self._run("due", names, looking)
        due = _due_of(result_of(found))
        yield due if due or found[0] else None

    def is_held(self, shard: str) -> bool:
        with translated():
            [bell] = self._client.mget([self.keys.bell(shard)])  # nothing, where there is no text
        return text_of(bell) not in ("", "1")

    def leave(self, shard: str, holder: str, *, within_ms: int | None = None) -> tuple[bool, int]:
        return ring_of(self._run("leave", self._bell(shard), [holder, BELL_MS, "" if within_ms is None else within_ms]))

    def _bell(self, shard: str) -> list[str]:
        """Return the names of a shard's dirty set, of its bell, and of what wakes who holds the bell."""
        return [self.keys.dirty(shard), self.keys.bell(shard), self.keys.wake(shard)]

    def sweep(self, shard: str, *, due_ms: int) -> tuple[bool, int]:
        return self.sweep_all([shard], due_ms=due_ms)[shard]

    def sweep_all(self, shards: Iterable[str], *, due_ms: int) -> dict[str, tuple[bool, int]]:
        keys, names = self.keys, list(shards)
        of_shards = [key for one in names for key in (keys.dirty(one), keys.bell(one))]
        found = self._run_own("sweep", [keys.room, keys.full, *of_shards], [BELL_MS, due_ms, MOST_AHEAD_MS])
        return dict(zip(names, map(ring_of, found), strict=True))

    def mark_dirty(self, shard: str, buckets: Iterable[int]) -> None:
        self._rest(shard, "NX", 0, buckets)

    def mark_clean(self, shard: str, buckets: Iterable[int]) -> None:
        words = list(buckets)
        if words:
            self._despite_oom("ZREM", self.keys.dirty(shard), *words)

    def postpone(self, shard: str, buckets: Iterable[int], delay_ms: int) -> None:
        with translated():
            seconds, micros = self._client.time()
        self._rest(shard, "XX", seconds * 1000 + micros // 1000 + delay_ms, buckets)

    def dirty(self, shard: str) -> int:
        with translated():
            return int(self._client.zcard(self.keys.dirty(shard)))

    def dirty_buckets(self, shard: str) -> set[int]:
        [found] = self._told(("ZRANGEBYSCORE", self.keys.dirty(shard), "-inf", "+inf"))
        return {number for one in result_of(found) for number in numbers_of(text_of(one), " ", 1) or ()}

    def _rest(self, shard: str, which: str, until_ms: int, buckets: Iterable[int]) -> None:
        pairs = [word for bucket in buckets for word in (until_ms, bucket)]
        if pairs:
            self._despite_oom("ZADD", self.keys.dirty(shard), which, *pairs)


class RedisLog(RedisAppends, RedisWork, RedisWaits, RedisSharedState):
    """A `contract.Log`: all roles on the connections of one `RedisServer`, whose arguments it takes.

    The roles inherit so that their methods are the log's own, as the contract wants them; none overrides another's.
    """


def _fault_of(name: str, hash: str, text: str) -> str:
    """Return what is wrong with a published definition, or the empty text: others may write to Redis."""
    try:
        schema = TableSchema.from_json(text, hash)
    except BadOp as error:
        return str(error)
    return "" if schema.name == name else f"it is of the table {schema.name!r}"


def _due_of(flat: list[Any]) -> dict[int, int]:
    """Return the reply of `due.lua` as the bytes of the largest op by bucket."""
    due = dict(zip(map(int, flat[1::2]), flat[2::2], strict=True))
    sizes = {bucket: numbers_of(text_of(size), " ", 1) for bucket, size in due.items() if size != b"0"}
    return dict.fromkeys(due, 0) | {bucket: size[0] for bucket, size in sizes.items() if size}


def _noting(notes: Mapping[int, str], *, anew: bool) -> list[Any]:
    """Return the arguments of `note_attempts.lua`."""
    return [int(anew), *(word for bucket, note in notes.items() for word in (bucket, note))]


def _notes_of(flat: list[Any]) -> dict[int, str]:
    """Return the reply of `note_attempts.lua` as notes by bucket."""
    return {int(flat[i]): text_of(flat[i + 1]) for i in range(0, len(flat), 2)}


def rehearse(url: str, prefix: str, read_s: float) -> None:
    """Append an op in both ways to a log under a prefix of its own, and delete all that came of it.

    Args:
        url: of the log's server.
        prefix: of the deployment's keys, whose names begin likewise.
        read_s: how long an answer may take.

    Raises:
        LogUnavailable: the user has not the rights, or Redis does not answer.
    """
    with closing(RedisLog(url, prefix=f"{prefix}:check", read_s=read_s)) as log:
        line, keys, producer = log.line(patient=True), log.keys, new_producer()
        try:
            log.raise_epoch(_SCOPE.name, log.epoch(_SCOPE.name)[2], 1)
            line.append(_SCOPE, 1, producer, [Append(0, 1, (b"",))], "", 0)
            line.append_one(_SCOPE, 1, producer, 0, 2, b"")
        finally:
            line.close()
            left = (keys.log(0), keys.epoch("check"), keys.producer(producer), keys.dirty("check"), keys.bell("check"))
            with translated():
                log._client.delete(*left, keys.wake("check"), keys.room, keys.full)
