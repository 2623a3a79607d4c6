"""Read a bucket that is on its way to another shard: read its state on the nodes around the rows of a read.

The states are queried before and behind the rows, in statements of their own. The target owns a bucket only once all
its rows are there, and the source deletes rows only once its state says `gone`. A node replays commits in their order.
So the rows between an owner's state and a state that is not `gone` are whole, on a replica too. A snapshot would prove
the same. But a read may be within another of its thread, on one connection, and must see what was committed since.

While nothing moves and the map is news, none of this is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from pipeline import clock
from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE, Piece, log_number
from pipeline.errors import BadRead, ShardUnavailable, StaleRead
from pipeline.reads.read_place import ReadPlace, counted_at
from pipeline.reads.routing.replicas import BROKEN_S
from pipeline.shard.records import LENT, MOVED, OWNED, STOPPED
from pipeline.shard.records.moves import Leg, Seat

#: A map that Redis confirmed longer ago than that is no news, s: each bucket may have moved since. No row is copied
#: before a move has been in the map for longer.
OLD_MAP_S = 10.0
#: The time between two looks at who has a bucket, while a read waits for what it must see, s.
SLICE_S = 1.0


class Elsewhere(ShardUnavailable):
    """A bucket is not served by the shard that was read; the next try goes where it is.

    Args:
        bucket: which.
        shard: the one that was read.
    """

    def __init__(self, bucket: int, shard: str):
        super().__init__(shard, f"bucket {bucket} is on its way to or from it: read again")
        self.node = f"bucket {bucket}"  # no node has failed


class Served:
    """Which shard serves each bucket that moves, as this process's reads have found; else the map says it.

    Args:
        topology: whose map it is.
    """

    def __init__(self, topology: Topology):
        self.topology = topology
        #: By bucket, the map under which that was found, and the shard.
        self.found: dict[int, tuple[Any, str]] = {}

    @property
    def old(self) -> bool:
        """Whether the map is no news."""
        return clock.mono_s() - self.topology.heard_at_s > OLD_MAP_S

    def changed(self, read: Any) -> bool:
        """Return whether the map has changed since a read was placed, or is no news since.

        Args:
            read: that has rows.
        """
        return read.place.seen is not self.topology.placement or (self.old and not read.checked)

    def by(self, bucket: int) -> str:
        """Return the shard where a bucket is read, or a piece.

        Args:
            bucket: its number; not the reference bucket's.
        """
        placement, shard = self.found.get(bucket, (None, ""))
        # of a bucket that does not move, a map that is news knows more than what was found before
        counts = placement is self.topology.placement and (bucket in self.topology.placement.moves or self.old)
        return shard if counts else self.topology.serves(bucket)

    def note(self, bucket: int, shard: str) -> None:
        """Let the next reads of a bucket go to a shard, until there is another map.

        Args:
            bucket: which.
            shard: that has it.
        """
        placement = self.topology.placement
        for one in [one for one, (under, _) in list(self.found.items()) if under is not placement]:
            self.found.pop(one, None)
        self.found[bucket] = placement, shard

    def place(self, place: ReadPlace) -> ReadPlace:
        """Return the place of a read as the map, and what reads have found, say now.

        Args:
            place: of all that the read is about, found at some time.
        """
        seen, reference = self.topology.placement, self.topology.reference_bucket
        shards = {self.by(bucket) for bucket in place.buckets or () if bucket != reference}
        if len(shards) > 1 and place.row is None:
            raise BadRead(
                f"the query fixes rows of bucket {(place.buckets or (0,))[0]}, one of whose keys is on a shard of its "
                "own by now: join them by the fields that shard them, or read one after the other"
            )
        return place._replace(seen=seen, shard=min(shards, default=place.shard))

    def learn(self, shard: str, legs: dict[int, Leg]) -> bool:
        """Act on keys that have a shard of their own, and that the map does not know; return whether there were any.

        Args:
            shard: whose node has said so.
            legs: the last moves of keys there, by piece.
        """
        placement = self.topology.placement
        found = {number: leg for number, leg in legs.items() if _counts(leg, shard) and number not in placement.pieces}
        pieces, pairs = dict(placement.pieces), dict(placement.moves)
        for number, leg in found.items():
            assert leg.of is not None
            pieces = {one: piece for one, piece in pieces.items() if piece.of.bucket != leg.of.bucket}
            here = leg.state in OWNED if leg.apart else True
            pieces[number] = Piece(number, leg.of, shard if here else leg.other(shard))
            pairs[number] = leg.source, leg.target
        if found:
            self.topology.follow(placement._replace(pieces=pieces, moves=pairs))
        return bool(found)

    def places(self, places: Sequence[ReadPlace]) -> Sequence[ReadPlace]:
        """Return the places of a read of all shards, each with the buckets that it serves now.

        Args:
            places: one of each shard, found at some time; between them they have all buckets.
        """
        if not self.found and places[0].seen is self.topology.placement:
            return places
        if len(places) == 1:
            return [self.place(places[0])]
        seen, reference = self.topology.placement, self.topology.reference_bucket
        own: dict[str, list[int]] = {place.shard: [] for place in places}
        for bucket in (*range(reference), *seen.pieces):
            own[self.by(bucket)].append(bucket)
        also = (reference,) if reference in (places[0].buckets or ()) else ()
        return [ReadPlace(shard, (*buckets, *also), seen) for shard, buckets in own.items()]


class MovingRead:
    """A read that may be about buckets that move, as a context manager around it.

    Args:
        read: not yet entered.
        served: takes up what is found.
        part: whether other shards have the rest of what the read is about.
    """

    def __init__(self, read: Any, served: Served, *, part: bool):
        self._read, self._served, self._part, self._router = read, served, part, read.router
        topology, shard = served.topology, read.shard
        self._moves = moves = topology.placement.moves
        self._old = read.checked = served.old
        about = topology.buckets_of(shard) if read.place.buckets is None else read.place.buckets
        #: The buckets and pieces of this read whose state counts.
        self._mine = [one for one in about if one != topology.reference_bucket and (self._old or one in moves)]
        #: What a node has said before the rows, of moves: these may have come and gone once there are rows.
        self._moves_before: dict[int, int] = {}
        self._keys_before: dict[int, int] = {}
        if part:
            mine = {*about}
            read.excluded = tuple(one for one, pair in moves.items() if shard in pair and one not in mine)

    def __enter__(self) -> Any:
        """Enter the read where its buckets are served; see `Read`.

        Raises:
            Elsewhere: one of them is not.
        """
        read = self._read
        if not self._old:
            self._look_ahead()
        self._enter()
        try:
            self._before()
        except BaseException as failure:
            read.__exit__(type(failure), failure, None)
            raise
        return read

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the read.

        Raises:
            Elsewhere: the rows may lack some, or may be old.
        """
        if failure is None:
            try:
                self._behind()
            except BaseException as late:
                self._read.__exit__(type(late), late, None)
                raise
        self._read.__exit__(kind, failure, traceback)

    # parts --------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Enter the read; where it waits, look now and then whether what it waits for goes to the other shard."""
        read, whole = self._read, self._read.bounds
        # an old answer that will do is not to come before the time is over
        slice_s = whole.wait_s if whole.on_stale == "stale" else SLICE_S
        began_s, deadline = clock.mono_s(), clock.Deadline(whole.wait_s)
        while True:
            read.bounds = replace(whole, wait_s=max(0.0, min(slice_s, deadline.left_s)))
            try:
                read.__enter__()
            except StaleRead as late:
                self._look_ahead()
                if deadline.passed:
                    waited_s = clock.mono_s() - began_s if late.waited_s else 0.0
                    raise StaleRead(late.shard, late.stage, late.reason, waited_s) from None
            else:
                return

    def _look_ahead(self) -> None:
        """Notice that the source has stopped before what the read needs: the source will never have it."""
        topology, read = self._served.topology, self._read
        for bucket in self._mine:
            needed = read.needs.keys() & {*counted_at(topology, read.shard, [bucket])}
            if needed and (self._old or self._moves[bucket][0] == read.shard):
                try:
                    owner = self._owner(bucket)
                except ShardUnavailable:
                    continue  # the source may serve; if not, it says so
                if owner is not None:
                    raise self._sent(bucket, owner)

    def _before(self) -> None:
        if self._old:
            self._keys_before = self._keys()
        seats = self._seats()
        if self._old and self._part:
            self._read.excluded = self._strange(seats)
        self._moves_before = {bucket: seats[bucket].move for bucket in self._mine}
        for bucket in self._mine:
            # what the target has done before the read began is not to be missed
            if seats[bucket].state == MOVED and (owner := self._owner(bucket)) is not None:
                raise self._sent(bucket, owner)

    def _behind(self) -> None:
        seats = self._seats()
        if self._old and self._part and (news := {*self._strange(seats)} ^ {*self._read.excluded}):
            raise Elsewhere(min(news), self._read.shard)
        for bucket in self._mine:
            if seats[bucket].move != self._moves_before[bucket]:  # it may have left, and come back
                raise Elsewhere(bucket, self._read.shard)
        if self._old and (keys := self._keys()) != self._keys_before:
            raise Elsewhere(min(keys.items() ^ self._keys_before.items())[0], self._read.shard)

    def _keys(self) -> dict[int, int]:
        """Return the moves of keys that have a shard of their own, as the node says it.

        Raises:
            Elsewhere: the map does not know of one, which this process acts on from now on.
        """
        found: dict[int, Leg] = self._read.reader.keys_apart()
        if self._served.learn(self._read.shard, found):
            raise Elsewhere(min(found), self._read.shard)
        return {number: leg.move for number, leg in found.items()}

    def _seats(self) -> dict[int, Seat]:
        """Return who serves what this read is about, as the node says it, once it does.

        Raises:
            Elsewhere: it does not.
        """
        if self._old and self._part:
            found: dict[int, Seat] = self._read.reader.seats()
            if keys := [one for one in self._mine if one >= FIRST_PIECE]:  # one in its bucket has no watermark
                found |= self._read.reader.seats(keys)
        else:
            found = self._read.reader.seats(self._mine) if self._mine else {}
        for bucket in self._mine:
            if bucket not in found or not found[bucket].serves:
                raise self._sent(bucket, self._other(bucket))
        return found

    def _strange(self, marks: Iterable[int]) -> tuple[int, ...]:
        """Return the buckets and pieces of which the node may have rows, and which this part does not serve."""
        pieces = self._served.topology.placement.pieces
        # a shard that has a key of a bucket has no other rows of that, though the bucket may have been there before
        mine = {*self._mine, *map(log_number, self._mine), self._served.topology.reference_bucket}
        buckets = [one for one in marks if one not in mine and one < FIRST_PIECE]
        return (*buckets, *(one for one in pieces if one not in mine))

    def _other(self, bucket: int) -> str | None:
        """Return where a bucket is that the node does not serve; None: no shard that answers has it."""
        if not self._old:
            router, node = self._router, self._read.read_info.node
            if self._read.read_info.role == "replica":
                router.replicas.skip(node, BROKEN_S)  # another one may know more
            source, target = self._moves[bucket]
            return source if self._read.shard == target else target
        return self._owner(bucket, moved=True)

    def _owner(self, bucket: int, *, moved: bool = False) -> str | None:
        """Return which other shard owns a bucket; None: no other one does.

        Args:
            bucket: which.
            moved: whether one that it has left will do, where no shard owns it.

        Raises:
            ShardUnavailable: a shard that may own it does not answer.
        """
        topology, shard = self._served.topology, self._read.shard
        among = topology.shards if self._old else self._moves[bucket]
        left = None
        for other in among:
            seat = self._seat_at(other, bucket) if other != shard else None
            if seat is not None and seat.owned:
                return other
            if seat is not None and seat.state == MOVED and moved:
                left = other
        return left

    def _seat_at(self, shard: str, bucket: int) -> Seat | None:
        """Return what a shard says of a bucket: its primary, or a replica that answers in its place."""
        nodes, failure = self._router.nodes, None
        for node in (nodes.primary_name(shard), *nodes.replica_names(shard)):
            try:
                found: Seat | None = self._router.readers[node].seats([bucket]).get(bucket)
            except ShardUnavailable as error:
                failure = failure or error
            else:
                return found
        assert failure is not None
        raise failure

    def _sent(self, bucket: int, to: str | None) -> Elsewhere:
        if to is not None:
            self._served.note(bucket, to)
        return Elsewhere(bucket, self._read.shard)


