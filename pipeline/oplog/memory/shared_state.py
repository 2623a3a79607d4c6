"""Keep in this process what processes share beside the ops: leases, the full flag, the secret, reports, waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from pipeline import clock
from pipeline.model.ids import SPAN, Given, counter_at
from pipeline.oplog.appends import Scope
from pipeline.oplog.counts import BATCHES, ORDERS
from pipeline.oplog.memory.server import MemoryServer, Timed
from pipeline.oplog.ttls import HOST_MS, MOST_HOSTS, MOST_OF_DAY, MOST_RECENT, RECORD_MS
from pipeline.oplog.waits import ALIVE, Note, Noted


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
