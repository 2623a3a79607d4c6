"""Keep ops as rows in the request's own database, so that its transaction commits or drops them: the outbox.

A row is written where the op is made. After the commit the rows are sent and deleted. A process that ends in between
leaves the rows; the next request, or `pipeline outbox relay`, sends them.

Invariant: each request's ops have a producer of their own, and dense sequences per bucket that are stored in the rows.
So sending them twice, from any process, is harmless; and rows of a bucket are sent in the order of their ids.

Send or drop a request's ops where the application ends its transaction itself, in the middle of the request.
Old controllers do that: `db.commit()` in a loop so that a later fault does not undo all, `db.rollback()` behind an
`except`. What was queued by then is sent with the one, and dropped with the other.
"""

from __future__ import annotations

import logging
import threading
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pydal import Field

from pipeline import clock
from pipeline.client import Client
from pipeline.enqueue.held_ops import HeldOp
from pipeline.enqueue.producer import Run
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.shipment import what_of
from pipeline.errors import BadOp, Unavailable
from pipeline.events import Event
from pipeline.model import Position, decode, encode, id_of_new, new_producer
from pipeline.model.receipt import Receipt
from pipeline.oplog.shared_state import ENQUEUED, OUTBOX
from pipeline.shard import brief
from pipeline.tracing import carried
from pipeline.web.request import Request

#: Returns the requests of the moment whose ops go with a DAL.
Begun = Callable[[], Iterable[Request]]
#: Where a DAL, which may outlive a request, keeps whom it tells.
_TOLD = "_pipeline_told"
TABLE = "pipeline_outbox"
#: Rows that are sent in one go besides a request's own.
MOST_ROWS_A_REQUEST = 1000
#: How long `durability="applied"` waits, s.
APPLIED_S = 5.0
#: A request sends rows of other buckets too once they are so old that their own process has died, ms.
ABANDONED_MS = 5_000
#: Log and shard remember a producer for a day; what is older might be doubled, and is left for people to judge, ms.
FORGOTTEN_MS = 20 * 3600 * 1000
#: By producer and bucket.
Reached = dict[tuple[int, int], Position]
logger = logging.getLogger("pipeline.web")
_MAKE_IT = "start once with migrate_enabled=True and migrate=True in DAL(...), by a user that may create tables"


def follow_commits(db: Any, begun: Begun) -> None:
    """Let `db.commit()` send what is held, and `db.rollback()` drop it; frameworks end requests in another way.

    Args:
        db: the application's DAL.
        begun: returns the requests of the moment whose ops go with *db*.
    """
    told: list[Begun] | None = vars(db).get(_TOLD)
    if told is None:
        told = _tell(db)
    if begun not in told:
        told.append(begun)


def _tell(db: Any) -> list[Begun]:
    told: list[Begun] = []
    own_commit, own_rollback = db.commit, db.rollback

    def requests() -> Iterator[Request]:
        for begun in told:
            yield from begun()

    def commit() -> None:
        own_commit()
        for request in requests():
            request.send()

    def rollback() -> None:
        own_rollback()
        for request in requests():
            request.forget()

    for name, value in ((_TOLD, told), ("commit", commit), ("rollback", rollback)):
        object.__setattr__(db, name, value)
    return told


class Kept(NamedTuple):
    """A row of the outbox: one op, or one sealed group."""

    id: int
    producer: int
    bucket: int
    seq: int
    payload: bytes


