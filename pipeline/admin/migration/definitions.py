"""Know which published definitions are in use: list them, and withdraw one that no model and no op names any more.

An op names its definition until it is applied: in a log, or where a shard has set it aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.client import Client
from pipeline.errors import NewerOp, NotAnOp, PipelineError, did_you_mean
from pipeline.model.op import Position, decode
from pipeline.model.schema import TableSchema
from pipeline.shard.columns import columns_of
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger import text_literal
from pipeline.shard.records.set_aside import ASIDE
from pipeline.shard.session import NodeSession

#: Entries of one bucket that are read at once: an op may have megabytes.
STEP = 100


class Published(NamedTuple):
    """One table's newest definition.

    Attributes:
        table: its name in the model.
        hash: of the definition.
        fields: how many fields it has.
        queued: how many ops that are not applied name the table.
        older: how many of them name an older definition.
    """

    table: str
    hash: str
    fields: int
    queued: int
    older: int


def definitions(pipeline: Client) -> list[Published]:
    """Return every published table by its name.

    Args:
        pipeline: the deployment.
    """
    named, found = queued_definitions(pipeline), []
    for table, text in sorted(pipeline.log.newest_schemas().items()):
        schema = TableSchema.from_json(text)
        queued, older = named.of(table), named.of(table, but=schema.hash)
        found.append(Published(table, schema.hash, len(schema.columns), queued, older))
    return found


def forget(pipeline: Client, table: str) -> None:
    """Withdraw a table's definition: `migrate` and `check` pass it over. Ops that name it are still understood.

    Args:
        pipeline: the deployment.
        table: its name in the model.

    Raises:
        PipelineError: no such table is published, or ops that are not applied name it.
    """
    published = pipeline.log.newest_schemas()
    if table not in published:
        raise PipelineError(f"no table {table!r} is published{did_you_mean(table, published)}")
    if waiting := queued_definitions(pipeline).of(table):
        raise PipelineError(
            f"{waiting} ops that are not applied name {table!r}: wait for the queue, replay or drop what was set aside "
            "(pipeline dead list), then forget the table"
        )
    pipeline.log.withdraw_schema(table)


class Named(Counter[tuple[str, str]]):
    """How many ops name a (table, hash of its definition)."""

    def of(self, table: str, *, but: str = "") -> int:
        """Return how many ops name a table.

        Args:
            table: its name in the model.
            but: the hash of a definition that does not count.
        """
        return sum(count for (name, hash), count in self.items() if name == table and hash != but)


def queued_definitions(pipeline: Client) -> Named:
    """Return which definitions ops name that may still be applied on any shard.

    Args:
        pipeline: its logs are read behind the watermarks of its primaries.

    Raises:
        ShardUnavailable: a primary did not answer.
    """
    named = Named()
    for shard in pipeline.topology.shards:
        session = pipeline.nodes.primary(shard)
        if columns_of(session, "pipeline_watermarks"):
            marks = ledger_queries.positions_of(session)
            for payload in (*_unapplied(pipeline, marks), *_set_aside(session)):
                named.update(_names(payload))
    return named


def _unapplied(pipeline: Client, marks: dict[int, Position]) -> Iterator[bytes]:
    """Yield the entries behind the watermarks, a few of each bucket at a time."""
    after = {bucket: marks[bucket] for bucket, count in pipeline.log.queued(marks).items() if count}
    while after:
        read = pipeline.log.read(after, dict.fromkeys(after, STEP))
        after = {bucket: entries[-1].position for bucket, entries in read.items() if entries}
        for entries in read.values():
            yield from (entry.payload for entry in entries)


def _set_aside(session: NodeSession) -> list[bytes]:
    """Return the ops that may be replayed: their payloads are kept with the reason."""
    states = ", ".join(map(text_literal, ASIDE))
    found = session.query(f"SELECT op FROM pipeline_rejects WHERE state IN ({states})")
    return [str(op).encode() for (op,) in found]


def _names(payload: bytes) -> set[tuple[str, str]]:
    try:
        return {(op.table, op.schema) for op in decode(payload).named}
    except (NotAnOp, NewerOp):
        return set()  # it is shown as a reject, and can name nothing here
