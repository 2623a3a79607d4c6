"""Read and write the pipeline's own rows in a shard: watermarks, producers, rejects, losses, ids, unfit replicas.

Invariant: the functions that take a `session` run inside the apply transaction. So a row here is committed together
with the rows that it is about.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config.buckets import FIRST_PIECE, log_number
from pipeline.model import Entry, Position
from pipeline.per_process import chance
from pipeline.shard import NodeSession

#: The longest reason for which a node is unfit, characters: as wide as its column.
MOST_WHY = 1000
READ_MARKS = "SELECT bucket, epoch, seq, state FROM pipeline_watermarks"
#: States of a bucket: applied; applied, and ops set aside hold rows; not applied behind a rejected op.
ACTIVE, HOLDING, HALTED = "active", "holding", "halted"
#: States of a bucket one of whose keys has a shard of its own, its *piece*: applied without the key, and ops set aside
#: may hold rows; and not applied while the key leaves, or comes back.
LENT, STOPPED = "lent", "stopped"
#: The states of a whole bucket in which its ops are applied, and all of a bucket on the shard that owns it.
APPLYING = (ACTIVE, HOLDING)
OWNED = (*APPLYING, HALTED, LENT, STOPPED)
#: The states of a bucket in which ops may be set aside that are still to come; and those in which whoever applies asks.
ASIDE_IN = (HOLDING, HALTED, LENT, STOPPED)
#: States of a bucket that moves, on the shard that it comes to, and on the one that it has left.
COPYING, CATCHING, MOVED, GONE = "copying", "catching", "moved", "gone"
HELD_IN = (HOLDING, LENT, STOPPED, MOVED)


class Mark(NamedTuple):
    """A bucket's watermark, and its state on this shard."""

    position: Position
    state: str

    @property
    def owned(self) -> bool:
        """Whether this shard owns the bucket."""
        return self.state in OWNED


class Reject(NamedTuple):
    """An entry that is set aside: refused for good, or parked behind one of the same row.

    Attributes:
        row_key: what names the row, for people.
        holds: the keys of the rows that it holds from now on, see `shard.row_keys`.
    """

    entry: Entry
    table: str
    row_key: str
    code: int | None
    reason: str
    state: str = "rejected"
    holds: frozenset[str] = frozenset()


class LostRange(NamedTuple):
    """Positions that the log skipped (producer 0), or a producer's sequences that the log forgot."""

    bucket: int
    epoch: int
    producer: int
    first: int
    last: int

    def __str__(self) -> str:
        """Return the range as logs and messages name it."""
        whose = f"producer={self.producer}" if self.producer else f"epoch={self.epoch}"
        return f"bucket={self.bucket} {whose} seq={self.first}..{self.last}"


def ops_in(losses: Iterable[LostRange]) -> int:
    """Return how many ops are lost. A gap in a log and the same ops by their producers' names count once.

    Args:
        losses: ranges of both kinds.
    """
    sums: dict[tuple[int, int], list[int]] = {}
    for one in losses:
        sums.setdefault((one.bucket, one.epoch), [0, 0])[one.producer > 0] += one.last - one.first + 1
    return sum(map(max, sums.values()))


def lock(session: NodeSession, buckets: Iterable[int], limit: int) -> dict[int, Mark]:
    """Lock up to *limit* of the watermarks of *buckets*, and skip those that another worker holds.

    Args:
        session: inside the apply transaction.
        buckets: which to lock.
        limit: the most watermarks.
    """
    # from a random end, so that no bucket is always the last under a steady load
    order = chance.choice(("", " DESC"))
    which = f"bucket IN ({_list(buckets)}) ORDER BY bucket{order} LIMIT {limit}{session.dialect.lock}"
    [found] = session.ask(f"{READ_MARKS} WHERE {which}")
    return marks_in(found)


def lock_buckets(session: NodeSession, buckets: Iterable[int]) -> dict[int, Mark]:
    """Lock the watermarks of *buckets*; wait for a worker that holds one.

    Args:
        session: inside the transaction.
        buckets: which to lock.
    """
    return marks_in(
        session.rows(f"{READ_MARKS} WHERE bucket IN ({_list(buckets)}) ORDER BY bucket{session.dialect.hold}")
    )


