"""A model of workers that apply ops of several buckets to one database, which refuses a child before its parent.

An op needs another one: a child its parent, a deleted parent that its children are deleted, a unique value that it was
freed. What a database refuses then is early, if it was enqueued afterwards, and bad, if not. Clocks of hosts differ,
and what a host has spooled comes into the logs behind younger ops of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, combinations

from model.early_values import (
    CLOCKS,
    RULES,
    STOPPED,
    Bounds,
    Database,
    Noted,
    State,
    Take,
    arrivals,
    must_be_kept,
)
from model.search import Model, Move


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    assert off <= RULES.keys(), off
    shards = _Shards(bounds, off)
    queued = tuple(("queued",) * len(shards.entries) for _ in bounds.shards)
    start = State(0, queued, queued, deaths=bounds.deaths, failovers=bounds.failovers, steps=bounds.steps)
    return Model(start, shards.moves, shards.wrong, shards.done, shards.describe)


class _Shards:
    def __init__(self, bounds: Bounds, off: frozenset[str]):
        self.bounds, self.ops, self.off = bounds, bounds.ops, off
        self.database = Database(bounds.ops, cascade=bounds.cascade)
        self.kept = must_be_kept(bounds)
        calls = arrivals(bounds, whole=self._on("held whole"))
        #: The op of each entry, in the order of the logs; and how many have come after each call.
        self.entries = tuple(chain.from_iterable(calls))
        self.ends = tuple(accumulate(map(len, calls)))
        self.op = tuple(self.ops[n] for n in self.entries)
        self.bucket = tuple(op.bucket for op in self.op)

    def describe(self, s: State) -> str:
        """Return what a state shows to a reader."""
        return f"{self.entries} are {s.rows}, early {sorted(s.early)}"

    def wrong(self, s: State) -> str:
        """Return what is wrong with a state, whatever comes after it."""
        for shard, rows in enumerate(s.rows):
            lost = [self.entries[e] for e, row in enumerate(rows) if row == "rejected" and self.entries[e] in self.kept]
            if lost:
                return f"op {lost[0]} is rejected, and what it needs was enqueued before it"
            for bucket in self.bounds.shards[shard]:
                decided = [row != "queued" for e, row in enumerate(rows) if self.bucket[e] == bucket]
                if decided != sorted(decided, reverse=True):
                    return f"bucket {bucket} is out of order: {rows}"
        if self.bounds.whole and s.early:
            return f"a transaction was run again for nothing: {sorted(s.early)}"
        if self.bounds.prompt and s.overdue:
            return f"an op has waited for as long as it may: {sorted(s.overdue)}"
        return ""

    def done(self, s: State) -> bool:
        """Whether all is decided, but for what a stopped op keeps."""
        idle = s.arrived == len(self.entries) and not s.takes
        return idle and not any(self._open(s, n, b) for n, own in enumerate(self.bounds.shards) for b in own)

    def moves(self, s: State) -> Iterator[Move]:
        """Yield what may happen next."""
        if s.arrived < len(self.entries):
            yield self._comes(s)
        if len(s.takes) < self.bounds.workers and not (self.bounds.queued and s.arrived < len(self.entries)):
            yield from self._begun(s)
        for take in s.takes:
            yield from self._step(s, take)
            if s.deaths:
                gone = s._replace(takes=_without(s.takes, take), deaths=s.deaths - 1)
                yield Move(f"the worker with {take.entries} dies", gone, work=False)
        yield from self._time(s)
        yield from self._database(s)

    def _step(self, s: State, take: Take) -> Iterator[Move]:
        step = {"taken": self._clears, "cleared": self._runs, "run": self._asks, "asked": self._commits}[take.step]
        return step(s, take)

    def _comes(self, s: State) -> Move:
        end = next(end for end in self.ends if end > s.arrived)
        buckets = {self.bucket[e] for e in range(s.arrived, end)}
        marked = {(n, bucket) for n, own in enumerate(self.bounds.shards) for bucket in buckets & own}
        after = s._replace(arrived=end, dirty=s.dirty | marked)
        return Move(f"ops {self.entries[s.arrived : end]} come into their logs", after)

    # a transaction ------------------------------------------------------------------------------------------

    def _begun(self, s: State) -> Iterator[Move]:
        for shard in range(len(s.rows)):
            locked = {self.bucket[e] for take in s.takes if take.shard == shard for e in take.entries}
            free = [b for b in self._due(s, shard) if b not in locked]
            for taken in dict.fromkeys(self._taken(s, shard, free)):
                takes = tuple(sorted((*s.takes, Take(shard, taken))))
                yield Move(f"a worker takes {self._ops(taken)} on shard {shard}", s._replace(takes=takes))

    def _taken(self, s: State, shard: int, free: list[int], *, every: bool = False) -> Iterator[tuple[int, ...]]:
        """Yield what a transaction may take of free buckets, the most of it last."""
        if self.bounds.together or self.bounds.whole or every:
            entries = [e for bucket in free for e in self._open(s, shard, bucket)[: self.bounds.room]]
            turns = dict(zip(entries, self._in_buckets(entries), strict=True))
            for most in sorted(turns.values())[: self.bounds.room][-1 if self.bounds.whole else 0 :]:
                yield tuple(e for e in entries if turns[e] <= most)
            return
        for some in _subsets(free, self.bounds.buckets):
            for most in 1, len(self.entries):
                yield tuple(chain.from_iterable(self._open(s, shard, b)[:most] for b in some))

    def _clears(self, s: State, take: Take) -> Iterator[Move]:
        """Let deletes wait for what is queued, before anything is executed."""
        deletes = [e for e in self._unseen(s, take) if self.op[e].deletes is not None and self._on("deletes wait")]
        early, let_go = self._early(s, take, deletes, refused=False)
        if early:
            yield self._cut(s, take, early, let_go=let_go)
        elif deletes:
            yield Move(f"deletes {self._ops(deletes)} have their turn", _put(s, take, step="cleared", let_go=let_go))
        else:
            yield from self._runs(s, take)

    def _runs(self, s: State, take: Take) -> Iterator[Move]:
        refused = tuple(self._refused(s, take, self._unseen(s, take)))
        yield Move(
            f"{self._ops(refused) or 'none'} of {self._ops(take.entries)} refused",
            _put(s, take, refused=refused, step="run"),
        )

    def _asks(self, s: State, take: Take) -> Iterator[Move]:
        """Ask what is queued, and let refused ops wait for that."""
        early, let_go = self._early(s, take, [e for e in take.refused if e not in take.settled], refused=True)
        if not early:
            yield Move(f"none of {self._ops(take.refused)} waits", _put(s, take, step="asked", let_go=let_go))
            return
        on_time = take._replace(early=take.early | early)
        left_out = {*self._on_time(take)} - {*self._on_time(on_time)}
        first = min(self.op[e].at for e in (left_out if self._on("behind too") else early))
        helped = self._put_off(s, take, self._unseen(s, on_time))
        settled = {e for e in take.refused if e not in early | helped and self.op[e].at + CLOCKS < first}
        yield self._cut(s, take, early, let_go=let_go, settled=take.settled | settled)

    def _early(self, s: State, take: Take, entries: Iterable[int], *, refused: bool) -> tuple[frozenset[int], int]:
        """Return which of some entries wait for what is queued, or for one of them; and which waits no longer."""
        queued, early, let_go = self._queued(s, take), set[int](), take.let_go
        for e in entries:
            behind = any(one < e and self.bucket[one] == self.bucket[e] for one in early)
            if behind or not self._waits(s, take.shard, e, queued, refused=refused):
                continue
            alone = let_go == -1 or (self.bucket[let_go] == self.bucket[e] and let_go >= e)
            if (take.shard, e) in s.overdue and alone:
                let_go = e
                continue
            early.add(e)
            queued.add(e)
        return frozenset(early), let_go

    def _commits(self, s: State, take: Take) -> Iterator[Move]:
        shard, executed = take.shard, self._unseen(s, take)
        if taken := self._put_off(s, take, executed):
            settled = take.settled | (set(take.refused) - taken if self._on("settled") else set())
            yield self._cut(s, take, frozenset(taken), put_off=True, settled=settled)
            return
        rows, on_time = list(s.rows[shard]), self._on_time(take)
        for e in on_time:
            rows[e] = "rejected" if e in take.refused else "applied" if e in executed else "seen"
        after = s._replace(
            rows=(*s.rows[:shard], tuple(rows), *s.rows[shard + 1 :]),
            takes=_without(s.takes, take),
            early=s.early - {(shard, e) for e in on_time},
            awaited=s.awaited - {(shard, e) for e in on_time},
            spent=s.spent | {(shard, e) for e in self._spent(take, on_time)},
        )
        if self._on("moves"):
            anew = self._begin_anew(s, shard, on_time)
            after = after._replace(seconds=after.seconds - anew, overdue=after.overdue - anew)
        clean = {(shard, self.bucket[e]) for e in take.entries if not self._open(after, shard, self.bucket[e])}
        after = after._replace(dirty=s.dirty - clean)
        said = f"{self._ops(on_time)} committed on shard {shard}, of which {self._ops(take.refused)} rejected"
        yield Move(said, after)

    def _spent(self, take: Take, committed: tuple[int, ...]) -> list[int]:
        """Return which op is put off no more: the youngest, where it would be so for ever."""
        if not take.put_off or not self._on("spent"):
            return []
        youngest = max(take.put_off, key=lambda e: self.op[e].at)
        at, moving = self.op[youngest], take.waiting | {self.bucket[e] for e in committed}
        older = {self.bucket[o] for o in take.entries if self.op[o].at < at.at} - {at.bucket}
        return [] if older & moving else [youngest]

    def _begin_anew(self, s: State, shard: int, entries: Iterable[int]) -> Noted:
        """Return what waits anew once some entries are committed: older ops of their buckets were waited for."""
        moved = {self.bucket[e] for e in entries}
        older = [o for o in range(s.arrived) if s.rows[shard][o] == "queued" and self.bucket[o] in moved]
        return frozenset(
            (n, e)
            for n, e in s.seconds | s.overdue
            if n == shard and any(self.bucket[o] != self.bucket[e] and self.op[o].at < self.op[e].at for o in older)
        )

    def _put_off(self, s: State, take: Take, executed: tuple[int, ...]) -> set[int]:
        """Return which of the refused ops the rest of the batch helps, or one that it helps."""
        applied, found = self._applied(s, take.shard), set[int]()
        there = applied | {self.entries[e] for e in executed if e not in take.refused}
        again = {e for e in take.refused if e not in take.settled} if self._on("tried again") else set[int]()
        while helped := {
            e
            for e in again - found
            if self.database.takes(self.entries[e], applied)
            or ((take.shard, e) not in s.spent and self.database.takes(self.entries[e], there))
        }:
            found |= helped
            there |= {self.entries[e] for e in helped}
        return found

    def _cut(self, s: State, take: Take, early: frozenset[int], *, put_off: bool = False, **changes: object) -> Move:
        """Run the transaction again without early ops, and what follows them."""
        put = take.put_off | early if put_off else take.put_off
        if not put_off:
            changes["waiting"] = take.waiting | {self.bucket[e] for e in early}
        if self._on("filled up") and self.bounds.together:
            changes["entries"] = self._filled(s, take, take.early | early)
        after = _put(s, take, early=take.early | early, refused=(), step="taken", put_off=put, **changes)
        noted = {(take.shard, e) for e in early}
        if not put_off:
            older = self._older(s, take, early, refused=take.step == "run")
            dirty = {(take.shard, self.bucket[o]) for o in older} if self._on("marked") else set()
            after = after._replace(awaited=s.awaited | noted, dirty=s.dirty | dirty)
        said = f"{self._ops(sorted(early))} of {self._ops(take.entries)} {'are put off' if put_off else 'may be early'}"
        return Move(said, after._replace(early=s.early | noted))

    def _filled(self, s: State, take: Take, early: frozenset[int]) -> tuple[int, ...]:
        """Return what a transaction takes, and the oldest ops that it takes instead of what follows early ones."""
        others = {self.bucket[e] for one in s.takes if one is not take for e in one.entries}
        free = [b for b in self._due(s, take.shard) if b not in others]
        mine = [e for b in free for e in self._open(s, take.shard, b)]
        before = [e for e in mine if not any(self.bucket[one] == self.bucket[e] and one <= e for one in early)]
        turns = dict(zip(before, self._in_buckets(before), strict=True))
        most = max(sorted(turns.values())[: self.bounds.room], default=0)
        more = {e for e in before if turns[e] <= most} | set(take.entries)
        return tuple(sorted(more, key=lambda e: (self.bucket[e], e)))

    def _older(self, s: State, take: Take, early: frozenset[int], *, refused: bool) -> Iterator[int]:
        queued = self._queued(s, take)
        for e in early:
            yield from (o for o in self._others(e, queued, refused=refused) if self.op[o].at <= self.op[e].at + CLOCKS)

    def _on_time(self, take: Take) -> tuple[int, ...]:
        """Return what a transaction takes: of each bucket, up to its first early op."""
        ends = {self.bucket[e]: e for e in sorted(take.early, reverse=True)}
        if not self._on("bucket ends"):
            return tuple(e for e in take.entries if e not in take.early)
        return tuple(e for e in take.entries if e < ends.get(self.bucket[e], e + 1))

    def _unseen(self, s: State, take: Take) -> tuple[int, ...]:
        """Return what a transaction executes, in order: nothing that the shard has seen."""
        seen, entries = self._decided(s, take.shard), list[int]()
        for e in self._on_time(take):
            if self.entries[e] not in seen:
                seen.add(self.entries[e])
                entries.append(e)
        return tuple(self._by_time(entries)) if self._on("by time") else tuple(entries)

    def _by_time(self, entries: list[int]) -> list[int]:
        """Order entries as `order.by_time` does."""
        turns = self._in_buckets(entries)
        left, found = sorted(range(len(entries)), key=turns.__getitem__), list[int]()
        deletes = {n for n in left if self.op[entries[n]].deletes is not None and self._reaches(entries[n])}
        if not deletes or not self._on("deletes last"):
            return [entries[n] for n in left]
        last = {n for n in deletes if not (self.database.named(self.op[entries[n]].deletes) and self._on("names"))}
        after = [(n, m) for n in left for m in left if self._follows(entries, n, m)]
        while left:
            heads = [n for n in left if not any(m < n and self._alike(entries, n, m) for m in left)]
            free = [n for n in heads if not any(n == one and m in left for one, m in after)] or sorted(
                heads, key=lambda n: n in deletes
            )
            oldest = min(left, key=lambda n: (self.op[entries[n]].at, n in last))
            patient = [n for n in free if n not in last or n == oldest]
            left.remove(n := (patient or sorted(free, key=lambda n: self.op[entries[n]].at))[0])
            found.append(entries[n])
        return found

    def _alike(self, entries: list[int], n: int, m: int) -> bool:
        return self.bucket[entries[n]] == self.bucket[entries[m]]

    def _reaches(self, e: int) -> bool:
        return any(op.needs == self.op[e].deletes for op in self.ops)

    def _follows(self, entries: list[int], n: int, m: int) -> bool:
        """Return whether an op comes after another: a child after its parent, a delete after what names its row."""
        op, other = self.op[entries[n]], self.op[entries[m]]
        if op.bucket == other.bucket or other.at > op.at:
            return False
        if op.deletes is None or not self._reaches(entries[n]):
            return op.needs == self.entries[entries[m]] and self._on("parents first")
        return self.database.named(op.deletes) and self._on("names") and other.needs == op.deletes

    def _in_buckets(self, entries: list[int]) -> list[float]:
        """Return turns so that no op comes before the one before it in its bucket."""
        last: dict[int, float] = {}
        found = []
        for e in entries:
            last[self.bucket[e]] = max(self.op[e].at, last.get(self.bucket[e], 0))
            found.append(last[self.bucket[e]])
        return found

    def _refused(self, s: State, take: Take, entries: Iterable[int]) -> Iterator[int]:
        """Yield what the database refuses of ops that run after what is committed by now."""
        there = self._applied(s, take.shard)
        for e in entries:
            if self.database.takes(self.entries[e], there):
                there.add(self.entries[e])
            else:
                yield e

    def _queued(self, s: State, take: Take | None, shard: int = 0) -> set[int]:
        """Return what is queued on a shard beside what a transaction takes."""
        shard = shard if take is None else take.shard
        mine = self._on_time(take) if take is not None else ()
        decided = s.rows if not self._on("own watermark") else s.rows[shard : shard + 1]
        queued = {
            e
            for e in range(s.arrived)
            if self.bucket[e] in self.bounds.shards[shard]
            and e not in mine
            and all(rows[e] == "queued" for rows in decided)
        }
        if self._on("seen"):
            seen = self._decided(s, shard) | {self.entries[e] for e in mine}
            queued = {e for e in queued if self.entries[e] not in seen}
        if not self._on("the log"):
            queued = {e for e in queued if (shard, self.bucket[e]) in s.dirty}
        if not self._on("every bucket") and take is not None:
            queued &= set(take.entries)
        if not self._on("deep"):
            queued = {e for e in queued if not any(o < e and self.bucket[o] == self.bucket[e] for o in queued)}
        return queued

    def _waits(self, s: State, shard: int, e: int, queued: Iterable[int], *, refused: bool) -> bool:
        """Return whether an op that is refused, or deletes, waits for others that are queued."""
        if not self._on("waits"):
            return False
        at, others = self.op[e].at, self._others(e, queued, refused=refused)
        younger = refused and self._on("clocks") and (shard, e) not in s.seconds
        return any(self.op[o].at < at or (younger and self.op[o].at <= at + CLOCKS) for o in others)

    def _others(self, e: int, queued: Iterable[int], *, refused: bool) -> list[int]:
        """Return the queued ops that may count for one that is refused, or deletes."""
        row, needs = self.op[e].deletes, self.op[e].needs
        others = [o for o in queued if self.bucket[o] != self.bucket[e]]
        if not refused and row is not None and self._on("names") and self.database.named(row):
            return [o for o in others if self.op[o].needs == row]
        if not (refused and self.bounds.related and self._on("helpers")) or needs in (None, STOPPED):
            return others
        if needs >= 0 and self.ops[needs].deletes is not None:  # a value is taken
            return [o for o in others if self.op[o].deletes is not None]
        return [o for o in others if self.entries[o] == needs]

    # what passes --------------------------------------------------------------------------------------------

    def _time(self, s: State) -> Iterator[Move]:
        """Let time pass where workers have nothing else to do: a second is long for what is ready.

        What waits was looked at together, and has waited for as long.
        """
        if not self._on("moves"):
            for shard, e in sorted(s.awaited - s.overdue):
                late = self._late(s, {(shard, e)})
                yield Move(f"op {self.entries[e]} has waited for as long as it may", late)
        for n, bucket in sorted(s.dirty - s.rests if s.steps else ()):
            rests = s._replace(rests=s.rests | {(n, bucket)}, steps=s.steps - 1)
            yield Move(f"bucket {bucket} rests, and the log's clock is set back", rests, work=False)
        if s.rests:
            yield Move("a sweep ends all rests", s._replace(rests=s.rests - s.rests))
        for shard in range(len(s.rows)):
            awaited = {(shard, e) for e in self._looked(s, shard)}
            if awaited - s.seconds:
                if self._on("a second"):
                    yield Move("what waits has waited for a second", s._replace(seconds=s.seconds | awaited))
            elif awaited and self._on("at most"):
                deletes = {(n, e) for n, e in awaited if self.op[e].deletes is not None}
                over = awaited - deletes if deletes and not self._on("deletes first") else deletes or awaited
                if s.rests and (self._on("rests end") or over - deletes):
                    continue  # a sweep is sooner than the time of what is refused, and not than that of a delete
                yield Move(f"{self._ops(e for _, e in sorted(over))} wait as long as they may", self._late(s, over))

    def _late(self, s: State, entries: Iterable[tuple[int, int]]) -> State:
        return s._replace(overdue=s.overdue | frozenset(entries))

    def _looked(self, s: State, shard: int) -> frozenset[int]:
        """Return what waits when a worker looks at all that is due; nothing where it gets on."""
        due = self._due(s, shard)
        if any(take.shard == shard for take in s.takes) or not (s.awaited and due):
            return frozenset()
        # a delete that waits no longer has been looked at before the others have waited for as long
        over = frozenset((n, e) for n, e in s.overdue if self.op[e].deletes is not None and self._on("deletes first"))
        awaited = set[int]()
        for some in combinations(due, min(self.bounds.buckets, len(due))):
            *_, taken = self._taken(s, shard, [*some], every=True)
            take = Take(shard, taken)
            at: State = s._replace(takes=(take,), overdue=over, awaited=frozenset())
            while at.takes:
                [move] = self._step(at, at.takes[0])
                at = move.state  # type: ignore[assignment]
            if (at.rows, at.spent) != (s.rows, s.spent):
                return frozenset()
            awaited |= {e for _, e in at.awaited}
        return frozenset(awaited)

    def _database(self, s: State) -> Iterator[Move]:
        if not self.bounds.failovers:
            return
        if s.replicas != s.rows:
            yield Move("the replica follows", s._replace(replicas=s.rows))
        if s.failovers:
            promoted = s._replace(rows=s.replicas, takes=(), failovers=s.failovers - 1)
            if self._on("gone back"):
                nothing: Noted = frozenset()
                promoted = promoted._replace(
                    early=nothing, awaited=nothing, seconds=nothing, overdue=nothing, spent=nothing
                )
            yield Move("the replica is promoted", promoted, work=False)
        behind = {(n, b) for n, own in enumerate(self.bounds.shards) for b in own if self._open(s, n, b)}
        if not behind <= s.dirty:
            yield Move("what is queued is marked dirty", s._replace(dirty=s.dirty | behind))

    def _due(self, s: State, shard: int) -> list[int]:
        return [b for n, b in sorted(s.dirty - s.rests) if n == shard and self._open(s, shard, b)]

    def _open(self, s: State, shard: int, bucket: int) -> list[int]:
        """Return what is queued in a bucket on a shard, up to what stops the bucket."""
        found = []
        for e in range(s.arrived):
            if self.bucket[e] == bucket and s.rows[shard][e] == "queued":
                if self.op[e].needs == STOPPED:
                    break
                found.append(e)
        return found

    def _applied(self, s: State, shard: int) -> set[int]:
        return {self.entries[e] for e, row in enumerate(s.rows[shard]) if row == "applied"}

    def _decided(self, s: State, shard: int) -> set[int]:
        """Return the ops that a shard has seen."""
        return {self.entries[e] for e, row in enumerate(s.rows[shard]) if row in ("applied", "rejected")}

    def _ops(self, entries: Iterable[int]) -> tuple[int, ...]:
        return tuple(self.entries[e] for e in entries)

    def _on(self, rule: str) -> bool:
        return rule not in self.off


def _subsets(buckets: list[int], most: int) -> Iterator[list[int]]:
    for size in range(1, min(most, len(buckets)) + 1):
        for some in combinations(buckets, size):
            yield list(some)


def _without(takes: tuple[Take, ...], take: Take) -> tuple[Take, ...]:
    return tuple(one for one in takes if one is not take)


def _put(s: State, take: Take, **changes: object) -> State:
    changed = take._replace(**changes)  # type: ignore[arg-type]
    return s._replace(takes=tuple(sorted((*_without(s.takes, take), changed))))
