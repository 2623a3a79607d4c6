"""Publish the schema of a table before its first op; refuse one whose id or shard key the database cannot keep."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from weakref import WeakValueDictionary

from pipeline.config.topology import Topology
from pipeline.enqueue.spooling.redis_away import RedisAway
from pipeline.errors import BadOp, LogUnavailable, PipelineFull, Unavailable
from pipeline.events import Event
from pipeline.model.schema import TableSchema
from pipeline.oplog.contract import Entries
from pipeline.shard import columns
from pipeline.shard.nodes import Nodes
from pipeline.wait_budget import WaitBudgetSpent

logger = logging.getLogger("pipeline.publish")


class SchemaPublisher:
    """Publishes definitions, and checks once whether a table can keep its ids and its shard key."""

    def __init__(self, log: Entries, nodes: Nodes, topology: Topology, away: RedisAway):
        self._log, self._nodes, self._topology, self._away = log, nodes, topology, away
        #: Those that a plan still uses: what no table has any more needs to be published no more.
        self._published = WeakValueDictionary[str, TableSchema]()
        self._spooled: set[str] = set()

    def publish(self, schemas: Iterable[TableSchema]) -> None:
        """Publish those definitions that this process has not, in one round trip; with a spool, they go there while
        Redis is away.

        Raises:
            LogUnavailable: Redis did not answer, and there is no spool; none is published.
        """
        new = {schema.hash: schema for schema in schemas if schema.hash not in self._published}
        if not new:
            return
        if self._away.open or not self._taken(new.values()):
            # whoever drains the spool publishes them; the ops that need them are behind them in there, or sent later
            kept = [(schema.hash, schema.name, schema.to_json()) for schema in new.values()]
            self._away.spool.keep_definitions(kept, wait=True)
            self._spooled |= new.keys()
        self._published |= new
        self._spooled &= set(self._published)

    def keep(self) -> None:
        """Keep all definitions of this process in the spool: who drains it may be another."""
        new = [schema for schema in list(self._published.values()) if schema.hash not in self._spooled]
        if new:
            kept = [(schema.hash, schema.name, schema.to_json()) for schema in new]
            self._away.spool.keep_definitions(kept, wait=False)
            self._spooled |= {schema.hash for schema in new}

    def republish(self) -> None:
        """Publish all anew, after Redis may have forgotten them."""
        self._send(list(self._published.values()))

    def _taken(self, schemas: Iterable[TableSchema]) -> bool:
        try:
            self._send(schemas)
        except (LogUnavailable, PipelineFull) as error:
            self._away.hear(error)
            return False
        return True

    def _send(self, schemas: Iterable[TableSchema]) -> None:
        self._log.publish_schemas((schema.name, schema.hash, schema.to_json()) for schema in schemas)

    def approve(self, schema: TableSchema) -> None:
        """Check on one shard that answers; where the table is not there yet, migrate will make it right.

        Where none answers within half of the caller's wait budget, the op is taken. A worker, whose database does
        answer, rejects the op with the database's reason if the id does not fit. `check` then finds the shard key's
        collation.

        Raises:
            BadOp: the table keeps its ids in an INT column, where a 53-bit id does not fit; or its shard key in a
                column that takes different texts for equal.
        """
        if self._topology.table(schema.name).ids != "pipeline" and not columns.text_key(schema, self._topology):
            return
        try:
            why = self._away.wait_budgets.aside(lambda: self._refused(schema), share=0.5)
        except (Unavailable, WaitBudgetSpent) as error:
            logger.warning(
                Event(
                    "id_column_not_checked",
                    table=schema.name,
                    error=error,
                    text="the workers will tell whether ids fit",
                )
            )
            return
        if why is not None:
            raise BadOp(why)

    def _refused(self, schema: TableSchema) -> str | None:
        for shard in self._topology.shards:
            try:
                return columns.unusable(self._nodes.primary(shard), schema, self._topology)
            except Unavailable as error:
                unreachable = error
        raise unreachable