def lock_all(session: NodeSession, buckets: Iterable[int]) -> dict[int, Mark]:
    """Lock all watermarks of *buckets*, and wait for who holds one; none where another worker does the same.

    The lowest watermark of the shard is the turn: who has it may wait, since nobody waits for whoever waits.

    Args:
        session: inside the apply transaction.
        buckets: which to lock.
    """
    [[lowest]] = session.rows("SELECT MIN(bucket) FROM pipeline_watermarks")
    if not session.rows(f"{READ_MARKS} WHERE bucket = {lowest}{session.dialect.lock}"):
        return {}
    return lock_buckets(session, buckets)


def marks(session: NodeSession, logs: Collection[int] | None = None) -> dict[int, Mark]:
    """Return watermarks, as they are committed by now or moved by this transaction.

    Args:
        session: inside the apply transaction.
        logs: the numbers of the logs whose buckets and pieces are asked for; None: all. A piece more costs nothing.
    """
    if logs is None:
        [found] = session.ask(READ_MARKS)
        return marks_in(found)
    if not logs:
        return {}
    [found] = session.ask(f"{READ_MARKS} WHERE bucket IN ({_list(logs)}) OR bucket >= {FIRST_PIECE}")
    return {bucket: mark for bucket, mark in marks_in(found).items() if log_number(bucket) in logs}


def marks_in(rows: Iterable[tuple[Any, ...]]) -> dict[int, Mark]:
    """Return watermarks by their buckets.

    Args:
        rows: of `READ_MARKS`.
    """
    return {bucket: Mark(Position(epoch, seq), state) for bucket, epoch, seq, state in rows}


def move(session: NodeSession, marks: Mapping[int, Position]) -> None:
    """Move watermarks, whose rows exist and are locked.

    Args:
        session: inside the apply transaction.
        marks: the new position of each bucket.
    """
    now = session.dialect.now_ms
    rows = ", ".join(f"({b}, {epoch}, {seq}, 'active', {now})" for b, (epoch, seq) in marks.items())
    _upsert(session, "watermarks", "bucket, epoch, seq, state, committed_ms", rows, 1, ("epoch", "seq", "committed_ms"))


def sent_by(ops: Iterable[tuple[int, ...]]) -> str:
    """Return the condition for rows of these buckets and producers; other pairs of the two match as well.

    Args:
        ops: bucket, producer, and more; at least one op.
    """
    every = list(ops)
    buckets, producers = ({one[i] for one in every} for i in (0, 1))
    return f"bucket IN ({_list(buckets)}) AND producer IN ({_list(producers)})"


