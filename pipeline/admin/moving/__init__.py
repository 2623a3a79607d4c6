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
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress

from msgspec.structs import replace

from pipeline import clock
from pipeline.admin.moving import buckets_rows
from pipeline.admin.moving.buckets_rows import Different
from pipeline.admin.moving.carrier import WAIT_S, Awaited, Carrier, MoveStep, is_near, named, paused
from pipeline.admin.moving.sides import Sides
from pipeline.admin.reshape import renew_epochs
from pipeline.apply.follow import CopyBehind, Differs, Level
from pipeline.client import Client
from pipeline.config.buckets import KeyName, Placement, format_ranges, log_number
from pipeline.enqueue import buckets as bucket_map
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.events import Event
from pipeline.model import START, Position
from pipeline.per_process import chance
from pipeline.reads.routing.moving import OLD_MAP_S
from pipeline.shard import NodeSession
from pipeline.shard.driver_errors import is_driver_error, sentence_of
from pipeline.shard.records import (
    ACTIVE,
    APPLYING,
    CATCHING,
    COPYING,
    GONE,
    LENT,
    MOVED,
    OWNED,
    STOPPED,
    ledger_queries,
    moves,
)
from pipeline.shard.records.moves import Leg

#: For so long a move is in the map before rows are copied, s: readers with an older map look at states themselves.
HEARD_S = OLD_MAP_S + 2.0
#: The time between two notes of how far a move is, s: each is a commit that replicas repeat.
NOTED_S = 1.0
#: How long a mover waits before it copies again, s: two that began anew at once would void each other for ever.
GIVES_WAY_S = (1.0, 3.0)
#: How long a bucket and a key that comes back to it are brought to one position, s: both have stopped meanwhile.
LEVEL_S = 10.0
#: How long a mover's lease lasts from each step, ms.
LEASE_MS = 15_000
logger = logging.getLogger("pipeline.moves")


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
        self._client, self.leg, self.buckets, self.sides = client, leg, buckets, Sides(client, leg, buckets)
        self._carrier = Carrier(client, leg, buckets, self.sides)
        self._lease, self._token = f"move:{leg.move}", f"{chance.getrandbits(63)}"
        self._noted_s, self._waits = 0.0, True
        #: Until when a key that comes back, and its bucket, are brought to one position.
        self._level_until: clock.Deadline | None = None

    def steps(self) -> Iterator[MoveStep]:
        """Go on until the move is over; yield what was done.

        Raises:
            MoveEnded: the shards differ, so that the move was given up; it says in what.
            Unavailable: a server does not answer; call again.
        """
        while (stage := self.stage()) != "over":
            try:
                with closing(getattr(self, f"_{stage}")()) as steps:
                    for step in steps:
                        self.hold()
                        self._tell(step)
                        yield step
                        # what is waited for may never be, once another mover has gone on
                        if step.stage == "waiting" and stage != "begin" and self.stage() != stage:
                            break
            except (CopyBehind, buckets_rows.CopyVoid) as error:
                logger.info(Event("copy_void", move=self.leg.move, error=error))
                self.sides.step(self.sides.target, [CATCHING], COPYING)
                yield MoveStep("waiting", f"to copy again: {error}")
                clock.sleep_s(chance.uniform(*GIVES_WAY_S))
            except (Different, Differs) as error:
                self.give_up(str(error))
                raise MoveEnded(
                    f"the move of bucket {named(self.buckets)} was given up, and {self.leg.source} goes on as before: "
                    f"{error}"
                ) from error
            except PipelineError as error:
                with suppress(PipelineError):
                    self._tell(MoveStep("waiting", str(error)))
                raise
            except Exception as error:
                if not is_driver_error(error):
                    raise
                both = f"{self.leg.source} or {self.leg.target}"
                raise ShardUnavailable(both, sentence_of(error)) from error
        yield MoveStep("over")

    def stage(self) -> str:
        """Return what is to be done next."""
        return moves.stage_of(self.sides.legs(self.sides.source), self.sides.legs(self.sides.target))

    @property
    def what(self) -> str:
        """What moves, as commands take it: ranges of buckets, or a key."""
        return format_ranges(self.buckets) if self.leg.of is None else str(self.leg.of)

    @property
    def begun(self) -> bool:
        """Whether the target owns the buckets, and every process learns so with its next epoch."""
        return any(leg.note.mapped for leg in self.sides.legs(self.sides.target).values())

    def give_up(self, why: str) -> None:
        """End a move whose target has not begun; the source goes on as it was.

        Args:
            why: for people.

        Raises:
            PipelineError: the target has begun: let the move end, then move the bucket back.
        """
        target = self.sides.target
        if not self._stopped():
            self._forget_on_source()  # first, so that no mover stops the source while its target is emptied
        elif not self.sides.step(target, [COPYING, CATCHING], GONE):
            raise PipelineError(f"{self.leg.target} has begun: let the move end, then run: pipeline move back")
        self.sides.step(target, [COPYING, CATCHING], GONE)
        if self.leg.of is not None and not self.sides.leaves:
            self._wake(self.leg.target, [self.leg.of.bucket])
        self._resume_source()
        moves.note(target, self.buckets, self.leg.move, trouble=why, cleaned=False)
        logger.warning(Event("move_given_up", move=self.leg.move, buckets=len(self.buckets), why=why))

    # the stages ---------------------------------------------------------------------------------------------

    def _begin(self) -> Iterator[MoveStep]:
        """Let the target expect the buckets; from now on nothing but the log changes them on the source."""
        target = self.sides.target
        self._refuse_old()
        with target.translated(), target.transaction():
            marks = moves.lock_both(target, self.buckets)
            if any(marks[bucket].owned for bucket in self.buckets if bucket in marks):
                raise PipelineError(f"{self.leg.target} owns bucket {named(self.buckets)} already")
            if self.leg.of is not None and not self.sides.leaves:
                mark, home = marks.get(self.buckets[0]), marks.get(self.leg.of.bucket)
                if mark is None or mark.state != GONE or home is None or home.state != LENT:
                    raise PipelineError(f"{self.leg.target} has {self.leg.of} already, or has it no more to take back")
            here = self.buckets if self.leg.of is None else (self.leg.of.bucket,)
            moves.forget_pieces(target, here, None if self.leg.of is None else self.buckets[0])
            if self.leg.of is not None and not moves.forget_mover(target, self.leg.of.bucket, self.leg.target):
                raise PipelineError(
                    f"{self.leg.target} has rows of bucket {self.leg.of.bucket} yet: see pipeline move list"
                )
            # a mover may have read its row on a server that has failed over since
            note = replace(self.leg.note, copied=None, compared=None, verified=False)
            for bucket in self.buckets:
                moves.write_leg(target, self.leg._replace(bucket=bucket, note=note))
                moves.place_mark(target, bucket, START, COPYING)
        yield from ()

    def _refuse_old(self) -> None:
        """Raise where another shard has the buckets by now: the source was restored while it had an order of before."""
        if self.leg.of is not None:
            return
        self._follow_map()
        owners = {self._client.topology.shard_of(bucket) for bucket in self.buckets}
        if owners != {self.leg.source}:
            raise PipelineError(
                f"{', '.join(sorted(owners))} has the buckets {format_ranges(self.buckets)}: {self.leg.source} was "
                f"restored from a backup of before they left; run: pipeline restore {self.leg.source}"
            )

    def _copy(self) -> Iterator[MoveStep]:
        self._follow_map()
        if not self.sides.note.copied_from_ms:  # else a mover has waited for it, and died since
            yield from paused(HEARD_S, "until all readers know of the move")
        yield from self._carrier.copy()

    def _catch(self) -> Iterator[MoveStep]:
        follow = self._carrier.follow()
        yield from self._carrier.catch_up(follow)
        if not self.sides.note.verified:
            yield from self._carrier.verify(follow)
            return
        wait = Awaited("for every node of the target to have the copy")
        while not self.sides.target_says((CATCHING,)):
            yield from wait.turn()
        while not self._map_is_known():
            yield from paused(HEARD_S, "until all readers know of the move")
        yield from self._carrier.catch_up(follow)
        self.hold()
        if self.leg.of is not None and self.sides.leaves:
            stopped = self._stop_bucket(self.leg.of)
        else:
            if self.leg.of is not None:
                yield from self._near(self.leg.of)
            stopped = self.sides.step(self.sides.source, APPLYING, MOVED)
        if stopped:
            yield MoveStep("stopping", f"{self.leg.source} has stopped")

    def _finish(self) -> Iterator[MoveStep]:
        """Go on to exactly where the source has stopped, then begin."""
        if self.leg.of is not None and not self.sides.leaves:
            yield from self._come_back(self.leg.of)
            return
        ends = self.sides.positions(self.sides.source)
        for _ in clock.polls(WAIT_S, first_s=0.005):
            if self.sides.source_stands(MOVED, ends):
                break
        else:
            yield MoveStep("waiting", "for every node of the source to have stopped")
            return
        follow = self._carrier.follow()
        while self.sides.positions(self.sides.target) != ends:
            self._carrier.follow_once(follow, ends)
        self._give_span()
        with self.sides.target.translated(), self.sides.target.transaction():
            if self.sides.positions_in(self.sides.target) == ends:
                moves.change_state(self.sides.target, self.sides.fence((CATCHING,)), ACTIVE)
        if self.leg.of is not None:
            yield from self._part(self.leg.of)
        yield from self._map()

    def _publish(self) -> Iterator[MoveStep]:
        if self.leg.of is not None and self.sides.leaves:
            yield from self._part(self.leg.of)
        if not self.sides.note.mapped:
            yield from self._map()
        wait = Awaited("for every node of the target to own the buckets")
        while not self.sides.target_says(OWNED):
            yield from wait.turn()
        yield from paused(self.leg.keep_s, f"before rows of {self.leg.source} are deleted")
        if self.sides.target_says(OWNED) and self._is_apart():
            self.sides.step(self.sides.source, [MOVED], GONE)

    def _clean(self) -> Iterator[MoveStep]:
        yield from self._carrier.delete(self.leg.source)
        self._follow_map()

    def _abandon(self) -> Iterator[MoveStep]:
        """Give up what the source knows nothing of any more: it failed over, or whoever gave up has died."""
        if self.sides.step(self.sides.target, [COPYING, CATCHING], GONE):
            trouble = self.sides.note.trouble or "its source knows nothing of it"
            moves.note(self.sides.target, self.buckets, self.leg.move, trouble=trouble, cleaned=False)
        yield MoveStep("cleaning", self.leg.target)

    def _undo(self) -> Iterator[MoveStep]:
        self._resume_source()  # once more: the source may have failed over since
        yield from self._carrier.delete(self.leg.target)
        self._follow_map()

    def _stopped(self) -> bool:
        return any(leg.state == MOVED for leg in self.sides.legs(self.sides.source).values())

    def _resume_source(self) -> None:
        """Let the source go on once no node of the target can begin, and forget the move."""
        if self._stopped():
            for _ in clock.polls(WAIT_S, first_s=0.005):
                if self.sides.target_says((GONE,)):
                    break
            else:
                raise PipelineError(f"a replica of {self.leg.target} does not follow: {self.leg.source} waits for it")
            self.sides.step(self.sides.source, [MOVED], ACTIVE)
            self._wake(self.leg.source, self.buckets if not self.sides.leaves else map(log_number, self.buckets))
        self._forget_on_source()

    def _forget_on_source(self) -> None:
        source = self.sides.source
        with source.translated(), source.transaction():
            marks = moves.lock_both(source, self.buckets)
            # a piece without a watermark is in its bucket
            wanted = [bucket if bucket in marks else log_number(bucket) for bucket in self.buckets]
            if all(marks[bucket].owned and marks[bucket].state != STOPPED for bucket in wanted if bucket in marks):
                self._forget_legs(source)

    # parts --------------------------------------------------------------------------------------------------

    def _map(self) -> Iterator[MoveStep]:
        """Let all processes know who owns the buckets, and let no process act on the map of before."""
        client = self._client
        self._follow_map()
        if self.leg.of is None:  # ops of a key stay in the log of its bucket: no producer has to know
            renew_epochs(client, (self.leg.source, self.leg.target))
        back = self.leg.of is not None and not self.sides.leaves
        self._wake(self.leg.target, self.buckets if not back else map(log_number, self.buckets))
        moves.note(self.sides.target, self.buckets, self.leg.move, mapped=True)
        yield MoveStep("stopping", f"{self.leg.target} goes on")

    def _wake(self, shard: str, numbers: Iterable[int]) -> None:
        """Let the workers of a shard go on with buckets, or pieces, at once."""
        log, these = self._client.log, tuple(numbers)
        log.mark_dirty(shard, these)
        log.postpone(shard, these, 0)
        self._client.bell.ring_now(shard, len(these))

    def _is_apart(self) -> bool:
        return all(leg.apart for leg in self.sides.legs(self.sides.source).values())

    def _forget_legs(self, source: NodeSession) -> None:
        """Forget a move that was given up; where a key is away, and stays so, its row goes on to say so."""
        legs = moves.legs_within(source, self.buckets)
        kept = [leg for leg in legs.values() if leg.of is not None and leg.apart and leg.move == self.leg.move]
        for leg in kept:  # nobody goes on with a move of that number
            there = leg._replace(source=leg.target, target=leg.source, note=moves.DEFAULTS)
            moves.write_leg(source, there._replace(move=chance.getrandbits(62)))
        if not kept:
            moves.forget_legs(source, self.buckets, self.leg.move)

    # a key that leaves its bucket, and comes back ------------------------------------------------------------

    def _stop_bucket(self, of: KeyName) -> bool:
        """Stop a bucket whose key leaves it, unless an op is set aside that would be torn apart."""
        source = self.sides.source
        with source.translated(), source.transaction():
            fence = self.sides.fence(APPLYING)
            if not fence.holds(source):
                return False
            buckets_rows.refuse_held(self._client, source, of, of.bucket)
            return moves.change_state(source, fence, MOVED)

    def _part(self, of: KeyName) -> Iterator[MoveStep]:
        """Let the bucket go on without its key, once every node of the key's shard has begun."""
        source, target, [piece] = self.sides.source, self.sides.target, self.buckets
        if self._is_apart():
            return
        wait = Awaited(f"for every node of {self.leg.target} to have begun")
        while not self.sides.target_says(OWNED):
            yield from wait.turn()
        sql = f"SELECT epoch, seq FROM pipeline_rejects WHERE bucket = {piece}"
        own = [Position(*row) for row in target.query(sql)]
        with source.translated(), source.transaction():
            fence = self.sides.fence([MOVED])
            leg = moves.legs_within(source, self.buckets).get(piece) if fence.holds(source) else None
            if leg is not None and not leg.apart and leg.position is not None:
                ends = leg.position
                buckets_rows.part(source, piece, of, ends, [at for at in own if at <= ends])
        self._wake(self.leg.source, [of.bucket])
        yield MoveStep("stopping", f"{self.leg.source} goes on without {of}")

    def _near(self, of: KeyName) -> Iterator[MoveStep]:
        """Wait until little is left between a bucket and its key, which stop in order to meet."""
        wait = Awaited(f"for bucket {of.bucket} and {of} to be close to each other")
        while True:
            mark = ledger_queries.marks_of(self.sides.target, [of.bucket])[of.bucket].position
            there = self.sides.positions(self.sides.source)[self.buckets[0]]
            if is_near(mark, there) and is_near(there, mark):
                return
            yield from wait.turn()

    def _come_back(self, of: KeyName) -> Iterator[MoveStep]:
        """Let a bucket and its key, which have both stopped, go on to one position; then the bucket has the key."""
        sides, target, [piece] = self.sides, self.sides.target, self.buckets
        fence = sides.fence((CATCHING,))
        for _ in clock.polls(WAIT_S, first_s=0.005):
            if self._levelled(of):
                break
        else:
            self._level_until = self._level_until or clock.Deadline(LEVEL_S)
            if self._level_until.passed:
                raise Different(f"{of} and its bucket {of.bucket} cannot be brought to one position: try again later")
            yield MoveStep("waiting", f"for every node of {of} and its bucket to stand at one position")
            return
        ends = sides.positions(sides.source)
        follow = self._carrier.follow()
        try:
            while sides.positions(target) != ends:
                self._carrier.follow_once(follow, ends)
        except CopyBehind as error:
            raise Different(f"the log of bucket {of.bucket} has begun anew meanwhile: {error}; try again") from error
        with target.translated(), target.transaction():
            if fence.holds(target) and sides.source_stands(MOVED, ends):
                leg, marks = moves.legs_within(target, self.buckets)[piece], moves.lock_both(target, self.buckets)
                level = leg.position == ends[piece] == marks[of.bucket].position and leg.home == STOPPED
                if level:
                    buckets_rows.refuse_held(self._client, target, of, of.bucket, piece)
                if level and not buckets_rows.merge(target, piece, of):
                    raise Different(f"{of} and its bucket {of.bucket} have not seen the same ops yet: try again later")
        yield from self._map()

    def _levelled(self, of: KeyName) -> bool:
        """Let whoever is behind go on; return whether every node of both stands at one position."""
        sides, target, [piece] = self.sides, self.sides.target, self.buckets
        here = sides.homes(self.leg.target)
        if here[0] is None:
            with target.translated(), target.transaction():
                holds = sides.fence((CATCHING,)).holds(target)
                if holds and moves.legs_within(target, self.buckets)[piece].home == LENT:
                    moves.set_state(target, [of.bucket], STOPPED)
        legs = [sides.legs(node).get(piece) for node in sides.nodes_of(self.leg.source)]
        there = [leg.position if leg is not None and leg.state == MOVED else None for leg in legs]
        bucket, key = [at for at in here if at is not None], [at for at in there if at is not None]
        if len(bucket) < len(here) or len(key) < len(there):
            return False
        if {*bucket, *key} == {bucket[0]}:
            return True
        settings, log, move = self._client.settings, self._client.log, self.leg.move
        both = ((self.leg.target, of.bucket, bucket, key), (self.leg.source, piece, key, bucket))
        for shard, number, mine, others in both:
            if mine[0] < min(others):
                session = self._client.nodes.primary(shard)
                level = Level(shard, session, log, settings.apply, settings.tables, piece, move, number)
                level.upto(min(others))
                break
        return False

    def _tell(self, step: MoveStep) -> None:
        """Note how far the move is, for those who look from elsewhere; nothing is noted between stop and start."""
        waits = step.stage == "waiting"
        if step.stage == "stopping" or (clock.mono_s() - self._noted_s < NOTED_S and waits == self._waits):
            return
        self._noted_s, self._waits = clock.mono_s(), waits
        moves.note_progress(self.sides.target, self.buckets, self.leg.move, *step)

    def hold(self) -> bool:
        """Say that this mover is at work, so that no other one begins; return whether no other one is at it."""
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
        ledger_queries.give_span(self.sides.target, ledger_queries.last_span(self.sides.source), 0)
