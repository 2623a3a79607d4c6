"""Values of the model of a key that has a shard of its own: ops, what stands in a database, and the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

NAMES = "AB"
#: What an op is about, and how it says so: the key's row by key or by its id alone, another key's row, a group of both.
KEY, KEY_ID, OTHER, OTHER_ID, BOTH = "key", "key by id", "other", "other by id", "both"
KEY_KINDS, OTHER_KINDS = frozenset({KEY, KEY_ID, BOTH}), frozenset({OTHER, OTHER_ID, BOTH})
ID_KINDS = frozenset({KEY_ID, OTHER_ID})
#: States of the key on a shard: the shard has it, has it not, gets its rows, or follows the log for it.
OWNED, AWAY, COPYING, CATCHING = "owned", "away", "copying", "catching"

#: What can be switched off, and what each rule says. A has the bucket, B gets the key.
RULES = {
    "both read": "both shards read each entry, and an op by id alone is applied by whichever has its row",
    "own rows": "an op of the bucket touches no row of a key that is away, though the rows are still there, or again",
    "state locked": "a worker looks whether the key is away under the lock of the bucket's watermark",
    "all count": "each shard notes the sequence of each entry that it passes, whoever's op it is",
    "producers along": "the producers' sequences come with the copy",
    "bucket waits": "the bucket applies nothing between its stop and the beginning of the key's shard",
    "stopped replicated": "the key's shard begins once every node of the bucket's shard says stopped",
    "begun replicated": "the bucket goes on without the key once every node of the key's shard has begun",
    "exactly level": "whoever takes the key begins at exactly the position at which the other has stopped",
    "both stop": "on the way back both stop, and whoever is behind goes on to where the other stands",
    "level replicated": "that is done once every node of both says stopped, up to where every node of the other stands",
    "sequences level": "the bucket's shard takes the key back where both have seen the same of each producer, too",
    "merged replicated": "the key's shard lets go once every node of the bucket's shard has taken the key",
    "parted replicated": "a key is ordered back once every node of the shard that it came from has let go",
    "aside parts": "what is set aside of the key's ops leaves the bucket with the key, and comes back with it",
    "receipt both": "an op that names no key counts as applied once both watermarks have passed it",
    "trim both": "the log is trimmed behind every node of both shards",
    "piece counts": "a new epoch of the bucket's scope is above the key's watermark, too",
    "resend both": "a producer sends again what not every node of both shards has passed",
    "groups refused": "the bucket's shard refuses a group of the key and another one for good once they are apart",
    "groups held": "the bucket does not stop while a group of the key and another one is set aside",
    "same move": "each step is done for the move that it was seen for",
    "given up everywhere": "a bucket that has stopped goes on with the key once no node of the key's shard can begin",
    "read both": "a read by an id alone asks both shards",
    "rows of owner": "it takes the key's rows of the shard that has the key; of two, of the one that has not stopped",
    "states behind": "it asks both shards' states before and behind the rows, and begins anew where they have changed",
    "moves behind": "a state counts as changed where it is of another move",
    "token of both": "its token of the bucket counts on both shards",
    "given up for good": "a move that its target has let go is not gone on with",
    "one row": "a move is ordered once no node of the source has the row of one that was given up",
    "clean fenced": "rows of the key are deleted while the key is away, looked at under the lock",
}
Place = tuple[int, int]
Log = tuple[tuple[int, tuple[int, ...]], ...]


class Op(NamedTuple):
    """An op, and whether the database may refuse it."""

    kind: str = KEY
    refusable: bool = False


class Bounds(NamedTuple):
    """What is enqueued, and how much may happen in one run."""

    ops: tuple[Op, ...] = (Op(), Op(OTHER))
    again: int = 0  # how often an op is appended a second time, as its reply was lost
    failovers: int = 0
    late: int = 0  # movers that act on what they saw some time ago
    given_up: int = 0
    backs: int = 0  # how often an operator wants the key back in its bucket, or away again
    forgets: int = 0  # how often Redis loses the end of the log, and its epoch
    trims: int = 0
    slow: int = 0  # workers whose transaction takes time
    reads: int = 0


class Left(NamedTuple):
    """How much may still happen."""

    again: int
    failovers: int
    late: int
    given_up: int
    backs: int
    forgets: int
    trims: int
    slow: int
    reads: int


class Part(NamedTuple):
    """What a shard has of the key, or of all other keys of the bucket."""

    mark: Place = (1, 0)  # an epoch, and how many of its entries are passed
    seen: int = 0  # the producer's last sequence
    rows: tuple[int, ...] = ()  # the ops that made the row
    aside: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


class Node(NamedTuple):
    """One database: on A `stopped` is about the whole bucket, on B about the key."""

    piece: str
    others: Part = Part()
    key: Part = Part()
    stopped: bool = False
    move: int = 0  # twice the number of the move, and which shard is its source; 0: there is no row of a move

    @property
    def applies_key(self) -> bool:
        """Whether workers apply the key's ops here."""
        return self.piece == OWNED and not self.stopped

    @property
    def follows(self) -> bool:
        """Whether the key's rows are those of its watermark."""
        return self.piece in (OWNED, CATCHING)


