"""Read what a shard's own tables say about an op, a bucket or the epochs, on the primary or a replica.

Each call is a transaction of its own.

Read all that a shard's own tables keep of one op: its commit, why it was set aside, and who settled it.
Each call is a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.errors import NotMigrated
from pipeline.model import Position
from pipeline.model.fingerprint import Fingerprint
from pipeline.shard import NodeSession
from pipeline.shard.dialect import Dialect
from pipeline.shard.records import READ_MARKS, LostRange, Mark, marks_in, ops_in, sent_by, text_literal
from pipeline.shard.records.set_aside import GIVEN_UP


class Fate(NamedTuple):
    """What one node knows of an op."""

    mark: Position | None
    state: str | None  # of the bucket on this shard
    applied_seq: int | None  # last applied sequence of the op's producer; None: the row has expired, or never was
    reject: tuple[str, str, int | None] | None  # state, reason, code
    lost: bool  # it was never applied, and never will be

    def reached(self, position: Position, producer_seq: int) -> bool:
        """Return whether the op, or its rejection, is committed on this node.

        Args:
            position: the op's position.
            producer_seq: the producer's sequence number.
        """
        if self.lost:
            return False
        if self.applied_seq is not None:
            return self.applied_seq >= producer_seq
        # the producer's row expires after a week: then only the op's epoch decides
        return self.mark is not None and self.mark.epoch == position.epoch and self.mark >= position


def fate(session: NodeSession, bucket: int, position: Position, producer: int, producer_seq: int) -> Fate:
    """Query one node about one op, in one round trip.

    Args:
        session: of the node.
        bucket: the op's bucket.
        position: the op's position.
        producer: the number of its producer.
        producer_seq: the producer's sequence number.
    """
    mine = f"bucket = {bucket} AND producer = {producer}"
    found = session.query(
        f"SELECT 'm', epoch, seq, state, NULL FROM pipeline_watermarks WHERE bucket = {bucket}"
        f" UNION ALL SELECT 'p', seq, NULL, NULL, NULL FROM pipeline_producers WHERE {mine}"
        f" UNION ALL SELECT 'r', code, NULL, state, reason FROM pipeline_rejects"
        f" WHERE {mine} AND producer_seq = {producer_seq}"
        f" UNION ALL SELECT CASE producer WHEN 0 THEN 'g' ELSE 'l' END, epoch, NULL, NULL, NULL FROM pipeline_lost"
        f" WHERE bucket = {bucket} AND ((producer = {producer}"
        f" AND first_seq <= {producer_seq} AND last_seq >= {producer_seq}) OR (producer = 0"
        f" AND epoch = {position.epoch} AND first_seq <= {position.seq} AND last_seq >= {position.seq}))"
    )
    rows = {row[0]: row[1:] for row in found}
    mark, producer_row, reject = rows.get("m"), rows.get("p"), rows.get("r")
    # what is missing at a position may have come at another: then its producer's sequence has passed it
    passed = producer_row is not None and producer_row[0] >= producer_seq
    return Fate(
        Position(mark[0], mark[1]) if mark else None,
        mark[2] if mark else None,
        producer_row[0] if producer_row else None,
        (reject[2], reject[3], reject[0]) if reject else None,
        "l" in rows or ("g" in rows and not passed),
    )


def marks_of(session: NodeSession, buckets: Iterable[int] | None = None) -> dict[int, Mark]:
    """Return the watermarks of a node.

    Args:
        session: of the node.
        buckets: whose; None for all.
    """
    some = "" if buckets is None else f" WHERE bucket IN ({', '.join(map(str, buckets))})"
    return marks_in(session.query(f"{READ_MARKS}{some}"))


def positions_of(session: NodeSession) -> dict[int, Position]:
    """Return how far each bucket is applied on a node.

    Args:
        session: of the node.
    """
    return {bucket: mark.position for bucket, mark in marks_of(session).items()}


class Standing(NamedTuple):
    """How far a node is: its watermarks, and the server's time of the newest commit of ops among them, ms."""

    marks: dict[int, Mark]
    newest_ms: int


def standing(session: NodeSession) -> Standing:
    """Return how far a node is, in one query.

    Args:
        session: of the node.
    """
    found = session.query("SELECT bucket, epoch, seq, state, committed_ms FROM pipeline_watermarks")
    marks = {bucket: Mark(Position(epoch, seq), state) for bucket, epoch, seq, state, _ in found}
    return Standing(marks, max((row[4] for row in found), default=0))


