"""Find the rows of buckets that move, in each table; copy, compare and delete them.

A copy is an attempt: each of its chunks is written only while the attempt counts, so that a mover that was thought
dead writes nothing into the copy of its successor.
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
from pipeline.client import Client
from pipeline.errors import PipelineError
from pipeline.model import Position
from pipeline.model.schema import TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.co_location import bucket_sql
from pipeline.shard.columns import DatabaseColumn, columns_of
from pipeline.shard.driver_errors import Fault, fault_of, is_driver_error, sentence_of
from pipeline.shard.records import moves
from pipeline.shard.records.moves import Fence, RowPlace
from pipeline.shard.row_sync import RowSync, delete_rows, sample
from pipeline.shard.stored_rows import GOES_ALONG, copied_columns, copy_records, id_column, records_of
from pipeline.shard.table_facts import ForeignKey, constraints_of

#: The longest statement of a copy, s: what a chunk may take is bounded where chunks are made.
STATEMENT_S = 30.0
#: How long a table is read for an estimate, s; and how much longer a copy and its comparison take than reading: 3.0
#: to 3.5 times on SQLite and MariaDB whose disks were memory, with 50,000 rows and with every 16th of 160,000.
SAMPLE_S, COPY_TIMES = 2.0, 4.0


class CopyVoid(PipelineError):
    """Another mover has begun to copy anew, or the move was given up."""

    retryable = True


class Different(PipelineError):
    """Rows of the two shards differ at one watermark."""


class Size(NamedTuple):
    """What a move takes along of one table.

    Attributes:
        rows, bytes: that would move; *about*: estimated from the beginning of the table.
        copy_s: how long it would take to copy and compare them, s, an estimate.
    """

    table: str
    rows: int
    bytes: int
    about: bool
    copy_s: float


class MovedTable(NamedTuple):
    """A table of which rows move, and which rows these are in SQL."""

    schema: TableSchema
    columns: list[DatabaseColumn]
    condition: str


class FencedSession(NodeSession):
    """A session whose transactions take place only while a move is where its mover takes it to be."""

    fence = Fence()

    @contextmanager
    def transaction(self) -> Iterator[NodeSession]:
        """Begin, and commit at the end; see `NodeSession.transaction`.

        Raises:
            CopyVoid: it is not there any more; nothing was done.
        """
        with super().transaction():
            if not self.fence.holds(self):
                raise CopyVoid("another mover is at these buckets, or they are moved anew, or the move was given up")
            yield self


def moved_tables(client: Client, buckets: Collection[int], source: str, target: str) -> list[MovedTable]:
    """Return the tables that have rows of buckets, parents first.

    Args:
        client: the deployment.
        buckets: that move.
        source, target: the shards.

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
        touched: which of them may be others by now.
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
    """Return what would move of a table, and for how long; its beginning is read as a copy reads it.

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
        for table, columns in (
            ("pipeline_producers", "producer, seq"),
            ("pipeline_rejects", "epoch, seq, producer, producer_seq, state"),
            ("pipeline_held", "row_key, epoch, seq"),
        ):
            sql = f"SELECT {columns} FROM {table} WHERE bucket = {bucket}"
            if {*source.rows(sql)} != {*target.rows(sql)}:
                raise Different(f"{table} differs in bucket {bucket}")


def touched_since(
    client: Client,
    session: NodeSession,
    tables: list[MovedTable],
    after: dict[int, Position],
    upto: dict[int, Position],
) -> Touched | None:
    """Return which rows the source may have changed between two watermarks; None where its logs do not say it.

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


def set_aside_behind(source: NodeSession, after: dict[int, Position]) -> dict[int, Aside]:
    """Return what the source keeps of ops that it has set aside behind some watermarks.

    Args:
        source: of its primary, outside a transaction.
        after: by bucket.
    """
    found = dict[int, Aside]()
    with source.translated(), source.transaction():
        for bucket, position in after.items():
            which = f" AND (epoch > {position.epoch} OR (epoch = {position.epoch} AND seq > {position.seq}))"
            tables = ("pipeline_rejects", "pipeline_held")
            found[bucket] = {table: _placed(*records_of(source, table, bucket, which)) for table in tables}
    return found


def _placed(columns: str, rows: list[tuple[Any, ...]]) -> KeptRows:
    epoch, seq = (columns.split(", ").index(name) for name in ("epoch", "seq"))
    return KeptRows(columns, [(Position(row[epoch], row[seq]), row) for row in rows])


def delete_bucket_rows(session: FencedSession, tables: list[MovedTable], buckets: Collection[int]) -> Iterator[int]:
    """Delete the rows and the records of buckets, chunk by chunk; yield how many rows each chunk had.

    Args:
        session: of the primary of a shard that does not own them; fenced.
        tables: that may have rows.
        buckets: which.
    """
    for table in reversed(tables):
        yield from delete_rows(session, table.schema.name_there, id_column(table.schema), table.condition)
    for bucket in buckets:
        with session.translated(), session.transaction():
            for name in GOES_ALONG:
                session.execute(f"DELETE FROM {name} WHERE bucket = {bucket}")
