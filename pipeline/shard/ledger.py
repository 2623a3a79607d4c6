"""The pipeline's own rows in a shard: watermarks, producers, rejects, losses, ids. All inside the apply transaction.

Invariant: whatever is written here is written in the transaction of the rows it speaks of.

The replicas of a shard that were away for too long, as its primary remembers them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import structs

from pipeline.model.op import Entry, Position, decode, encode
from pipeline.shard.session import NodeSession

#: What a reject's statement may hold beside the op: 4,000 characters of reason, the row's key, names and numbers.
_REJECT_BYTES = 20_000


class Mark(NamedTuple):
    """A bucket's watermark, and whether this shard owns the bucket (`active`)."""

    position: Position
    state: str


class Reject(NamedTuple):
    """An entry that the database refused for good."""

    entry: Entry
    table: str
    row_key: str
    code: int | None
    reason: str


class LostRange(NamedTuple):
    """Positions that the log skipped (producer 0), or a producer's sequences that it forgot."""

    bucket: int
    epoch: int
    producer: int
    first: int
    last: int


def lock(session: NodeSession, buckets: Iterable[int], limit: int) -> dict[int, Mark]:
    """Lock up to *limit* of the buckets' watermarks, leaving out what another worker holds."""
    # from a random end, so that under a steady load no bucket is always the last
    order = random.choice(("", " DESC"))
    found = session.rows(
        f"SELECT bucket, epoch, seq, state FROM pipeline_watermarks WHERE bucket IN ({_list(buckets)})"
        f" ORDER BY bucket{order} LIMIT {limit}{session.dialect.lock}"
    )
    return {bucket: Mark(Position(epoch, seq), state) for bucket, epoch, seq, state in found}


def move(session: NodeSession, marks: Mapping[int, Position]) -> None:
    """Move watermarks; the rows are there and locked."""
    now = session.dialect.now_ms
    rows = ", ".join(f"({b}, {epoch}, {seq}, 'active', {now})" for b, (epoch, seq) in marks.items())
    _upsert(session, "watermarks", "bucket, epoch, seq, state, committed_ms", rows, 1, ("epoch", "seq", "committed_ms"))


