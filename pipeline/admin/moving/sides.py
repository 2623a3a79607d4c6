"""Ask the nodes of both shards of a move what they say of it."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.client import Client
from pipeline.model.op import Position
from pipeline.shard.records import ledger_queries, moves
from pipeline.shard.records.moves import Leg
from pipeline.shard.session import NodeSession


class Sides:
    """The two shards of a move.

    Args:
        client: the deployment, of this thread.
        leg: the row of the move of one of its buckets.
        buckets: all that move together.
    """

    def __init__(self, client: Client, leg: Leg, buckets: tuple[int, ...]):
        self._client, self._leg, self._buckets = client, leg, buckets

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
        return next(iter(self.legs(self.target).values())).note

    def legs(self, session: NodeSession) -> dict[int, Leg]:
        """Return the rows that a node has of this move, by bucket.

        Args:
            session: of the node.
        """
        return {b: leg for b, leg in moves.legs(session, self._buckets).items() if leg.move == self._leg.move}

    def positions(self, session: NodeSession) -> dict[int, Position]:
        """Return a node's watermark of each bucket.

        Args:
            session: of the node.
        """
        found = ledger_queries.marks_of(session, self._buckets)
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

    def emptied(self, shard: str) -> bool:
        """Return whether no node of a shard has rows of the buckets any more.

        Args:
            shard: its name.
        """
        return all(leg.note.emptied for node in self.nodes_of(shard) for leg in self.legs(node).values())
