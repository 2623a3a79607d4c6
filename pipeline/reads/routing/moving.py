"""Read a bucket that is on its way to another shard: read its state on the nodes around the rows of a read.

The states are asked before and behind the rows, in statements of their own. The target owns a bucket only once all its
rows are there, and the source deletes rows only once its state says `gone`. A node replays commits in their order. So
the rows between an owner's state and a state that is not `gone` are whole, on a replica too. A snapshot would prove the
same. But a read may be within another of its thread, on one connection, and must see what was committed since.

While nothing moves and the map is news, none of this is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from pipeline import clock
from pipeline.config import Topology
from pipeline.errors import ShardUnavailable, StaleRead
from pipeline.reads.read_place import ReadPlace
from pipeline.reads.routing.replicas import BROKEN_S
from pipeline.shard.records import MOVED, Mark

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
        """Return the shard where a bucket is read.

        Args:
            bucket: not the reference bucket.
        """
        placement, shard = self.found.get(bucket, (None, ""))
        # of a bucket that does not move, a map that is news knows more than what was found before
        counts = placement is self.topology.placement and (bucket in self.topology.placement.moves or self.old)
        return shard if counts else self.topology.shard_of(bucket)

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
        return place._replace(seen=seen, shard=min(shards, default=place.shard))

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
        for bucket in range(reference):
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
        #: The buckets of this read whose state counts.
        self._mine = [one for one in about if one != topology.reference_bucket and (self._old or one in moves)]
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
        for bucket in self._mine:
            if bucket in self._read.needs and (self._old or self._moves[bucket][0] == self._read.shard):
                try:
                    owner = self._owner(bucket)
                except ShardUnavailable:
                    continue  # the source may serve; if not, it says so
                if owner is not None:
                    raise self._sent(bucket, owner)

    def _before(self) -> None:
        marks = self._marks()
        if self._old and self._part:
            self._read.excluded = self._strange(marks)
        self._check(marks)
        for bucket in self._mine:
            # what the target has done before the read began is not to be missed
            if marks[bucket].state == MOVED and (owner := self._owner(bucket)) is not None:
                raise self._sent(bucket, owner)

    def _behind(self) -> None:
        marks = self._marks()
        self._check(marks)
        if self._old and self._part and (news := {*self._strange(marks)} ^ {*self._read.excluded}):
            raise Elsewhere(min(news), self._read.shard)

    def _check(self, marks: Mapping[int, Mark]) -> None:
        for bucket in self._mine:
            mark = marks.get(bucket)
            if mark is None or not _serves(mark):
                raise self._sent(bucket, self._other(bucket))

    def _marks(self) -> dict[int, Mark]:
        if self._old and self._part:
            found: dict[int, Mark] = self._read.reader.states()
        else:
            found = self._read.reader.states(self._mine) if self._mine else {}
        return found

    def _strange(self, marks: Iterable[int]) -> tuple[int, ...]:
        """Return the buckets of which the node may have rows, and which this part does not serve."""
        mine = {*self._mine, self._served.topology.reference_bucket}
        return tuple(bucket for bucket in marks if bucket not in mine)

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
            mark = self._mark_at(other, bucket) if other != shard else None
            if mark is not None and mark.owned:
                return other
            if mark is not None and mark.state == MOVED and moved:
                left = other
        return left

    def _mark_at(self, shard: str, bucket: int) -> Mark | None:
        """Return the mark of a bucket on a shard: its primary's, or that of a replica that answers in its place."""
        nodes, failure = self._router.nodes, None
        for node in (nodes.primary_name(shard), *nodes.replica_names(shard)):
            try:
                found: Mark | None = self._router.readers[node].states([bucket]).get(bucket)
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


def _serves(mark: Mark) -> bool:
    """Return whether a shard's rows of a bucket are whole: it owns them, or has stopped, and no other one has begun."""
    return mark.owned or mark.state == MOVED


def check_served(read: Any) -> None:
    """Check, behind the rows of a read, that the node still has all rows of its buckets: they may have left meanwhile.

    Args:
        read: on a node.

    Raises:
        Elsewhere: some may be gone.
    """
    topology, buckets = read.router.topology, read.place.buckets
    marks = read.reader.states(buckets)
    for bucket in topology.buckets_of(read.shard) if buckets is None else buckets:
        if bucket not in marks or not _serves(marks[bucket]):
            raise Elsewhere(bucket, read.shard)
