"""Take a database that was restored back into its deployment, or a queue in the place of one that is gone.

Invariant: no op is applied once more onto rows that have it. A bucket goes on behind the highest position that anybody
knows to have been applied. What a backup with watermarks lacks is applied from the log, as far as the log has it; the
rest is recorded as lost, by position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from uuid import uuid4

from msgspec.structs import replace

from pipeline.client import Client
from pipeline.enqueue.deployment import Agreement, asked, known_positions
from pipeline.errors import NotMigrated, PipelineError, Unavailable, WrongDeployment
from pipeline.model.fingerprint import Fingerprint, differences
from pipeline.model.op import START, Position, deleted_behind
from pipeline.shard.records import ledger, ledger_queries
from pipeline.shard.records.ledger import LostRange
from pipeline.shard.records.own_tables import own_tables
from pipeline.shard.session import NodeSession

#: Entries of one bucket that are read at once: an op may have megabytes.
STEP = 100


class Restored(NamedTuple):
    """What is done with one bucket of a database that was restored.

    Attributes:
        bucket: its number.
        position: the watermark that it goes on behind.
        replayed: how many entries behind the watermark the log still has; workers apply them.
        skipped: how many entries up to the watermark the log still has, where the backup had no watermark: they were
            applied before the backup or after it, and are not applied again.
        lost: what the database lacks and the log has deleted.
    """

    bucket: int
    position: Position
    replayed: int
    skipped: int
    lost: tuple[LostRange, ...]


def restoration_of(pipeline: Client, shard: str) -> list[Restored]:
    """Return what `restore` would do with each bucket that has ops; change nothing.

    Args:
        pipeline: the deployment.
        shard: the shard's name.

    Raises:
        PipelineError: nothing is known of the deployment, or of what was applied to a bucket that has ops.
        WrongDeployment: the configuration does not fit the deployment.
    """
    _noted(pipeline, shard)
    there, log = known_positions(pipeline.nodes.primary(shard)), pipeline.log
    wanted = [*pipeline.topology.buckets_of(shard), pipeline.topology.reference_bucket]
    known, tails = _known(pipeline, shard), log.tails(wanted)
    if not known and (unknown := sorted(tails.keys() - there.keys())):
        raise PipelineError(
            f"neither Redis nor a replica knows what was applied to {shard}, and {len(unknown)} buckets (the first: "
            f"{unknown[0]}) have ops in their logs: restore a backup that has the tables pipeline_*, too"
        )
    return [
        _without_mark(pipeline, bucket, known.get(bucket, START))
        if bucket not in there
        else _behind(pipeline, bucket, there[bucket], known.get(bucket))
        for bucket in sorted({*known, *there, *tails} & {*wanted})
    ]


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
    done = restoration_of(pipeline, shard)
    there = known_positions(session)
    create_own_tables(session)
    all_buckets = {*pipeline.topology.buckets_of(shard), pipeline.topology.reference_bucket}
    with session.translated(), session.transaction():
        # a watermark that is right belongs to the workers, who may move it right now
        if moved := {one.bucket: one.position for one in done if there.get(one.bucket) != one.position}:
            ledger.move(session, moved)
        for one in done:
            ledger.lose(session, one.lost)
            if one.bucket not in there and (sent := _sent(pipeline, one)):
                ledger.remember(session, sent)
        if lacking := all_buckets - there.keys() - {one.bucket for one in done}:
            session.execute(ledger_queries.buckets_sql(session.dialect, sorted(lacking)))
    notes.publish(notes.settled())
    pipeline.log.mark_dirty(shard, [one.bucket for one in done if one.replayed])
    return done


def take_queue(pipeline: Client) -> Fingerprint:
    """Let this configuration's Redis and prefix be the queue of these databases, and refuse the one before.

    The databases get a deployment of their own: processes that know the Redis of before are refused there.

    Args:
        pipeline: the deployment.

    Raises:
        PipelineError: this Redis keeps the queue of another deployment, or the databases know none.
        WrongDeployment: the configuration differs in more than Redis and its prefix.
    """
    notes = asked(pipeline.log, pipeline.nodes, pipeline.topology)
    noted = notes.newest_of_shards
    if noted is None:
        raise PipelineError("these databases belong to no deployment yet; run: pipeline migrate")
    if notes.redis is not None and notes.redis.deployment != noted.deployment:
        raise PipelineError(
            f"this Redis and prefix are the queue of {notes.redis.source} already: write another [redis] prefix"
        )
    if found := [*differences(notes.mine, replace(noted, prefix=notes.mine.prefix)), *notes.standing(noted)]:
        raise WrongDeployment(found)
    own = replace(noted, deployment=uuid4().hex, redis=(), databases=())
    new = own.changed(notes.named)
    notes.publish(new)
    return new


def create_own_tables(session: NodeSession) -> None:
    """Create those of the pipeline's own tables that are missing.

    Args:
        session: of a primary.
    """
    with session.translated(), session.transaction():
        for _, sql in own_tables(session.dialect.name):
            session.execute(sql)


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
    found = [pipeline.log.marks(shard)]
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
