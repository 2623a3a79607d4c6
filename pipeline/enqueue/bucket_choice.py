"""Where the door puts an op: the bucket of a new row, or of the rows that a condition names; and what may not move."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from typing import Any

from pipeline.config.settings import TableSettings
from pipeline.config.topology import Topology
from pipeline.dal.trees import Tree, pinned
from pipeline.enqueue.row_plans import Gate
from pipeline.errors import BadOp, CrossBucket, ShardKeyError
from pipeline.model import ids


class Placing:
    """Finds buckets. Threads may share it."""

    def __init__(self, topology: Topology):
        self._topology = topology
        self._turn = random.randrange(topology.buckets)

    def of_new(
        self,
        gate: Gate,
        rules: TableSettings,
        columns: tuple[int, ...],
        final: list[Any],
        row: int | None,
        shard_key: Any,
        idempotency_key: str | None = None,
    ) -> int:
        """Return the bucket of a new row.

        Args:
            columns, final: its columns and their values.
            row: its id, if it brings one.
            shard_key, idempotency_key: what the caller gave beside the values.

        Raises:
            ShardKeyError: it has no shard key, or two.
        """
        key = rules.shard_key
        if rules.reference:
            return self._topology.reference_bucket
        if key is None or key == gate.schema.id_name:
            return self._of_new_id(gate.schema.name, row, shard_key, idempotency_key)
        column = gate.column_of.get(key)
        own = final[columns.index(column)] if column in columns else None
        if own is None:
            raise ShardKeyError(f"table {gate.schema.name!r} is sharded by {key!r}: the insert must give it a value")
        if shard_key is not None and gate.check[key](shard_key) != own:
            raise ShardKeyError(f"shard_key= differs from the value of {gate.schema.name}.{key}: leave it out")
        bucket = self._topology.bucket_of(gate.schema.name, own)
        if row is not None and ids.carries_bucket(row) and ids.bucket_of(row) != bucket:
            raise ShardKeyError(
                f"the id given for {gate.schema.name!r} carries bucket {ids.bucket_of(row)}, its shard key belongs to "
                f"{bucket}: let the pipeline make the id"
            )
        return bucket

    def of_rows(self, gate: Gate, rules: TableSettings, where: Tree, shard_key: Any) -> tuple[int, int | None]:
        """Return the bucket of the rows that a condition names, and the one id if it names just that.

        Raises:
            ShardKeyError: it fixes neither id nor shard key.
            CrossBucket: it fixes both, and they do not belong together.
        """
        schema = gate.schema
        row = pinned(where, schema.id_index)
        only = row if where[0] == "=" and row is not None else None
        if rules.reference:
            return self._topology.reference_bucket, only
        by_id = rules.shard_key is None or rules.shard_key == schema.id_name
        found = self._named_by_id(schema.name, row) if by_id else self._named_by_key(gate, rules, where, row, shard_key)
        if len(found) > 1:
            raise CrossBucket(
                f"the query on {schema.name!r} names rows of two buckets: its id and its shard key do not belong "
                "together"
            )
        if not found:
            key = schema.id_name if by_id else rules.shard_key
            raise ShardKeyError(
                f"cannot tell the shard of this write to {schema.name!r}: the query must fix {key!r} with =="
                + ("" if by_id else ", or pass shard_key=")
            )
        return found.pop(), only

    def next(self) -> int:
        """Return the bucket of the next row that may live anywhere: each in turn."""
        self._turn = (self._turn + 1) % self._topology.buckets
        return self._turn

    def _of_new_id(self, name: str, row: int | None, shard_key: Any, idempotency_key: str | None) -> int:
        if shard_key is not None:
            raise ShardKeyError(f"table {name!r} is sharded by its own id: leave shard_key= out of an insert")
        if row is not None:
            return self._topology.bucket_of(name, row)
        if idempotency_key is not None:  # a bucket knows its own keys only: the same key must find the same one
            return zlib.crc32(f"{name} {idempotency_key}".encode()) % self._topology.buckets
        return self.next()

    def _named_by_id(self, name: str, row: Any) -> set[int]:
        return set() if row is None else {self._topology.bucket_of(name, row)}

    def _named_by_key(self, gate: Gate, rules: TableSettings, where: Tree, row: Any, shard_key: Any) -> set[int]:
        name, key = gate.schema.name, rules.shard_key
        assert key is not None
        if key not in gate.column_of:
            raise ShardKeyError(f"table {name!r} has no field {key!r}, by which the settings shard it")
        value = pinned(where, gate.column_of[key])
        found = set() if value is None else {self._topology.bucket_of(name, value)}
        if shard_key is not None:
            found.add(self._topology.bucket_of(name, gate.check[key](shard_key)))
        if (own := self._topology.bucket_in(row)) is not None:
            found.add(own)
        return found


def keeps_its_place(
    gate: Gate, rules: TableSettings, where: Tree, plain: Mapping[str, Any], computed: Mapping[str, Any]
) -> None:
    """Refuse an update after which a row would belong elsewhere.

    Raises:
        BadOp: it changes the id. ShardKeyError: it changes the shard key.
    """
    name, key = gate.schema.name, rules.shard_key
    if gate.schema.id_name in plain or gate.schema.id_name in computed:
        raise BadOp(f"the id of a row of {name!r} cannot be changed: insert a new row and delete the old one")
    if key is None or rules.reference or (key not in plain and key not in computed):
        return
    if key in computed or pinned(where, gate.column_of[key]) != plain[key]:
        raise ShardKeyError(
            f"{name}.{key} is the shard key and cannot be changed: the row may live on another shard then; "
            "insert it anew and delete the old row"
        )


def check_upsert_key(gate: Gate, rules: TableSettings, fields: tuple[str, ...], values: Mapping[str, Any]) -> None:
    """Refuse an upsert whose key names no single row of one shard.

    Raises:
        BadOp: a key field has no value, or there is no such unique index. ShardKeyError: the key spans shards.
    """
    name, schema = gate.schema.name, gate.schema
    gate.known(dict.fromkeys(fields))
    absent = [field for field in fields if values.get(field) is None]
    if not fields or absent:
        raise BadOp(
            f"an upsert into {name!r} needs a value for each of its key fields" + (f": {absent}" if absent else "")
        )
    single = len(fields) == 1 and (fields[0] == schema.id_name or schema.columns[schema.index[fields[0]]].unique)
    if not single and set(fields) not in [set(group) for group in rules.unique]:
        raise BadOp(
            f"an upsert into {name!r} needs a unique index on ({', '.join(fields)}): add it as "
            f"[tables.{name}] unique = [{list(fields)}], and run pipeline migrate"
        )
    key = rules.shard_key
    if key and not rules.reference and fields != (schema.id_name,) and key not in fields:
        raise ShardKeyError(f"the key of an upsert into {name!r} must contain its shard key {key!r}")
    if not key and not rules.reference and fields != (schema.id_name,):
        raise ShardKeyError(f"table {name!r} is sharded by its id, so it can be upserted by its id only")
