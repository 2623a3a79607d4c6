"""Bring every primary to what is published, shard by shard: the pipeline's own tables, then the application's.

All primaries are expanded first: tables, columns, wider types, indexes. Only a run with `--contract` drops or narrows,
and only after nothing is left to expand. A second run changes nothing, and a run that was killed is repeated. What
cannot be done keeps nothing else; all of it is reported at the end. Replicas follow by replication.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from pipeline.admin.migration import statement
from pipeline.admin.migration.definitions import contract, known_definitions, queued_definitions
from pipeline.admin.migration.statement import Behind, StatementRefused, lag_of
from pipeline.admin.migration.steps import Fault, Step, expand
from pipeline.admin.stops import stir
from pipeline.client import Client
from pipeline.config.buckets import FIRST_PIECE, format_ranges
from pipeline.enqueue.deployment import asked, restored, tries
from pipeline.errors import MigrationUnfinished, NotMigrated, PipelineError, Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.model.schema import TableSchema
from pipeline.shard import NodeSession, brief, columns
from pipeline.shard.co_location import held, old_ids_in
from pipeline.shard.columns import own_tables, upgrades
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.stops import behind_on

#: How long one statement may take, s: an index on a large table is slow.
ALTER_S = 3_600
#: Begins the name of the step that makes watermarks.
_BUCKETS = "buckets "
logger = logging.getLogger("pipeline.migrate")


class Plan(NamedTuple):
    """What a run would do, in order, and what it cannot do."""

    steps: list[Step]
    faults: list[Fault]


def plan_of(pipeline: Client, *, contracts: bool = False) -> Plan:
    """Return what is missing: tables, columns, room in columns, indexes, and each shard's buckets; change nothing.

    Args:
        pipeline: its published definitions and its primaries are read.
        contracts: whether to drop and narrow what the definitions no longer ask for.

    Raises:
        ShardUnavailable: a primary did not answer.
    """
    found: list[Step | Fault] = [
        Fault("*", "the deployment", why) for why in asked(pipeline.log, pipeline.nodes, pipeline.topology).faults()
    ]
    found += _expansions(pipeline)
    if contracts:
        found += _contractions(pipeline)
    return Plan(
        [one for one in found if isinstance(one, Step)],
        [one for one in found if isinstance(one, Fault)],
    )


def migrate(
    pipeline: Client,
    report: Callable[[Step | Behind], None] = lambda event: None,
    *,
    contracts: bool = False,
    offline: bool = False,
) -> int:
    """Do what `plan_of` finds; return how many statements ran.

    A run may be killed anywhere and repeated: the next one does what is left.

    Args:
        pipeline: the deployment.
        report: called with each step before it runs, and with a replica that is waited for.
        contracts: whether to drop and narrow what the definitions no longer ask for.
        offline: whether writes to a table may wait while a statement copies it.

    Raises:
        PipelineError: a bucket is active on another shard than the configuration says, or a primary does not answer:
            nothing is changed then.
        WrongDeployment: the databases or Redis belong to a deployment that is configured otherwise, or a database was
            restored: nothing is changed then, unless another command changes the deployment meanwhile.
        LogUnavailable: Redis did not answer, or others keep changing the deployment's fingerprint: run it again.
        MigrationUnfinished: what could not be done, each with what to do; all else was done.
    """
    shards = pipeline.topology.shards
    asked(pipeline.log, pipeline.nodes, pipeline.topology).refuse()
    _refuse_moved(pipeline)
    _refuse_restored(pipeline)
    steps, faults = plan_of(pipeline, contracts=contracts)
    ran: list[Step] = []
    for event in _run_all(pipeline, steps, ran, faults, offline=offline):
        report(event)
    if all(columns.columns_of(pipeline.nodes.primary(shard), "pipeline_deployment") for shard in shards):
        for _ in tries():
            notes = asked(pipeline.log, pipeline.nodes, pipeline.topology)
            notes.refuse()
            if notes.keep(notes.settled()):
                break
        _give_ids(pipeline)
    for shard in shards:
        with suppress(Unavailable, NotMigrated):  # else workers release in a while what has waited
            if behind_on(pipeline.nodes.primary(shard), shard):
                stir(pipeline, shard)
    if faults:
        raise MigrationUnfinished(map(str, faults), len(ran))
    return len(ran)


def _give_ids(pipeline: Client) -> None:
    """Let the first insert find ids: a caller has no time to ask a database for some."""
    for shard in pipeline.topology.shards:
        try:
            pipeline.row_ids.follow(shard)
        except Unavailable as error:
            logger.warning(Event("ids_left_to_workers", shard=shard, error=error))


def expand_shard(pipeline: Client, shard: str) -> None:
    """Create on one shard what it lacks of all tables, but no watermark: that says what its rows have.

    Args:
        pipeline: the deployment.
        shard: the shard's name.

    Raises:
        MigrationUnfinished: what could not be done.
    """
    found = [step for step in plan_of(pipeline).steps if step.shard == shard and not step.what.startswith(_BUCKETS)]
    ran, faults = list[Step](), list[Fault]()
    for _ in _run(pipeline, shard, found, ran, faults, offline=False, kept={}):
        pass
    if faults:
        raise MigrationUnfinished(map(str, faults), len(ran))


def _expansions(pipeline: Client) -> Iterator[Step | Fault]:
    topology, schemas = pipeline.topology, published(pipeline)
    by_name = {schema.name: schema for schema in schemas}
    primaries = map(pipeline.nodes.primary, topology.shards)
    old_ids = set().union(*(old_ids_in(session, schemas, topology) for session in primaries))
    held_by = {schema.name: held(schema, by_name, topology, old_ids) for schema in schemas}
    for shard in topology.shards:
        session = pipeline.nodes.primary(shard)
        fresh = set()
        for name, sql in own_tables(session.dialect.name):
            if not columns.columns_of(session, name):
                fresh.add(name)
                yield Step(shard, name, sql)
            else:
                yield from (Step(shard, *upgrade) for upgrade in upgrades(session, name, sql))
        marks = {} if "pipeline_watermarks" in fresh else ledger_queries.marks_of(session)
        lacking = sorted({*topology.buckets_of(shard), topology.reference_bucket} - marks.keys())
        if lacking:
            yield Step(
                shard, f"{_BUCKETS}{format_ranges(lacking)}", ledger_queries.buckets_sql(session.dialect, lacking)
            )
        yield from expand(session, shard, schemas, topology, held_by)


def _contractions(pipeline: Client) -> Iterator[Step | Fault]:
    queued = queued_definitions(pipeline)
    for shard in pipeline.topology.shards:
        session = pipeline.nodes.primary(shard)
        # an older release does not keep the time: the first run upgrades, the next one contracts
        if any(column.name == "kept_ms" for column in columns.columns_of(session, "pipeline_schemas")):
            known = known_definitions(session)
            for schema in published(pipeline):
                yield from contract(session, shard, schema, known.get(schema.name, []), queued)


def _run_all(
    pipeline: Client, steps: list[Step], ran: list[Step], faults: list[Fault], *, offline: bool
) -> Iterator[Step | Behind]:
    """Expand all shards; then contract, if nothing is left to expand. As `_run`."""
    kept = {schema.hash: (schema.name, schema.to_json()) for schema in published(pipeline)}
    for shard in pipeline.topology.shards:
        own = [step for step in steps if step.shard == shard and not step.contracts]
        yield from _run(pipeline, shard, own, ran, faults, offline=offline, kept=kept)
    narrowing = [step for step in steps if step.contracts]
    if narrowing and faults:
        faults.append(Fault(narrowing[0].shard, narrowing[0].what, "nothing is dropped before all else is done"))
        return
    for shard in dict.fromkeys(step.shard for step in narrowing):
        own = [step for step in narrowing if step.shard == shard]
        yield from _run(pipeline, shard, own, ran, faults, offline=offline, kept={})


def _run(
    pipeline: Client,
    shard: str,
    steps: list[Step],
    ran: list[Step],
    faults: list[Fault],
    *,
    offline: bool,
    kept: dict[str, tuple[str, str]],
) -> Iterator[Step | Behind]:
    """Run the steps of one shard and store its definitions; yield each step before it runs, and note what failed."""
    left, failed = list(steps), set[str]()
    try:
        with _writing(pipeline, shard) as session, lag_of(pipeline, shard, session) as lag:
            while left:
                step = left[0]
                if step.what not in failed:  # the indexes of a table that could not be created are not tried
                    yield step
                    if step.table:
                        yield from lag.waits()
                    try:
                        statement.run(session, step, offline=offline)
                        ran.append(step)
                    except StatementRefused as error:
                        if not _done_by_another(pipeline, step):
                            faults.append(Fault(shard, step.what, str(error)))
                            failed.add(step.what)
                del left[0]
            if kept:
                ledger_queries.keep_schemas(session, kept)
    except PipelineError as error:
        what = left[0].what if left else "its table definitions"
        faults.append(Fault(shard, what, f"{error}; {len(left)} statements of this shard did not run"))


def _done_by_another(pipeline: Client, step: Step) -> bool:
    """Return whether a refused step is needed no more, since another run of `migrate` has done it meanwhile."""
    plan = plan_of(pipeline, contracts=step.contracts)
    return step not in plan.steps and not plan.faults


@contextmanager
def _writing(pipeline: Client, shard: str) -> Iterator[NodeSession]:
    primary = pipeline.nodes.primary_name(shard)
    uri = pipeline.nodes.uri(primary, writing=True)
    with brief(primary, uri, read_only=False, statement_s=ALTER_S) as session:
        statement.prepare(session)
        yield session


def published(pipeline: Client) -> list[TableSchema]:
    """Return the newest definition of each table that is not ignored; one that others refer to comes before them.

    Args:
        pipeline: the deployment.
    """
    newest, ignores = sorted(pipeline.log.newest_schemas().items()), pipeline.topology.ignores
    return _parents_first([TableSchema.from_json(text) for name, text in newest if not ignores(name)])


def _refuse_restored(pipeline: Client) -> None:
    """Raise if new watermarks would let workers apply once more what a database that was restored has applied."""
    found = [restored(pipeline.log, pipeline.nodes, pipeline.topology, one) for one in pipeline.topology.shards]
    if any(found):
        raise WrongDeployment(filter(None, found))


def _refuse_moved(pipeline: Client) -> None:
    """Raise if a bucket is active on two shards, as both would apply its ops."""
    for shard in pipeline.topology.shards:
        session = pipeline.nodes.primary(shard)
        if not columns.columns_of(session, "pipeline_watermarks"):
            continue
        allowed = {*pipeline.topology.applied_by(shard)}
        marks = ledger_queries.marks_of(session)  # those of keys that have a shard of their own are no buckets
        stray = sorted(b for b, mark in marks.items() if mark.owned and b not in allowed and b < FIRST_PIECE)
        if stray:
            raise PipelineError(
                f"shard {shard!r} holds {len(stray)} buckets (the first: {stray[0]}) that the configuration gives to "
                'another shard. Adding a shard changes the even split: write the old map as buckets = "…" under each '
                f"[shards.…]; {shard!r} keeps {pipeline.topology.ranges_of(shard) or 'none'} by the configuration. "
                f"Where it was restored from a backup of before they moved, run: pipeline restore {shard}"
            )


def _parents_first(schemas: list[TableSchema]) -> list[TableSchema]:
    """Order tables so that a referenced one comes before those that refer to it."""
    by_name = {schema.name: schema for schema in schemas}
    done: dict[str, TableSchema] = {}

    def visit(schema: TableSchema, path: tuple[str, ...]) -> None:
        if schema.name in done or schema.name in path:
            return
        for column in schema.columns:
            parent = column.type.partition("reference ")[2].split(".")[0]
            if parent in by_name and not column.type.startswith("list:"):
                visit(by_name[parent], (*path, schema.name))
        done[schema.name] = schema

    for schema in schemas:
        visit(schema, ())
    return list(done.values())
