"""Take a replica out of account that is absent or unlike its primary; take a restored database back in.

Take a replica out of account that has been absent for too long, or that is not like its primary. A replica is absent
since the last check at which it had caught up with the primary's previous position. Such a replica may be unreachable
or merely stuck. Time without checks does not count, and a lost note starts the count again: missing knowledge never
makes a node unfit.

After `[apply] replica_away_s` the replica is recorded as unfit in the primary's database. Only then is the log trimmed
of what the replica lacks. A replica stays unfit until an operator declares it rebuilt. An unfit replica's watermarks
prove nothing: one that skipped what it missed has newer ones all the same.

The same holds for a replica with a filter, or one that passes over errors: rows may be missing there for good. Another
difference (`shard/survey/mysql`) makes a replica unfit for as long as it lasts. What the account may not see is no
proof: a warning names the node.

Take a database that was restored back into its deployment, or a queue in the place of one that is gone.
Invariant: no op is applied once more onto rows that have it. A bucket goes on behind the highest position that anybody
knows to have been applied. What a backup with watermarks lacks is applied from the log, as far as the log has it.
The rest is recorded as lost, by position. A bucket that has moved since the backup has one owner: the shard that has
begun with it last, never the backup. A backup without the rows of a bucket that came to the shard is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from pipeline import clock
from pipeline.admin.reshape import renew_epochs
from pipeline.admin.stops import stir, who
from pipeline.client import Client
from pipeline.config.buckets import Placement, format_ranges
from pipeline.enqueue.buckets import draw, follow
from pipeline.enqueue.deployment import Agreement, applied_once, asked, known_positions, tries
from pipeline.errors import NotMigrated, PipelineError, Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.model import START, Position, deleted_behind
from pipeline.model.fingerprint import Fingerprint
from pipeline.model.fingerprint import differences as different_in
from pipeline.model.wait_reason import utc_text
from pipeline.oplog.shared_state import SharedState
from pipeline.per_process import chance
from pipeline.shard import NodeSession, records
from pipeline.shard.columns import columns_of, create_own_tables
from pipeline.shard.records import (
    GONE,
    MOVED,
    LostRange,
    Mark,
    ledger_queries,
    lock_buckets,
    mark_fit,
    mark_unfit,
    moves,
    unfit_nodes,
)
from pipeline.shard.records.moves import ON_THE_WAY, Leg
from pipeline.shard.survey.mysql import Difference, differences, traits

#: Upkeep checks every 10 s; a longer gap between two checks does not count as absence, ms.
GAP_MS = 60_000
#: How long the comparison of a replica with its primary counts, ms: it costs five queries on each.
COMPARED_MS = 30_000
Marks = Mapping[int, Position]
logger = logging.getLogger("pipeline.upkeep")
#: Entries of one bucket that are read at once: an op may have megabytes.
STEP = 100


class LastSeen(msgspec.Struct, frozen=True):
    """What upkeep stores of a replica.

    Attributes:
        with_primary_ms: when the replica had last caught up, by the wall clock, less the time without checks.
        looked_ms: when it was last checked.
        target: the primary's watermarks then; a replica that has them has caught up.
        compared_ms: when it was last compared with its primary; 0: never.
        unlike: in what it was not like its primary then, and what to do; empty where it was.
        lasting: whether rows may be missing there for good.
    """

    with_primary_ms: int
    looked_ms: int
    target: dict[int, Position]
    compared_ms: int = 0
    unlike: str = ""
    lasting: bool = False

    @property
    def away_ms(self) -> int:
        """How long the replica has been absent, ms."""
        return self.looked_ms - self.with_primary_ms


def look(before: LastSeen | None, now_ms: int, primary: Marks, replica: Marks | None) -> LastSeen:
    """Return what to store after a check. Pure.

    Args:
        before: what the last check stored; None at the first.
        now_ms: the wall clock.
        primary: the primary's watermarks.
        replica: the replica's watermarks; None if it did not answer.
    """
    start = Position(-1, -1)
    if before is None:
        return LastSeen(now_ms, now_ms, dict(primary))
    if replica is not None and all(replica.get(b, start) >= mark for b, mark in before.target.items()):
        return replace(before, with_primary_ms=now_ms, looked_ms=now_ms, target=dict(primary))
    unwatched_ms = now_ms - before.looked_ms
    # a clock that was set back makes a replica neither nearer nor further
    gap_ms = 0 if 0 <= unwatched_ms <= GAP_MS else unwatched_ms
    return replace(before, with_primary_ms=before.with_primary_ms + gap_ms, looked_ms=now_ms)


def fit_replicas(pipeline: Client, shard: str, primary: Marks) -> list[tuple[NodeSession, Marks | None]]:
    """Return the replicas of a shard that count, each with its watermarks: None for one that does not answer.

    A replica that has been absent for too long, or may lack rows for good, is recorded as unfit. It does not count from
    then on. One that differs in another way does not count for as long as it does.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        primary: the primary's watermarks.
    """
    session = pipeline.nodes.primary(shard)
    unfit, counting = unfit_nodes(session), []
    for replica in pipeline.nodes.replicas(shard):
        if replica.node in unfit:
            continue
        there = _marks_of(replica)
        seen = _looked_at(pipeline, session, replica, primary, there)
        away = seen.away_ms > pipeline.settings.apply.replica_away_s * 1000
        why = _why_away(replica.node, seen.with_primary_ms) if away else seen.unlike
        if not why:
            counting.append((replica, there))
            continue
        if away or seen.lasting:
            mark_unfit(session, replica.node, seen.with_primary_ms, why)
            logger.error(Event("node_unfit", node=replica.node, why=why))
        unfit[replica.node] = why
    pipeline.log.publish_unfit(shard, json.dumps(unfit))
    return counting


def last_seen_of(log: SharedState, node: str) -> LastSeen | None:
    """Return what upkeep stored of a replica last; None where it has stored nothing.

    Args:
        log: has it.
        node: the replica's name.
    """
    noted = log.seen(node)
    try:
        return msgspec.json.decode(noted, type=LastSeen) if noted else None
    except (msgspec.MsgspecError, UnicodeError):  # no upkeep has written it
        return None


def declare_rebuilt(pipeline: Client, node: str, timeout_s: float = 30.0) -> None:
    """Let an unfit node count again after it was rebuilt from its primary.

    Args:
        pipeline: the deployment.
        node: the replica's name, such as `s0-r0`.
        timeout_s: how long the replica may take to reach the primary's watermarks.

    Raises:
        PipelineError: there is no such replica, it was not unfit, it lacks what its primary has, or is not like it.
    """
    shard = next((name for name in pipeline.topology.shards if node in pipeline.nodes.names(name)), None)
    if shard is None:
        raise PipelineError(f"there is no node {node!r} in the configuration")
    primary = pipeline.nodes.primary(shard)
    [replica] = [one for one in pipeline.nodes.replicas(shard) if one.node == node]
    if unlike := list(differences(traits(replica), traits(primary))):
        raise PipelineError(f"node {node!r} is not like its primary: {_sentence(unlike)}")
    if node not in unfit_nodes(primary):
        raise PipelineError(f"node {node!r} is not unfit: there is nothing to do")
    target = ledger_queries.positions_of(primary)
    for _ in clock.polls(timeout_s):
        there = _marks_of(replica)
        if there is not None and all(there.get(b, Position(-1, -1)) >= mark for b, mark in target.items()):
            break
    else:
        raise PipelineError(f"node {node!r} lacks what {primary.node} has, after {timeout_s:g} s too: rebuild it first")
    pipeline.log.note_seen(node, _text(look(None, clock.wall_ms(), target, target)))
    mark_fit(primary, node)
    pipeline.log.publish_unfit(shard, json.dumps(unfit_nodes(primary)))


def _why_away(node: str, since_ms: int) -> str:
    return (
        f"it was last with its primary at {utc_text(since_ms)}, and the log no longer keeps what it lacks:"
        f" rebuild it, then run pipeline rebuilt {node}"
    )


def _marks_of(replica: NodeSession) -> Marks | None:
    try:
        return ledger_queries.positions_of(replica)
    except (Unavailable, NotMigrated) as error:
        logger.warning(Event("replica_away", node=replica.node, error=error))
        return None


def _looked_at(
    pipeline: Client, primary: NodeSession, replica: NodeSession, target: Marks, there: Marks | None
) -> LastSeen:
    now_ms = clock.wall_ms()
    seen = look(last_seen_of(pipeline.log, replica.node), now_ms, target, there)
    # a clock that was set back ends no comparison later
    if there is not None and not 0 <= now_ms - seen.compared_ms < COMPARED_MS:
        seen = _compared(seen, primary, replica)
    pipeline.log.note_seen(replica.node, _text(seen))
    return seen


def _compared(before: LastSeen, primary: NodeSession, replica: NodeSession) -> LastSeen:
    """Return the note with a new comparison; the same note where a node does not answer."""
    node = replica.node
    try:
        here = traits(replica)
        found = list(differences(here, traits(primary)))
    except Unavailable as error:
        logger.warning(Event("replica_not_compared", node=node, error=error))
        return before
    if not (here.seen or before.compared_ms):
        logger.warning(Event("replication_not_shown", node=node, text="filters of its replication may go unseen"))
    lasting = any(one.lasting for one in found)
    unlike = _sentence(found) + (f"; then rebuild it from its primary, and run pipeline rebuilt {node}" * lasting)
    if unlike != before.unlike:
        logger.log(
            logging.ERROR if unlike else logging.INFO,
            Event("replica_unlike", node=node, why=unlike) if unlike else Event("replica_alike", node=node),
        )
    return replace(before, compared_ms=before.looked_ms, unlike=unlike, lasting=lasting)


def _sentence(found: Sequence[Difference]) -> str:
    return "; ".join(f"{one.place} {one.what}: {one.cure}" for one in found)


def _text(seen: LastSeen) -> str:
    return msgspec.json.encode(seen).decode()


class Restored(NamedTuple):
    """What is done with one bucket of a database that was restored.

    Attributes:
        bucket: its number.
        position: the watermark that it goes on behind.
        replayed: how many entries behind the watermark the log still has; workers apply them.
        skipped: how many entries up to the watermark the log still has, where the backup had no watermark. Such
            entries were applied before the backup or after it, and are not applied again.
        lost: what the database lacks and the log has deleted.
        owner: the shard to which the bucket has moved since the backup: what the database has of it is deleted. Empty:
            the bucket is here.
    """

    bucket: int
    position: Position
    replayed: int
    skipped: int
    lost: tuple[LostRange, ...]
    owner: str = ""


def restoration_of(pipeline: Client, shard: str) -> list[Restored]:
    """Return what `restore` would do with each bucket that has ops; change nothing.

    Args:
        pipeline: the deployment.
        shard: the shard's name.

    Raises:
        PipelineError: nothing is known of the deployment, or of what was applied to a bucket that has ops; or the
            backup lacks the rows of a bucket that has moved, or may have others than the shard to which it moves.
        WrongDeployment: the configuration does not fit the deployment.
    """
    _noted(pipeline, shard)
    _refuse_split(pipeline, shard)
    told = _Told(pipeline, shard)
    told.refuse_unknown()
    pipeline.topology.follow(told.drawn)
    there, log = known_positions(pipeline.nodes.primary(shard)), pipeline.log
    wanted = pipeline.topology.applied_by(shard)
    known, tails = _known(pipeline, shard), log.tails(wanted)
    if not known and (unknown := sorted(tails.keys() - there.keys())):
        raise PipelineError(
            f"neither Redis nor a replica knows what was applied to {shard}, and {len(unknown)} buckets (the first: "
            f"{unknown[0]}) have ops in their logs: restore a backup that has the tables pipeline_*, too"
        )
    here = [
        _without_mark(pipeline, bucket, known.get(bucket, START))
        if bucket not in there
        else _behind(pipeline, bucket, there[bucket], known.get(bucket))
        for bucket in sorted({*known, *there, *tails} & {*wanted})
    ]
    return here + [Restored(b, there.get(b, START), 0, 0, (), owner) for b, owner in sorted(told.left().items())]


def restore(pipeline: Client, shard: str) -> list[Restored]:
    """Let the database of a shard, which was restored, go on behind what was applied; return what was done.

    Its rows may come from any backup: with the pipeline's own tables, or without them.

    Args:
        pipeline: the deployment.
        shard: the shard's name.

    Raises:
        PipelineError, WrongDeployment: as for `restoration_of`; nothing was changed.
    """
    notes, session = _noted(pipeline, shard), pipeline.nodes.primary(shard)
    plan = restoration_of(pipeline, shard)
    done, left = ([one for one in plan if bool(one.owner) is gone] for gone in (False, True))
    there = known_positions(session)
    create_own_tables(session)
    all_buckets = {*pipeline.topology.applied_by(shard)}
    with session.translated(), session.transaction():
        # a watermark that is right belongs to the workers, who may move it right now
        if moved := {one.bucket: one.position for one in done if there.get(one.bucket) != one.position}:
            records.move(session, moved)
        for one in done:
            records.lose(session, one.lost)
            if one.bucket not in there and (sent := _sent(pipeline, one)):
                records.remember(session, sent)
        if lacking := all_buckets - there.keys() - {one.bucket for one in done}:
            session.execute(ledger_queries.buckets_sql(session.dialect, sorted(lacking)))
        _give_up(session, shard, left)
    for _ in tries():
        if notes.keep(notes.settled()):
            break
        notes = _noted(pipeline, shard)
    follow(pipeline.log, pipeline.nodes, pipeline.topology, anew=True)
    if left:  # whoever acted on what the backup says learns the map
        renew_epochs(pipeline, {shard, *(one.owner for one in left)})
        stir(pipeline, shard)
    # a worker that meets a bucket which has left cleans the mark, but where the backup knows nothing of the bucket
    pipeline.log.mark_clean(shard, pipeline.topology.elsewhere(shard, range(pipeline.topology.buckets)))
    pipeline.log.mark_dirty(shard, [one.bucket for one in done if one.replayed])
    for one in left:
        pipeline.log.mark_dirty(one.owner, [one.bucket])
    return plan


def take_queue(pipeline: Client) -> None:
    """Let this configuration's Redis and prefix be the queue of these databases, and refuse the one before.

    The databases get a deployment of their own: processes that know the Redis of before are refused there.

    Args:
        pipeline: the deployment.

    Raises:
        PipelineError: this Redis keeps the queue of another deployment, or the databases know none.
        WrongDeployment: the configuration differs in more than Redis and its prefix.
    """
    for _ in tries():
        notes = asked(pipeline.log, pipeline.nodes, pipeline.topology)
        noted = notes.newest_of_shards
        if noted is None:
            raise PipelineError("these databases belong to no deployment yet; run: pipeline migrate")
        other = notes.redis if notes.redis is not None and notes.redis.deployment != noted.deployment else None
        if other is not None and not _taken_in_part(pipeline, other, noted):
            raise PipelineError(
                f"this Redis and prefix are the queue of {other.source} already: write another [redis] prefix"
            )
        if found := [*different_in(notes.mine, replace(noted, prefix=notes.mine.prefix)), *notes.standing(noted)]:
            raise WrongDeployment(found)
        own = replace(noted, deployment=uuid4().hex, redis=(), databases=())
        if notes.keep(own.changed(notes.named)):
            break


def _taken_in_part(pipeline: Client, redis: Fingerprint, noted: Fingerprint) -> bool:
    """Return whether a run that was killed has noted in Redis alone that this is the queue; nobody has used it then."""
    topology = pipeline.topology
    if redis.version <= noted.version or not all(topology.fingerprint.leads_to(one, redis) for one in topology.shards):
        return False
    return not any(pipeline.log.marks(one) for one in topology.shards if not topology.group_of(one))


def _refuse_split(pipeline: Client, shard: str) -> None:
    """Raise where a key has a shard of its own, or moves, and the shard that was restored is one of the two.

    Their watermarks are of one log: a backup of another time has ops of the key twice, or not at all. What the other
    shard says counts beside the map, which may be of another time.
    """
    topology = pipeline.topology
    noted = Placement.noted(pipeline.log.placement()) or topology.placement
    drawn, _ = draw(pipeline.nodes, topology, noted)
    under_way = {**noted.moves, **drawn.moves}
    for number, piece in {**noted.pieces, **drawn.pieces}.items():
        home, moving = topology.shard_of(piece.of.bucket), under_way.get(number, ())
        if shard not in (home, piece.shard, *moving):
            continue
        where, end = f"on {home} has a shard of its own, {piece.shard}", ""
        if moving:
            where = f"is being moved from {moving[0]} to {moving[1]}"
            end = f", or end the move first: see pipeline move show {piece.of}"
        raise PipelineError(
            f"{piece.of} of bucket {piece.of.bucket} {where}: nobody knows which ops of the key a backup of {shard} "
            f"has. Promote a replica of {shard} in its place{end}"
        )


class _Told:
    """What all shards say of buckets, while a shard that was restored may be of another time.

    Args:
        pipeline: the deployment.
        shard: the one that was restored.
    """

    def __init__(self, pipeline: Client, shard: str):
        nodes, topology, self._shard = pipeline.nodes, pipeline.topology, shard
        self._here, self._legs = _marks(nodes.primary(shard)), moves.legs(nodes.primary(shard))
        others = {other: nodes.primary(other) for other in topology.shards if other != shard}
        self._there = {other: moves.legs(session) for other, session in others.items()}
        self._owners = {
            bucket: other
            for other, session in others.items()
            for bucket, mark in _marks(session).items()
            if mark.owned and bucket < topology.buckets
        }
        #: The map by what they say.
        self.drawn, _ = draw(nodes, topology, topology.placement)

    def left(self) -> dict[int, str]:
        """Return the buckets of which the backup is, and that are on another shard by now: which one."""
        if not self._here:  # rows alone: any of what has moved may be there
            return {bucket: owner for bucket, owner in self._owners.items() if bucket in self.drawn.owners}
        return {bucket: owner for bucket, owner in self._owners.items() if self._claims(bucket, owner)}

    def _claims(self, bucket: int, owner: str) -> bool:
        """Return whether the backup says that a bucket is here, or stops here for a move that is long over."""
        mark = self._here.get(bucket)
        if mark is None or mark.state != MOVED:
            return mark is not None and mark.owned
        leg, last = self._legs.get(bucket), self._there[owner].get(bucket)
        return leg is None or last is None or leg.move != last.move

    def refuse_unknown(self) -> None:
        """Raise where the backup lacks rows that moved, or where a shard may have taken more than the backup has."""
        for other, legs in self._there.items():
            of_buckets = {bucket: leg for bucket, leg in legs.items() if leg.of is None}
            lacking = {bucket: leg for bucket, leg in of_buckets.items() if self._lacks(other, leg)}
            if lacking:
                began = utc_text(max(leg.began_ms for leg in lacking.values()))
                raise PipelineError(
                    f"this backup of {self._shard} lacks the rows of the buckets {format_ranges(lacking)}, which moved "
                    f"there from {other} by an order of {began}: restore a backup of after the move, roll forward with "
                    f"the binary logs until behind it, or promote a replica of {self._shard}"
                )
            ahead = [bucket for bucket, leg in of_buckets.items() if self._may_be_ahead(leg)]
            if ahead:
                raise PipelineError(
                    f"the buckets {format_ranges(ahead)} are being moved from {self._shard} to {other}, which may have "
                    f"what this backup lacks: end the move first: pipeline move give-up {format_ranges(ahead)}"
                )

    def _lacks(self, other: str, leg: Leg) -> bool:
        """Return whether a bucket has gone from another shard to this one, and no shard says that it has the bucket."""
        here = self._here.get(leg.bucket)
        came = leg.state == GONE and (leg.source, leg.target) == (other, self._shard)
        return came and leg.bucket not in self._owners and not (here is not None and here.owned)

    def _may_be_ahead(self, leg: Leg) -> bool:
        """Return whether a shard copies a bucket from here under a move of which the backup knows, too."""
        mine = self._legs.get(leg.bucket)
        return leg.source == self._shard and leg.state in ON_THE_WAY and mine is not None and mine.move == leg.move


def _marks(session: NodeSession) -> dict[int, Mark]:
    return ledger_queries.marks_of(session) if columns_of(session, "pipeline_watermarks") else {}


def _give_up(session: NodeSession, shard: str, left: Sequence[Restored]) -> None:
    """Let a shard say of buckets that they have left it, as a move does: workers delete what is there of them.

    Args:
        session: of its primary, inside a transaction.
        shard: its name.
        left: with their owners.
    """
    marks = lock_buckets(session, [one.bucket for one in left]) if left else {}
    for bucket, position, *_, owner in left:
        if bucket in marks and not (marks[bucket].owned or marks[bucket].state == MOVED):
            continue  # it was on its way just then
        now_ms = clock.wall_ms()
        leg = Leg(bucket, chance.getrandbits(62), shard, owner, now_ms, 0, who()[:128], moves.DEFAULTS, None, None)
        moves.place_mark(session, bucket, position, GONE)
        moves.write_leg(session, leg)


def _noted(pipeline: Client, shard: str) -> Agreement:
    """Return the notes of Redis and of all shards, the one that was restored included, whose own note does not count.

    Raises:
        PipelineError: no other keeps a fingerprint.
        WrongDeployment: the configuration does not fit the deployment.
    """
    if shard not in pipeline.topology.shards:
        raise PipelineError(f"[shards.{shard}] is not in {pipeline.settings.source}")
    notes = Agreement(pipeline.log, pipeline.nodes, pipeline.topology)
    for other in pipeline.topology.shards:
        if other != shard:
            notes.ask(other)
    alone = notes.noted is None  # the only shard, and Redis has forgotten
    if not alone:
        notes.refuse()
    notes.ask(shard)
    if notes.noted is None:
        raise PipelineError("neither Redis nor a database knows a deployment; run: pipeline migrate")
    if alone:
        notes.refuse()
    else:
        notes.shards[shard] = None  # a backup may be of another time, or of another deployment
    return notes


def _known(pipeline: Client, shard: str) -> dict[int, Position]:
    """Return the highest position of each bucket that Redis or a replica knows to have been applied on a shard."""
    found = [applied_once(pipeline.log, pipeline.topology, shard)]
    for replica in pipeline.nodes.replicas(shard):
        try:
            found.append(ledger_queries.positions_of(replica))
        except (NotMigrated, Unavailable):
            continue
    highest: dict[int, Position] = {}
    for bucket, position in (pair for marks in found for pair in marks.items() if pair[1].epoch):
        highest[bucket] = max(position, highest.get(bucket, position))
    return highest


def _without_mark(pipeline: Client, bucket: int, known: Position) -> Restored:
    every, behind = (pipeline.log.queued({bucket: mark})[bucket] for mark in (START, known))
    return Restored(bucket, known, behind, every - behind, ())


def _behind(pipeline: Client, bucket: int, mark: Position, known: Position | None) -> Restored:
    """Return what to do with a bucket whose backup has a watermark: it says exactly what the rows have."""
    entries = pipeline.log.read({bucket: mark}, {bucket: 1})[bucket]
    first = entries[0].position if entries else None
    lost: tuple[LostRange, ...] = ()
    if deleted_behind(mark, first, known) and pipeline.log.trimmed(bucket):
        assert known is not None
        lost = tuple(_missing(bucket, mark, first, known))
        mark = Position(first.epoch, first.seq - 1) if first is not None else known
    return Restored(bucket, mark, pipeline.log.queued({bucket: mark})[bucket], 0, lost)


def _missing(bucket: int, mark: Position, first: Position | None, known: Position) -> Iterator[LostRange]:
    """Yield the positions between a watermark and the first entry that is left, or the last that was applied."""
    last = Position(first.epoch, first.seq - 1) if first is not None else known
    if last.epoch == mark.epoch:
        yield LostRange(bucket, mark.epoch, 0, mark.seq + 1, last.seq)
        return
    if known.epoch == mark.epoch:
        yield LostRange(bucket, mark.epoch, 0, mark.seq + 1, known.seq)
    if last.seq >= 0:
        yield LostRange(bucket, last.epoch, 0, 0, last.seq)


def _sent(pipeline: Client, one: Restored) -> dict[tuple[int, int], int]:
    """Return the last sequence of each producer up to a watermark, so that what is sent again is recognised."""
    last: dict[tuple[int, int], int] = {}
    at = START
    while entries := pipeline.log.read({one.bucket: at}, {one.bucket: STEP})[one.bucket]:
        for entry in entries:
            if entry.position > one.position:
                return last
            last[one.bucket, entry.producer] = max(entry.producer_seq, last.get((one.bucket, entry.producer), 0))
        at = entries[-1].position
    return last