def _counts(leg: Leg, shard: str) -> bool:
    """Return whether a key is away, or on the way, or has left rows behind, as a shard's row of its last move says."""
    return leg.under_way(shard) or leg.home in (LENT, STOPPED) or (leg.apart and leg.state in OWNED)


def check_served(read: Any) -> None:
    """Check, behind the rows of a read, that the node still has all rows of its buckets: they may have left meanwhile.

    One that has left and come back is told by its last move, which was ordered since the read began: readers hear of a
    move for longer than clocks differ, before it goes on.

    Args:
        read: on a node.

    Raises:
        Elsewhere: some may be gone.
    """
    topology, buckets = read.router.topology, read.place.buckets
    seats, lent = read.reader.seats(buckets), {piece.of.bucket for piece in read.place.seen.pieces.values()}
    for bucket in topology.buckets_of(read.shard) if buckets is None else buckets:
        if bucket not in seats or not seats[bucket].serves:
            raise Elsewhere(bucket, read.shard)
        if seats[bucket].state in (LENT, STOPPED) and bucket not in lent:  # one of its keys may be elsewhere
            raise Elsewhere(bucket, read.shard)
    about = topology.buckets_of(read.shard) if buckets is None else buckets
    for leg in read.reader.last_moves(about).values():
        if leg.target == read.shard and leg.began_ms >= read.began_ms:
            raise Elsewhere(leg.bucket, read.shard)
