"""The rows that a write's query names, as the primaries have them now: replicas may lack the latest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.client import Pipeline
from pipeline.dal.objects import real_name, rebuilt


def primary_rows(client: Pipeline, table: Any, query: Any, fields: Iterable[Any], most: int) -> list[Any]:
    """Return rows of all shards, at most so many of each.

    Raises:
        ShardUnavailable: a primary did not answer; nothing is left out.
    """
    found: list[Any] = []
    topology, name, wanted = client.topology, real_name(table), [field.name for field in fields]
    for shard in topology.shards[:1] if topology.table(name).reference else topology.shards:
        session = client.nodes.primary(shard)
        with session.translated(), session.transaction():
            db = client.define_on(session.db, table)
            at = rebuilt(query, db, lambda other, db=db: db[real_name(other)])
            at.ignore_common_filters = True  # the caller's are in the query; this DAL has those of an earlier request
            found += db(at).select(*(db[name][field] for field in wanted), limitby=(0, most))
    return found
