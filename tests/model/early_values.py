"""What the model of early ops is about: ops, how they come into the logs, the rules, and the states of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import permutations, product
from typing import NamedTuple

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
    "deep": "what is queued is more than the first op of each bucket",
    "seen": "what the shard has seen is not older",
    "own watermark": "what is applied is what this shard has applied",
    "tried again": "an op is rejected once it was refused after all else: the question what is queued, and its batch",
    "spent": "the youngest of what is put off is so no more, where nothing older of other buckets moves or waits",
    "settled": "what nothing in the transaction has helped is refused for good, and waits for nothing that is put off",
    "behind too": "what may help a refused op is behind an early one also where it stands behind that in its bucket",
    "clocks": "what is younger by no more than clocks differ counts as enqueued before",
    "a second": "what is younger counts for a second, so that two that are both bad do not wait for each other",
    "at most": "an op waits for so long at most",
    "bucket ends": "what follows an early op in its bucket waits with it",
    "filled up": "a transaction takes the oldest of other buckets instead of what follows its early ops",
    "deletes wait": "an op that deletes a row to which others may refer is early like one that is refused",
    "deletes first": "a delete waits for a shorter time than an op that is refused",
    "deletes last": "in a transaction a delete comes after all that was enqueued before it and may refer to its row",
    "parents first": "in a transaction with deletes an op comes after the one that makes the row that it names",
    "names": "a delete waits only for older ops that name its row's id",
    "helpers": "what a foreign key or a unique value refuses waits only for what may make the row, or free the value",
    "moves": "how long an op waits at most is counted while nothing moves that was enqueued before it",
    "marked": "what an op waits for is marked dirty",
    "rests end": "what a delete waits for is due before it waits no longer, though it rests",
    "gone back": "where a watermark has gone back, all that was noted of waiting ops is forgotten",
    "held whole": "of a call that has a hole in one log no log takes anything",
}


class Op(NamedTuple):
    """An op: its bucket, the time by its host's clock, which op it needs, and which op's row it deletes.

    Ops are in the order of their enqueue.
    """

    bucket: int
    at: float
    needs: int | None = None
    deletes: int | None = None


class Call(NamedTuple):
    """Ops that come into the logs at once, and the bucket whose log lacks what was sent to it before."""

    ops: tuple[int, ...]
    hole: int | None = None


@dataclass(frozen=True)
class Bounds:
    """What is enqueued, and how much may happen in one run."""

    ops: tuple[Op, ...]
    calls: tuple[Call, ...] = ()  # in the order of the logs; else each op by itself. What comes twice was sent again
    shards: tuple[frozenset[int], ...] = (frozenset(range(9)),)
    workers: int = 2
    buckets: int = 9  # of one transaction at most
    together: bool = False  # each transaction takes all that is due, or the oldest of it
    room: int = 99  # of one transaction, and of each bucket's entries in it
    whole: bool = False  # all that is due, and nothing may be tried for nothing
    related: bool = False  # what an op needs is a row to which it refers, by its id, or a value that is freed
    prompt: bool = False  # no op may wait for as long as it may
    queued: bool = False  # workers begin once all is enqueued
    deaths: int = 0  # of workers
    failovers: int = 0  # of the database, to a replica that lags
    steps: int = 0  # of the log's clock, while a bucket rests
    cascade: bool = True  # a row that is deleted takes with it the rows that need it; else it is refused


class Take(NamedTuple):
    """A transaction, and how far it is: taken, cleared, run, asked."""

    shard: int
    entries: tuple[int, ...]
    early: frozenset[int] = frozenset()  # their buckets end before them
    refused: tuple[int, ...] = ()
    step: str = "taken"
    put_off: frozenset[int] = frozenset()  # of these, what waits for the rest of the batch
    settled: frozenset[int] = frozenset()  # refused for good
    let_go: int = -1  # what waits no longer
    waiting: frozenset[int] = frozenset()  # the buckets of what waits


Rows = tuple[str, ...]  # of each entry: queued, applied, rejected, seen
Noted = frozenset[tuple[int, int]]  # (shard, entry)


class State(NamedTuple):
    """How far a run is."""

    arrived: int
    rows: tuple[Rows, ...]
    replicas: tuple[Rows, ...]
    dirty: frozenset[tuple[int, int]] = frozenset()
    early: Noted = frozenset()  # what waits, or was put off
    awaited: Noted = frozenset()  # of these, what waits for what is queued: its time runs
    seconds: Noted = frozenset()  # early for a second
    overdue: Noted = frozenset()  # early for as long as an op waits at most
    spent: Noted = frozenset()  # what was put off, and is not again
    takes: tuple[Take, ...] = ()
    rests: frozenset[tuple[int, int]] = frozenset()  # of what is dirty: it is not due
    deaths: int = 0
    failovers: int = 0
    steps: int = 0


def arrivals(bounds: Bounds, *, whole: bool) -> tuple[tuple[int, ...], ...]:
    """Return the ops in the order of the logs, those together that come at once; a call with a hole *whole*, or not."""
    calls = bounds.calls or tuple(Call((n,)) for n in range(len(bounds.ops)))
    if whole:
        return tuple(call.ops for call in calls)
    parts = [
        [tuple(n for n in call.ops if (bounds.ops[n].bucket == call.hole) is late) for call in calls]
        for late in (False, True)
    ]
    return tuple(part for some in parts for part in some if part)


class Database:
    """What a database takes, if ops need rows of each other."""

    def __init__(self, ops: Sequence[Op], *, cascade: bool):
        self._ops, self._cascade = ops, cascade

    def takes(self, n: int, applied: Set[int]) -> bool:
        """Return whether it takes an op once others are applied."""
        _, _, needs, deletes = self._ops[n]
        if deletes is not None and not self._cascade:
            return not any(self._ops[one].needs == deletes and self.has_row(one, applied) for one in applied)
        return needs is None or self.has_row(needs, applied)

    def has_row(self, n: int, applied: Set[int]) -> bool:
        """Return whether the row of an op is there: not deleted, nor that of an op that it needs."""
        if n not in applied or any(self._ops[one].deletes == n for one in applied):
            return False
        needs = self._ops[n].needs
        return needs is None or self.has_row(needs, applied)

    def kept_of(self, order: Sequence[int]) -> set[int]:
        """Return which ops it takes if it gets them one by one."""
        kept, ended = set[int](), set[int]()  # what is sent again is dropped
        for n in dict.fromkeys(order):
            if self._ops[n].needs == STOPPED:
                ended.add(self._ops[n].bucket)
            if self._ops[n].bucket not in ended and self.takes(n, kept):
                kept.add(n)
        return kept

    def named(self, n: int) -> bool:
        """Return whether what the delete of a row may reach refers to the row by its id: its children have none."""
        depth = self._depth(n)
        return all(self._depth(one) < depth + 2 for one in range(len(self._ops)))

    def _depth(self, n: int) -> int:
        depth = 0
        while depth < len(self._ops) and (needs := self._ops[n].needs) is not None and needs >= 0:
            n, depth = needs, depth + 1
        return depth


def must_be_kept(bounds: Bounds) -> set[int]:
    """Return the ops that may not be rejected: a database takes them in the order of their enqueue, and of the logs.

    Where these differ, an op came late from a spool.
    """
    database, ops = Database(bounds.ops, cascade=bounds.cascade), bounds.ops
    enqueued, sent = [*range(len(ops))], [*dict.fromkeys(n for call in arrivals(bounds, whole=True) for n in call)]
    kept = database.kept_of(enqueued)
    if not bounds.cascade:  # what comes too early, or too late, may be taken, and keep its parent from being deleted
        strays = {op.needs for n, op in enumerate(ops) if (op.needs or 0) > n or not (sent == enqueued or n in kept)}
        enqueued = [n for n in enqueued if ops[n].deletes is None or ops[n].deletes not in strays]
        kept &= database.kept_of(enqueued) & Database(ops, cascade=True).kept_of(enqueued)
    return kept & database.kept_of(sent)


def programs(count: int) -> Iterator[tuple[Op, ...]]:
    """Yield what some ops in up to three buckets may be: plain, in need of another, or the delete of an earlier row."""
    for buckets in product(range(3), repeat=count):
        if any(bucket > max(buckets[:n], default=-1) + 1 for n, bucket in enumerate(buckets)):
            continue  # the same but for the buckets' numbers
        for kinds in product(range(-count, count + 1), repeat=count):  # a need of k - 1, or a delete of -k - 1
            deleted = {n: -kind - 1 for n, kind in enumerate(kinds) if kind < 0}
            if all(kind != n + 1 for n, kind in enumerate(kinds)) and all(
                row < n and row not in deleted and buckets[row] == buckets[n] for n, row in deleted.items()
            ):
                yield tuple(
                    Op(bucket, 2 * n + 1, kind - 1 if kind > 0 else None, deleted.get(n))
                    for n, (bucket, kind) in enumerate(zip(buckets, kinds, strict=True))
                )


def of_two_hosts(count: int) -> Iterator[tuple[int, ...]]:
    """Yield the orders in which ops of two hosts may come into the logs: each host's in the order of its calls."""
    for order in permutations(range(count)):
        waiting, low = -1, -1  # the last of either host
        for n in order:
            if n > waiting:
                waiting = n
            elif n > low:
                low = n
            else:
                break
        else:
            yield order


def sent_again(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the order with one op once more: after what came behind it."""
    for n, op in enumerate(order):
        for later in range(n + 1, len(order) + 1):
            yield (*order[:later], op, *order[later:])