def seen(session: NodeSession, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return the last applied sequence of each (bucket, producer); 0 where there is none."""
    wanted = set(pairs)
    buckets, producers = {b for b, _ in wanted}, {p for _, p in wanted}
    found = session.rows(
        "SELECT bucket, producer, seq FROM pipeline_producers"
        f" WHERE bucket IN ({_list(buckets)}) AND producer IN ({_list(producers)})"
    )
    last = dict.fromkeys(wanted, 0)
    return last | {(b, p): seq for b, p, seq in found if (b, p) in wanted}


def remember(session: NodeSession, last: Mapping[tuple[int, int], int]) -> None:
    """Move the producers' sequences."""
    now = session.dialect.now_ms
    rows = ", ".join(f"({b}, {p}, {seq}, {now})" for (b, p), seq in last.items())
    _upsert(session, "producers", "bucket, producer, seq, seen_ms", rows, 2, ("seq", "seen_ms"))


def reject(session: NodeSession, rejects: Sequence[Reject]) -> None:
    """Record refused ops, one statement each: an op may be large."""
    now, limit_bytes = session.dialect.now_ms, session.statement_bytes() - _REJECT_BYTES
    for entry, table, row_key, code, reason in rejects:
        numbers = (
            f"{entry.bucket}, {entry.position.epoch}, {entry.position.seq}, {entry.producer}, {entry.producer_seq}"
        )
        texts = f"'rejected', {text_literal(table[:128])}, {text_literal(row_key[:255])}"
        why = f"{'NULL' if code is None else code}, {text_literal(reason[:4000])}"
        op = _stored_op(entry.payload, limit_bytes)
        session.execute(
            "INSERT INTO pipeline_rejects (bucket, epoch, seq, producer, producer_seq, state, table_name, row_key,"
            f" code, reason, op, rejected_ms) VALUES ({numbers}, {texts}, {why}, {op}, {now})"
        )


def _stored_op(payload: bytes, limit_bytes: int) -> str:
    """Return an op as a literal; without its values where the server takes no statement that holds them."""
    whole = text_literal(payload.decode())
    if len(whole.encode()) <= limit_bytes:
        return whole
    bare = structs.replace(decode(payload), columns=(), values=(), where=None, expressions=(), ops=())
    return text_literal(encode(bare).decode())


def lose(session: NodeSession, losses: Iterable[LostRange]) -> None:
    """Record what was lost, by name; the same loss twice is one."""
    now = session.dialect.now_ms
    rows = ", ".join(f"({b}, {e}, {p}, {first}, {last}, {now})" for b, e, p, first, last in losses)
    if rows:
        columns = "bucket, epoch, producer, first_seq, last_seq, seen_ms"
        _upsert(session, "lost", columns, rows, 4, ("last_seq",))


def known_keys(session: NodeSession, keys: Iterable[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return which idempotency keys have been applied."""
    wanted = set(keys)
    found = session.rows(
        f"SELECT bucket, idempotency_key FROM pipeline_idempotency WHERE bucket IN ({_list({b for b, _ in wanted})})"
        f" AND idempotency_key IN ({', '.join(text_literal(k) for _, k in wanted)})"
    )
    return {(b, k) for b, k in found} & wanted


def keep_keys(session: NodeSession, keys: Iterable[tuple[int, str]]) -> None:
    """Remember idempotency keys."""
    now = session.dialect.now_ms
    rows = ", ".join(f"({b}, {text_literal(k)}, {now})" for b, k in keys)
    session.execute(f"INSERT INTO pipeline_idempotency (bucket, idempotency_key, seen_ms) VALUES {rows}")


def keep_ids(session: NodeSession, ids: Iterable[tuple[Entry, int]]) -> None:
    """Remember the ids that the database gave."""
    now = session.dialect.now_ms
    rows = ", ".join(f"({e.bucket}, {e.producer}, {e.producer_seq}, {row_id}, {now})" for e, row_id in ids)
    _upsert(session, "ids", "bucket, producer, producer_seq, row_id, seen_ms", rows, 3, ("row_id",))


def stored_schema(session: NodeSession, hash: str) -> str | None:
    """Return the table definition with that hash, if the shard has been told it."""
    found = session.rows(f"SELECT definition FROM pipeline_schemas WHERE hash = {text_literal(hash)}")
    return str(found[0][0]) if found else None


def forget_producers(session: NodeSession, older_than_s: int) -> None:
    """Delete producers, idempotency keys and ids not seen for so long, a few at a time."""
    for table in ("producers", "idempotency", "ids"):
        session.execute(
            f"DELETE FROM pipeline_{table} WHERE seen_ms < {session.dialect.now_ms} - {older_than_s * 1000}"
            + (" LIMIT 1000" if session.dialect.name == "mysql" else "")
        )


def unfit_nodes(primary: NodeSession) -> dict[str, int]:
    """Return each unfit node, and the wall clock at which it was last with its primary, ms."""
    return {str(node): int(ms) for node, ms in primary.query("SELECT node, since_ms FROM pipeline_unfit")}


def mark_unfit(primary: NodeSession, node: str, since_ms: int) -> None:
    """Record a node as unfit; committed when this returns."""
    with primary.translated(), primary.transaction():
        primary.execute(
            f"INSERT INTO pipeline_unfit (node, since_ms) VALUES ({text_literal(node)}, {since_ms})"
            + primary.dialect.on_conflict(["node"], ["since_ms"])
        )


def mark_fit(primary: NodeSession, node: str) -> None:
    """Record a node as rebuilt."""
    with primary.translated(), primary.transaction():
        primary.execute(f"DELETE FROM pipeline_unfit WHERE node = {text_literal(node)}")


def text_literal(value: str) -> str:
    """Return a text as an SQL literal; the session is pinned to NO_BACKSLASH_ESCAPES, so `'` is all there is to do."""
    return "'" + value.replace("'", "''") + "'"


def _upsert(session: NodeSession, table: str, columns: str, rows: str, keys: int, renew: Sequence[str]) -> None:
    key = columns.split(", ")[:keys]
    session.execute(f"INSERT INTO pipeline_{table} ({columns}) VALUES {rows}{session.dialect.on_conflict(key, renew)}")


def _list(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
