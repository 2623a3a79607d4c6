"""Query the nodes of both shards of a move: what they say of the move, and whether they have time for more."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple

from pipeline import clock
from pipeline.admin.migration.statement import Behind, ReplicaLag, lag_of
from pipeline.client import Client
from pipeline.errors import Unavailable
from pipeline.model import START, Position
from pipeline.shard import NodeSession, brief, records
from pipeline.shard.records import ledger_queries, moves
from pipeline.shard.records.moves import Fence, Leg

#: The time between two looks at lag and load, s: as pt-online-schema-change's `--check-interval`.
CHECK_S = 1.0
#: How long a replica that does not answer is waited for, s: a restart takes less. Readers use it no more by then.
AWAY_S = 30.0


class Sides:
    """The two shards of a move.

    Args:
        client: the deployment, of this thread.
        leg: the row of the move of one of its buckets.
        buckets: all that move together.
    """

    def __init__(self, client: Client, leg: Leg, buckets: tuple[int, ...]):
        self._client, self._leg, self._buckets = client, leg, buckets
        self._leaves: bool | None = None

    @property
    def leaves(self) -> bool:
        """Whether the move is of a key that leaves its bucket; else it comes back, or whole buckets move.

        A bucket whose key is away, or on the way, stays where it is.
        """
        if self._leg.of is None:
            return False
        if self._leaves is None:
            found = ledger_queries.marks_of(self.source, [self._leg.of.bucket]).get(self._leg.of.bucket)
            self._leaves = found is not None and found.owned
        return self._leaves

    @property
    def source(self) -> NodeSession:
        """The session of the source's primary."""
        return self._client.nodes.primary(self._leg.source)

    @property
    def target(self) -> NodeSession:
        """The session of the target's primary."""
        return self._client.nodes.primary(self._leg.target)

    @property
    def note(self) -> moves.MoveNote:
        """How far the move is, as the target says it."""
        return self.note_of(self.target)

    def note_of(self, session: NodeSession) -> moves.MoveNote:
        """Return what a node notes of the move; nothing where it has failed over, or has given the move up.

        Args:
            session: of the node.
        """
        return next((leg.note for leg in self.legs(session).values()), moves.DEFAULTS)

    def fence(self, states: Collection[str], attempt: int | None = None) -> Fence:
        """Return what must hold in a transaction that goes on with the move.

        Args:
            states: of which each bucket has one.
            attempt: the number of the attempt to copy; None: any.
        """
        return Fence(self._buckets, self._leg.move, states, attempt)

    def step(self, session: NodeSession, before: Collection[str], after: str) -> bool:
        """Change the state of all buckets; return whether it was done.

        Args:
            session: of a primary, outside a transaction.
            before: the states of which each bucket has to have one.
            after: the new state.
        """
        with session.translated(), session.transaction():
            return moves.change_state(session, self.fence(before), after)

    def legs(self, session: NodeSession) -> dict[int, Leg]:
        """Return the rows that a node has of this move, by bucket.

        Args:
            session: of the node.
        """
        return {b: leg for b, leg in moves.legs(session, self._buckets).items() if leg.move == self._leg.move}

    def positions(self, session: NodeSession) -> dict[int, Position]:
        """Return a node's watermark of each bucket; the first position where it has none.

        Args:
            session: of the node.
        """
        if self._leg.of is not None:
            legs = self.legs(session)
            return {piece: (legs[piece].position if piece in legs else None) or START for piece in self._buckets}
        found = ledger_queries.marks_of(session, self._buckets)
        return {bucket: found[bucket].position if bucket in found else START for bucket in self._buckets}

    def positions_in(self, session: NodeSession) -> dict[int, Position]:
        """Return the watermark of each bucket within a session's open transaction.

        Args:
            session: of the node.
        """
        if self._leg.of is not None:
            legs = moves.legs_within(session, self._buckets)
            return {piece: (legs[piece].position if piece in legs else None) or START for piece in self._buckets}
        found = records.marks(session)
        return {bucket: found[bucket].position for bucket in self._buckets}

    def nodes_of(self, shard: str) -> list[NodeSession]:
        """Return the sessions of a shard's nodes that count: of its primary, and of each replica that is fit.

        Args:
            shard: its name.
        """
        nodes = self._client.nodes
        return [nodes.primary(shard), *(one for one in nodes.replicas(shard) if not nodes.unfit(one.node))]

    def lowest(self) -> dict[int, Position]:
        """Return the watermarks that every node of the source has."""
        every = [self.positions(session) for session in self.nodes_of(self._leg.source)]
        return {bucket: min(one[bucket] for one in every) for bucket in self._buckets}

    def source_has(self, begun: dict[int, Position]) -> bool:
        """Return whether every node of the source knows of the move, and has some watermarks.

        Args:
            begun: the watermarks.
        """
        if any(len(self.legs(session)) != len(self._buckets) for session in self.nodes_of(self._leg.source)):
            return False
        lowest = self.lowest()
        return all(lowest[bucket] >= position for bucket, position in begun.items())

    def source_stands(self, state: str, ends: dict[int, Position]) -> bool:
        """Return whether every node of the source says that each bucket is in a state at exactly a watermark.

        Args:
            state: the state.
            ends: the watermarks.
        """
        wanted = {bucket: (state, position) for bucket, position in ends.items()}
        every = (self.legs(session) for session in self.nodes_of(self._leg.source))
        return all({bucket: (leg.state, leg.position) for bucket, leg in one.items()} == wanted for one in every)

    def target_says(self, states: Collection[str]) -> bool:
        """Return whether every node of the target says that each bucket is in one of some states.

        Args:
            states: the states.
        """
        every = (self.legs(session) for session in self.nodes_of(self._leg.target))
        return all(len(one) == len(self._buckets) and all(leg.state in states for leg in one.values()) for one in every)

    def homes(self, shard: str) -> list[Position | None]:
        """Return of each node of a shard where the bucket stands that has stopped for a key; None: it has not.

        Args:
            shard: its name.
        """
        [piece], of, found = self._buckets, self._leg.of, list[Position | None]()
        assert of is not None
        for node in self.nodes_of(shard):
            leg = self.legs(node).get(piece)
            mark = ledger_queries.marks_of(node, [of.bucket]).get(of.bucket)
            stands = leg is not None and leg.state == records.CATCHING and mark is not None
            found.append(mark.position if stands and mark is not None and mark.state == records.STOPPED else None)
        return found

    def emptied(self, shard: str) -> bool:
        """Return whether no node of a shard has rows of the buckets any more.

        Args:
            shard: its name.
        """
        return all(leg.note.emptied for node in self.nodes_of(shard) for leg in self.legs(node).values())


