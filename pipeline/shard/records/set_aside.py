"""Set ops aside: a watermark moves on, and the op is kept whole, with the rows that it names.

Name the rows that an op writes, so that a later op of the same row can be recognised without its database.
Two ops of one row have a key in common where each names the row by its id, or each by the same upsert key. An op whose
rows only the database knows has no key.

Invariant: an op that is set aside holds its rows. A later op of such a row is set aside too, which keeps the order per
row. The functions run inside the caller's transaction.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from base64 import b64encode
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import structs

from pipeline.bounds import portions
from pipeline.dal.trees import pinned
from pipeline.errors import NewerOp, NotAnOp
from pipeline.model import FORGED, UPSERT, Entry, Op, Position, decode, encode
from pipeline.model.schema import TableSchema
from pipeline.model.wait_reason import OF_TABLE, WaitReason
from pipeline.shard import NodeSession
from pipeline.shard.records import HALTED, HOLDING, Reject, text_literal

if TYPE_CHECKING:
    from pipeline.shard.table_facts import Facts

#: The longest key, bytes: InnoDB's oldest row format indexes 767 bytes, 191 characters of utf8mb4.
MOST_BYTES = 190
_HASH_DIGITS = 16
#: States of an op that is set aside: refused, waits for what its reason names, waits behind an op of the same row.
REJECTED, WAITING, PARKED = "rejected", "waiting", "parked"
ASIDE = (REJECTED, WAITING, PARKED)
#: Of an op that a foreign key refuses while ops of a table wait that it may need; the table's name follows.
_NEEDS = "may need ops that wait, those of table "
#: Of an op that waits until its table can take it; the reason's kind and its detail follow.
_BEHIND = "its table waits ("
#: The condition by which rows of `pipeline_rejects` are such ops.
IS_BEHIND = f"reason LIKE '{_BEHIND}%'"
#: Room in a statement beside the op: 4,000 characters of reason, the row's key, names and numbers.
_REST_BYTES = 20_000
#: A statement is aimed at this size.
_AIM_BYTES = 500_000
#: Most keys, or positions, that one statement names.
_MOST_KEYS = 1000
#: To name so many rows costs more than to read what is held in their buckets, where that is no more: 7 µs a row named.
_MANY_ROWS = 30
#: JSON's strings are its only place for such characters. A raw control character is none of JSON's.
_NOT_ASCII = re.compile(r"[^\t\n\r -~]+")
#: Half a character, which no text of a database holds, and what SQLite takes in no literal.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_COLUMNS = (
    "bucket, epoch, seq, producer, producer_seq, state, table_name, row_key, code, reason, op, rejected_ms, changed_ms"
)
#: So much of a forged entry is kept, characters.
MOST_FORGED = 4_000
#: Begins the reason of an op that no operator gave up; a setting's name follows.
GIVEN_UP = "given up by [apply] "
_T = TypeVar("_T")


def row_keys(op: Op, schemas: Mapping[str, TableSchema]) -> frozenset[str]:
    """Return the keys of all rows that an op is known to write, or to copy.

    Args:
        op: a row write, or an atomic group of row writes.
        schemas: every schema that the op names, by hash.
    """
    return frozenset(key for one in op.named for key in _keys(one, schemas[one.schema]))


def written_row(op: Op, schema: TableSchema) -> int | None:
    """Return the id of the one row that an op writes, if at all; None where there may be others, or it has no id yet.

    Args:
        op: a row write.
        schema: of its table.
    """
    row = pinned(op.where, schema.id_index) if op.id is None and op.where else op.id
    return row if type(row) is int else None


def table_keys(op: Op) -> frozenset[str]:
    """Return the keys that stand for all rows of each table that an op writes or reads.

    Args:
        op: a row write, or an atomic group of row writes.
    """
    return frozenset(f"{one.table} *" for one in op.named)


def some_keys(op: Op) -> frozenset[str]:
    """Return the keys that stand for some rows of each table that an op writes or reads: nobody need know which.

    Args:
        op: a row write, or an atomic group of row writes.
    """
    return frozenset(f"{one.table} ?" for one in op.named)


def loose_keys(op: Op, schemas: Mapping[str, TableSchema]) -> frozenset[str]:
    """Return those of `some_keys` of which the op may mean any row: it does not name its rows by their id.

    Args:
        op: a row write, or an atomic group of row writes.
        schemas: every schema that the op names, by hash.
    """
    return frozenset(f"{one.table} ?" for one in op.named if not _names_row(one, schemas[one.schema]))


def _names_row(op: Op, schema: TableSchema) -> bool:
    return written_row(op, schema) is not None and not (op.kind == UPSERT and op.key != (schema.id_index,))


def waiting_keys(op: Op, known: Mapping[str, Facts]) -> frozenset[str]:
    """Return the keys of tables that an op holds while it waits for its definition.

    Its rows are enough where it names them, and no other row of their table has a say in what becomes of them.

    Args:
        op: a row write, or an atomic group of row writes.
        known: the facts of every schema that the op names, by hash.
    """
    apart = [_names_row(one, known[one.schema].schema) and known[one.schema].constraints.apart for one in op.named]
    return frozenset(f"{one.table} {'?' if alone else '*'}" for one, alone in zip(op.named, apart, strict=True))


def _keys(op: Op, schema: TableSchema) -> Iterator[str]:
    table = schema.name_there
    if (row := written_row(op, schema)) is not None:
        yield _short(f"{table} {row}")
    if op.kind == UPSERT and op.key != (schema.id_index,):
        given = dict(zip(op.columns, op.values, strict=True))
        # by name and sorted: another version of the table may number its columns otherwise
        named = {schema.columns[column].name: alike(given.get(column)) for column in op.key}
        yield _short(f"{table} {json.dumps(named, sort_keys=True)}")


def alike(value: Any) -> Any:
    """Return a value that is equal wherever the database's collation may find two texts equal.

    Args:
        value: in canonical form.
    """
    if isinstance(value, list):
        return tuple(map(alike, value))
    if not isinstance(value, str):
        return value
    if value.isascii():
        return value.lower().rstrip()
    bare = unicodedata.normalize("NFKD", value).casefold().rstrip()
    return "".join(c for c in bare if not unicodedata.combining(c))


def _short(key: str) -> str:
    whole = key.encode()
    if len(whole) <= MOST_BYTES:
        return key
    digest = hashlib.sha256(whole).hexdigest()[:_HASH_DIGITS]
    return f"{whole[: MOST_BYTES - _HASH_DIGITS - 1].decode(errors='ignore')} {digest}"


def set_aside(session: NodeSession, ops: Iterable[Reject]) -> None:
    """Record ops that are set aside, and the rows that they hold.

    Args:
        session: inside the apply transaction.
        ops: what is set aside, with reasons.
    """
    every = list(ops)
    ops = [op for op in every if op.entry.producer_seq != FORGED]
    if len(ops) < len(every):
        _count_forged(session, [op.entry for op in every if op.entry.producer_seq == FORGED])
    for values in _statements(session, ops):
        session.execute(f"INSERT INTO pipeline_rejects ({_COLUMNS}) VALUES {', '.join(values)}")
    hold(session, ops)


def _count_forged(session: NodeSession, entries: Sequence[Entry]) -> None:
    """Count entries of strangers, and keep the last of each bucket: whoever makes them makes any number."""
    buckets = {entry.bucket: entry for entry in entries}
    which = f"bucket IN ({', '.join(map(str, buckets))})"
    before = dict(session.rows(f"SELECT bucket, entries FROM pipeline_forged WHERE {which}"))
    counts = Counter(entry.bucket for entry in entries)
    rows = [
        f"({bucket}, {before.get(bucket, 0) + counts[bucket]}, {last.position.epoch}, {last.position.seq},"
        f" {cut(last.payload.decode(), MOST_FORGED)}, {session.dialect.now_ms})"
        for bucket, last in buckets.items()
    ]
    renewed = session.dialect.on_conflict(["bucket"], ["entries", "epoch", "seq", "entry", "seen_ms"])
    session.execute(
        f"INSERT INTO pipeline_forged (bucket, entries, epoch, seq, entry, seen_ms) VALUES {', '.join(rows)}{renewed}"
    )


def hold(session: NodeSession, ops: Iterable[Reject]) -> None:
    """Record the rows that ops hold.

    Args:
        session: inside the transaction that has locked their buckets.
        ops: what is set aside.
    """
    held = [
        f"({op.entry.bucket}, {text_literal(key)}, {op.entry.position.epoch}, {op.entry.position.seq})"
        for op in ops
        for key in op.holds
    ]
    for rows in parts(held):
        session.execute(f"INSERT INTO pipeline_held (bucket, row_key, epoch, seq) VALUES {', '.join(rows)}")


def holders(session: NodeSession, rows: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Position]:
    """Return which rows are held, each with the position of the first op that holds it.

    Args:
        session: inside the transaction that has locked the buckets.
        rows: (bucket, row key).
    """
    rows, found = {*rows}, dict[tuple[int, str], Position]()
    every = _held_in_all(session, rows) if len(rows) > _MANY_ROWS else None
    named = (one for sql in read_holders(rows) for one in session.rows(sql))
    for bucket, key, epoch, seq in named if every is None else every:
        found[bucket, key] = min(Position(epoch, seq), found.get((bucket, key), Position(epoch, seq)))
    return found


def _held_in_all(session: NodeSession, rows: Set[tuple[int, str]]) -> list[tuple[int, str, int, int]] | None:
    """Return by which ops some rows are held, from all that is held in their buckets; None where that is more."""
    buckets = ", ".join(map(str, sorted({bucket for bucket, _ in rows})))
    held = session.rows(
        f"SELECT bucket, row_key, epoch, seq FROM pipeline_held WHERE bucket IN ({buckets}) LIMIT {len(rows) + 1}"
    )
    return [one for one in held if one[:2] in rows] if len(held) <= len(rows) else None


def read_holders(rows: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield the queries that tell which rows are held: bucket, row key, epoch, and the lowest position in that.

    Args:
        rows: (bucket, row key).
    """
    for which in _among(rows):
        # not ORDER BY … LIMIT 1 per row: MariaDB then walks the other index, once per row through all of the bucket
        found = "SELECT bucket, row_key, epoch, MIN(seq) FROM pipeline_held"
        yield f"{found} WHERE {which} GROUP BY bucket, row_key, epoch"