class Outbox:
    """The ops of one request; see `write.held.Held`.

    Args:
        db: the application's DAL; the table is defined, and created if it may migrate.
        client: sends.
        committed: whether the request's framework will commit *db*.
    """

    early = False

    def __init__(self, db: Any, client: Client, *, committed: bool = True):
        self._table, self._client, self._committed = defined(db), client, committed
        self.drop()
        _watch(db._adapter).outbox = self

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, entry: HeldOp) -> None:
        """Write the op of *entry* into the outbox.

        Raises:
            BadOp: it asks for a durability that only a sender has, nobody would commit the row, or there is no table.
        """
        if not self._committed:
            raise BadOp("in mode outbox list db too, @action.uses(session, pipeline, db): nobody commits the op's row")
        if entry.durability not in ("redis", "applied"):
            raise BadOp(
                f'durability="{entry.durability}" is for mode now: in an outbox an op is as safe as its database'
            )
        seq = self._last[entry.bucket] = self._last.get(entry.bucket, 0) + 1
        payload = carried(encode(entry.op))
        row = {"made_ms": clock.wall_ms(), "producer": self._producer, "bucket": entry.bucket, "seq": seq}
        try:
            row_id = self._table.insert(**row, payload=b64encode(payload).decode())
        except Exception as error:  # of any driver
            if TABLE in str(error) and not _stands(self._table._db):
                raise BadOp(f"db has no table {TABLE}: {_MAKE_IT}") from error
            raise
        self._waiting.append((entry, Kept(int(row_id), self._producer, entry.bucket, seq, payload)))

    def holds(self, table: str) -> bool:
        """Return whether an op for a table is among them."""
        return any(op.table == table for entry, _ in self._waiting for op in entry.op.members)

    def drop(self) -> None:
        """Forget the ops: their rows went with the transaction. What comes then has another producer."""
        self._producer = new_producer(kept=True)
        self._last: dict[int, int] = {}
        self._waiting: list[tuple[HeldOp, Kept]] = []

    def send(self) -> list[Receipt]:
        """Send the rows after their commit, older ones of the same buckets before them, and delete them.

        What cannot be sent now stays, and is sent by a later request; then its receipt has no position.
        """
        waiting = self._waiting
        self.drop()
        if not waiting:
            return []
        own = [kept for _, kept in waiting]
        before = abandoned(self._table, own)
        rows = before if len(before) == MOST_ROWS_A_REQUEST else [*before, *own]
        try:
            reached = sent(self._client.publisher, rows, patient=False)
        except Unavailable as error:
            logger.warning(Event("outbox_waits", ops=len(own), error=error))
            return []
        if delete(self._table, rows):
            given_up(self._client, rows, reached)
        self._reserve_keys(entry for entry, _ in waiting)
        return [receipt for entry, kept in waiting for receipt in _placed(entry, kept, reached)]

    def _reserve_keys(self, entries: Iterable[HeldOp]) -> None:
        """Let Redis know the ids under idempotency keys: it may have been away when they were told."""
        for bucket, op, _, _ in entries:
            if op.idempotency_key is not None and (row_id := id_of_new(op)) is not None:
                self._client.publisher.claim(bucket, op.scoped_key, row_id)


def _placed(entry: HeldOp, kept: Kept, reached: Reached) -> Iterator[Receipt]:
    """Yield an entry's receipts with their position: the last of the run's, which is at or behind their own."""
    position = reached.get((kept.producer, kept.bucket))
    if position is None:
        return
    for receipt in entry.receipts:
        receipt.position, receipt.producer, receipt.producer_seq = position, kept.producer, kept.seq
        yield receipt
    if entry.durability == "applied":
        entry.receipts[0].wait(APPLIED_S)


def _watch(adapter: Any) -> threading.local:
    """Let the outbox of this thread forget its ops when the application rolls back; return where it is noted."""
    here: threading.local | None = getattr(adapter, "_pipeline_outbox", None)
    if here is None:
        here = adapter._pipeline_outbox = threading.local()
        there, rollback = here, adapter.rollback

        def forgetting(*args: Any, **options: Any) -> Any:
            outbox: Outbox | None = getattr(there, "outbox", None)
            if outbox is not None:
                outbox.drop()
            return rollback(*args, **options)

        adapter.rollback = forgetting
    return here


def defined(db: Any) -> Any:
    """Return the outbox of *db*, a DAL; it is defined when first used.

    An application that takes its tables for made (`fake_migrate_all`) does not mean this one, if it is not there.
    """
    if TABLE not in db.tables:
        before = db._fake_migrate_all
        fake = db._fake_migrate_all = bool(before or db._fake_migrate) and _stands(db)
        db.define_table(
            TABLE,
            Field("made_ms", "bigint", notnull=True),
            Field("producer", "bigint", notnull=True),
            Field("bucket", "integer", notnull=True),
            Field("seq", "integer", notnull=True),
            Field("payload", "text", notnull=True),  # base64: pyDAL creates tables that hold no emoji
            fake_migrate=fake,
        )
        db._fake_migrate_all = before
    return db[TABLE]


def _stands(db: Any) -> bool:
    """Return whether the table is in the database."""
    try:
        db.executesql(f"SELECT id FROM {TABLE} WHERE 1=0")
    except Exception:  # of any driver: there is no table, or no connection, which the next statement says
        return False
    return True


