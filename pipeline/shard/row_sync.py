"""Make the rows of some buckets on one shard equal to those on another, compare them, and delete them: by chunks.

Both sides are walked together in the order of ids. The servers compare a chunk by count and checksum, and only rows
that differ travel. So what was copied before is sent once, although it is compared again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from pipeline.bounds import portions
from pipeline.clock import mono_s
from pipeline.model.schema import TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.columns import DatabaseColumn
from pipeline.shard.driver_errors import Fault, fault_of, is_about_other_rows, is_driver_error
from pipeline.shard.stored_rows import WRITE_ROWS, RangeTotal, StoredIds, StoredRows, as_it_is

#: Rows of the first chunk and of the largest, and how long a chunk may take to compare, copy or delete, seconds.
FIRST, MOST, CHUNK_S = 200, 20_000, 0.1
#: How many bytes of rows one transaction writes, if these are not of one row.
WRITE_BYTES = 1_000_000
#: How large a row is taken to be that is copied by itself, bytes: ten of them in one transaction.
RENEWED_BYTES = WRITE_BYTES // 10
#: How many ids of rows that differ are named.
NAMED = 3


class Compared(NamedTuple):
    """What was compared.

    Attributes:
        rows: of the source.
        bytes: of these rows, about.
        last_id: up to which both sides are done; None: the end of the table.
        wrong: how many rows were missing on the target, were other ones there, or should not have been there.
        examples: the first ids of these.
    """

    rows: int
    bytes: int
    last_id: int | None
    wrong: int
    examples: tuple[int, ...]


class RowSync:
    """The rows of one table for which a condition holds, on two shards.

    Args:
        source: of the shard that has the rows; inside a transaction with a snapshot.
        target: of the shard that gets them. Nobody else writes these rows there.
        schema: the table's definition.
        columns: what is copied and compared, as `copied_columns` returns it.
        condition_sql: which rows, in the SQL of both; a row for which it is NULL is none of them.
    """

    def __init__(
        self,
        source: NodeSession,
        target: NodeSession,
        schema: TableSchema,
        columns: Sequence[DatabaseColumn],
        condition_sql: str,
    ):
        self._source = StoredRows(source, schema, columns, condition_sql)
        self._target = StoredRows(target, schema, columns, condition_sql)
        #: Whether the rows behind the chunk were freed of what the source has no more.
        self._cleared = False

    def sync(self, after: int | None = None, until: int | None = None) -> Iterator[Compared]:
        """Make the target equal to the source, and yield each chunk when it is; the target is outside a transaction.

        Args:
            after: the id behind which to begin; None: at the start.
            until: the last id; None: to the end.

        Raises:
            Exception: of the driver, where the target refuses a row, as for a unique value that a row of its own has.
        """
        self._cleared = False
        yield from (found.chunk for found in self._walk(after, alone=True, writing=True, until=until))

    def renew(self, ids: Iterable[int], until: int | None) -> None:
        """Make single rows of the target equal to those of the source; the target is outside a transaction.

        Args:
            ids: of rows up to *until*; others of them have changed on neither side.
            until: the last id that was copied; None: all were.
        """
        wanted = [id for id in sorted(ids) if until is None or id <= until]
        with self._target.session.transaction():
            had = self._target.having(wanted)
        self._cleared = False
        self._target.delete(had)
        for some in portions(((id, RENEWED_BYTES) for id in self._source.having(wanted)), WRITE_BYTES, WRITE_ROWS):
            self._write(self._source.read(some), until)

    def compare(self, after: int | None = None) -> Iterator[Compared]:
        """Compare only, and yield each chunk; both sessions are inside a transaction with a snapshot.

        Args:
            after: the id behind which to begin; None: at the start.
        """
        return (found.chunk for found in self._walk(after, alone=False))

    def differences(self) -> Iterator[Compared]:
        """Compare all, and yield the chunks that differ."""
        return (chunk for chunk in self.compare() if chunk.wrong)

    def _walk(
        self, after: int | None, alone: bool, *, writing: bool = False, until: int | None = None
    ) -> Iterator[_Found]:
        pace = _Pace(CHUNK_S)
        while True:
            with pace.timed():  # what is written counts: nothing holds a mover back within a chunk
                with self._target.session.transaction() if alone else nullcontext():
                    found = self._look(after, pace, until)
                if writing:
                    self._target.delete(found.stale)
                    for ids in portions(found.missing.items(), WRITE_BYTES, WRITE_ROWS):
                        self._write(self._source.read(ids), found.upto)
            yield found
            if found.upto == until:
                return
            after = found.upto

    def _look(self, after: int | None, pace: _Pace, until: int | None) -> _Found:
        while True:
            try:
                ends = [side.end(after, pace.rows) for side in (self._source, self._target)]
                upto = min((end for end in (*ends, until) if end is not None), default=None)
                with as_it_is(self._source.session), as_it_is(self._target.session):
                    return self._compared(after, upto)
            except Exception as error:
                if fault_of(error) is not Fault.OVERTIME or not pace.shrinks():
                    raise

    def _compared(self, after: int | None, upto: int | None) -> _Found:
        mine, theirs = self._source.total(after, upto), self._target.total(after, upto)
        if mine.checksum == theirs.checksum and mine.rows == theirs.rows:
            return _Found(upto, mine, {}, [])
        has, had = self._source.each(after, upto), self._target.each(after, upto)
        missing = {id: row.bytes for id, row in has.items() if id not in had or had[id].digest != row.digest}
        return _Found(upto, mine, missing, [id for id in had if id in missing or id not in has])

    def _write(self, rows: Sequence[Sequence[object]], upto: int | None) -> None:
        """Insert rows. A row behind them may still hold a unique value that one of them has taken over since.

        A connection that was cut is no such case: the rows may be there.
        """
        try:
            self._target.insert(rows)
        except Exception as error:
            refused = is_driver_error(error) and is_about_other_rows(error)
            if self._cleared or upto is None or not refused:
                raise
            self._cleared = True
            for found in self._walk(upto, alone=True):
                self._target.delete(found.stale)
            self._target.insert(rows)


def delete_rows(
    session: NodeSession, table: str, id_name: str, condition_sql: str, most_ms: float = CHUNK_S * 1000
) -> Iterator[int]:
    """Delete the rows for which a condition holds, and yield after each chunk how many these were.

    Foreign keys delete nothing else. Rows of which the condition does not hold are never waited for.

    Args:
        session: outside a transaction.
        table: its name in the database.
        id_name: the name of its primary key in the database.
        condition_sql: which rows.
        most_ms: how long a chunk may take, about, ms.
    """
    keys, pace, after = StoredIds(session, table, id_name, condition_sql), _Pace(most_ms / 1000), None
    while True:
        with pace.timed():
            with session.transaction():
                upto = keys.end(after, pace.rows)
                ids = keys.ids(after, upto)
            keys.delete(ids)
        yield len(ids)
        if upto is None:
            return
        after = upto


class Sample(NamedTuple):
    """What the beginning of a table has, and how long it takes to read.

    Attributes:
        looked: how many rows of the table were looked at.
        rows: for how many of these the condition holds.
        bytes: of these, about.
        took_s: how long it took to find, digest and read them, seconds.
        whole: whether that is all of the table.
        table_rows: about how many rows the table has.
    """

    looked: int
    rows: int
    bytes: int
    took_s: float
    whole: bool
    table_rows: int


def sample(
    session: NodeSession, schema: TableSchema, columns: Sequence[DatabaseColumn], condition_sql: str, for_s: float
) -> Sample:
    """Read a table from its beginning as a copy does, for a while; nothing is written.

    Args:
        session: inside a transaction with a snapshot.
        schema: the table's definition.
        columns: what would be copied.
        condition_sql: which rows would be.
        for_s: for how long, seconds.
    """
    stored, pace, started = StoredRows(session, schema, columns, condition_sql), _Pace(CHUNK_S), mono_s()
    looked = rows = size = 0
    after: int | None = None
    while True:
        with pace.timed():
            step, upto = pace.rows, stored.end(after, pace.rows)
            with as_it_is(session):
                found = stored.each(after, upto)
            for ids in portions(((id, row.bytes) for id, row in found.items()), WRITE_BYTES, WRITE_ROWS):
                stored.read(ids)
        rows, size = rows + len(found), size + sum(one.bytes for one in found.values())
        looked, after = looked + step, upto
        took_s = mono_s() - started
        if after is None or took_s >= for_s:
            return Sample(looked, rows, size, took_s, after is None, stored.about())


class _Found(NamedTuple):
    """What a look at a chunk found; `missing` has the bytes of each row to copy, `stale` the rows to delete before."""

    upto: int | None
    total: RangeTotal
    missing: dict[int, int]
    stale: list[int]

    @property
    def chunk(self) -> Compared:
        wrong = sorted({*self.missing, *self.stale})
        return Compared(self.total.rows, self.total.bytes, self.upto, len(wrong), tuple(wrong[:NAMED]))


class _Pace:
    """How many rows of a table are looked at in one go.

    Args:
        aim_s: how long that should take, seconds.
    """

    def __init__(self, aim_s: float):
        self.rows, self._aim_s = FIRST, aim_s

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take more rows next time, or fewer."""
        started = mono_s()
        yield
        share = self._aim_s / max(mono_s() - started, 0.001)
        self.rows = max(1, min(MOST, int(self.rows * min(share, 2))))

    def shrinks(self) -> bool:
        """Take far fewer rows at once; return whether that was possible."""
        before, self.rows = self.rows, max(1, self.rows // 8)
        return self.rows < before