def read_whether_held(rows: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield the queries that answer nothing where no row is held, as further parts of `records.read_seen`.

    An answer of a row that is held has no producer.

    Args:
        rows: (bucket, row key).
    """
    for which in _among(rows):
        yield f"SELECT bucket, 0, 0 FROM pipeline_held WHERE {which}"


def _among(rows: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield conditions that name rows that may be held, as many as one statement may name."""
    for part in parts(list(rows)):
        # one range of the index per row: IN over buckets times IN over keys would be their product
        keys: dict[int, list[str]] = {}
        for bucket, key in part:
            keys.setdefault(bucket, []).append(text_literal(key))
        yield " OR ".join(f"(bucket = {bucket} AND row_key IN ({', '.join(own)}))" for bucket, own in keys.items())


def why_waiting(reason: WaitReason, own: Collection[str]) -> str:
    """Return why an op waits for a table that is stopped, or for its definition.

    Args:
        reason: of the table, or of the definition.
        own: the tables that the op itself names.
    """
    if reason.scope not in own:
        return why_needy(reason.scope)
    if reason.kind in OF_TABLE:
        return f"{_BEHIND}{reason.kind}): {reason.detail}"
    return f"its table {reason.scope} was stopped"


def why_needy(table: str) -> str:
    """Return why an op waits that may need ops of a table that wait.

    Args:
        table: the table's name.
    """
    return _NEEDS + table


def needs_of(reason: str) -> str:
    """Return the table whose ops an op may need, or the empty string.

    Args:
        reason: why it is set aside.
    """
    return reason.removeprefix(_NEEDS) if reason.startswith(_NEEDS) else ""


def behind_of(shard: str, table: str, reason: str, since_ms: int) -> WaitReason | None:
    """Return why ops wait for their definition; None where an op is set aside for something else.

    Args:
        shard: its name.
        table: the ops' table.
        reason: why they are set aside.
        since_ms: since when the first is, ms since 1970.
    """
    kind, _, detail = reason.removeprefix(_BEHIND).partition("): ")
    if not reason.startswith(_BEHIND) or kind not in OF_TABLE:
        return None
    return WaitReason(kind, shard, table, detail, since_ms)


def held_in(session: NodeSession, ranges: Iterable[tuple[int, str, str]]) -> dict[int, set[str]] | None:
    """Return the keys of rows that are held, in ranges of keys of some buckets; None where these are many.

    Args:
        session: inside the transaction that has locked the buckets.
        ranges: (bucket, first key, last key), one at least.
    """
    which = " OR ".join(
        f"(bucket = {bucket} AND row_key BETWEEN {text_literal(first)} AND {text_literal(last)})"
        for bucket, first, last in ranges
    )
    [found] = session.ask(f"SELECT bucket, row_key FROM pipeline_held WHERE {which} LIMIT {_MOST_KEYS + 1}")
    if len(found) > _MOST_KEYS:
        return None
    held: dict[int, set[str]] = {}
    for bucket, key in found:
        held.setdefault(bucket, set()).add(key)
    return held


def parts(things: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Yield parts of *things*, each small enough for one statement.

    Args:
        things: keys, places or rows.
    """
    return (things[start : start + _MOST_KEYS] for start in range(0, len(things), _MOST_KEYS))


def note_holding(session: NodeSession, buckets: Iterable[int]) -> None:
    """Note that ops set aside hold rows of *buckets*, so that the next batch asks which.

    Args:
        session: inside the apply transaction.
        buckets: whose state to change; may be empty.
    """
    _set_state(session, buckets, HOLDING)


def halt(session: NodeSession, buckets: Iterable[int]) -> None:
    """Stop *buckets* at their watermark, whose op was rejected.

    Args:
        session: inside the apply transaction.
        buckets: whose state to change; may be empty.
    """
    _set_state(session, buckets, HALTED)


def _set_state(session: NodeSession, buckets: Iterable[int], state: str) -> None:
    if chosen := ", ".join(map(str, buckets)):
        session.execute(f"UPDATE pipeline_watermarks SET state = '{state}' WHERE bucket IN ({chosen})")


def _statements(session: NodeSession, ops: Sequence[Reject]) -> Iterator[list[str]]:
    """Yield rows for one INSERT each: few enough for the server, and one at least."""
    now, most_bytes = session.dialect.now_ms, session.statement_bytes() - _REST_BYTES
    rows = (_row(op, now, most_bytes) for op in ops)
    return portions(((row, len(row.encode())) for row in rows), min(most_bytes, _AIM_BYTES), _MOST_KEYS)


def _row(op: Reject, now: str, most_bytes: int) -> str:
    entry = op.entry
    numbers = f"{entry.bucket}, {entry.position.epoch}, {entry.position.seq}, {entry.producer}, {entry.producer_seq}"
    texts = f"'{op.state}', {cut(op.table, 128)}, {cut(op.row_key, 255)}"
    why = f"{'NULL' if op.code is None else op.code}, {cut(op.reason, 4000)}"
    return f"({numbers}, {texts}, {why}, {_stored_op(entry.payload, most_bytes)}, {now}, {now})"


def cut(text: str, most: int) -> str:
    """Return a text as a literal of characters that every column of ours can store.

    Args:
        text: the text.
        most: the most characters.
    """
    return text_literal(_UNSTORABLE.sub(_escaped, text)[:most])


def whole_op(payload: bytes, most_bytes: int) -> str | None:
    """Return an op as a literal, in ASCII if that fits, or None where it is larger than a statement may be.

    Args:
        payload: the JSON of an op.
        most_bytes: the size of the largest literal.

    Raises:
        UnicodeDecodeError: the bytes are no text.
    """
    text = payload.decode()
    # escapes are longer than what they stand for
    every = (text_literal(_NOT_ASCII.sub(_escaped, text)), text_literal(text))
    return next((literal for literal in every if len(literal.encode()) <= most_bytes), None)


def _stored_op(payload: bytes, most_bytes: int) -> str:
    """Return an op as a literal of JSON in ASCII, which any column and connection can store.

    Where the server takes no statement that holds the op, only its head is stored. That is no op any more: without its
    values an insert could be replayed as a row of defaults. Bytes that are no text are
    `{"base64": …, "bytes": their number}`, cut where they are too many.
    """
    try:
        if (whole := whole_op(payload, most_bytes)) is not None:
            return whole
        op = decode(payload)
    except (UnicodeDecodeError, NotAnOp, NewerOp):
        start = b64encode(payload[: max(0, most_bytes // 4 * 3)]).decode()
        return text_literal(f'{{"base64": "{start}", "bytes": {len(payload)}}}')
    bare = structs.replace(op, columns=(), values=(), where=None, expressions=(), ops=())
    return text_literal(encode({"without_values": bare}).decode())


def _escaped(match: re.Match[str]) -> str:
    """Return a character as JSON escapes it."""
    return json.dumps(match[0])[1:-1]