def sequences(session: NodeSession, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return the last applied sequence of each producer that a node knows.

    Args:
        session: of the node.
        pairs: (bucket, producer).
    """
    wanted = set(pairs)
    found = session.query(f"SELECT bucket, producer, seq FROM pipeline_producers WHERE {sent_by(wanted)}")
    return {(bucket, producer): seq for bucket, producer, seq in found if (bucket, producer) in wanted}


def row_id(session: NodeSession, bucket: int, producer: int, producer_seq: int) -> int | None:
    """Return the id that the database gave to an op's row, or None before the op is applied.

    Args:
        session: of the node.
        bucket: the op's bucket.
        producer: the number of its producer.
        producer_seq: the producer's sequence number.
    """
    found = _of_op(session, "row_id", "pipeline_ids", bucket, producer, producer_seq)
    return int(found) if found is not None else None


def highest_epoch(session: NodeSession) -> int:
    """Return the highest epoch of any watermark of a node, or that the node has given out.

    Args:
        session: of the node.
    """
    found = session.query(
        "SELECT MAX(e) FROM (SELECT MAX(epoch) AS e FROM pipeline_watermarks"
        " UNION ALL SELECT MAX(epoch) FROM pipeline_epochs) AS epochs"
    )
    return int(found[0][0] or 0)


def give_epoch(session: NodeSession, scope: str, above: int, least: int) -> int:
    """Give out a new epoch, above all that are known; it is committed before it is returned.

    Args:
        session: of a shard's primary.
        scope: the log's server that the epoch is for.
        above: the highest epoch that other shards know.
        least: the new epoch is at least this.
    """
    return _give(session, scope, max(above, highest_epoch(session)), least)


def give_span(session: NodeSession, above: int, least: int) -> int:
    """Give out a span of row ids that was never given out before; it is committed before it is returned.

    Args:
        session: of a shard's primary.
        above: the span that the log knows.
        least: the new span is at least this.
    """
    return _give(session, "*ids", above, least)


def last_span(session: NodeSession) -> int:
    """Return the last span of row ids that a shard has given out; 0: none.

    Args:
        session: of the shard's primary.
    """
    found = session.query("SELECT epoch FROM pipeline_epochs WHERE scope = '*ids'")
    return int(found[0][0]) if found else 0


def _give(session: NodeSession, name: str, above: int, least: int) -> int:
    with session.translated(), session.transaction():
        row = session.rows(
            f"SELECT epoch FROM pipeline_epochs WHERE scope = {text_literal(name)}{session.dialect.hold}"
        )
        number = max(above + 1, (row[0][0] if row else 0) + 1, least)
        tail = session.dialect.on_conflict(["scope"], ["epoch"])
        session.execute(f"INSERT INTO pipeline_epochs (scope, epoch) VALUES ({text_literal(name)}, {number}){tail}")
    return int(number)


def aside(session: NodeSession, ops: Iterable[tuple[int, int, int]]) -> list[tuple[str, str, int | None]]:
    """Return state, reason and code of those among *ops* that were set aside, in the order in which they were.

    Args:
        session: of the node.
        ops: (bucket, producer, producer sequence).
    """
    wanted = set(ops)
    found = session.query(
        "SELECT bucket, producer, producer_seq, state, reason, code FROM pipeline_rejects"
        f" WHERE {sent_by(wanted)} ORDER BY rejected_ms, bucket, seq"
    )
    return [tuple(told) for bucket, producer, seq, *told in found if (bucket, producer, seq) in wanted]


def waits_aside(session: NodeSession, needs: Mapping[int, Position | None]) -> bool:
    """Return whether ops are set aside that are still to be applied: refused ones are not among them.

    Args:
        session: of the node.
        needs: by bucket, the last position that counts, beside all of later epochs; None: every op of the bucket.
    """
    parts = []
    for bucket, last in needs.items():
        upto = "" if last is None else f" AND (epoch <> {last.epoch} OR seq <= {last.seq})"
        parts.append(f"(bucket = {bucket}{upto})")
    which = f"state IN ('waiting', 'parked') AND ({' OR '.join(parts)})"
    return bool(session.query(f"SELECT 1 FROM pipeline_rejects WHERE {which} LIMIT 1"))


def table_aside(session: NodeSession, bucket: int, producer: int, producer_seq: int) -> str:
    """Return the table of an op that was set aside; empty if it was not.

    Args:
        session: of the node.
        bucket: the op's bucket.
        producer: the number of its producer.
        producer_seq: the producer's sequence number.
    """
    return _of_op(session, "table_name", "pipeline_rejects", bucket, producer, producer_seq) or ""


def lost(session: NodeSession, ops: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return those among *ops* that are recorded as lost by name.

    Args:
        session: of the node.
        ops: (bucket, producer, producer sequence).
    """
    wanted = list(ops)
    ranges = session.query(f"SELECT bucket, producer, first_seq, last_seq FROM pipeline_lost WHERE {sent_by(wanted)}")
    return [op for op in wanted if any((b, p) == op[:2] and first <= op[2] <= last for b, p, first, last in ranges)]


def counts(session: NodeSession) -> dict[str, int]:
    """Return how many ops are rejected, wait behind those, and are lost; and how many entries strangers wrote.

    Args:
        session: of the node.
    """
    found = session.query(
        "SELECT state, COUNT(*), NULL, NULL, NULL, NULL FROM pipeline_rejects GROUP BY state"
        " UNION ALL SELECT '', bucket, epoch, producer, first_seq, last_seq FROM pipeline_lost"
        " UNION ALL SELECT 'forged', COALESCE(SUM(entries), 0), NULL, NULL, NULL, NULL FROM pipeline_forged"
    )
    states = {state: int(count) for state, count, *_ in found if state}
    parked = sum(states.get(state, 0) for state in ("parked", "waiting"))
    lost = ops_in(LostRange(*map(int, one)) for state, *one in found if not state)
    counted = {"rejected": states.get("rejected", 0), "parked": parked, "lost": lost, "forged": states["forged"]}
    return counted | {"given_up": _given_up(session) if states.get("dropped") else 0}


def newest_refused(session: NodeSession) -> str:
    """Return the place of the op that was refused last, its table and the error's number; empty where there is none.

    Args:
        session: of the node.
    """
    found = session.query(
        "SELECT bucket, epoch, seq, table_name, code FROM pipeline_rejects"
        " WHERE state = 'rejected' ORDER BY changed_ms DESC LIMIT 1"
    )
    return next(
        (f"{b}:{Position(e, s)} of {table}{f', error {code}' * bool(code)}" for b, e, s, table, code in found), ""
    )


def _given_up(session: NodeSession) -> int:
    """Return how many refused ops were given up of late since too much was set aside."""
    sql = f"SELECT COUNT(*) FROM pipeline_rejects WHERE state = 'dropped' AND reason LIKE '{GIVEN_UP}rejects_mb%'"
    return int(session.query(sql)[0][0])


def keep_schemas(session: NodeSession, schemas: Mapping[str, tuple[str, str]]) -> None:
    """Store schemas in the shard, each with the time of its first storing; committed when this returns.

    Args:
        session: of the shard's primary.
        schemas: hash -> (table, JSON).
    """
    now_ms = session.dialect.now_ms
    with session.translated(), session.transaction():
        for hash, (table, definition) in schemas.items():
            tail = session.dialect.on_conflict(["hash"], ["definition"])
            values = ", ".join(map(text_literal, (hash, table, definition)))
            session.execute(
                "INSERT INTO pipeline_schemas (hash, table_name, definition, kept_ms)"
                f" VALUES ({values}, {now_ms}){tail}"
            )


def kept_schemas(session: NodeSession) -> list[tuple[str, int]]:
    """Return the JSON of every schema that the shard stores, and when it first did, ms; 0 where that is not known.

    Args:
        session: of the node.
    """
    return session.query("SELECT definition, COALESCE(kept_ms, 0) FROM pipeline_schemas")


def fingerprint_of(session: NodeSession) -> tuple[str | None, str]:
    """Return the JSON of the fingerprint that a database keeps, if any, and the database's own name.

    Args:
        session: of the node.
    """
    try:
        found = session.query("SELECT fingerprint FROM pipeline_deployment")
    except NotMigrated:
        found = []
    return (str(found[0][0]) if found else None), str(session.query(f"SELECT {session.dialect.own_name}")[0][0])


def keep_fingerprint(session: NodeSession, new: Fingerprint) -> None:
    """Store the fingerprint of the deployment that a database belongs to; committed when this returns.

    A newer one of the same deployment stays: its process noted it in Redis later, and came here first.

    Args:
        session: of the shard's primary.
        new: the fingerprint.
    """
    first = text_literal(new.to_json())
    with session.translated(), session.transaction():
        tail = session.dialect.on_conflict(["id"], [])
        session.execute(f"INSERT INTO pipeline_deployment (id, fingerprint) VALUES (1, {first}){tail}")
        [[text]] = session.rows(f"SELECT fingerprint FROM pipeline_deployment WHERE id = 1{session.dialect.hold}")
        kept = new.after(Fingerprint.noted(str(text))).to_json()
        if kept != text:
            session.execute(f"UPDATE pipeline_deployment SET fingerprint = {text_literal(kept)} WHERE id = 1")


def buckets_sql(dialect: Dialect, buckets: Iterable[int]) -> str:
    """Return the statement that makes missing watermark rows.

    Args:
        dialect: of the database.
        buckets: which rows.
    """
    rows = ", ".join(f"({b}, 0, -1, 'active', 0)" for b in buckets)
    into = "INSERT INTO pipeline_watermarks (bucket, epoch, seq, state, committed_ms)"
    return f"{into} VALUES {rows}{dialect.on_conflict(['bucket'], [])}"


def _of_op(session: NodeSession, column: str, table: str, bucket: int, producer: int, producer_seq: int) -> Any:
    """Return a column of the row that a table of ours has of an op, or None."""
    found = session.query(
        f"SELECT {column} FROM {table} WHERE bucket = {bucket} AND producer = {producer}"
        f" AND producer_seq = {producer_seq}"
    )
    return found[0][0] if found else None


class SetAside(NamedTuple):
    """Why an op was set aside, and how it is now.

    Attributes:
        position: of the op.
        state: rejected, waiting, parked, replayed or dropped.
        code: the database's number of the error.
        aside_ms: when it was set aside.
        changed_ms: when that changed last.
        payload: the op, as it is kept.
    """

    position: Position
    state: str
    code: int | None
    reason: str
    aside_ms: int
    changed_ms: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ActionOnOp:
    """What an operator did to an op; `result` is the state that the action left."""

    at_ms: int
    who: str
    action: str
    result: str


class KeptOfOp(NamedTuple):
    """What one shard keeps of an op.

    Attributes:
        fate: as every node knows it.
        mark_ms: when the transaction committed that moved the bucket's watermark last.
        exact_ms: when the op's own transaction committed; None where no row of it says so.
        aside: None where the op was never set aside, or where that was forgotten.
        actions: the oldest first.
    """

    fate: Fate
    mark_ms: int | None
    exact_ms: int | None
    aside: SetAside | None
    actions: tuple[ActionOnOp, ...]


def kept_of(session: NodeSession, bucket: int, position: Position, producer: int, producer_seq: int) -> KeptOfOp:
    """Return what a shard keeps of one op.

    Args:
        session: of the shard's primary.
        bucket: the op's bucket.
        position: the op's position; `START` where it is not known.
        producer: the number of its producer.
        producer_seq: the producer's sequence number.
    """
    mine = f"bucket = {bucket} AND producer = {producer} AND producer_seq = {producer_seq}"
    marks = session.query(f"SELECT epoch, seq, committed_ms FROM pipeline_watermarks WHERE bucket = {bucket}")
    given = session.query(f"SELECT seen_ms FROM pipeline_ids WHERE {mine}")
    columns = "epoch, seq, state, code, reason, rejected_ms, changed_ms, op"
    found = session.query(f"SELECT {columns} FROM pipeline_rejects WHERE {mine}")
    aside = None
    for epoch, seq, state, code, reason, aside_ms, changed_ms, op in found:
        position = Position(epoch, seq)
        aside = SetAside(position, state, code, reason, aside_ms, changed_ms, op.encode())
    exact = [row[0] for row in given] + ([aside.aside_ms] if aside is not None else [])
    exact += [ms for epoch, seq, ms in marks if Position(epoch, seq) == position and ms]
    done = session.query(
        "SELECT at_ms, who, action, result FROM pipeline_actions"
        f" WHERE bucket = {bucket} AND epoch = {position.epoch} AND seq = {position.seq} ORDER BY id"
    )
    return KeptOfOp(
        fate(session, bucket, position, producer, producer_seq),
        next((int(row[2]) for row in marks), None) or None,
        exact[0] if exact else None,
        aside,
        tuple(ActionOnOp(*row) for row in done),
    )