def abandoned(table: Any, own: Sequence[Kept]) -> list[Kept]:
    """Return the rows of *table* that must be sent before a request's *own*, and those of processes that have ended."""
    now_ms, last = clock.wall_ms(), own[-1]
    # what was made in the future was made before this clock was set back
    other = (table.made_ms < now_ms - ABANDONED_MS) | (table.made_ms > now_ms + ABANDONED_MS)
    concerned = table.bucket.belongs(sorted({kept.bucket for kept in own})) | other
    query = concerned & (table.id < last.id) & (table.producer != last.producer)
    return kept_rows(table, query & (table.made_ms > now_ms - FORGOTTEN_MS))


def kept_rows(table: Any, query: Any) -> list[Kept]:
    """Return the rows of *table* that match *query* in the order of their ids, at most `MOST_ROWS_A_REQUEST`."""
    rows = table._db(query).select(orderby=table.id, limitby=(0, MOST_ROWS_A_REQUEST))
    return [Kept(int(r.id), int(r.producer), r.bucket, r.seq, b64decode(r.payload)) for r in rows]


def sent(publisher: Publisher, rows: Iterable[Kept], *, patient: bool = True) -> Reached:
    """Send rows, and return where the last of each producer and bucket is, at the latest.

    Args:
        publisher: sends.
        rows: in the order of their ids.
        patient: wait for a slow Redis as a bulk load does; a request must not.

    Raises:
        Unavailable: some or all may have been sent; send them again later.
    """
    runs: dict[int, dict[int, list[Kept]]] = {}
    for row in rows:
        runs.setdefault(row.producer, {}).setdefault(row.bucket, []).append(row)
    reached: Reached = {}
    for producer, of_buckets in runs.items():
        shares = {bucket: Run(run[0].seq, [row.payload for row in run]) for bucket, run in of_buckets.items()}
        for bucket, position in publisher.resend(producer, shares, patient=patient).items():
            reached[producer, bucket] = position
    return reached


def delete(table: Any, rows: Iterable[Kept]) -> bool:
    """Delete sent *rows* of *table*, and return whether that is committed. A row that stays is sent again: no harm."""
    try:
        table._db(table.id.belongs([row.id for row in rows])).delete()
        table._db._adapter.commit()  # not as if by the application's hand
    except Exception as error:  # of any driver: the request has committed, and must not fail for this
        logger.warning(Event("outbox_not_emptied", error=error, text="the rows are sent again"))
        table._db._adapter.rollback()
        return False
    return True


def given_up(client: Client, rows: Sequence[Kept], reached: Reached) -> None:
    """Count the ops of deleted *rows*, and let this process name them if Redis loses them: nobody sends them again.

    Of two processes that sent and deleted one row at once, both count it.

    Args:
        client: counts, and keeps them in mind.
        rows: that were sent.
        reached: where they are.
    """
    what: Counter[tuple[int, str, str]] = Counter()
    for row in rows:
        what.update(what_of(row.bucket, decode(row.payload)))
    client.dispatch.count(f"{ENQUEUED} {OUTBOX}", what)
    last = {(row.producer, row.bucket): row.seq for row in rows}
    for (producer, bucket), position in reached.items():
        client.publisher.remember(producer, {bucket: (last[producer, bucket], position)})


class Relayed(NamedTuple):
    """How many rows were sent, and how many were left because they are so old that they might be doubled."""

    sent: int
    left: int


def resend_outbox(client: Client, uri: str, *, old: bool = False) -> Relayed:
    """Send and delete all rows of the outbox in a database.

    Args:
        client: sends.
        uri: pyDAL's URI of the application's own database.
        old: send also what is so old that log and shard may have forgotten it: what was sent before is doubled then.

    Raises:
        Unavailable: the rows that were not sent stay; call again.
    """
    with brief("the application's database", uri, read_only=False) as session, session.translated():
        table = defined(session.db)
        limit_ms = clock.wall_ms() - FORGOTTEN_MS
        query = table.id > 0 if old else table.made_ms > limit_ms
        count = 0
        while rows := kept_rows(table, query):
            reached = sent(client.publisher, rows)
            if not delete(table, rows):
                break
            given_up(client, rows, reached)
            count += len(rows)
        return Relayed(count, session.db(table).count())
