"""Values of the model of moves: what stands in a database, what a mover keeps in mind, and which rules there are."""

from __future__ import annotations

from typing import NamedTuple

#: States of a bucket on a shard. Whoever is active applies; a shard that is gone holds nothing that counts.
ACTIVE, MOVED, GONE, COPYING, CATCHING = "active", "moved", "gone", "copying", "catching"
NAMES = "AB"

#: What can be switched off, and what each rule says. The source is the shard that a bucket leaves.
RULES = {
    "watermark replicated": "a chunk is written once every node of the source has the watermark of the snapshot",
    "source stays": "a failover of the source before that voids the copy",
    "target stays": "a failover of the target voids what a mover knows of the copy",
    "copying first": "the target says copying before the source is read, and the log is kept for it from then on",
    "touched anew": "a copy that goes on under another mover copies rows again that ops have touched since",
    "log whole": "it begins anew where the log has lost some of these ops, or has begun another epoch",
    "chunks fenced": "a chunk is written while the target's row names its copy, looked at under the lock",
    "producers along": "the producers' sequences come with the copy",
    "held along": "ops that are set aside come with the rows that they hold",
    "follow replicated": "the target follows the watermark that every node of the source has",
    "follow outcomes": "the target sets aside what the source has set aside, and applies the rest",
    "one epoch": "the target copies anew where the log goes on in another epoch, or ends before the source's watermark",
    "parents first": "the target takes a row once it has applied the parents that the source had",
    "early waits": "an op whose parent is queued waits, whoever owns the bucket",
    "target replicated": "the source stops once every node of the target holds the copy of this move",
    "moved replicated": "the target starts once every node of the source says moved",
    "exactly level": "the target starts at exactly the watermark at which the source stopped",
    "state locked": "a worker looks at a bucket's state under the lock of its watermark",
    "trim both": "while a move is on, the log is trimmed behind every node of both shards",
    "actions refused": "replay and drop are refused while the row of a move is there",
    "same move": "the source stops for the move that the target was copied for",
    "source gives up": "a move is given up by the source, in a transaction that finds it active",
    "given up everywhere": "the target of a move that was given up lets go once no node of the source has the move",
    "clean replicated": "the source's rows are deleted once every node of the target is active",
    "clean fenced": "a chunk of rows is deleted while the bucket is gone, looked at under the lock",
    "back replicated": "a move goes back once every node of the target is active",
    "back unbroken": "a move goes back without a copy while both shards have the row of the one move",
}


class Op(NamedTuple):
    """An op: its row, whether the database may refuse it, and whether it needs the row of the reference bucket."""

    row: int = 0
    refusable: bool = False
    needs: bool = False


class Bounds(NamedTuple):
    """What is enqueued, and how much may happen in one run."""

    ops: tuple[Op, ...] = (Op(), Op(refusable=True))
    open: bool = False  # a worker's transaction takes time
    again: int = 0  # how often an op is sent a second time, as its reply was lost
    failovers: int = 0  # of databases
    movers: int = 0  # who take over from one that is late, or dead
    given_up: int = 0  # how often an operator gives the move up
    actions: int = 0  # replays and drops
    forgets: int = 0  # how often Redis loses the end of the log
    backs: int = 0  # how often an operator moves the bucket back


class Left(NamedTuple):
    """How much may still happen."""

    again: int
    failovers: int
    movers: int
    given_up: int
    actions: int
    forgets: int
    backs: int


class Node(NamedTuple):
    """One bucket as one database has it."""

    state: str
    mark: int = 0  # entries of the log up to here are decided
    seen: int = 0  # the producer's last sequence
    rows: tuple[tuple[int, ...], ...] = ()  # of each row the ops that made it
    aside: tuple[int, ...] = ()  # negative: the row that it should hold is not held
    dropped: tuple[int, ...] = ()
    move: int = 0  # twice the number of the move, and which shard is its source; 0: there is no row of a move
    copy: int = 0  # which copy writes its chunks here
    chunks: int = 0  # how many are kept
    base: int = 0  # the watermark that they are of: later ops may have changed them
    parent: bool = True  # the reference bucket's row is here

    @property
    def content(self) -> tuple[object, ...]:
        """What a bucket is made of."""
        return self.seen, self.rows, tuple(map(abs, self.aside)), self.dropped


class Shard(NamedTuple):
    """A primary, and a replica that lags as it likes."""

    primary: Node
    replica: Node
    work: int = 0  # the entry that a worker's open transaction is about to apply

    def low(self) -> int:
        """Return the watermark that every node has."""
        return min(self.primary.mark, self.replica.mark)

    def all_say(self, state: str) -> bool:
        """Whether every node has a state under one move."""
        return self.primary.state == self.replica.state == state and self.primary.move == self.replica.move


class Copy(NamedTuple):
    """What a mover reads from: a snapshot of the source."""

    number: int
    node: Node
    source: int
    cut: bool = False  # the source has failed over since
    torn: bool = False  # the target has failed over since
    counts: bool = False  # every node of the source had its watermark, and the source had not failed over
    renewed: int = 0  # how many of the kept chunks are as the snapshot has them


class State(NamedTuple):
    shards: tuple[Shard, Shard]
    left: Left
    log: tuple[int, ...] = ()  # sequences
    lost: tuple[int, ...] = ()  # positions that Redis has forgotten
    epochs: tuple[int, ...] = ()  # positions at which an epoch begins
    first: int = 1  # the first position that is not trimmed
    sent: int = 0
    want: int = 1
    map: int = 0
    begun: int = 0
    copied: int = 0
    copies: tuple[Copy, ...] = ()
    ready: int = 0  # the move of which a mover has seen that the source may stop
    giver: bool = False  # an operator has seen that the source is active
    cleaner: int = -1  # the shard whose rows a mover is about to delete
    fault: str = ""


def with_ops(rows: tuple[tuple[int, ...], ...], row: int, ops: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return (*rows[:row], rows[row] + ops, *rows[row + 1 :])


def put_shard(s: State, n: int, shard: Shard) -> State:
    shards = (shard, s.shards[1]) if n == 0 else (s.shards[0], shard)
    return State._make((shards, *s[1:]))  # as `_replace`, in a third of the time


def put_node(s: State, n: int, node: Node) -> State:
    return put_shard(s, n, Shard(node, *s.shards[n][1:]))


def less(s: State, which: str) -> Left:
    return s.left._replace(**{which: getattr(s.left, which) - 1})
