"""Spread the logs of one deployment over several Redis: each shard's logs are in the Redis of its group.

The first Redis, `[redis] url`, has the reference log, the logs of shards that name no group, and what all processes
share. A shard of another group has two dirty sets: one beside its logs, and one beside the reference log. Definitions
are in every Redis, so that none is lost with one of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from pipeline import clock
from pipeline.config import Topology
from pipeline.config.buckets import log_number
from pipeline.config.settings import Settings
from pipeline.errors import LogUnavailable
from pipeline.model import Entry, Given, Position
from pipeline.model.sheet import Read
from pipeline.oplog import Looked
from pipeline.oplog.appends import EVERYWHERE, Append, Appended, Scope
from pipeline.oplog.redis.line import RedisLine
from pipeline.oplog.redis.log import RedisLog
from pipeline.oplog.shared_state import Noted

_T = TypeVar("_T")
#: How long the reference log's Redis may keep the work of a shard that has its logs elsewhere waiting, s; and for how
#: long it is not asked again.
BESIDE_S, SILENT_S = 0.25, 2.0


class GroupedLine:
    """A `appends.Line` with a connection to each Redis that its producer sends to, made when it is first needed.

    Args:
        topology: in which group a shard's logs are.
        logs: by name of a group, the log over its Redis.
        patient: as for `Appends.line`.
    """

    def __init__(self, topology: Topology, logs: Mapping[str, RedisLog], patient: bool):
        self._topology, self._logs, self._patient = topology, logs, patient
        self._lines: dict[str, RedisLine] = {}
        #: By name of a scope, its line: an append of one op finds it in one step.
        self._of_scope: dict[str, RedisLine] = {}
        self._last: RedisLine | None = None

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        """See `appends.Line.append`."""
        self._last = line = self._of_scope.get(scope.name) or self._to(scope.name)
        return line.append(scope, epoch, producer, appends, idempotency_key, row_id)

    def append_one(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        """See `appends.Line.append_one`."""
        self._last = line = self._of_scope.get(scope.name) or self._to(scope.name)
        return line.append_one(scope, epoch, producer, bucket, seq, payload)

    def replicated(self, *, fsync: bool, timeout_s: float) -> bool:
        """See `appends.Line.replicated`. One call of a publisher appends to one scope: the last Redis is asked."""
        return self._last is None or self._last.replicated(fsync=fsync, timeout_s=timeout_s)

    def connect(self) -> None:
        """See `appends.Line.connect`."""
        for shard in self._topology.shards:
            self._to(shard).connect()

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """See `appends.Line.pass_hole`."""
        shared = bucket == self._topology.reference_bucket
        scope = EVERYWHERE if shared else self._topology.shard_of(bucket)
        return self._to(scope).pass_hole(producer, bucket, seen, last)

    def close(self) -> None:
        """Give the connections back."""
        for line in self._lines.values():
            line.close()

    def _to(self, scope: str) -> RedisLine:
        group = self._topology.group_of(scope)
        if group not in self._lines:
            self._lines[group] = self._logs[group].line(patient=self._patient)
        line = self._of_scope[scope] = self._lines[group]
        return line


def log_of(settings: Settings, **times: Any) -> RedisLog:
    """Return the log of a deployment: over one Redis, or over those that the settings name.

    Args:
        settings: name the servers.
        times: as for `RedisServer`.
    """
    return GroupedLog(settings, **times) if settings.groups else RedisLog.of(settings.redis, **times)


class GroupedLog(RedisLog):
    """A `contract.Log` over several Redis. What names no shard, scope or bucket is in the first, and inherited.

    Args:
        settings: name the servers.
        times: as for `RedisServer`.
    """

    def __init__(self, settings: Settings, **times: Any):
        redis, topology = settings.redis, Topology(settings)
        signing = {"sign_key": redis.sign_key, "accept_unsigned": redis.accept_unsigned}
        alike = {"prefix": redis.prefix, **signing, **times}
        super().__init__(redis.url, **alike)
        self._topology = topology
        self.first = RedisLog(redis.url, **alike)
        others = {name: RedisLog(group.url, **alike) for name, group in settings.groups.items()}
        self._logs = {"": self.first, **others}
        self._beside = RedisLog(redis.url, **{**alike, "read_s": BESIDE_S})
        self._silent_until_s: dict[RedisLog, float] = {}

    def close(self) -> None:
        super().close()
        for log in (*self._logs.values(), self._beside):
            log.close()

    def at(self, scope: str) -> RedisLog:
        """Return the log over the one Redis that has a scope's logs.

        Args:
            scope: its name; that of a shard, or `EVERYWHERE`.
        """
        return self._logs[self._topology.group_of(scope)]

    def at_bucket(self, bucket: int) -> RedisLog:
        """Return the log over the one Redis that has a bucket's log.

        Args:
            bucket: its number.
        """
        bucket = log_number(bucket)
        mine = 0 <= bucket < self._topology.buckets
        return self.at(self._topology.shard_of(bucket)) if mine else self.first

    def _at_chore(self, name: str) -> RedisLog:
        """Return where the lease on a chore is: beside the logs of the shard that the name has behind its colon."""
        return self.at([*name.split(":"), ""][1])

    def _is_silent(self, log: RedisLog) -> bool:
        """Return whether a Redis did not answer a moment ago."""
        return clock.mono_s() < self._silent_until_s.get(log, 0.0)

    def _is_asked_beside(self, shard: str) -> bool:
        """Return whether to look for work of a shard beside the reference log, too."""
        return self.at(shard) is not self.first and not self._is_silent(self._beside)

    @contextmanager
    def _unless_silent(self) -> Iterator[None]:
        """Let the reference log wait for its Redis: the shard's own logs do not."""
        try:
            yield
        except LogUnavailable:
            self._silent_until_s[self._beside] = clock.mono_s() + SILENT_S

    def _split(self, of_buckets: Mapping[int, _T]) -> dict[RedisLog, dict[int, _T]]:
        parts: dict[RedisLog, dict[int, _T]] = {}
        for bucket, value in of_buckets.items():
            parts.setdefault(self.at_bucket(bucket), {})[bucket] = value
        return parts

    # appends --------------------------------------------------------------------------------------------------

    def line(self, *, patient: bool = False) -> GroupedLine:  # type: ignore[override]
        return GroupedLine(self._topology, self._logs, patient)

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        return self.at(scope).epoch(scope)

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        return self.at(scope).raise_epoch(scope, seen, epoch)

    def deployment(self, scope: str = EVERYWHERE) -> str:
        return self.at(scope).deployment()

    def note_deployment(self, seen: str, text: str, scope: str = EVERYWHERE) -> bool:
        return self.at(scope).note_deployment(seen, text)

    def audit(self, scope: str, marks: Mapping[int, Position]) -> str:
        return self.at(scope).audit(scope, marks)

    def senders(self, scope: str = EVERYWHERE) -> Iterator[tuple[int, dict[int, tuple[int, int]]]]:
        return self.at(scope).senders()

    def sender(self, producer: int) -> str | None:
        found = (log.sender(producer) for log in self._logs.values())
        return next((who for who in found if who is not None), None)

    def claim_key(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        return self.at_bucket(bucket).claim_key(bucket, idempotency_key, row_id)

    # entries --------------------------------------------------------------------------------------------------

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        parts = self._split(after).items()
        return {bucket: found for log, part in parts for bucket, found in log.read(part, count).items()}

    def heads(self, after: Mapping[int, Position]) -> dict[int, Entry]:
        return {bucket: head for log, part in self._split(after).items() for bucket, head in log.heads(part).items()}

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        parts = self._split(dict.fromkeys(buckets)).items()
        return {bucket: found for log, part in parts for bucket, found in log.tails(part).items()}

    def queued(self, after: Mapping[int, Position], up_to: Mapping[int, Position] = {}) -> dict[int, int]:
        parts = [(log, part, {b: up_to[b] for b in part if b in up_to}) for log, part in self._split(after).items()]
        return {bucket: ops for log, part, ends in parts for bucket, ops in log.queued(part, ends).items()}

    def trim(self, behind: Mapping[int, Position]) -> int:
        return sum(log.trim(part) for log, part in self._split(behind).items())

    def trimmed(self, bucket: int) -> bool:
        return self.at_bucket(bucket).trimmed(bucket)

    def publish_schemas(self, schemas: Iterable[tuple[str, str, str]]) -> None:
        found, failed = list(schemas), list[LogUnavailable]()
        for log in self._logs.values():
            try:
                log.publish_schemas(found)
            except LogUnavailable as error:
                failed.append(error)
        if failed:  # published is what every Redis has
            raise failed[0]

    def withdraw_schema(self, name: str) -> None:
        for log in self._logs.values():
            log.withdraw_schema(name)

    def schema(self, hash: str) -> str | None:
        failed: LogUnavailable | None = None
        for log in sorted(self._logs.values(), key=self._is_silent):
            try:
                if (text := log.schema(hash)) is not None:
                    return text
            except LogUnavailable as error:
                self._silent_until_s[log] = clock.mono_s() + SILENT_S
                failed = error
        if failed is not None:
            raise failed
        return None

    def newest_schemas(self) -> dict[str, str]:
        found, failed = dict[str, str](), list[LogUnavailable]()
        for log in self._logs.values():
            try:
                found = log.newest_schemas() | found
            except LogUnavailable as error:
                failed.append(error)
        if len(failed) == len(self._logs):
            raise failed[0]
        return found

    def marks(self, shard: str) -> dict[int, Position]:
        found = self.at(shard).marks(shard)
        return found if self.at(shard) is self.first else self.first.marks(shard) | found

    def mark(self, shard: str, bucket: int) -> Position | None:
        return self.at_bucket(bucket).mark(shard, bucket)

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        return self.at(shard).note_marks(shard, now_ms, text, older_than_ms=older_than_ms)

    # work -----------------------------------------------------------------------------------------------------

    def due(self, shard: str, limit: int, holder: str = "") -> dict[int, int]:
        return self.at(shard).due(shard, limit, holder) | self._due_beside(shard)

    def _due_beside(self, shard: str) -> dict[int, int]:
        if self._is_asked_beside(shard):
            with self._unless_silent():
                return self._beside.due(shard, 1)
        return {}

    def sizes(self, after: Mapping[int, Position], count: int, most_bytes: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for log, part in self._split(after).items():
            left = most_bytes - sum(map(sum, found.values()))
            found |= log.sizes(part, count, left) if left > 0 else {}
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
        home, parts = self.at(shard), self._split(marks)
        mine = parts.pop(home, {})
        ring, left = home.finish(shard, mine, delay_ms=delay_ms, counts=counts, note=note, holder=holder, own=own)
        for log, part in parts.items():
            more, others = log.finish(shard, part, delay_ms=delay_ms, holder=holder, own=own)
            ring, left = ring or more, left + others
        return ring, left

    def batches(self, shard: str) -> list[str]:
        return self.at(shard).batches(shard)

    def counts(self, shard: str) -> dict[str, int]:
        return self.at(shard).counts(shard)

    def note_attempts(self, shard: str, notes: Mapping[int, str], *, anew: bool = False) -> dict[int, str]:
        parts = self._split(notes).items()
        return {b: n for log, part in parts for b, n in log.note_attempts(shard, part, anew=anew).items()}

    def read_noted(
        self,
        shard: str,
        after: Mapping[int, Position],
        count: Mapping[int, int],
        notes: Mapping[int, str],
        *,
        anew: bool,
    ) -> tuple[dict[int, list[Read]], dict[int, str]]:
        found, kept = dict[int, list[Read]](), dict[int, str]()
        noted = self._split(notes)
        for log, part in self._split(after).items():
            entries, earlier = log.read_noted(shard, part, count, noted.get(log, {}), anew=anew)
            found, kept = found | entries, kept | earlier
        return found, kept

    def attempts(self, shard: str) -> dict[int, str]:
        own = self.at(shard)
        return own.attempts(shard) if own is self.first else self.first.attempts(shard) | own.attempts(shard)

    def listen(self, shard: str, holder: str, for_s: float, limit: int) -> Generator[Looked]:
        with closing(self.at(shard).listen(shard, holder, for_s, limit)) as waiting:
            for found in waiting:
                beside = self._due_beside(shard) if found is not False else {}
                yield {**(found or {}), **beside} if beside else found

    def is_held(self, shard: str) -> bool:
        return self.at(shard).is_held(shard)

    def leave(self, shard: str, holder: str, *, within_ms: int | None = None) -> tuple[bool, int]:
        ring, left = self.at(shard).leave(shard, holder, within_ms=within_ms)
        if self._is_asked_beside(shard):
            with self._unless_silent():
                more, others = self._beside.leave(shard, holder, within_ms=within_ms)
                ring, left = ring or more, left + others
        return ring, left

    def sweep_all(self, shards: Iterable[str], *, due_ms: int) -> dict[str, tuple[bool, int]]:
        swept, beside = dict[str, tuple[bool, int]](), list[str]()
        for log, names in self._by_log(shards).items():
            swept |= log.sweep_all(names, due_ms=due_ms)
            beside += filter(self._is_asked_beside, names)
        if beside:
            with self._unless_silent():
                for shard, (more, others) in self._beside.sweep_all(beside, due_ms=due_ms).items():
                    ring, dirty = swept[shard]
                    swept[shard] = ring or more, dirty + others
        return swept

    def _by_log(self, scopes: Iterable[str]) -> dict[RedisLog, list[str]]:
        parts: dict[RedisLog, list[str]] = {}
        for scope in scopes:
            parts.setdefault(self.at(scope), []).append(scope)
        return parts

    def mark_dirty(self, shard: str, buckets: Iterable[int]) -> None:
        for log, part in self._split(dict.fromkeys(buckets)).items():
            log.mark_dirty(shard, part)

    def mark_clean(self, shard: str, buckets: Iterable[int]) -> None:
        for log, part in self._split(dict.fromkeys(buckets)).items():
            log.mark_clean(shard, part)

    def postpone(self, shard: str, buckets: Iterable[int], delay_ms: int) -> None:
        for log, part in self._split(dict.fromkeys(buckets)).items():
            log.postpone(shard, part, delay_ms)

    def dirty(self, shard: str) -> int:
        return sum(log.dirty(shard) for log in {self.at(shard), self.first})

    def dirty_buckets(self, shard: str) -> set[int]:
        return self.at(shard).dirty_buckets(shard) | self.first.dirty_buckets(shard)

    def note_waits(self, shard: str, notes: Mapping[int, tuple[str, str]], for_ms: int) -> None:
        self.at(shard).note_waits(shard, notes, for_ms)

    def waits(self, shard: str) -> Noted:
        return self.at(shard).waits(shard)

    # what is shared -------------------------------------------------------------------------------------------

    def take_lease(self, name: str, for_ms: int) -> bool:
        return self._at_chore(name).take_lease(name, for_ms)

    def hold_lease(self, name: str, token: str, for_ms: int) -> bool:
        return self._at_chore(name).hold_lease(name, token, for_ms)

    def hold_leases(self, names: Iterable[str], token: str, for_ms: int) -> None:
        parts = dict[RedisLog, list[str]]()
        for name in names:
            parts.setdefault(self._at_chore(name), []).append(name)
        for log, some in parts.items():
            log.hold_leases(some, token, for_ms)

    def look(self, leases: Iterable[str], scopes: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
        held, settled, names = frozenset[str](), frozenset[str](), list(leases)
        for log, part in self._by_log(scopes).items():
            there, here = log.look([name for name in names if self._at_chore(name) is log], part)
            held, settled = held | there, settled | here
        return held, settled

    def stirs(self, shards: Iterable[str]) -> dict[str, str]:
        found = dict[str, str]()
        for log, names in self._by_log(shards).items():
            found |= log.stirs(names)
        beside = [shard for shard in found if self.at(shard) is not self.first]
        for shard, said in self.first.stirs(beside).items() if beside else ():
            found[shard] = f"{found[shard]} {said}" if found[shard] and said else ""
        return found

    def release_lease(self, name: str, token: str) -> None:
        self._at_chore(name).release_lease(name, token)

    def give_ids(self, shard: str, wanted: Mapping[int, int], new_span: int = 0) -> Given:
        return self.at(shard).give_ids(shard, wanted, new_span)

    def mend(self, scope: Scope, buckets: Iterable[int], leases: Iterable[str], *, delete: bool) -> list[str]:
        found = self.at(scope.name).mend(scope, buckets, leases, delete=delete)
        if scope.name == EVERYWHERE:  # what shards of other groups have beside the reference log
            apart = [shard for shard in self._topology.shards if self.at(shard) is not self.first]
            for shard in apart:
                found += self.first.mend(Scope(shard, (shard,)), (), (), delete=delete)
        return found

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        for log in self._logs.values():
            log.set_full(reason, for_ms)

    def full(self) -> str | None:
        return next((reason for log in self._logs.values() if (reason := log.full()) is not None), None)

    def memory(self) -> tuple[float, int]:
        """See `oplog.shared_state.SharedState.memory`: of the Redis that has the least room."""
        return max(log.memory() for log in self._logs.values())

    def largest_bytes(self) -> int:
        return min(log.largest_bytes() for log in self._logs.values())