class Shard(NamedTuple):
    """A primary, and a replica that lags as it likes."""

    primary: Node
    replica: Node

    def all_say(self, piece: str, move: int | None = None) -> bool:
        """Whether every node has a state of the key, under a move or under any."""
        return all(node.piece == piece and move in (None, node.move) for node in self)


class Copy(NamedTuple):
    """What a mover reads from: a snapshot of the key's rows that every node of the source has."""

    move: int
    part: Part


class Step(NamedTuple):
    """A step of a mover on one shard, after it has looked at the other one."""

    name: str
    shard: int
    move: int
    place: Place = (0, 0)


class Reader(NamedTuple):
    """Who reads the key's row by its id alone: from which node of each shard, what it must see, and what it found."""

    nodes: tuple[int, int]
    told: tuple[int, ...]
    place: Place
    found: tuple[tuple[int, ...], ...] = ()

    def noted(self, found: tuple[int, ...]) -> Reader:
        """Return the reader with one answer more."""
        return self._replace(found=(*self.found, found))


class State(NamedTuple):
    shards: tuple[Shard, Shard]
    left: Left
    log: Log = ()
    epoch: int = 2
    trimmed: Place = (0, 0)
    sent: int = 0
    want: int = 1
    begun: int = 0
    copy: Copy | None = None
    seen: Step | None = None  # by a mover that is late
    worker: tuple[str, ...] = ()  # what a slow worker of A is about to decide for
    reader: Reader | None = None
    fault: str = ""


def next_entry(log: Log, mark: Place) -> tuple[Place, int] | None:
    """Return the first entry behind a watermark: its place, and its op."""
    for epoch, ops in log:
        at = mark[1] if epoch == mark[0] else 0
        if epoch >= mark[0] and at < len(ops):
            return (epoch, at + 1), ops[at]
    return None


def place_of(log: Log, op: int) -> Place | None:
    """Return the first place of an op in the log."""
    return next(((epoch, ops.index(op) + 1) for epoch, ops in log if op in ops), None)


def appended(log: Log, epoch: int, ops: Sequence[int]) -> Log:
    """Return the log with more ops at its end."""
    if not ops:
        return log
    if log and log[-1][0] == epoch:
        return (*log[:-1], (epoch, (*log[-1][1], *ops)))
    return (*log, (epoch, tuple(ops)))


def put_node(s: State, n: int, node: Node, replica: Node | None = None) -> State:
    shard = Shard(node, s.shards[n].replica if replica is None else replica)
    shards = (shard, s.shards[1]) if n == 0 else (s.shards[0], shard)
    return State._make((shards, *s[1:]))  # as `_replace`, in a third of the time


def less(s: State, which: str) -> Left:
    return s.left._replace(**{which: getattr(s.left, which) - 1})
