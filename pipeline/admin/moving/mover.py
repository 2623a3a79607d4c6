"""Go on with a move of buckets, from whatever the two shards say of it, until it is over.

Each step is a commit that is made only where the states are those that the step begins at. So a move outlives its
mover, and two movers do no harm. The states, by source and target:

* owned / copying: rows are copied from a snapshot of the source; it counts once every node of the source has it.
* owned / catching: the target follows the log behind the source, is compared with it, and then the source stops.
* moved / catching: the target goes on to exactly where the source has stopped, and begins.
* moved / owned: map and epochs follow; a minute later the source's rows are given up.
* gone / owned: the source's rows are deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from pipeline import clock
from pipeline.admin.moving import buckets_rows
from pipeline.admin.moving.buckets_rows import Different, MovedTable, apart
from pipeline.admin.reshape import renew_epochs
from pipeline.apply.follow import CopyBehind, Differs, Follow
from pipeline.chance import chance
from pipeline.client import Client
from pipeline.config.placement import Placement
from pipeline.enqueue import bucket_map
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.events import Event
from pipeline.model.op import START, Position
from pipeline.reads.routing.moving import OLD_MAP_S
from pipeline.shard.driver_errors import is_driver_error, sentence_of
from pipeline.shard.records import ledger, ledger_queries, moves
from pipeline.shard.records.ledger import ACTIVE, APPLYING, CATCHING, COPYING, GONE, MOVED, OWNED
from pipeline.shard.records.moves import Fence, Leg
from pipeline.shard.session import NodeSession

#: For so long a move is in the map before rows are copied, s: readers with an older map look at states themselves.
HEARD_S = OLD_MAP_S + 2.0
#: How many ops of a bucket the target may have to apply when the source stops: some milliseconds' work.
NEAR = 200
#: How long the mover waits for replicas before it says that it waits, s; and how long the target is tried with an op
#: that it refuses, since its reference tables may be behind.
WAIT_S, REFUSED_S, SHORT_S = 30.0, 15.0, 0.05
#: How long a mover's lease lasts from each step, ms.
LEASE_MS = 15_000
logger = logging.getLogger("pipeline.moves")


class MoveStep(NamedTuple):
    """What a mover has just done.

    Attributes:
        stage: copying, catching up, comparing, stopping, waiting, cleaning or over.
        text: more of it, for people.
        rows, bytes: of the stage so far.
    """

    stage: str
    text: str = ""
    rows: int = 0
    bytes: int = 0


class MoveEnded(PipelineError):
    """A move was given up by the mover: both shards are as before."""


class Mover:
    """Moves some buckets.

    Args:
        client: the deployment, of this thread.
        leg: the row of the move of one of them.
        buckets: all that move together.
    """

    def __init__(self, client: Client, leg: Leg, buckets: tuple[int, ...]):
        self._client, self.leg, self.buckets = client, leg, buckets
        self._lease, self._token = f"move:{leg.move}", f"{chance.getrandbits(63)}"

    def steps(self) -> Iterator[MoveStep]:
        """Go on until the move is over; yield what was done.

        Raises:
            MoveEnded: the shards differ, so that the move was given up; it says in what.
            Unavailable: a server does not answer; call again.
        """
        while (stage := self.stage()) != "over":
            try:
                yield from getattr(self, f"_{stage}")()
            except (CopyBehind, buckets_rows.CopyVoid) as error:
                logger.info(Event("copy_void", move=self.leg.move, error=error))
                self._step(self._target, [CATCHING], COPYING)
                yield MoveStep("waiting", f"to copy again: {error}")
            except (Different, Differs) as error:
                self.give_up(str(error))
                raise MoveEnded(
                    f"the move of bucket {self._named} was given up, and {self.leg.source} goes on as before: {error}"
                ) from error
            except Exception as error:
                if not is_driver_error(error):
                    raise
                both = f"{self.leg.source} or {self.leg.target}"
                raise ShardUnavailable(both, sentence_of(error)) from error
        yield MoveStep("over")

    def stage(self) -> str:
        """Return what is to be done next."""
        here, there = self._legs(self._source), self._legs(self._target)
        left, came = {leg.state for leg in here.values()}, {leg.state for leg in there.values()}
        if there and came == {GONE}:
            return "over" if not here and all(leg.note.cleaned for leg in there.values()) else "undo"
        if not here:
            return "abandon" if there and came <= {COPYING, CATCHING} else "over"
        if not there:
            return "begin"
        if came <= {COPYING}:
            return "copy"
        if came <= {CATCHING}:
            return "finish" if left == {MOVED} else "catch"
        if left == {MOVED}:
            return "publish"
        return "over" if all(leg.note.cleaned for leg in here.values()) else "clean"

    def give_up(self, why: str) -> None:
        """End a move whose target has not begun; the source goes on as it was.

        Args:
            why: for people.

        Raises:
            PipelineError: the target has begun: let the move end, then move the bucket back.
        """
        target = self._target
        if not self._stopped():
            self._forget_on_source()  # first, so that no mover stops the source while its target is emptied
        elif not self._step(target, [COPYING, CATCHING], GONE):
            raise PipelineError(f"{self.leg.target} has begun: let the move end, then run: pipeline move back")
        self._step(target, [COPYING, CATCHING], GONE)
        self._resume_source()
        note = next((leg.note for leg in self._legs(target).values()), moves.MoveNote())
        moves.note(target, self.buckets, self.leg.move, replace(note, trouble=why, cleaned=False))
        logger.warning(Event("move_given_up", move=self.leg.move, buckets=len(self.buckets), why=why))

    # the stages ---------------------------------------------------------------------------------------------

    def _begin(self) -> Iterator[MoveStep]:
        """Let the target expect the buckets; from now on nothing but the log changes them on the source."""
        target = self._target
        with target.translated(), target.transaction():
            marks = ledger.lock_buckets(target, self.buckets)
            if any(mark.owned for mark in marks.values()):
                raise PipelineError(f"{self.leg.target} owns bucket {self._named} already")
            for bucket in self.buckets:
                moves.write_leg(target, self.leg._replace(bucket=bucket, note=moves.MoveNote()))
                moves.place_mark(target, bucket, START, COPYING)
        self._follow_map()
        yield from self._pause(HEARD_S, "until all readers know of the move")

    def _copy(self) -> Iterator[MoveStep]:
        client, attempt = self._client, chance.getrandbits(62)
        self._follow_map()
        note = moves.MoveNote(attempt=attempt)
        moves.note(self._target, self.buckets, self.leg.move, note)
        tables = self._tables()
        with apart(client, self.leg.source) as source, apart(client, self.leg.target, writing=True) as target:
            target.fence = Fence(self.buckets, self.leg.move, COPYING, attempt)
            connection = _connection(target)
            with source.snapshot():
                begun = _positions_in(source, self.buckets)
                rows = size = 0
                for table, chunk in buckets_rows.copy_rows(source, target, tables):
                    self._hold()
                    rows, size = rows + chunk.rows, size + chunk.bytes
                    yield MoveStep("copying", table, rows, size)
                while not self._source_has(begun):
                    yield from self._pause(SHORT_S, "for every node of the source to have what was copied")
                # the same connections to the same primaries as at the beginning: neither shard has failed over since
                source.rows("SELECT 1")
                primaries = client.nodes.primary_name(self.leg.source), client.nodes.primary_name(self.leg.target)
                if _connection(target) is not connection or primaries != (source.node, target.node):
                    raise buckets_rows.CopyVoid("a database failed over meanwhile")
                buckets_rows.take_records(source, target, begun, CATCHING)
        moves.note(self._target, self.buckets, self.leg.move, replace(note, rows=rows, bytes=size))

    def _catch(self) -> Iterator[MoveStep]:
        follow = self._follow()
        yield from self._caught_up(follow)
        if not self._note.verified:
            yield from self._verify(follow)
            return
        while not self._target_has_copy():
            yield from self._pause(SHORT_S, "for every node of the target to have the copy")
        while not self._map_is_known():
            yield from self._pause(HEARD_S, "until all readers know of the move")
        yield from self._caught_up(follow)
        self._hold()
        with self._source.translated(), self._source.transaction():
            stopped = moves.change_state(self._source, self.buckets, self.leg.move, APPLYING, MOVED)
        if stopped:
            yield MoveStep("stopping", f"{self.leg.source} has stopped")

    def _finish(self) -> Iterator[MoveStep]:
        """Go on to exactly where the source has stopped, then begin."""
        ends = self._positions(self._source)
        for _ in clock.polls(WAIT_S, first_s=0.005):
            if self._source_says(MOVED, ends):
                break
        else:
            yield MoveStep("waiting", "for every node of the source to have stopped")
            return
        follow = self._follow()
        while self._positions(self._target) != ends:
            self._follow_once(follow, ends)
        self._give_span()
        with self._target.translated(), self._target.transaction():
            if _positions_in(self._target, self.buckets) == ends:
                moves.change_state(self._target, self.buckets, self.leg.move, [CATCHING], ACTIVE)
        yield from self._map()

    def _publish(self) -> Iterator[MoveStep]:
        if not self._note.mapped:
            yield from self._map()
        while not self._target_owns():
            yield from self._pause(SHORT_S, "for every node of the target to own the buckets")
        yield from self._pause(self.leg.keep_s, f"before rows of {self.leg.source} are deleted")
        if self._target_owns():
            self._step(self._source, [MOVED], GONE)

    def _clean(self) -> Iterator[MoveStep]:
        yield from self._deleted(self.leg.source, moves.MoveNote())

    def _abandon(self) -> Iterator[MoveStep]:
        """Give up what the source knows nothing of any more: it failed over, or whoever gave up has died."""
        if self._step(self._target, [COPYING, CATCHING], GONE):
            note = replace(self._note, trouble=self._note.trouble or "its source knows nothing of it", cleaned=False)
            moves.note(self._target, self.buckets, self.leg.move, note)
        yield MoveStep("cleaning", self.leg.target)

    def _undo(self) -> Iterator[MoveStep]:
        note = self._note
        self._resume_source()  # once more: the source may have failed over since
        yield from self._deleted(self.leg.target, note)

    def _stopped(self) -> bool:
        return any(leg.state == MOVED for leg in self._legs(self._source).values())

    def _resume_source(self) -> None:
        """Let the source go on once no node of the target can begin, and forget the move."""
        if self._stopped():
            for _ in clock.polls(WAIT_S, first_s=0.005):
                every = (self._legs(session) for session in self._nodes_of(self.leg.target))
                if all({leg.state for leg in one.values()} == {GONE} for one in every):
                    break
            else:
                raise PipelineError(f"a replica of {self.leg.target} does not follow: {self.leg.source} waits for it")
            self._step(self._source, [MOVED], ACTIVE)
        self._forget_on_source()

    def _forget_on_source(self) -> None:
        source = self._source
        with source.translated(), source.transaction():
            marks = ledger.lock_buckets(source, self.buckets)
            if all(mark.owned for mark in marks.values()):
                moves.forget_legs(source, self.buckets, self.leg.move)

    # parts --------------------------------------------------------------------------------------------------

    def _map(self) -> Iterator[MoveStep]:
        """Let all processes know who owns the buckets, and let no process act on the map of before."""
        client = self._client
        self._follow_map()
        renew_epochs(client, (self.leg.source, self.leg.target))
        client.log.mark_dirty(self.leg.target, self.buckets)
        client.log.postpone(self.leg.target, self.buckets, 0)
        client.bell.ring_now(self.leg.target, len(self.buckets))
        moves.note(self._target, self.buckets, self.leg.move, replace(self._note, mapped=True))
        yield MoveStep("stopping", f"{self.leg.target} goes on")

    def _verify(self, follow: Follow) -> Iterator[MoveStep]:
        """Compare both shards at one watermark of each bucket."""
        client, tables = self._client, self._tables()
        with apart(client, self.leg.source) as source, apart(client, self.leg.target) as target, source.snapshot():
            at = _positions_in(source, self.buckets)
            while not self._source_has(at):
                yield from self._pause(SHORT_S, "for every node of the source to have what is compared")
            while self._positions(self._target) != at:
                self._hold()
                if any(self._positions(self._target)[bucket] > at[bucket] for bucket in self.buckets):
                    return  # another mover is at it
                self._follow_once(follow, at)
            with target.snapshot():
                rows = size = 0
                for table, chunk in buckets_rows.compare_rows(source, target, tables):
                    self._hold()
                    rows, size = rows + chunk.rows, size + chunk.bytes
                    yield MoveStep("comparing", table, rows, size)
                buckets_rows.compare_records(source, target, self.buckets)
        moves.note(self._target, self.buckets, self.leg.move, replace(self._note, verified=True))

    def _caught_up(self, follow: Follow) -> Iterator[MoveStep]:
        """Follow the source until little is left, as far as every node of the source has it."""
        applied = 0
        while True:
            self._hold()
            ends, here = self._lowest(), self._positions(self._target)
            if all(_is_near(here[bucket], ends[bucket]) for bucket in self.buckets):
                return
            applied += self._follow_once(follow, ends)
            yield MoveStep("catching up", "", applied)

    def _follow_once(self, follow: Follow, ends: dict[int, Position]) -> int:
        """Apply one batch; where the target refuses an op, try for a while: its reference tables may be behind."""
        here = self._positions(self._target)
        self._await_reference()
        deadline = clock.Deadline(REFUSED_S)
        while True:
            try:
                return follow.upto(ends, buckets_rows.set_aside_behind(self._source, here))
            except Differs:
                if deadline.passed:
                    raise
                clock.sleep_s(0.25)

    def _await_reference(self) -> None:
        """Wait until the target has of reference tables what the source had when its watermarks were read."""
        reference = self._client.topology.reference_bucket
        there = ledger_queries.positions_of(self._source).get(reference, START)
        for _ in clock.polls(WAIT_S, first_s=0.01):
            if ledger_queries.positions_of(self._target).get(reference, START) >= there:
                return
        raise PipelineError(f"{self.leg.target} is behind {self.leg.source} in reference tables: see pipeline why")

    def _pause(self, for_s: float, what: str) -> Iterator[MoveStep]:
        """Wait, and say for what."""
        deadline = clock.Deadline(for_s)
        while not deadline.passed:
            left_s = max(0.0, deadline.left_s)
            yield MoveStep("waiting", f"{left_s:.0f} s {what}" if for_s > SHORT_S else what)
            clock.sleep_s(min(1.0, left_s))
            self._hold()

    def _deleted(self, shard: str, note: moves.MoveNote) -> Iterator[MoveStep]:
        """Delete the rows; the map names the move until no replica has them, for readers leave them out till then."""
        rows, tables, primary = 0, self._tables(), self._client.nodes.primary(shard)
        with apart(self._client, shard, writing=True) as session:
            session.fence = Fence(self.buckets, self.leg.move, GONE)
            for more in buckets_rows.delete_bucket_rows(session, tables, self.buckets):
                self._hold()
                rows += more
                yield MoveStep("cleaning", shard, rows)
        moves.note(primary, self.buckets, self.leg.move, replace(note, emptied=True))
        while not all(leg.note.emptied for node in self._nodes_of(shard) for leg in self._legs(node).values()):
            yield from self._pause(SHORT_S, f"for every node of {shard} to have deleted its rows")
        moves.note(primary, self.buckets, self.leg.move, replace(note, emptied=True, cleaned=True))
        self._follow_map()

    def _hold(self) -> None:
        """Say that this mover is at work: no other one begins."""
        self._client.log.hold_lease(self._lease, self._token, LEASE_MS)

    def taken(self) -> bool:
        """Return whether this mover may go on: no other one is at it."""
        return self._client.log.hold_lease(self._lease, self._token, LEASE_MS)

    def release(self) -> None:
        """Let another mover go on."""
        self._client.log.release_lease(self._lease, self._token)

    def _follow_map(self) -> None:
        client = self._client
        bucket_map.follow(client.log, client.nodes, client.topology, anew=True)

    def _map_is_known(self) -> bool:
        known = Placement.noted(self._client.log.placement())
        if known is None or any(bucket not in known.moves for bucket in self.buckets):
            self._follow_map()
            return False
        return True

    def _give_span(self) -> None:
        """Let the target give no span of row ids that the source may have given."""
        ledger_queries.give_span(self._target, ledger_queries.last_span(self._source), 0)

    def _step(self, session: NodeSession, before: list[str], after: str) -> bool:
        with session.translated(), session.transaction():
            return moves.change_state(session, self.buckets, self.leg.move, before, after)

    def _follow(self) -> Follow:
        client = self._client
        settings = client.settings
        return Follow(self.leg.target, self._target, client.log, settings.apply, settings.tables, self.leg.move)

    def _tables(self) -> list[MovedTable]:
        return buckets_rows.moved_tables(self._client, self.buckets, self.leg.source, self.leg.target)

    @property
    def _named(self) -> str:
        return ", ".join(map(str, self.buckets))

    @property
    def _source(self) -> NodeSession:
        return self._client.nodes.primary(self.leg.source)

    @property
    def _target(self) -> NodeSession:
        return self._client.nodes.primary(self.leg.target)

    @property
    def _note(self) -> moves.MoveNote:
        return next(iter(self._legs(self._target).values())).note

    def _legs(self, session: NodeSession) -> dict[int, Leg]:
        return {b: leg for b, leg in moves.legs(session, self.buckets).items() if leg.move == self.leg.move}

    def _positions(self, session: NodeSession) -> dict[int, Position]:
        found = ledger_queries.marks_of(session, self.buckets)
        return {bucket: found[bucket].position for bucket in self.buckets}

    # what nodes have ----------------------------------------------------------------------------------------

    def _nodes_of(self, shard: str) -> list[NodeSession]:
        nodes = self._client.nodes
        return [nodes.primary(shard), *(one for one in nodes.replicas(shard) if not nodes.unfit(one.node))]

    def _lowest(self) -> dict[int, Position]:
        """Return the watermarks that every node of the source has."""
        every = [self._positions(session) for session in self._nodes_of(self.leg.source)]
        return {bucket: min(one[bucket] for one in every) for bucket in self.buckets}

    def _source_has(self, begun: dict[int, Position]) -> bool:
        """Whether every node of the source has some watermarks, and knows of the move."""
        for session in self._nodes_of(self.leg.source):
            if len(self._legs(session)) != len(self.buckets):
                return False
        lowest = self._lowest()
        return all(lowest[bucket] >= position for bucket, position in begun.items())

    def _source_says(self, state: str, ends: dict[int, Position]) -> bool:
        for session in self._nodes_of(self.leg.source):
            legs = self._legs(session)
            if {bucket: (leg.state, leg.position) for bucket, leg in legs.items()} != {
                bucket: (state, position) for bucket, position in ends.items()
            }:
                return False
        return True

    def _target_has_copy(self) -> bool:
        every = (self._legs(session) for session in self._nodes_of(self.leg.target))
        return all(len(one) == len(self.buckets) and {leg.state for leg in one.values()} == {CATCHING} for one in every)

    def _target_owns(self) -> bool:
        every = (self._legs(session) for session in self._nodes_of(self.leg.target))
        return all(len(one) == len(self.buckets) and all(leg.state in OWNED for leg in one.values()) for one in every)


def _positions_in(session: NodeSession, buckets: tuple[int, ...]) -> dict[int, Position]:
    """Return the watermarks of buckets within a session's open transaction."""
    found = ledger.marks(session)
    return {bucket: found[bucket].position for bucket in buckets}


def _is_near(here: Position, end: Position) -> bool:
    """Return whether little is left of a bucket's log up to an end."""
    return here >= end or (here.epoch == end.epoch and end.seq - here.seq <= NEAR)


def _connection(session: NodeSession) -> object:
    """Return what a session is connected by now: another object once it was connected anew."""
    session.query("SELECT 1")
    return session.adapter.connection