def seen(session: NodeSession, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return the last applied sequence of each producer in a bucket; 0 where it has none.

    Args:
        session: inside the apply transaction.
        pairs: (bucket, producer).
    """
    wanted = set(pairs)
    [found] = session.ask(read_seen(wanted))
    return seen_in(found, wanted)


def read_seen(pairs: Collection[tuple[int, int]]) -> str:
    """Return the query of `seen`.

    Args:
        pairs: (bucket, producer); one at least.
    """
    return f"SELECT bucket, producer, seq FROM pipeline_producers WHERE {sent_by(pairs)}"


def seen_in(rows: Iterable[tuple[Any, ...]], pairs: Collection[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return what `seen` does.

    Args:
        rows: of `read_seen`.
        pairs: that were asked for.
    """
    return dict.fromkeys(pairs, 0) | {(b, p): seq for b, p, seq in rows if (b, p) in pairs}


def remember(session: NodeSession, last: Mapping[tuple[int, int], int]) -> None:
    """Move the producers' sequences.

    Args:
        session: inside the apply transaction.
        last: the last applied sequence by (bucket, producer).
    """
    now = session.dialect.now_ms
    rows = ", ".join(f"({b}, {p}, {seq}, {now})" for (b, p), seq in last.items())
    _upsert(session, "producers", "bucket, producer, seq, seen_ms", rows, 2, ("seq", "seen_ms"))


def lose(session: NodeSession, losses: Iterable[LostRange]) -> None:
    """Record lost ranges by name; the same range twice is one.

    Args:
        session: inside a transaction.
        losses: the ranges.
    """
    now = session.dialect.now_ms
    rows = ", ".join(f"({b}, {e}, {p}, {first}, {last}, {now})" for b, e, p, first, last in losses)
    if rows:
        columns = "bucket, epoch, producer, first_seq, last_seq, seen_ms"
        _upsert(session, "lost", columns, rows, 4, ("last_seq",))


def known_keys(session: NodeSession, keys: Iterable[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return which idempotency keys have been applied.

    Args:
        session: inside the apply transaction.
        keys: (bucket, idempotency key).
    """
    wanted = set(keys)
    found = session.rows(
        f"SELECT bucket, idempotency_key FROM pipeline_idempotency WHERE bucket IN ({_list({b for b, _ in wanted})})"
        f" AND idempotency_key IN ({', '.join(text_literal(k) for _, k in wanted)})"
    )
    return {(b, k) for b, k in found} & wanted


def keep_keys(session: NodeSession, keys: Iterable[tuple[int, str]]) -> None:
    """Record idempotency keys as applied.

    Args:
        session: inside the apply transaction.
        keys: (bucket, idempotency key); not applied before.
    """
    now = session.dialect.now_ms
    rows = ", ".join(f"({b}, {text_literal(k)}, {now})" for b, k in keys)
    session.execute(f"INSERT INTO pipeline_idempotency (bucket, idempotency_key, seen_ms) VALUES {rows}")


def keep_ids(session: NodeSession, ids: Iterable[tuple[Entry, int]]) -> None:
    """Record the ids that the database gave.

    Args:
        session: inside the apply transaction.
        ids: the entry of each op, and its row's id.
    """
    now = session.dialect.now_ms
    rows = ", ".join(f"({e.bucket}, {e.producer}, {e.producer_seq}, {row_id}, {now})" for e, row_id in ids)
    _upsert(session, "ids", "bucket, producer, producer_seq, row_id, seen_ms", rows, 3, ("row_id",))


def stored_schema(session: NodeSession, hash: str) -> str | None:
    """Return the JSON of the schema with a hash, if the shard has it.

    Args:
        session: inside a transaction.
        hash: the schema's hash.
    """
    found = session.rows(f"SELECT definition FROM pipeline_schemas WHERE hash = {text_literal(hash)}")
    return str(found[0][0]) if found else None


def forget_producers(session: NodeSession, older_than_s: int, waiting: Iterable[int] = ()) -> None:
    """Delete producers, idempotency keys and ids that have expired, a few at a time.

    Args:
        session: inside a transaction.
        older_than_s: the age at which a row expires, seconds.
        waiting: buckets whose logs go beyond their watermarks: their rows stay. An op behind a sequence that the shard
            has forgotten would look like one behind a loss.
    """
    kept = f" AND bucket NOT IN ({_list(waiting)})" if waiting else ""
    for table in ("producers", "idempotency", "ids"):
        session.execute(
            f"DELETE FROM pipeline_{table} WHERE seen_ms < {session.dialect.now_ms} - {older_than_s * 1000}{kept}"
            + (" LIMIT 1000" if session.dialect.name == "mysql" else "")
        )


def unfit_nodes(primary: NodeSession) -> dict[str, str]:
    """Return each unfit node, and why it is unfit and what to do.

    Args:
        primary: a session of the shard's primary.
    """
    return {str(node): str(why) for node, why in primary.query("SELECT node, why FROM pipeline_unfit")}


def mark_unfit(primary: NodeSession, node: str, since_ms: int, why: str) -> None:
    """Record a node as unfit; committed when this returns.

    Args:
        primary: a session of the shard's primary.
        node: the replica's name.
        since_ms: the wall clock at which it last had all that its primary had, as far as is known.
        why: why it is unfit and what to do, for people.
    """
    with primary.translated(), primary.transaction():
        primary.execute(
            "INSERT INTO pipeline_unfit (node, since_ms, why)"
            f" VALUES ({text_literal(node)}, {since_ms}, {text_literal(why[:MOST_WHY])})"
            + primary.dialect.on_conflict(["node"], ["since_ms", "why"])
        )


def mark_fit(primary: NodeSession, node: str) -> None:
    """Record a node as rebuilt; committed when this returns.

    Args:
        primary: a session of the shard's primary.
        node: the replica's name.
    """
    with primary.translated(), primary.transaction():
        primary.execute(f"DELETE FROM pipeline_unfit WHERE node = {text_literal(node)}")


def text_literal(value: str) -> str:
    """Return the text *value* as an SQL literal; in a session with NO_BACKSLASH_ESCAPES only `'` needs an escape."""
    return "'" + value.replace("'", "''") + "'"


def _upsert(session: NodeSession, table: str, columns: str, rows: str, keys: int, renew: Sequence[str]) -> None:
    key = columns.split(", ")[:keys]
    session.execute(f"INSERT INTO pipeline_{table} ({columns}) VALUES {rows}{session.dialect.on_conflict(key, renew)}")


def _list(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
