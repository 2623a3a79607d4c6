"""An atomic group: ops of one bucket that are one entry of its log, applied together or not at all."""

from __future__ import annotations

from pipeline.errors import BadOp, CrossBucket
from pipeline.model.op import GROUP, Op
from pipeline.model.receipt import Receipt


class Atomic:
    """Gathers the ops of one `with pipeline.atomic()` block."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        self._ops: list[Op] = []
        self._bucket: int | None = None
        self._durability = "redis"

    def add(self, bucket: int, op: Op, receipt: Receipt, durability: str) -> None:
        """Take an op in.

        Raises:
            CrossBucket: it belongs to another bucket than the ops before it; nothing of the group has been sent.
        """
        if self._bucket is not None and bucket != self._bucket:
            raise CrossBucket(
                f"the op on {op.table!r} belongs to bucket {bucket}, the group to bucket {self._bucket}: one atomic "
                "group lives in one bucket; give its rows the same shard key"
            )
        if op.idempotency_key is not None:
            raise BadOp("an op in an atomic group takes no idempotency_key of its own")
        self._bucket = bucket
        self._ops.append(op)
        self.receipts.append(receipt)
        if durability != "redis":
            self._durability = durability

    def holds(self, table: str) -> bool:
        """Return whether an op for a table is in the group."""
        return any(op.table == table for op in self._ops)

    def sealed(self) -> tuple[int, Op, str]:
        """Return the bucket, the one op that is the group, and the durability its members asked for."""
        assert self._bucket is not None, "only a group with ops is sealed"
        first = self._ops[0]
        op = first if len(self._ops) == 1 else Op(GROUP, first.table, first.schema, first.at_ms, ops=tuple(self._ops))
        return self._bucket, op, self._durability