class OnNode(NamedTuple):
    """What a node says of a bucket that has moved, or moves."""

    bucket: int
    node: str
    state: str
    watermark: str


def on_nodes(client: Client, shards: Iterable[str], buckets: Collection[int]) -> list[OnNode]:
    """Return what each node of some shards says of buckets; a silent one says `does not answer`.

    Args:
        client: the deployment.
        shards: both of a move.
        buckets: which.
    """
    found = []
    for node in (node for shard in shards for node in client.nodes.names(shard)):
        with brief(node, client.nodes.uri(node)) as session:
            try:
                marks = ledger_queries.marks_of(session, buckets)
            except Unavailable:
                found += [OnNode(bucket, node, "does not answer", "") for bucket in buckets]
                continue
        found += [OnNode(bucket, node, marks[bucket].state, str(marks[bucket].position)) for bucket in marks]
    return sorted(found, key=lambda told: told.bucket)


class Throttle:
    """Holds a mover back while replicas are behind, or a primary is busy; a context manager.

    Args:
        client: the deployment, of this thread.
        shards: of which the nodes count.
        note: has the limits.
        reads_only: whether the mover writes nothing, so that replicas have nothing to follow.
    """

    def __init__(self, client: Client, shards: Collection[str], note: moves.MoveNote, *, reads_only: bool = False):
        self._client, self._shards, self._note, self._reads_only = client, shards, note, reads_only
        self._stack, self._lags = ExitStack(), dict[str, ReplicaLag]()
        self._due_s = -math.inf
        #: Since when each replica has not answered, s.
        self._away: dict[str, float] = {}

    def __enter__(self) -> Throttle:
        """Let each replica be asked over a connection of its own."""
        for shard in () if self._reads_only else self._shards:
            lag = lag_of(self._client, shard, self._client.nodes.primary(shard))
            self._lags[shard] = self._stack.enter_context(lag)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._stack.close()

    def waits(self) -> Iterator[str]:
        """Wait while a limit is passed, and yield which one with each look; looks once a second at most."""
        if clock.mono_s() < self._due_s:
            return
        for _ in clock.polls(math.inf, first_s=CHECK_S / 20, most_s=CHECK_S):
            if not (why := self.why()):
                break
            yield why
        self._due_s = clock.mono_s() + CHECK_S

    def why(self) -> str:
        """Return why to wait; the empty text: go on."""
        behind = (one for lag in self._lags.values() for one in lag.lags() if not self._client.nodes.unfit(one.node))
        reasons = [why for one in behind if (why := self._too_far(one))]
        reasons += [why for shard in self._shards if (why := self._too_busy(shard))]
        return "; ".join(reasons)

    def _too_far(self, one: Behind) -> str:
        """Return why a replica is to be waited for. A lag that is not known counts as one that is too large."""
        if one.lag_s is None:
            since_s = self._away.setdefault(one.node, clock.mono_s())
            waited_s = clock.mono_s() - since_s
            left_s = AWAY_S - waited_s
            return f"{one.node} does not answer: the mover goes on without it in {left_s:.0f} s" if left_s > 0 else ""
        self._away.pop(one.node, None)
        if one.lag_s <= self._note.max_lag_s:
            return ""
        far = "is not known to have caught up" if math.isinf(one.lag_s) else f"is {one.lag_s:.1f} s behind"
        return f"{one.node} {far}, --max-lag is {self._note.max_lag_s:g}"

    def _too_busy(self, shard: str) -> str:
        running = running_threads(self._client.nodes.primary(shard))
        if running <= self._note.max_load:
            return ""
        return f"{shard} runs {running} threads, --max-load is {self._note.max_load}"


def running_threads(session: NodeSession) -> int:
    """Return how many threads of a server are at work; 0 where the engine does not count them.

    Args:
        session: of the node, outside a transaction.
    """
    if session.dialect.name != "mysql":
        return 0
    return int(session.query("SHOW GLOBAL STATUS LIKE 'Threads_running'")[0][1])
