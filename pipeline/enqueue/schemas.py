"""Table definitions on their way to the workers: published before the first op that uses them."""

from __future__ import annotations

import logging

from pipeline.config.topology import Topology
from pipeline.enqueue.breaker import Breaker
from pipeline.enqueue.row_plans import Gate
from pipeline.errors import BadOp, LogUnavailable, PipelineFull, Unavailable
from pipeline.model.schema import TableSchema
from pipeline.oplog.contract import Entries
from pipeline.shard import columns
from pipeline.shard.nodes import Nodes
from pipeline.spool.store import Spool
from pipeline.wait_budget import WaitBudgets, WaitBudgetSpent

logger = logging.getLogger("pipeline.publish")


class SchemaPublisher:
    """Publishes definitions, and looks once whether the ids of a table will fit its id column."""

    def __init__(
        self,
        log: Entries,
        nodes: Nodes,
        topology: Topology,
        spool: Spool | None,
        breaker: Breaker,
        wait_budgets: WaitBudgets,
    ):
        self._log, self._nodes, self._topology = log, nodes, topology
        self._spool, self._breaker, self._wait_budgets = spool, breaker, wait_budgets
        self._published: dict[str, Gate] = {}
        self._spooled: set[str] = set()

    def publish(self, gate: Gate) -> None:
        """Publish one definition, once; with a spool, it goes there while Redis is away.

        Raises:
            LogUnavailable: Redis did not answer, and there is no spool.
        """
        schema = gate.schema
        if schema.hash in self._published:
            return
        if self._spool is None:
            self._log.publish_schema(schema.name, schema.hash, schema.to_json())
        elif self._breaker.open or not self._told(gate):
            # whoever drains the spool publishes it; the ops that need it are behind it in there, or sent later
            self._spool.keep_definitions([(schema.hash, schema.name, schema.to_json())], wait=True)
            self._spooled.add(schema.hash)
        self._published[schema.hash] = gate

    def keep_in(self, spool: Spool) -> None:
        """Let the spool know all definitions of this process: who drains it may be another."""
        new = self._published.keys() - self._spooled
        if new:
            schemas = [self._published[hash].schema for hash in new]
            spool.keep_definitions([(schema.hash, schema.name, schema.to_json()) for schema in schemas], wait=False)
            self._spooled |= new

    def republish(self) -> None:
        """Publish all anew, after Redis may have forgotten them."""
        for gate in list(self._published.values()):
            self._log.publish_schema(gate.schema.name, gate.schema.hash, gate.schema.to_json())

    def _told(self, gate: Gate) -> bool:
        try:
            self._log.publish_schema(gate.schema.name, gate.schema.hash, gate.schema.to_json())
        except (LogUnavailable, PipelineFull) as error:
            self._breaker.hear(error)
            return False
        return True

    def approve(self, gate: Gate) -> None:
        """Ask one shard that answers; where the table is not there yet, migrate will make it right.

        Where none answers within half of the caller's patience, the op is taken: a worker, whose database does answer,
        rejects it with the database's reason if the id does not fit.

        Raises:
            BadOp: the table keeps its ids in an INT column, where a 64-bit id does not fit.
        """
        schema = gate.schema
        if self._topology.table(schema.name).ids != "pipeline":
            return
        try:
            kind = self._wait_budgets.aside(lambda: self._id_type(schema), ended=self._nodes.close, share=0.5)
        except (Unavailable, WaitBudgetSpent) as error:
            logger.warning("whether ids fit their column in %s the workers will tell: %s", schema.name, error)
            return
        if kind is not None and not columns.holds_64_bits(kind):
            raise BadOp(
                f"table {schema.name!r} keeps its ids in a column of type {kind}, which cannot hold a 64-bit id: "
                f"run ALTER TABLE {schema.name} MODIFY {schema.id_name} BIGINT NOT NULL AUTO_INCREMENT, "
                f'or set [tables.{schema.name}] ids = "database"'
            )

    def _id_type(self, schema: TableSchema) -> str | None:
        for shard in self._topology.shards:
            try:
                return columns.id_type(self._nodes.primary(shard), schema)
            except Unavailable as error:
                unreachable = error
        raise unreachable
