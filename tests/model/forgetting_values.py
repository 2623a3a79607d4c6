"""The rules and the values of the model of a log that forgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Position = tuple[int, int]
START: Position = (0, -1)
NOWHERE: Position = (0, 0)

#: What can be switched off, and what each rule says.
RULES = {
    "new epoch": "another server, or one that has forgotten, begins an epoch above every watermark on every node",
    "epoch once": "an epoch never comes twice, whatever was forgotten",
    "mark": "the script ends the epoch where the stream is shorter than the mark beside it",
    "mark has the position": "the mark is the last position given out, not only that there was a stream",
    "watermark ahead": "a stream that ends before its watermark or its mark ends the epoch, also if nobody appends",
    "seen": "the transaction skips a sequence that the shard has seen",
    "row lock": "the watermark is locked while entries are read and applied",
    "sent anew": "what is sent again under a new epoch is appended again, whatever the sender's hash says",
    "resend all": "after a new epoch the spool sends again what is not on every node",
    "keep": "the spool forgets what every node has",
    "trim": "the log is trimmed behind what every node has",
    "reconcile": "a watermark behind its log's tail makes its bucket dirty",
    "memory outlives its sender": "a process remembers what it was told for a sender that failed, too",
    "remember until replicated": "a process forgets an op, or its verdict, once every node has it",
    "look": "a process looks for a new epoch, also if it sends nothing",
    "judge under the lock": "a loss is judged under the watermark's lock",
    "judge after the entries": "a loss is judged after all readable entries are applied",
    "judge by the database": "the shard says what was applied, not the sender's hash",
    "verdict moves the sequence": "a verdict moves the sender's sequence in its transaction",
    "new sender": "a sender whose epoch has ended sends nothing more",
    "hole": "the script refuses a sequence that leaves a hole",
}
#: The script holds it beside the rules on epochs: in this model nothing depends on it alone.
TWICE_HELD = frozenset({"hole"})


@dataclass(frozen=True)
class Bounds:
    """How much may happen in one run."""

    level: str = "redis"
    ops: int = 2
    workers: int = 1
    failovers: int = 0  # of Redis, to a replica that may be behind
    deleted: int = 0  # the stream
    cut: int = 0  # the stream's tail
    hashes: int = 0  # the senders' sequences
    databases: int = 0  # failovers of the database, to a replica that may be behind
    crashes: int = 0  # of workers
    doubts: int = 0  # requests whose answer is lost, or which come late

    @property
    def faults(self) -> Faults:
        """What may yet happen at the start."""
        return Faults(
            self.failovers, self.deleted, self.cut, self.hashes, self.databases, self.crashes, self.doubts
        )  # fmt: skip


class Faults(NamedTuple):
    """What may yet happen."""

    failovers: int
    deleted: int
    cut: int
    hashes: int
    databases: int
    crashes: int
    doubts: int

    def less(self, which: str) -> Faults:
        """Return what is left after one of a kind."""
        return self._replace(**{which: getattr(self, which) - 1})


class Seen(NamedTuple):
    """The last sequence of a sender, and where its entry was put."""

    seq: int = 0
    at: Position = NOWHERE


class Redis(NamedTuple):
    epoch: int = 1
    ended: bool = False  # it must be raised before anything is taken
    log: tuple[tuple[Position, int], ...] = ()  # where, which op
    tail: Position | None = None  # None: there is no stream
    mark: Position | None = None  # beside the stream: the last position given out in this epoch
    seen: tuple[Seen, ...] = ()
    dirty: bool = False


class Shard(NamedTuple):
    mark: Position = START
    seqs: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    lost: frozenset[int] = frozenset()


class Worker(NamedTuple):
    doing: str = ""  # "", batch, finish
    generation: int = 0
    entries: tuple[tuple[Position, int], ...] = ()
    seqs: tuple[int, ...] = ()
    mark: Position = START


class Remembered(NamedTuple):
    """An op that was acknowledged, and whether its epoch has ended since."""

    op: int
    suspect: bool = False


class Process(NamedTuple):
    epoch: int = 1
    sender: int = 0
    next: int = 1
    numbers: tuple[tuple[int, int], ...] = ()  # of each op that was called: sender and sequence
    places: tuple[Position, ...] = ()
    memory: tuple[Remembered, ...] = ()
    doubtful: frozenset[int] = frozenset()
    spool: tuple[tuple[int, int], ...] = ()  # op, and the epoch under which it was sent; 0: it waits
    late: tuple[int, int] | None = None  # a request that is still under way: epoch, op


class State(NamedTuple):
    master: Redis
    follower: Redis
    primary: Shard
    replica: Shard
    process: Process
    workers: tuple[Worker, ...]
    faults: Faults
    generation: int = 0
    lock: int = -1
    issued: int = 1
    forgot: bool = False  # whether Redis has ever forgotten anything
    told: frozenset[int] = frozenset()  # every op that anybody was ever told is lost
