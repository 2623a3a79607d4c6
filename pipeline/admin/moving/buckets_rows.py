"""Find the rows of buckets that move, in each table; copy, compare and delete them.

A copy is an attempt: each of its chunks is written only while the attempt counts. So a mover that was thought dead
writes nothing into the copy of its successor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from zlib import crc32

from msgspec.structs import replace

from pipeline.admin.migration import published
from pipeline.apply.batch import FactBook
from pipeline.apply.follow import Aside, KeptRows, Touched
from pipeline.apply.grouping import Item
from pipeline.apply.own_keys import OwnKeys
from pipeline.client import Client
from pipeline.config.buckets import KeyName, log_number, spread_alike
from pipeline.errors import BadOp, NewerOp, NotAnOp, PipelineError
from pipeline.model import Entry, Position, decode
from pipeline.model.schema import TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.co_location import bucket_sql, key_sql
from pipeline.shard.columns import DatabaseColumn, columns_of
from pipeline.shard.driver_errors import Fault, fault_of, is_driver_error, sentence_of
from pipeline.shard.records import ACTIVE, LENT, MOVED, moves, replays, set_aside
from pipeline.shard.records.moves import Fence, RowPlace
from pipeline.shard.row_sync import RowSync, delete_rows, sample
from pipeline.shard.stored_rows import GOES_ALONG, copied_columns, copy_records, id_column, insert, records_of
from pipeline.shard.table_facts import ForeignKey, constraints_of

#: The longest statement of a copy, s: what a chunk may take is bounded where chunks are made.
STATEMENT_S = 30.0
#: How long a table is read for an estimate, s; and how much longer a copy and its comparison take than reading: 3.0
#: to 3.5 times on SQLite and MariaDB whose disks were memory, with 50,000 rows and with every 16th of 160,000.
SAMPLE_S, COPY_TIMES = 2.0, 4.0
#: A producer that one of two shards has forgotten is compared for so long after its last op, ms; both forget it after a
#: week (`REMEMBERED_S`), each by its own clock.
FORGOTTEN_MS = 86_400_000
#: How many ops behind another are looked at for one.
MOST_BEHIND = 10_000
#: What is compared of the pipeline's own tables.
_COMPARED = (
    ("pipeline_producers", "producer, seq"),
    ("pipeline_rejects", "epoch, seq, producer, producer_seq, state"),
    ("pipeline_held", "row_key, epoch, seq"),
)
#: The pipeline's own tables of ops that are set aside: a row there has the position of its op.
_ASIDE = ("pipeline_rejects", "pipeline_held")


class CopyVoid(PipelineError):
    """Another mover has begun to copy anew, or the move was given up."""

    retryable = True


class Different(PipelineError):
    """Rows of the two shards differ at one watermark."""


class Size(NamedTuple):
    """What a move takes along of one table.

    Attributes:
        table: its name.
        rows, bytes: that would move.
        about: whether these are estimated from the beginning of the table.
        copy_s: about how long it would take to copy and compare the rows, s.
    """

    table: str
    rows: int
    bytes: int
    about: bool
    copy_s: float


class MovedTable(NamedTuple):
    """A table of which rows move: the columns that are copied, and the condition in SQL that finds the rows."""

    schema: TableSchema
    columns: list[DatabaseColumn]
    condition: str


class FencedSession(NodeSession):
    """A session whose transactions take place only while a move is as its mover knows it."""

    fence = Fence()

    @contextmanager
    def transaction(self) -> Iterator[NodeSession]:
        """Begin, and commit at the end; see `NodeSession.transaction`.

        Raises:
            CopyVoid: the fence does not hold any more; nothing was done.
        """
        with super().transaction():
            if not self.fence.holds(self):
                raise CopyVoid("another mover is at these buckets, or they are moved anew, or the move was given up")
            yield self


def moved_tables(
    client: Client, buckets: Collection[int], source: str, target: str, of: KeyName | None = None
) -> list[MovedTable]:
    """Return the tables that may have rows of buckets, or of a key, parents first.

    Args:
        client: the deployment.
        buckets: that move.
        source, target: the shards.
        of: the one key whose rows move; None: all rows of the buckets do.

    Raises:
        PipelineError: a table cannot be moved, with what to change.
    """
    here, there = client.nodes.primary(source), client.nodes.primary(target)
    found = []
    for schema in published(client):
        rules = client.topology.table(schema.name)
        if rules.reference or not columns_of(here, schema.name_there):
            continue
        which = bucket_sql(here.dialect, rules, schema, client.topology.buckets)
        condition = f"{which} IN ({', '.join(map(str, sorted(buckets)))})"
        if of is not None:
            if not spread_alike(rules, client.topology.table(of.table)):
                continue
            condition = key_sql(here.dialect, rules, schema, of.key)  # its bucket follows from it
        if rules.ids == "database" and here.query(
            f"SELECT 1 FROM {here.dialect.quote(schema.name_there)} WHERE {condition} LIMIT 1"
        ):
            raise PipelineError(
                f"[tables.{schema.name}] has ids = 'database': another database has given these ids to other rows, so "
                "buckets with rows of the table cannot be moved"
            )
        found.append(MovedTable(schema, copied_columns(here, there, schema), condition))
    return found


@contextmanager
def apart(client: Client, shard: str, *, writing: bool = False) -> Iterator[FencedSession]:
    """Yield a session of a shard's primary with a connection of its own, which is closed at the end.

    Args:
        client: the deployment.
        shard: its name.
        writing: whether it writes.
    """
    node = client.nodes.primary_name(shard)
    uri = client.nodes.uri(node, writing=writing)
    session = FencedSession(node, uri, read_only=not writing, statement_s=STATEMENT_S)
    try:
        yield session
    finally:
        session.discard()


def copy_order(tables: list[MovedTable]) -> int:
    """Return a number of what is copied, and in which order.

    Args:
        tables: of which rows move.
    """
    return crc32(repr([(table.schema.hash, table.columns, table.condition) for table in tables]).encode())


def renew_rows(
    source: NodeSession, target: FencedSession, tables: list[MovedTable], place: RowPlace, touched: Touched
) -> Iterator[str]:
    """Make rows that were copied before equal to a later snapshot of the source's; yield now and then the table.

    Args:
        source: in the snapshot.
        target: fenced.
        tables: of which rows move.
        place: how far they were copied.
        touched: which of these rows may have changed since.
    """
    for number, table in enumerate(tables[: place.table + 1]):
        until = place.id if number == place.table else None
        rows = RowSync(source, target, table.schema, table.columns, table.condition)
        ids = touched.rows.get(table.schema.name_there.lower(), set())
        with _refusals(target, table):
            if ids:
                rows.renew(ids, until)
            for _ in rows.sync(until=until) if ids is None else ():
                yield table.schema.name


def copy_rows(
    source: NodeSession, target: FencedSession, tables: list[MovedTable], place: RowPlace
) -> Iterator[tuple[str, RowPlace]]:
    """Make the target's rows equal to a snapshot of the source's; yield after each chunk its table and the place.

    Args:
        source: in a snapshot.
        target: fenced.
        tables: of which rows move.
        place: how far they are copied from this snapshot already.
    """
    for number, after in _behind(tables, place):
        table = tables[number]
        rows = RowSync(source, target, table.schema, table.columns, table.condition)
        with _refusals(target, table):
            for chunk in rows.sync(after):
                place = replace(place, table=number, id=chunk.last_id, rows=place.rows + chunk.rows)
                yield table.schema.name, place


def _behind(tables: list[MovedTable], place: RowPlace) -> Iterator[tuple[int, int | None]]:
    """Yield the numbers of the tables that are not done, each with the id behind which to go on."""
    if place.id is not None:
        yield place.table, place.id
    yield from ((number, None) for number in range(place.table + 1, len(tables)))


@contextmanager
def _refusals(target: NodeSession, table: MovedTable) -> Iterator[None]:
    """Let what the target refuses end the move."""
    try:
        yield
    except Exception as error:
        if not is_driver_error(error) or fault_of(error) not in (Fault.PERMANENT, Fault.UNKNOWN):
            raise
        raise Different(f"{target.node} refuses a row of {table.schema.name!r}: {sentence_of(error)}") from error


def rows_in(session: NodeSession, tables: list[MovedTable]) -> dict[str, int]:
    """Return how many rows of each table are to move.

    Args:
        session: of the source's primary.
        tables: of which rows move.
    """
    quote = session.dialect.quote
    counts = (session.query(f"SELECT COUNT(*) FROM {quote(t.schema.name_there)} WHERE {t.condition}") for t in tables)
    return {table.schema.name: int(found[0][0]) for table, found in zip(tables, counts, strict=True)}


def size_of(session: NodeSession, table: MovedTable) -> Size:
    """Return what would move of a table, and for how long: the table's beginning is read as a copy reads it.

    Args:
        session: of the source's primary, in a snapshot.
        table: of which rows would move.
    """
    one = sample(session, table.schema, table.columns, table.condition, SAMPLE_S)
    times = 1.0 if one.whole else max(1.0, one.table_rows / one.looked)
    rows, size = round(one.rows * times), round(one.bytes * times)
    return Size(table.schema.name, rows, size, not one.whole, one.took_s * times * COPY_TIMES)


def compare_rows(
    source: NodeSession, target: NodeSession, tables: list[MovedTable], place: RowPlace
) -> Iterator[tuple[str, RowPlace]]:
    """Compare snapshots of both shards; yield after each chunk its table and the place.

    Args:
        source, target: in snapshots at the same watermarks.
        tables: of which rows move.
        place: how far they are compared already.

    Raises:
        Different: naming the first rows that differ.
    """
    for number, after in _behind(tables, place):
        table = tables[number]
        for chunk in RowSync(source, target, table.schema, table.columns, table.condition).compare(after):
            if chunk.wrong:
                ids = ", ".join(map(str, chunk.examples))
                raise Different(f"{chunk.wrong} rows of {table.schema.name!r} differ, such as id {ids}")
            place = replace(place, table=number, id=chunk.last_id, rows=place.rows + chunk.rows)
            yield table.schema.name, place


def compare_records(source: NodeSession, target: NodeSession, buckets: Collection[int]) -> None:
    """Compare what both shards keep of producers and of ops that are set aside.

    Args:
        source, target: in snapshots at the same watermarks.
        buckets: that move.

    Raises:
        Different: naming the table and the bucket.
    """
    for bucket in buckets:
        for table, columns in _COMPARED:
            sql = f"SELECT {columns} FROM {table} WHERE bucket = {bucket}"
            if {*source.rows(sql)} != {*target.rows(sql)}:
                raise Different(f"{table} differs in bucket {bucket}")


def compare_key_records(client: Client, source: NodeSession, target: NodeSession, piece: int, of: KeyName) -> None:
    """Compare what both shards keep of producers and of ops that are set aside, for a key that leaves its bucket.

    Other keys' ops that are set aside may be missing there. An op that names a row by an id that is gone may be there.

    Args:
        client: the deployment.
        source, target: in snapshots at the same watermarks.
        piece: the key's number.
        of: the key.

    Raises:
        Different: naming the table.
    """
    own = _own_of(client, source, of)
    for table, columns in _COMPARED:
        here, there = (
            {*session.rows(f"SELECT {columns} FROM {table} WHERE bucket = {number}")}
            for session, number in ((source, of.bucket), (target, piece))
        )
        at = columns.split(", ").index("epoch") if "epoch" in columns else None
        mine = here if at is None else {row for row in here if Position(*row[at : at + 2]) in own}
        if not mine <= there <= here:
            raise Different(f"{table} differs for the key {of}")


def set_aside_of(client: Client, session: NodeSession, of: KeyName, at: int) -> dict[Position, bool | None]:
    """Return of each op that a bucket or a piece has set aside whether it is of a key; None where it may be of both.

    Args:
        client: the deployment.
        session: of a node that has the ops, inside a transaction.
        of: the key, and its bucket.
        at: the number of the bucket, or of the piece.
    """
    facts, items, found = FactBook(session.node, session, client.log), list[Item](), dict[Position, bool | None]()
    sql = f"SELECT epoch, seq, producer, producer_seq, state, op FROM pipeline_rejects WHERE bucket = {at}"
    for epoch, seq, producer, number, state, text in sorted(session.rows(sql)):
        entry = Entry(at, Position(epoch, seq), producer, number, str(text).encode())
        found[entry.position] = False  # what is no op is no key's
        try:
            op = decode(entry.payload)
            known = all(facts.learn(one.schema) for one in op.named)
        except (NotAnOp, NewerOp, BadOp):
            known = not str(text).startswith('{"without_values"')
            op = None
        if not known:
            found[entry.position] = None if state in set_aside.ASIDE else False
        elif op is not None:
            items.append(Item(entry, op))
    own = OwnKeys(session, facts.known, client.settings.tables, {at: of})
    return found | {item.entry.position: one for item, one in zip(items, own.of_key(items), strict=True)}


def _own_of(client: Client, session: NodeSession, of: KeyName) -> set[Position]:
    """Return the ops that a bucket has set aside and that are of a key, surely and alone."""
    return {at for at, own in set_aside_of(client, session, of, of.bucket).items() if own}


def refuse_held(client: Client, session: NodeSession, of: KeyName, *at: int) -> None:
    """Raise while an op is set aside that may be of a key and of others, and would be replayed with another's part.

    A key that leaves would tear the op apart. Where the key comes back, a shard may have applied its part already.

    Args:
        client: the deployment.
        session: of a primary, inside a transaction.
        of: the key, and its bucket.
        at: the numbers under which ops are set aside there: of the bucket, or of the piece.

    Raises:
        Different: naming the first one, and the commands that settle it.
    """
    words = ", ".join(f"'{state}'" for state in set_aside.ASIDE)
    for number in at:
        found = set_aside_of(client, session, of, number).items()
        doubtful = {position for position, own in found if own is None}
        sql = f"SELECT epoch, seq FROM pipeline_rejects WHERE bucket = {number} AND state IN ({words})"
        held = sorted(doubtful.intersection(Position(*row) for row in session.rows(sql))) if doubtful else []
        if held:
            first = _first_before(session, number, held[0])
            behind = f" behind the op at {number}:{first}" if first != held[0] else ""
            raise Different(
                f"the op at {number}:{held[0]} is set aside{behind}, and may be of {of} and of other keys: first run: "
                f"pipeline dead replay {number}:{first}; where that is refused again: pipeline dead drop "
                f"{number}:{first}"
            )


def _first_before(session: NodeSession, number: int, position: Position) -> Position:
    """Return the first op that may be replayed or dropped and that an op which is set aside waits behind, or itself."""
    words = ", ".join(f"'{state}'" for state in (set_aside.REJECTED, set_aside.WAITING))
    sql = f"SELECT epoch, seq FROM pipeline_rejects WHERE bucket = {number} AND state IN ({words})"
    heads = sorted(head for head in (Position(*row) for row in session.rows(sql)) if head < position)
    waits = (head for head in heads if (number, position) in replays.behind(session, number, [head], MOST_BEHIND))
    return next(waits, position)


def touched_since(
    client: Client,
    session: NodeSession,
    tables: list[MovedTable],
    after: dict[int, Position],
    upto: dict[int, Position],
) -> Touched | None:
    """Return which rows the source may have changed between two watermarks; None where its logs do not show that.

    Args:
        client: the deployment.
        session: of the source's primary, in a snapshot.
        tables: of which rows move, parents first.
        after: of each bucket, the earlier watermark.
        upto: of each bucket, the later one.
    """
    touched = Touched(FactBook(session.node, session, client.log))
    if not touched.by_logs(client.log, after, upto):
        return None
    reference = {one.name_there.lower() for one in published(client) if client.topology.table(one.name).reference}
    for table in tables:
        name = table.schema.name_there
        parents = (key for key in constraints_of(session, name).parents if _acts(key))
        if any(key.parent.lower() in reference or _spreads(key, touched) for key in parents):
            touched.rows[name.lower()] = None
    return touched


def _acts(key: ForeignKey) -> bool:
    return not {key.on_delete, key.on_update} <= {"RESTRICT", "NO ACTION"}


def _spreads(key: ForeignKey, touched: Touched) -> bool:
    """Return whether any row may be changed by its foreign key: it follows any row, or more of a row than its id."""
    return touched.rows.get(key.parent.lower(), ()) is None or key.parent_columns != ("id",)


def take_records(source: NodeSession, target: FencedSession, marks: dict[int, Position], state: str) -> None:
    """Copy what the pipeline keeps of buckets, and write their watermarks: the copy is whole with this commit.

    Args:
        source: in the snapshot of the copy.
        target: fenced.
        marks: the watermark of each bucket in that snapshot.
        state: of the buckets from then on.
    """
    with target.translated(), target.transaction():
        for bucket, position in marks.items():
            copy_records(source, target, bucket, GOES_ALONG)
            moves.place_mark(target, bucket, position, state)


def take_key_records(
    client: Client, source: NodeSession, target: FencedSession, mark: tuple[int, Position], of: KeyName, state: str
) -> None:
    """Copy those records of a bucket that a key needs which leaves the bucket; see `take_records`.

    Args:
        client: the deployment.
        source: in the snapshot of the copy.
        target: fenced.
        mark: the key's number, and the bucket's watermark in that snapshot.
        of: the key.
        state: of the key from then on.
    """
    piece, position = mark
    own = _own_of(client, source, of)
    with target.translated(), target.transaction():
        for table in GOES_ALONG:
            target.execute(f"DELETE FROM {table} WHERE bucket = {piece}")
            if table in ("pipeline_forged", "pipeline_actions"):
                continue  # of entries that are no ops, and of what operators did in the bucket
            columns, rows = _renamed(*records_of(source, table, of.bucket), piece)
            if table in _ASIDE:
                rows = [tuple(row) for at, row in _placed(columns, rows).rows if at in own]
            if rows:
                insert(target, table, columns, rows)
        moves.place_mark(target, piece, position, state)


def set_aside_behind(source: NodeSession, after: dict[int, Position], *, leaves: bool = False) -> dict[int, Aside]:
    """Return what the source keeps of ops that it has set aside behind some watermarks.

    Args:
        source: of its primary, outside a transaction.
        after: the watermark of each bucket or piece.
        leaves: whether the pieces leave their buckets, whose ops that are set aside are of other keys, too.
    """
    found = dict[int, Aside]()
    with source.translated(), source.transaction():
        for bucket, position in after.items():
            which = f" AND (epoch > {position.epoch} OR (epoch = {position.epoch} AND seq > {position.seq}))"
            there = log_number(bucket) if leaves else bucket
            kept = {table: _renamed(*records_of(source, table, there, which), bucket) for table in _ASIDE}
            found[bucket] = {table: _placed(*one) for table, one in kept.items()}
    return found


def part(session: NodeSession, piece: int, of: KeyName, ends: Position, own: Collection[Position]) -> None:
    """Let a bucket that has stopped go on without a key, which another shard has from now on.

    Args:
        session: of the bucket's primary, inside a transaction whose fence holds.
        piece: the key's number.
        of: the key.
        ends: the bucket's watermark.
        own: the positions of the key's ops that are set aside, which the other shard has from now on.
    """
    for some in set_aside.parts(sorted(own)):
        which = " OR ".join(f"(epoch = {at.epoch} AND seq = {at.seq})" for at in some)
        for table in _ASIDE:
            session.execute(f"DELETE FROM {table} WHERE bucket = {of.bucket} AND ({which})")
    moves.place_mark(session, piece, ends, MOVED)
    moves.set_state(session, [of.bucket], LENT)


def merge(session: NodeSession, piece: int, of: KeyName) -> bool:
    """Let a bucket go on with a key that is back, if both have seen the same of producers; return whether they have.

    Args:
        session: of the bucket's primary, inside a transaction in which both are at one position.
        piece: the key's number.
        of: the key.
    """
    if not _seen_alike(session, piece, of.bucket):
        return False
    ignore = "IGNORE" if session.dialect.name == "mysql" else "OR IGNORE"
    for table in GOES_ALONG:
        if table not in ("pipeline_producers", "pipeline_forged"):
            # what both have noted, as of an op by its id alone, is there once
            session.execute(f"UPDATE {ignore} {table} SET bucket = {of.bucket} WHERE bucket = {piece}")
        session.execute(f"DELETE FROM {table} WHERE bucket = {piece}")
    session.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {piece}")
    moves.set_state(session, [of.bucket], ACTIVE)
    return True


def _seen_alike(session: NodeSession, piece: int, bucket: int) -> bool:
    """Return whether a key and its bucket have noted the same of each producer, but for what one has forgotten."""
    found: dict[int, dict[int, int]] = {piece: {}, bucket: {}}
    old_ms = f"seen_ms < {session.dialect.now_ms} - {FORGOTTEN_MS}"
    sql = f"SELECT bucket, producer, seq, CASE WHEN {old_ms} THEN 1 ELSE 0 END FROM pipeline_producers"
    old = set()
    for number, producer, seq, is_old in session.rows(f"{sql} WHERE bucket IN ({piece}, {bucket})"):
        found[number][producer] = seq
        old |= {producer} if is_old else set()
    here, there = found[bucket], found[piece]
    return all(
        here.get(one) == there.get(one) or (one in old and (one in here) is not (one in there))
        for one in here.keys() | there.keys()
    )


def _renamed(columns: str, rows: list[tuple[Any, ...]], number: int) -> tuple[str, list[tuple[Any, ...]]]:
    at = columns.split(", ").index("bucket")
    return columns, [(*row[:at], number, *row[at + 1 :]) for row in rows]


def _placed(columns: str, rows: list[tuple[Any, ...]]) -> KeptRows:
    epoch, seq = (columns.split(", ").index(name) for name in ("epoch", "seq"))
    return KeptRows(columns, [(Position(row[epoch], row[seq]), row) for row in rows])


def delete_bucket_rows(session: FencedSession, tables: list[MovedTable], buckets: Collection[int]) -> Iterator[int]:
    """Delete the rows and the records of buckets, chunk by chunk; yield how many rows each chunk had.

    Args:
        session: of the primary of a shard that does not own the buckets; fenced.
        tables: that may have rows of the buckets.
        buckets: which.
    """
    for table in reversed(tables):
        yield from delete_rows(session, table.schema.name_there, id_column(table.schema), table.condition)
    for bucket in buckets:
        with session.translated(), session.transaction():
            for name in GOES_ALONG:
                session.execute(f"DELETE FROM {name} WHERE bucket = {bucket}")
