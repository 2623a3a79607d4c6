"""Test an application without servers: the whole pipeline in this process, its log in memory, its shards in SQLite.

Nothing is a mock: the real code builds ops, applies them, and a real database rejects them. Only the servers are
missing, and what servers do by themselves happens when the test calls `drain`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pipeline
from pipeline import api, clock
from pipeline.admin.migration import migrate
from pipeline.admin.upkeep import release_waiting
from pipeline.apply.applier import Applier, applier_type
from pipeline.apply.transaction import LOCK_REST_S
from pipeline.client import Client
from pipeline.errors import PipelineError
from pipeline.model import START, Op, decode
from pipeline.model.schema import TableSchema
from pipeline.model.values import python_value
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.reads.node_tables import NodeTables
from pipeline.shard.co_location import held
from pipeline.shard.ddl import create_table
from pipeline.shard.records.stops import behind_on


@contextmanager
def sandbox(
    tables: Mapping[str, Mapping[str, Any]] | None = None, *, shards: int = 2, buckets: int = 16
) -> Iterator[Sandbox]:
    """Configure `pipeline` with a deployment of its own for the length of a `with` block, and leave nothing behind.

    A client that was configured before, such as another sandbox's, is put back at the end.

    Args:
        tables: the section `[tables]` of the configuration: of each table its settings by their keys.
        shards: how many SQLite databases there are.
        buckets: how many buckets there are, at least as many as shards.

    Raises:
        ConfigError: with every fault of the settings.
    """
    # a thread that warms a client up may still make a file while the folder goes
    with TemporaryDirectory(prefix="pipeline-sandbox-", ignore_cleanup_errors=True) as folder:
        box = Sandbox(Path(folder), tables or {}, shards, buckets)
        before, api.client = api.client, None
        pipeline.configure(box.client)
        try:
            yield box
        finally:
            pipeline.close()
            api.client = before


#: A drain looks again after so long where buckets rest, s, and for so long at most.
REST_S, MOST_RESTS_S = 0.01, 4 * LOCK_REST_S


class Drained(NamedTuple):
    """How many ops were applied and rejected; an atomic group counts once, and an op that was parked not at all."""

    applied: int
    rejected: int


class Enqueued(NamedTuple):
    """One row write that is or was in a log.

    Attributes:
        kind: `insert`, `update`, `delete`, `upsert` or `copy`, which keeps the version of a row.
        table: the table's name.
        id: the row's id, where the op names one.
        values: by field, as pyDAL would read them; expressions as trees.
        where: the condition on the rows, as a tree.
        source: of a copy, the table of the row.
    """

    kind: str
    table: str
    id: int | None
    values: dict[str, Any]
    where: list[Any] | None
    source: str | None = None

    def __str__(self) -> str:
        target = f" id={self.id}" if self.id is not None else f" where={self.where}" if self.where else ""
        source = f" of {self.source}" if self.source else ""
        return f"{self.kind} {self.table}{target}{source} {self.values}"


class Sandbox:
    """A deployment in this process.

    Args:
        folder: of the SQLite files.
        tables: the section `[tables]` of the configuration.
        shards, buckets: how many there are.
        uri: the address of a server's empty database, to be used instead of a file, with one shard.

    Attributes:
        client: the client behind the functions of `pipeline`.
        log: the log, which can be made to fail: see `oplog.memory.log.MemoryLog`.
        bell: records which shards were rung.
    """

    def __init__(
        self, folder: Path, tables: Mapping[str, Mapping[str, Any]], shards: int, buckets: int, *, uri: str = ""
    ):
        self.log, self.bell = MemoryLog(), SilentBell()
        configuration = {
            "pipeline": {"buckets": buckets},
            "redis": {"url": "redis://sandbox.invalid/0"},  # never connected to
            "shards": {f"s{n}": {"primary": uri or f"sqlite://{folder}/s{n}.sqlite"} for n in range(shards)},
            "tables": tables,
            "apply": {"breaker": False},  # a test may have as many refused ops as it likes
        }
        self.client = Client(configuration, log=self.log, bell=self.bell)
        self._appliers = {
            shard: applier_type()(
                shard,
                self.client.nodes.primary(shard),
                self.log,
                self.client.settings.apply,
                tables=self.client.settings.tables,
                topology=self.client.topology,
            )
            for shard in self.client.topology.shards
        }
        for shard in () if uri else self.client.topology.shards:
            # these files need not survive a power cut
            self.client.nodes.primary(shard).query("PRAGMA synchronous=OFF")
        migrate(self.client)
        self.log.published = self._create

    def drain(self) -> Drained:
        """Apply everything that is queued, as the workers would, and return how many ops were applied and rejected.

        Raises:
            PipelineError: an op cannot be applied yet, such as after a table's definition has changed. Or a bucket
                rests again and again, such as where the database is locked.
        """
        done, waits = list[Drained](), list[PipelineError]()
        for applier in self._appliers.values():  # one shard keeps no other waiting
            try:
                done.append(self._drain_shard(applier))
            except PipelineError as error:
                waits.append(error)
        if waits:
            raise waits[0]
        return Drained(sum(one.applied for one in done), sum(one.rejected for one in done))

    def _drain_shard(self, applier: Applier) -> Drained:
        applied = rejected = 0
        rests = clock.Deadline(MOST_RESTS_S)
        while True:
            outcome = applier.apply()
            applied, rejected = applied + outcome.applied, rejected + outcome.rejected
            if outcome.waiting and not outcome.ring:
                raise PipelineError(f"ops on shard {applier.shard!r} wait: {outcome.waiting}")
            if outcome.left:
                rests = clock.Deadline(MOST_RESTS_S)
            elif not self.log.dirty(applier.shard):
                break
            elif rests.passed:
                raise PipelineError(f"buckets of shard {applier.shard!r} rest; the log `pipeline.apply` says why")
            else:
                clock.sleep_s(REST_S)  # on a busy machine a statement may take too long: its bucket rests
        return Drained(applied + self._released(applier.shard), rejected)

    def _released(self, shard: str) -> int:
        """Apply what a worker's chore would: ops whose definition the shard has by now; return how many.

        Raises:
            PipelineError: the shard has it not yet.
        """
        primary = self.client.nodes.primary(shard)
        if not behind_on(primary, shard):
            return 0
        released = release_waiting(self.client, shard)
        if behind := behind_on(primary, shard):
            raise PipelineError(f"ops on shard {shard!r} wait: {behind[0].sentence()}")
        return released

    def enqueued(self, table: Any = None) -> list[Enqueued]:
        """Return every row write that was enqueued, applied or not, in order per bucket; of a group its members.

        Args:
            table: a pyDAL table or its name; None for all tables.

        Raises:
            UnknownTable: no table of that name was defined.
        """
        name = self.client.op_builder.table(table)._tablename if table is not None else None
        buckets = range(self.client.topology.buckets + 1)
        logs = self.log.read(dict.fromkeys(buckets, START), dict.fromkeys(buckets, 1_000_000))
        ops = [op for entries in logs.values() for entry in entries for op in decode(entry.payload).members]
        return [self._shown(op) for op in ops if name in (None, op.table)]

    def assert_enqueued(
        self, table: Any, values: Mapping[str, Any] | None = None, /, *, times: int | None = None, **fields: Any
    ) -> list[Enqueued]:
        """Check that a row write with these values was enqueued, and return those that match.

        Args:
            table: a pyDAL table or its name.
            values: the values to find, by field; a field that is named like an option goes here.
            times: how many writes must match; by default at least one.
            fields: the values to find, beside *values*, each in any form that its column accepts.

        Raises:
            AssertionError: too few or too many match; the message lists what was enqueued instead.
            BadOp: an unknown table or field, or a value that its column cannot hold.
        """
        compiled = self.client.op_builder.plan(table).compiled
        wanted = {**(values or {}), **fields}
        compiled.known(wanted)
        columns = compiled.schema.columns
        sought = {n: python_value(columns[compiled.column_of[n]], compiled.check[n](v)) for n, v in wanted.items()}
        every = self.enqueued(table)
        found = [one for one in every if sought.items() <= _visible(one, compiled.schema).items()]
        if len(found) != times if times is not None else not found:
            shown = "".join(f"\n  {one}" for one in every[:20]) or "\n  nothing"
            more = f"\n  … and {len(every) - 20} more" if len(every) > 20 else ""
            count = "no write" if times is None else f"{len(found)} writes, not {times},"
            raise AssertionError(
                f"{count} to {compiled.schema.name!r} with {sought} was enqueued; there was{shown}{more}"
            )
        return found

    def rows(self, table: Any) -> list[dict[str, Any]]:
        """Return a table's rows as they are in the shards, by id; a reference table's as they are in the first.

        Args:
            table: a pyDAL table or its name.

        Raises:
            UnknownTable: no table of that name was defined.
        """
        table = self.client.op_builder.table(table)
        topology, name = self.client.topology, table._tablename
        found = []
        for shard in topology.shards[:1] if topology.table(name).reference else topology.shards:
            db = self.client.nodes.primary(shard).db
            tables = NodeTables.on(db)
            own = tables.table(table)
            tables.forget()
            found += db(own, ignore_common_filters=True).select().as_list()
            db.rollback()
        return sorted(found, key=lambda row: row[table._id.name])

    def _create(self, definition: str) -> None:
        """Create a table on every shard when it is defined."""
        schema = TableSchema.from_json(definition)
        known = {name: TableSchema.from_json(text) for name, text in self.log.newest_schemas().items()}
        parents = held(schema, {**known, schema.name: schema}, self.client.topology)
        for shard in self.client.topology.shards:
            session = self.client.nodes.primary(shard)
            with session.translated(), session.transaction():
                for sql in create_table(schema, self.client.topology, session.dialect, parents):
                    session.execute(sql)

    def _shown(self, op: Op) -> Enqueued:
        text = self.log.schema(op.schema)
        assert text is not None, "a definition is published before its first op"
        columns = TableSchema.from_json(text).columns
        values = {columns[c].name: python_value(columns[c], v) for c, v in zip(op.columns, op.values, strict=True)}
        values |= {columns[c].name: tree for c, tree in op.expressions}
        if (read := op.source) is not None:
            where = read.where or ["=", _id_index(self.log.schema(read.schema)), read.id]
            return Enqueued(op.kind, op.table, op.id, values, where, read.table)
        return Enqueued(op.kind, op.table, op.id, values, op.where)


def _id_index(text: str | None) -> int:
    assert text is not None, "a definition is published before its first op"
    return TableSchema.from_json(text).id_index


def _visible(one: Enqueued, schema: TableSchema) -> dict[str, Any]:
    return one.values if one.id is None else {**one.values, schema.id_name: one.id}
