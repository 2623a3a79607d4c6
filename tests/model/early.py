"""A model of workers that apply ops of several buckets to one database, which refuses a child before its parent.

An op needs another one: a child its parent, a deleted parent that its children are deleted, a unique value that it was
freed. What a database refuses then is early, if it was enqueued afterwards, and bad, if not. Clocks of hosts differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import chain, combinations
from typing import NamedTuple

from model.search import Model, Move

#: By how much the clocks of two hosts may differ.
CLOCKS = 1
#: What an op needs that never comes; and an op at which its bucket stops for good, as where a table is halted.
NEVER, STOPPED = -1, -2

#: What can be switched off, and what each rule says.
RULES = {
    "by time": "in a transaction ops of all its buckets are in the order of their enqueue",
    "waits": "an op that is refused is early while anything is queued that was enqueued before it",
    "every bucket": "what other workers hold, and what the transaction has no room for, is queued",
    "the log": "the logs say what is queued, and not the dirty set",
    "own watermark": "what is applied is what this shard has applied",
    "tried again": "an op is rejected once it was refused after all else: the question what is queued, and its batch",
    "one chance": "an op is put off for the rest of its batch until a transaction without it is committed",
    "committed": "a transaction that is given up is no such chance",
    "clocks": "what is younger by no more than clocks differ counts as enqueued before",
    "a second": "what is younger counts for a second, so that two that are both bad do not wait for each other",
    "at most": "an op waits for so long at most",
    "bucket ends": "what follows an early op in its bucket waits with it",
    "deletes wait": "an op that deletes a row to which others may refer is early like one that is refused",
    "deletes first": "a delete waits for a shorter time than an op that is refused",
    "moves": "how long an op waits at most is counted while nothing moves that was enqueued before it",
}


class Op(NamedTuple):
    """An op: its bucket, the time by its host's clock, which op it needs, and which op's row it deletes.

    Ops are in the order of their enqueue.
    """

    bucket: int
    at: float
    needs: int | None = None
    deletes: int | None = None


@dataclass(frozen=True)
class Bounds:
    """What is enqueued, and how much may happen in one run."""

    ops: tuple[Op, ...]
    shards: tuple[frozenset[int], ...] = (frozenset(range(9)),)
    workers: int = 2
    buckets: int = 9  # of one transaction at most
    together: bool = False  # each transaction takes all that is due
    whole: bool = False  # the same, and nothing may be tried for nothing
    queued: bool = False  # workers begin once all is enqueued
    deaths: int = 0  # of workers
    failovers: int = 0  # of the database, to a replica that lags
    cascade: bool = True  # a row that is deleted takes with it the rows that need it; else it is refused


class Take(NamedTuple):
    """A transaction, and how far it is: taken, cleared, run, asked."""

    shard: int
    ops: tuple[int, ...]
    early: frozenset[int] = frozenset()  # their buckets end before them
    refused: tuple[int, ...] = ()
    step: str = "taken"
    put_off: frozenset[int] = frozenset()  # of these, what waits for the rest of the batch


Rows = tuple[str, ...]  # of each op: queued, applied, rejected


class State(NamedTuple):
    enqueued: int
    rows: tuple[Rows, ...]
    replicas: tuple[Rows, ...]
    dirty: frozenset[tuple[int, int]] = frozenset()
    early: frozenset[tuple[int, int]] = frozenset()  # (shard, op)
    seconds: frozenset[tuple[int, int]] = frozenset()  # early for a second
    overdue: frozenset[tuple[int, int]] = frozenset()  # early for as long as an op waits at most
    chances: frozenset[tuple[int, int]] = frozenset()  # what was put off, and is not again
    takes: tuple[Take, ...] = ()
    deaths: int = 0
    failovers: int = 0


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    assert off <= RULES.keys(), off
    shards = _Shards(bounds, off)
    queued = tuple(("queued",) * len(bounds.ops) for _ in bounds.shards)
    start = State(0, queued, queued, deaths=bounds.deaths, failovers=bounds.failovers)
    return Model(start, shards.moves, shards.wrong, shards.done, shards.describe)


class _Shards:
    def __init__(self, bounds: Bounds, off: frozenset[str]):
        self.bounds, self.ops, self.off = bounds, bounds.ops, off
        self.kept = self._kept_one_by_one()

    def _kept_one_by_one(self) -> set[int]:
        """Return the ops that one database takes which gets them one by one, in the order of their enqueue."""
        kept, ended = set[int](), set[int]()
        for n, (bucket, _, needs, _) in enumerate(self.ops):
            if needs == STOPPED:
                ended.add(bucket)
            if bucket not in ended and self._takes(n, kept):
                kept.add(n)
        return kept

    def _takes(self, n: int, applied: Set[int]) -> bool:
        """Return whether the database takes an op once others are applied."""
        needs, deletes = self.ops[n].needs, self.ops[n].deletes
        if deletes is not None and not self.bounds.cascade:
            return not any(self.ops[one].needs == deletes and self._has_row(one, applied) for one in applied)
        return needs is None or self._has_row(needs, applied)

    def _has_row(self, n: int, applied: Set[int]) -> bool:
        """Return whether the row of an op is there: not deleted, nor that of an op that it needs."""
        if n not in applied or any(self.ops[one].deletes == n for one in applied):
            return False
        needs = self.ops[n].needs
        return needs is None or self._has_row(needs, applied)

    def describe(self, s: State) -> str:
        """Return what a state shows to a reader."""
        return f"rows {s.rows}, early {sorted(s.early)}"

    def wrong(self, s: State) -> str:
        """Return what is wrong with a state, whatever comes after it."""
        for shard, rows in enumerate(s.rows):
            lost = [n for n in self.kept if rows[n] == "rejected"]
            if lost:
                return f"op {lost[0]} is rejected, and what it needs was enqueued before it"
            for bucket in self.bounds.shards[shard]:
                decided = [row != "queued" for n, row in enumerate(rows) if self.ops[n].bucket == bucket]
                if decided != sorted(decided, reverse=True):
                    return f"bucket {bucket} is out of order: {rows}"
        if self.bounds.whole and s.early:
            return f"a transaction was run again for nothing: {sorted(s.early)}"
        return ""

    def done(self, s: State) -> bool:
        """Whether all is decided, but for what a stopped op keeps."""
        idle = s.enqueued == len(self.ops) and not s.takes
        return idle and not any(self._open(s, n, b) for n, own in enumerate(self.bounds.shards) for b in own)

    def moves(self, s: State) -> Iterator[Move]:
        if s.enqueued < len(self.ops):
            bucket = self.ops[s.enqueued].bucket
            marked = {(n, bucket) for n, own in enumerate(self.bounds.shards) if bucket in own}
            yield Move(f"op {s.enqueued} is enqueued", s._replace(enqueued=s.enqueued + 1, dirty=s.dirty | marked))
        if len(s.takes) < self.bounds.workers and not (self.bounds.queued and s.enqueued < len(self.ops)):
            yield from self._begun(s)
        for take in s.takes:
            step = {"taken": self._clears, "cleared": self._runs, "run": self._asks, "asked": self._commits}[take.step]
            yield from step(s, take)
            if s.deaths:
                gone = s._replace(takes=_without(s.takes, take), deaths=s.deaths - 1)
                yield Move(f"the worker with {take.ops} dies", gone, work=False)
        yield from self._time(s)
        yield from self._database(s)

    # a transaction ------------------------------------------------------------------------------------------

    def _begun(self, s: State) -> Iterator[Move]:
        for shard in range(len(s.rows)):
            locked = {self.ops[n].bucket for take in s.takes if take.shard == shard for n in take.ops}
            free = [b for n, b in sorted(s.dirty) if n == shard and b not in locked and self._open(s, shard, b)]
            for some in [free] if self._together else _subsets(free, self.bounds.buckets):
                for most in (len(self.ops),) if self._together else (1, len(self.ops)):
                    taken = tuple(chain.from_iterable(self._open(s, shard, b)[:most] for b in some))
                    if taken:
                        takes = tuple(sorted((*s.takes, Take(shard, taken))))
                        yield Move(f"a worker takes {taken} on shard {shard}", s._replace(takes=takes))

    def _clears(self, s: State, take: Take) -> Iterator[Move]:
        """Let deletes wait for what is queued, before anything is executed."""
        deletes = [n for n in self._on_time(take) if self.ops[n].deletes is not None and self._on("deletes wait")]
        if deletes and (early := self._early(s, take, deletes)):
            yield self._cut(s, take, early)
        elif deletes:
            yield Move(f"deletes {deletes} have their turn", _put(s, take, step="cleared"))
        else:
            yield from self._runs(s, take)

    def _runs(self, s: State, take: Take) -> Iterator[Move]:
        refused = tuple(self._refused(s, take, self._on_time(take)))
        yield Move(f"{refused or 'none'} of {take.ops} refused", _put(s, take, refused=refused, step="run"))

    def _asks(self, s: State, take: Take) -> Iterator[Move]:
        """Ask what is queued, and let refused ops wait for that."""
        if early := self._early(s, take, take.refused):
            yield self._cut(s, take, early)
        else:
            yield Move(f"none of {take.refused} waits", _put(s, take, step="asked"))

    def _early(self, s: State, take: Take, ops: Iterable[int]) -> set[int]:
        """Return which of some ops wait for what is queued, or for one of them."""
        queued, early = self._queued(s, take), set[int]()
        for n in ops:
            if self._waits(s, take.shard, n, queued, refused=n in take.refused):
                early.add(n)
                queued.add(n)
        return early

    def _commits(self, s: State, take: Take) -> Iterator[Move]:
        shard, ops = take.shard, self._on_time(take)
        if taken := self._put_off(s, take, ops):
            yield self._cut(s, take, taken, put_off=True)
            return
        rows = list(s.rows[shard])
        for n in ops:
            rows[n] = "rejected" if n in take.refused else "applied"
        after = s._replace(
            rows=(*s.rows[:shard], tuple(rows), *s.rows[shard + 1 :]),
            takes=_without(s.takes, take),
            early=s.early - {(shard, n) for n in ops},
            chances=s.chances | {(shard, n) for n in take.put_off},
        )
        clean = {(shard, self.ops[n].bucket) for n in take.ops if not self._open(after, shard, self.ops[n].bucket)}
        after = after._replace(dirty=s.dirty - clean)
        yield Move(f"{ops} committed on shard {shard}, of which {take.refused} rejected", after)

    def _put_off(self, s: State, take: Take, ops: Iterable[int]) -> set[int]:
        """Return which of the refused ops the rest of the batch helps."""
        shard, used = take.shard, s.chances if self._on("one chance") else frozenset()
        applied = {n for n, row in enumerate(s.rows[shard]) if row == "applied"}
        there = applied | (set(ops) - set(take.refused))
        again = take.refused if self._on("tried again") else ()
        return {n for n in again if self._takes(n, applied) or ((shard, n) not in used and self._takes(n, there))}

    def _cut(self, s: State, take: Take, early: set[int], *, put_off: bool = False) -> Move:
        """Run the transaction again without early ops, and what follows them."""
        put = take.put_off | early if put_off else take.put_off
        after = _put(s, take, early=take.early | early, refused=(), step="taken", put_off=put)
        noted = s.early | {(take.shard, n) for n in early}
        if put_off and not self._on("committed"):
            after = after._replace(chances=s.chances | {(take.shard, n) for n in early})
        return Move(
            f"{sorted(early)} of {take.ops} {'are put off' if put_off else 'may be early'}", after._replace(early=noted)
        )

    def _on_time(self, take: Take) -> tuple[int, ...]:
        ends = {self.ops[n].bucket: n for n in sorted(take.early, reverse=True)}
        if not self._on("bucket ends"):
            return tuple(n for n in take.ops if n not in take.early)
        return tuple(n for n in take.ops if n < ends.get(self.ops[n].bucket, n + 1))

    def _refused(self, s: State, take: Take, ops: Iterable[int]) -> Iterator[int]:
        """Return what the database refuses of ops that run after what is committed by now."""
        there = {n for n, row in enumerate(s.rows[take.shard]) if row == "applied"}
        for n in sorted(ops, key=lambda n: self.ops[n].at) if self._on("by time") else ops:
            if self._takes(n, there):
                there.add(n)
            else:
                yield n

    def _queued(self, s: State, take: Take) -> set[int]:
        """Return what is queued on the shard beside what a transaction executes."""
        shard, mine = take.shard, self._on_time(take)
        decided = s.rows if not self._on("own watermark") else s.rows[shard : shard + 1]
        queued = {
            n
            for n in range(s.enqueued)
            if self.ops[n].bucket in self.bounds.shards[shard] and all(rows[n] == "queued" for rows in decided)
        }
        if not self._on("the log"):
            queued = {n for n in queued if (shard, self.ops[n].bucket) in s.dirty}
        if not self._on("every bucket"):
            queued &= set(take.ops)
        return queued - set(mine)

    def _waits(self, s: State, shard: int, n: int, queued: Iterable[int], *, refused: bool) -> bool:
        """Return whether an op that is refused, or deletes, waits for others that are queued."""
        if not self._on("waits") or (shard, n) in s.overdue:
            return False
        at = self.ops[n].at
        others = [self.ops[one].at for one in queued if self.ops[one].bucket != self.ops[n].bucket]
        younger = refused and self._on("clocks") and (shard, n) not in s.seconds
        return any(one < at or (younger and one <= at + CLOCKS) for one in others)

    # what passes --------------------------------------------------------------------------------------------

    def _time(self, s: State) -> Iterator[Move]:
        """Let time pass where workers have nothing else to do: a second is long for what is ready."""
        for shard, n in sorted(s.early):
            if not self._on("moves") and (shard, n) not in s.overdue:
                yield Move(f"op {n} has waited for as long as it may", s._replace(overdue=s.overdue | {(shard, n)}))
            if not self._quiet(s, shard):
                continue
            if (shard, n) not in s.seconds:
                if self._on("a second"):
                    yield Move(f"op {n} waits for a second", s._replace(seconds=s.seconds | {(shard, n)}))
            elif (shard, n) not in s.overdue and self._on("at most") and self._is_over(s, n):
                yield Move(f"op {n} waits for as long as it may", s._replace(overdue=s.overdue | {(shard, n)}))

    def _is_over(self, s: State, n: int) -> bool:
        """Whether no early op waits for a shorter time than this one."""
        deletes = [one for one in s.early - s.overdue if self.ops[one[1]].deletes is not None]
        shorter = deletes if self._on("deletes first") and self.ops[n].deletes is None else []
        return s.early <= s.seconds and not shorter

    def _quiet(self, s: State, shard: int) -> bool:
        """Whether each bucket of a shard begins with an op that was refused, would be again, and waits."""
        if any(take.shard == shard for take in s.takes):
            return False
        heads = [found[0] for bucket in self.bounds.shards[shard] if (found := self._open(s, shard, bucket))]
        queued = {n for n in range(s.enqueued) if s.rows[shard][n] == "queued"}
        applied = {n for n, row in enumerate(s.rows[shard]) if row == "applied"}
        return all(
            (shard, n) in s.early
            and (
                self._waits(s, shard, n, queued, refused=False)
                if self.ops[n].deletes is not None and self._takes(n, applied)
                else not self._takes(n, applied) and self._waits(s, shard, n, queued, refused=True)
            )
            for n in heads
        )

    def _database(self, s: State) -> Iterator[Move]:
        if not self.bounds.failovers:
            return
        if s.replicas != s.rows:
            yield Move("the replica follows", s._replace(replicas=s.rows))
        if s.failovers:
            promoted = s._replace(rows=s.replicas, takes=(), chances=frozenset(), failovers=s.failovers - 1)
            yield Move("the replica is promoted", promoted, work=False)
        behind = {(n, b) for n, own in enumerate(self.bounds.shards) for b in own if self._open(s, n, b)}
        if not behind <= s.dirty:
            yield Move("what is queued is marked dirty", s._replace(dirty=s.dirty | behind))

    def _open(self, s: State, shard: int, bucket: int) -> list[int]:
        """Return what is queued in a bucket on a shard, up to what stops the bucket."""
        found = []
        for n in range(s.enqueued):
            if self.ops[n].bucket == bucket and s.rows[shard][n] == "queued":
                if self.ops[n].needs == STOPPED:
                    break
                found.append(n)
        return found

    @property
    def _together(self) -> bool:
        return self.bounds.together or self.bounds.whole

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
