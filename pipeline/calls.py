"""The calls that queue ops: door, then out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from pipeline.enqueue.dispatch import BULK_ROWS
from pipeline.enqueue.held_ops import Chunk, Held, HeldOps, Validated, validated
from pipeline.errors import BadOp
from pipeline.model.op import Addressed
from pipeline.model.receipt import Receipt, Receipts
from pipeline.wait_budget import in_all
from pipeline.wiring import Parts

#: How long a bulk call waits for `durability="applied"`, s; as `wait_all` does.
BULK_WAIT_S = 30.0


class Writes(Parts):
    """What writes."""

    @in_all
    def define_tables(self, db: Any) -> None:
        """Make a DAL's tables known, so that ops may name them by text. Cheap enough for every request."""
        self.op_builder.define(db)

    @in_all
    def enqueue_insert(self, table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any) -> Receipt:
        """Queue an insert; see the package's `enqueue_insert`."""
        if values is None and _OPTIONS.isdisjoint(fields):  # as most calls are
            return self._dispatch.take(self.op_builder.insert(table, fields), "redis")
        options, given = _split(values, fields)
        addressed = self.op_builder.insert(table, given, options.get("shard_key"), options.get("idempotency_key"))
        return self._dispatch.take(addressed, options.get("durability", "redis"))

    @in_all
    def enqueue_update(
        self, target: Any, second: Any = None, third: Mapping[str, Any] | None = None, /, **fields: Any
    ) -> Receipt:
        """Queue an update; see the package's `enqueue_update`."""
        row_id, values = (None, second) if isinstance(second, Mapping) else (second, third)
        options, given = _split(values, fields)
        addressed = self.op_builder.update(
            target, row_id, given, options.get("shard_key"), options.get("idempotency_key")
        )
        return self._dispatch.take(addressed, options.get("durability", "redis"))

    @in_all
    def enqueue_delete(self, target: Any, row_id: Any = None, /, **options: Any) -> Receipt:
        """Queue a delete; see the package's `enqueue_delete`."""
        _only_options(options)
        addressed = self.op_builder.delete(target, row_id, options.get("shard_key"), options.get("idempotency_key"))
        return self._dispatch.take(addressed, options.get("durability", "redis"))

    @in_all
    def enqueue_upsert(
        self, table: Any, values: Mapping[str, Any] | None = None, /, *, key: Iterable[str], **fields: Any
    ) -> Receipt:
        """Queue an upsert; see the package's `enqueue_upsert`."""
        options, given = _split(values, fields)
        addressed = self.op_builder.upsert(table, key, given, options.get("shard_key"), options.get("idempotency_key"))
        return self._dispatch.take(addressed, options.get("durability", "redis"))

    def enqueue_bulk_insert(self, table: Any, rows: Iterable[Mapping[str, Any]], **options: Any) -> Receipts:
        """Queue an insert of each row; see the package's `enqueue_bulk_insert`."""
        _only_options(options)
        durability = self._dispatch.known_durability(options.get("durability", "redis"))
        if options.get("idempotency_key") is not None:
            raise BadOp("a bulk insert takes no idempotency_key: each op needs its own, so enqueue them one by one")
        if self._dispatch.gathering:
            single = [self.enqueue_insert(table, row, **options) for row in rows]
            return Receipts(single.__getitem__, len(single))
        chunks: list[Chunk] = []
        chunk = Chunk()
        for addressed in self.op_builder.inserts(table, rows, options.get("shard_key")):
            chunk.add(addressed.bucket, addressed.op)
            if len(chunk) == BULK_ROWS:
                chunks.append(self._dispatch.send_chunk(chunk, durability))
                chunk = Chunk()
        if len(chunk):
            chunks.append(self._dispatch.send_chunk(chunk, durability))
        receipts = Receipts(
            lambda i: chunks[i // BULK_ROWS].receipt(i % BULK_ROWS, self.follower), sum(map(len, chunks))
        )
        if durability == "applied":
            self.follower.wait_all(receipts, BULK_WAIT_S)
        return receipts

    def enqueue_validated_insert(
        self, table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any
    ) -> Validated:
        """Validate and queue an insert; see the package's `enqueue_validated_insert`."""
        options, given = _split(values, fields)
        table = self.op_builder.table(table)
        return validated(table, given, lambda final: self.enqueue_insert(table, final, **options))

    @in_all
    def take_together(self, made: Iterable[Addressed]) -> Receipt:
        """Queue ops that the door has made, all of one bucket, in one atomic group; return the last one's receipt."""
        with self.atomic():
            return [self._dispatch.take(one, "redis") for one in made][-1]

    def atomic(self) -> AbstractContextManager[None]:
        """Gather the ops of this thread; apply them together or not at all. They must belong to one bucket.

        Raises:
            CrossBucket: at the call that would leave the bucket.
        """
        return self._dispatch.atomic()

    def held(self) -> Held:
        """Return an empty collection of ops, to be sent later or dropped: what a request's face needs."""
        return self._dispatch.held()

    def holding(self, held: HeldOps) -> AbstractContextManager[HeldOps]:
        """Let this thread's ops go into *held* inside the block. Their receipts have ids, but no position yet."""
        return self._dispatch.holding(held)

    def unsent(self, table: str) -> bool:
        """Whether this thread has ops for a table that are not sent yet: in an atomic block, or held."""
        return self._dispatch.unsent(table)

    def save_data(self, table: Any, shard_key: Any, values: Mapping[str, Any]) -> Receipt:
        """Queue an insert of a row whose shard key is given apart."""
        name = self.topology.table(self.op_builder.table(table)._tablename).shard_key
        return self.enqueue_insert(table, {**values, name: shard_key} if name else dict(values))


_OPTIONS = frozenset(("shard_key", "idempotency_key", "durability"))


def _split(values: Mapping[str, Any] | None, fields: dict[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Tell the options from the fields. In the mapping form every key is a field."""
    options = {name: fields.pop(name) for name in _OPTIONS if name in fields}
    if values is None:
        return options, fields
    if not isinstance(values, Mapping):
        raise BadOp(f"expected the fields as a mapping or as keywords, got {type(values).__name__}")
    return options, {**values, **fields} if fields else values


def _only_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _OPTIONS:
            raise BadOp(f"unknown option {name!r}; there are {', '.join(sorted(_OPTIONS))}")
