"""Keep the log, and what processes share beside it, in this process: it answers as `RedisLog` does, faults included."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from operator import attrgetter
from sys import maxsize

from pipeline import clock
from pipeline.config.buckets import log_number
from pipeline.model import HEAD_BYTES, SPAN, START, Entry, Given, Position, counter_at
from pipeline.model.sheet import Read, in_sheets
from pipeline.oplog import RECONCILE, SLICE_S, Looked
from pipeline.oplog.appends import Scope
from pipeline.oplog.memory.server import MemoryAppends, MemoryServer, Timed
from pipeline.oplog.shared_state import (
    ALIVE,
    BATCHES,
    BELL_MS,
    HELD_MS,
    HOST_MS,
    MOST_AHEAD_MS,
    MOST_COUNTERS,
    MOST_HOSTS,
    MOST_NOTES,
    MOST_OF_DAY,
    MOST_RECENT,
    NOTE_MS,
    ORDERS,
    RECORD_MS,
    Note,
    Noted,
)


class MemorySharedState(MemoryServer):
    """See `oplog.shared_state.SharedState`."""

    def take_lease(self, name: str, for_ms: int) -> bool:
        with self._lock:
            return self._hold(f"lease:{name}", "1", for_ms, own=False)

    def hold_lease(self, name: str, token: str, for_ms: int) -> bool:
        with self._lock:
            return self._hold(f"lease:{name}", token, for_ms, own=True)

    def hold_leases(self, names: Iterable[str], token: str, for_ms: int) -> None:
        for name in names:
            self.hold_lease(name, token, for_ms)

    def look(self, leases: Iterable[str], scopes: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
        with self._lock:
            epochs, here = self._server.epochs, self._server.lineage
            held = frozenset(name for name in leases if self._get(f"lease:{name}") is not None)
            return held, frozenset(name for name in scopes if name in epochs and epochs[name].lineage == here)

    def stirs(self, shards: Iterable[str]) -> dict[str, str]:
        with self._lock:
            dirty, counts, names = self._server.dirty, self._server.counts, list(shards)
            busy = {shard for shard in names if dirty.get(shard) or self._get(f"bell:{shard}") is not None}
            told = {one: [counts.get(one, {}).get(counter, 0) for counter in (BATCHES, ORDERS)] for one in names}
            return {one: "" if one in busy else "{} {}".format(*told[one]) for one in names}

    def release_lease(self, name: str, token: str) -> None:
        self.hold_lease(name, token, 0)

    def give_ids(self, shard: str, wanted: Mapping[int, int], new_span: int = 0) -> Given:
        with self._lock:
            server, now = self._server, counter_at(min(self.now_ms(), clock.wall_ms()))
            span, given_on = server.spans.get(shard, (0, ""))
            if new_span > span:
                span, given_on = server.spans[shard] = new_span, server.lineage
            starts = dict[int, int]()
            for bucket, count in wanted.items():
                begins = max(server.ids.get(bucket, 0), span * SPAN)
                fits = max(begins, now) + count <= (span + 1) * SPAN
                starts[bucket] = max(begins, now) if fits else begins
            used_up = any(start + wanted[bucket] > (span + 1) * SPAN for bucket, start in starts.items())
            if used_up or given_on != server.lineage:
                return Given(span, now // SPAN, None)
            server.ids |= {bucket: start + wanted[bucket] for bucket, start in starts.items()}
            return Given(span, now // SPAN, starts)

    def mend(self, scope: Scope, buckets: Iterable[int], leases: Iterable[str], *, delete: bool) -> list[str]:
        return []

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        with self._lock:
            if reason is None:
                self._server.keys.pop("full", None)
            else:
                self._set("full", reason, for_ms)

    def full(self) -> str | None:
        with self._lock:
            return self._get("full")

    def memory(self) -> tuple[float, int]:
        with self._lock:
            used = self._size_bytes()
            return used / self.limit_bytes if self.limit_bytes else 0.0, used

    def largest_bytes(self) -> int:
        with self._lock:
            return self.most_bulk_bytes

    def secret(self, proposed: str) -> str:
        with self._lock:
            return self._server.keys.setdefault("secret", Timed(proposed, 1 << 62)).value

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        with self._lock:
            self._server.health = {node: Timed(text, self.now_ms()) for node, text in nodes.items()}
            self._server.health_until_ms = self.now_ms() + for_ms

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]], str]:
        with self._lock:
            for what, more in counted.items():
                self._server.reads[what] = self._server.reads.get(what, 0) + more
            known = self._server.health if self.now_ms() < self._server.health_until_ms else {}
            told = {node: (report.until_ms, report.value) for node, report in known.items()}
            return self.now_ms(), told, self._server.placement

    def reads(self) -> dict[str, int]:
        with self._lock:
            return dict(self._server.reads)

    def note_host(self, host: str, text: str) -> None:
        with self._lock:
            now_ms, known = self.now_ms(), self._server.hosts
            for name in [name for name, (at_ms, _) in known.items() if now_ms - at_ms > HOST_MS]:
                del known[name]
            if len(known) < MOST_HOSTS or host in known:
                known[host] = now_ms, text

    def hosts(self) -> dict[str, tuple[int, str]]:
        with self._lock:
            return dict(self._server.hosts)

    def publish_records(self, records: Mapping[str, str], points: Mapping[str, tuple[str, str]] = {}) -> None:
        with self._lock:
            for name, text in records.items():
                self._set(f"record:{name}", f"{self.now_ms()} {text}", RECORD_MS)
                kept = self._server.history.setdefault(name, (deque(maxlen=MOST_RECENT), deque(maxlen=MOST_OF_DAY)))
                for points_of, point in zip(kept, points.get(name, ("", "")), strict=True):
                    points_of.extend([point] if point else [])

    def records(self, names: Iterable[str]) -> tuple[int, dict[str, tuple[int, str]]]:
        with self._lock:
            texts = {name: text.partition(" ") for name in names if (text := self._get(f"record:{name}")) is not None}
            return self.now_ms(), {name: (int(at), text) for name, (at, _, text) in texts.items()}

    def histories(self, names: Iterable[str], most: int | None = None) -> dict[str, tuple[list[str], list[str]]]:
        with self._lock:
            kept = {name: self._server.history.get(name, ((), ())) for name in names}
            return {name: ([*recent][-(most or 0) :], [*day][-(most or 0) :]) for name, (recent, day) in kept.items()}

    def seen(self, node: str) -> str | None:
        with self._lock:
            return self._server.seen.get(node)

    def note_seen(self, node: str, text: str) -> None:
        with self._lock:
            self._server.seen[node] = text

    def unfit(self) -> dict[str, str]:
        with self._lock:
            return dict(self._server.unfit)

    def publish_unfit(self, shard: str, text: str) -> None:
        with self._lock:
            self._server.unfit[shard] = text

    def _hold(self, key: str, token: str, for_ms: int, *, own: bool) -> bool:
        """Do what `hold_lease.lua` does."""
        holder, _, lasts = (self._get(key) or "").rpartition(" ")
        mine = not holder or (own and holder == token)
        if not mine and (for_ms <= 0 or self._left_ms(key) <= int(lasts)):
            return False
        self._set(key, f"{token} {for_ms}", for_ms)
        if for_ms <= 0:
            del self._server.keys[key]
        return for_ms > 0


class MemoryWaits(MemoryServer):
    """See `waits.Waits`."""

    def note_waits(self, shard: str, notes: Mapping[int, tuple[str, str]], for_ms: int) -> None:
        with self._lock:
            now_ms, kept = self.now_ms(), self._server.waits.setdefault(shard, {})
            for bucket, (cause, text) in notes.items():
                ends_ms, before, note = kept.get(bucket, (0, "", Note(0, "")))
                goes_on = before == cause and 0 < ends_ms - now_ms <= for_ms
                since_ms = min(note.since_ms, now_ms) if goes_on else now_ms
                kept[bucket] = now_ms + for_ms, cause, Note(since_ms, text)

    def waits(self, shard: str) -> Noted:
        with self._lock:
            now_ms, kept = self.now_ms(), self._server.waits.get(shard, {})
            notes = {bucket: note for bucket, (ends_ms, _, note) in kept.items() if ends_ms > now_ms}
            return Noted(self._get(f"lease:{ALIVE.format(shard)}") is not None, notes)


class MemoryEntries(MemoryServer):
    """See `contract.Entries`."""

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        with self._lock:
            return {bucket: self._behind(bucket, mark, count[bucket]) for bucket, mark in after.items()}

    def read_whole(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Read]]:
        return {bucket: in_sheets(entries) for bucket, entries in self.read(after, count).items()}

    def heads(self, after: Mapping[int, Position]) -> dict[int, Entry]:
        first = {bucket: found[0] for bucket, found in self.read(after, dict.fromkeys(after, 1)).items() if found}
        return {bucket: entry._replace(payload=entry.payload[:HEAD_BYTES]) for bucket, entry in first.items()}

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        with self._lock:
            return self._server.tails(buckets)

    def queued(self, after: Mapping[int, Position], up_to: Mapping[int, Position] = {}) -> dict[int, int]:
        with self._lock:
            return {bucket: self._counted(bucket, mark, up_to.get(bucket)) for bucket, mark in after.items()}

    def trim(self, behind: Mapping[int, Position]) -> int:
        with self._lock:
            before = self._count()
            for bucket, position in behind.items():
                entries = self._server.logs.get(bucket, [])
                self._server.trimmed |= {bucket} if entries and entries[0].position <= position else set()
                entries[:] = [entry for entry in entries if entry.position > position]
            return before - self._count()

    def trimmed(self, bucket: int) -> bool:
        with self._lock:
            return log_number(bucket) in self._server.trimmed

    def publish_schemas(self, schemas: Iterable[tuple[str, str, str]]) -> None:
        found = list(schemas)
        with self._lock:
            new = [text for _, hash, text in found if hash not in self._server.schemas]
            self._server.schemas |= {hash: text for _, hash, text in found}
            self._server.newest_schemas |= {name: hash for name, hash, _ in found}
        for text in new:
            self.published(text)

    def withdraw_schema(self, name: str) -> None:
        with self._lock:
            self._server.newest_schemas.pop(name, None)

    def schema(self, hash: str) -> str | None:
        with self._lock:
            return self._server.schemas.get(hash)

    def newest_schemas(self) -> dict[str, str]:
        with self._lock:
            return {name: self._server.schemas[hash] for name, hash in self._server.newest_schemas.items()}

    def marks(self, shard: str) -> dict[int, Position]:
        with self._lock:
            return dict(self._server.marks.get(shard, {}))

    def mark(self, shard: str, bucket: int) -> Position | None:
        return self.marks(shard).get(bucket)

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        with self._lock:
            notes = self._server.notes.setdefault(shard, [])
            if notes and notes[0][0] - now_ms > NOTE_MS:
                notes.clear()
            old = notes[max(0, older_than_ms // NOTE_MS - 1) :]
            found = next((note for at, note in old if now_ms - at >= older_than_ms), None)
            if not notes or now_ms - notes[0][0] >= NOTE_MS:
                notes.insert(0, (now_ms, text))
                del notes[older_than_ms // NOTE_MS + 2 :]
            return found

    def _behind(self, bucket: int, mark: Position, most: int = maxsize) -> list[Entry]:
        entries = self._server.logs.get(log_number(bucket), [])
        begins = bisect_right(entries, mark, key=attrgetter("position"))
        found = entries[begins : begins + most]
        return found if log_number(bucket) == bucket else [entry._replace(bucket=bucket) for entry in found]

    def _counted(self, bucket: int, mark: Position, end: Position | None) -> int:
        behind = self._behind(bucket, mark)
        if end is None or end <= mark:
            return len(behind) if end is None else 0
        lasts = {one.position.epoch: one.position.seq for one in behind if one.position < end} | {end.epoch: end.seq}
        return sum(last - (mark.seq if epoch == mark.epoch else -1) for epoch, last in lasts.items())

    def _count(self) -> int:
        return sum(map(len, self._server.logs.values()))


class MemoryWork(MemoryEntries):
    """See `contract.Work`."""

    def due(self, shard: str, limit: int, holder: str = "") -> dict[int, int]:
        with self._lock:
            held = self._get(bell := f"bell:{shard}") or ""
            waiting, now = self._server.dirty.get(shard, {}), self.now_ms()
            oldest = sorted((at, str(bucket)) for bucket, at in waiting.items() if at <= now)
            if not holder:
                self._server.keys.pop(bell, None)
            elif held in ("", "1") or held[2:] == holder:
                self._server.keys.pop(f"wake:{shard}", None)
                self._set(bell, f"{'h' if oldest else 'l'} {holder}", HELD_MS if oldest else BELL_MS)
            return {int(bucket): self._server.big.get(log_number(int(bucket)), 0) for _, bucket in oldest[:limit]}

    def sizes(self, after: Mapping[int, Position], count: int, most_bytes: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for bucket, position in after.items():
            sizes = [len(entry.payload) for entry in self._behind(bucket, position, count)]
            while most_bytes > 0 and len(found.setdefault(bucket, [])) < len(sizes):
                found[bucket].append(sizes[len(found[bucket])])
                most_bytes -= found[bucket][-1]
        return found

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
        with self._lock:
            if note:
                self._server.batches[shard] = [note, *self._server.batches.get(shard, ())][:MOST_NOTES]
            counted = self._server.counts.setdefault(shard, {})
            for name, more in counts.items():
                if len(counted) < MOST_COUNTERS or name in counted:
                    counted[name] = counted.get(name, 0) + more
            published = self._server.marks.setdefault(shard, {})
            dirty, tails = self._server.dirty.setdefault(shard, {}), self._server.tails(marks)
            for bucket, (epoch, seq) in marks.items():
                mark = Position(epoch, seq if epoch else 0)
                published[bucket] = max(mark, published.get(bucket, mark))
                attempts = self._server.attempts.get(shard, {})
                if (noted := attempts.get(bucket)) and (
                    noted == own.get(bucket) or Position.parse(_about(noted)) < mark
                ):
                    del attempts[bucket]
                tail = tails.get(bucket, START)
                if epoch and (log_number(bucket) not in self._server.last or Position(epoch, -1) < tail < mark):
                    self._server.keys.pop(f"lease:{RECONCILE.format(shard)}", None)
                if tail <= mark:
                    dirty.pop(bucket, None)
                elif bucket in dirty:
                    dirty[bucket] = self.now_ms() + delay_ms
            due = delay_ms == 0 and any(at <= self.now_ms() for at in dirty.values())
            return due and (bool(holder) or self._take(f"bell:{shard}", BELL_MS)), len(dirty)

    def batches(self, shard: str) -> list[str]:
        with self._lock:
            return list(self._server.batches.get(shard, ()))

    def counts(self, shard: str) -> dict[str, int]:
        with self._lock:
            return dict(self._server.counts.get(shard, {}))

    def note_attempts(self, shard: str, notes: Mapping[int, str], *, anew: bool = False) -> dict[int, str]:
        with self._lock:
            noted = self._server.attempts.setdefault(shard, {})
            stay = {b: noted[b] for b, note in notes.items() if not anew and _about(noted.get(b, " ")) == _about(note)}
            noted |= {bucket: note for bucket, note in notes.items() if bucket not in stay}
            self._server.attempts[shard] = {bucket: note for bucket, note in noted.items() if note}
            return stay

    def read_noted(
        self,
        shard: str,
        after: Mapping[int, Position],
        count: Mapping[int, int],
        notes: Mapping[int, str],
        *,
        anew: bool,
    ) -> tuple[dict[int, list[Read]], dict[int, str]]:
        earlier = self.note_attempts(shard, notes, anew=anew)
        return self.read_whole(after, count), earlier

    def attempts(self, shard: str) -> dict[int, str]:
        with self._lock:
            return dict(self._server.attempts.get(shard, {}))

    def listen(self, shard: str, holder: str, for_s: float, limit: int) -> Generator[Looked]:
        until_s = clock.mono_s() + for_s
        while self._server.keys.pop(f"wake:{shard}", None) is None and clock.mono_s() < until_s:
            yield False
            clock.sleep_s(SLICE_S)
        due = self.due(shard, limit, holder)
        yield due if due or (self._get(f"bell:{shard}") or "")[2:] == holder else None

    def is_held(self, shard: str) -> bool:
        with self._lock:
            return (self._get(f"bell:{shard}") or "1") != "1"

    def leave(self, shard: str, holder: str, *, within_ms: int | None = None) -> tuple[bool, int]:
        with self._lock:
            dirty, bell, now_ms = self._server.dirty.get(shard, {}), f"bell:{shard}", self.now_ms()
            if (self._get(bell) or "")[2:] == holder:
                del self._server.keys[bell]
                self._server.keys.pop(f"wake:{shard}", None)
            since_ms = 0 if within_ms is None else now_ms - within_ms
            due = any(since_ms <= at <= now_ms for at in dirty.values())
            if due and (self._get(bell) or "1") != "1":
                self._set(f"wake:{shard}", "1", BELL_MS)
            return due and self._take(bell, BELL_MS), len(dirty)

    def sweep(self, shard: str, *, due_ms: int) -> tuple[bool, int]:
        with self._lock:
            now_ms, dirty = self.now_ms(), self._server.dirty.get(shard, {})
            for key in (f"bell:{shard}", "full"):
                if self._left_ms(key) > MOST_AHEAD_MS:
                    del self._server.keys[key]
            dirty |= {bucket: now_ms for bucket, at in dirty.items() if at > now_ms + MOST_AHEAD_MS}
            forgotten = any(at <= now_ms - due_ms for at in dirty.values())
            return forgotten and self._take(f"bell:{shard}", BELL_MS), len(dirty)

    def sweep_all(self, shards: Iterable[str], *, due_ms: int) -> dict[str, tuple[bool, int]]:
        return {shard: self.sweep(shard, due_ms=due_ms) for shard in shards}

    def mark_dirty(self, shard: str, buckets: Iterable[int]) -> None:
        with self._lock:
            dirty = self._server.dirty.setdefault(shard, {})
            for bucket in buckets:
                dirty.setdefault(bucket, 0)

    def mark_clean(self, shard: str, buckets: Iterable[int]) -> None:
        with self._lock:
            for bucket in buckets:
                self._server.dirty.get(shard, {}).pop(bucket, None)

    def postpone(self, shard: str, buckets: Iterable[int], delay_ms: int) -> None:
        with self._lock:
            dirty = self._server.dirty.get(shard, {})
            dirty |= {bucket: self.now_ms() + delay_ms for bucket in buckets if bucket in dirty}

    def dirty(self, shard: str) -> int:
        with self._lock:
            return len(self._server.dirty.get(shard, {}))

    def dirty_buckets(self, shard: str) -> set[int]:
        with self._lock:
            return set(self._server.dirty.get(shard, {}))


class MemoryLog(MemoryAppends, MemoryWork, MemoryWaits, MemorySharedState):
    """A `contract.Log` of one process: all roles on one `MemoryServer`; thread-safe."""


def _about(note: str) -> str:
    """Return the watermark that a note is about."""
    return note.partition(" ")[0]
