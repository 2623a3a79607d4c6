"""Change what a deployment is fixed on, by command: its shards, and how a table with rows is spread.

Each change is noted in Redis and in every shard, and then the epochs are raised. So each process that runs meets a new
epoch at its next op and compares its configuration anew. A configuration of before the change is refused. Only a shard
that is added with no bucket disturbs nobody: what runs goes on without it. A command that was killed is given again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from msgspec.structs import replace

from pipeline import clock
from pipeline.admin.migration import expand_shard, migrate, published
from pipeline.client import Client
from pipeline.config import Topology
from pipeline.config.buckets import Rule, format_ranges, numbers, parse_ranges
from pipeline.enqueue.deployment import Agreement, asked, tries
from pipeline.enqueue.epochs import RAISE_S, new_epoch
from pipeline.errors import LogUnavailable, PipelineError, ShardKeyError, WrongDeployment, did_you_mean
from pipeline.model import START
from pipeline.model.fingerprint import Fingerprint, differences
from pipeline.model.schema import TableSchema
from pipeline.model.values import checker
from pipeline.shard import NodeSession
from pipeline.shard.co_location import crossing
from pipeline.shard.columns import columns_of, create_own_tables, holds_rows
from pipeline.shard.records import ledger_queries
from pipeline.shard.stored_rows import ROWS, copy_records, copy_table, unordered


class Misplaced(NamedTuple):
    """A row that is not where its shard key belongs."""

    shard: str
    row_id: object
    belongs: str


def add_shard(pipeline: Client, shard: str) -> int:
    """Take a shard that the configuration names at its end into the deployment; return how many rows were copied.

    The shard gets the tables, and the rows of reference tables as they are at one watermark. It may own buckets that
    were never used; a bucket with ops stays where it is.

    Args:
        pipeline: the deployment, with the new configuration.
        shard: the name of the new shard.

    Raises:
        WrongDeployment: the configuration differs in more than the shard.
        PipelineError: the shard takes buckets that are in use, its reference tables have rows, or an existing foreign
            key would reach from one shard into another.
    """
    if shard not in pipeline.topology.shards:
        raise PipelineError(f"write [shards.{shard}] with its primary into {pipeline.settings.source} first")
    session, taken = pipeline.nodes.primary(shard), pipeline.topology.buckets_of(shard)
    for _ in tries():
        notes, noted = noted_of(pipeline)
        is_new = shard not in dict(noted.shards)
        if is_new:
            refuse_unless(notes, _grown(pipeline, noted, shard))
            _refuse_crossing(pipeline, dict(noted.shards))
        create_own_tables(session)
        if is_new:
            _give_up(pipeline, noted, taken)
        # from here on no worker trims the log of reference tables, until it knows this shard too
        if not is_new or notes.keep(noted.changed(notes.named)):
            break
    expand_shard(pipeline, shard)
    copied = _copy_reference(pipeline, next(one for one in dict(noted.shards) if one != shard), session)
    migrate(pipeline)
    if taken:
        renew_epochs(pipeline)
    return copied


def adopt_rows(pipeline: Client, table: str) -> list[Misplaced]:
    """Accept how the configuration spreads a table, if each of its rows is on the shard where it belongs by that.

    Args:
        pipeline: the deployment, with the new configuration.
        table: the table's name.

    Returns:
        The rows that are elsewhere; while there are any, nothing is accepted.

    Raises:
        WrongDeployment: the configuration differs in more than this table.
        PipelineError: no such table is published, or ops wait in the logs.
    """
    tables = pipeline.log.newest_schemas()
    for _ in tries():
        notes, noted = noted_of(pipeline)
        if table not in tables:
            raise PipelineError(f"no table {table!r} is published{did_you_mean(table, tables)}")
        schema = TableSchema.from_json(tables[table])
        spreads = tuple(sorted({**dict(noted.tables), table: notes.mine.spread(table)}.items()))
        refuse_unless(notes, replace(noted, tables=spreads))
        for piece in pipeline.topology.split.values():
            raise PipelineError(f"{piece.of} has a shard of its own: send it back first: pipeline move back {piece.of}")
        _refuse_queued(pipeline)
        if found := list(misplaced(pipeline, schema)):
            return found
        if notes.keep(replace(noted.changed(notes.named), tables=spreads), adopted=table):
            break
    renew_epochs(pipeline)
    return list(misplaced(pipeline, schema))  # what was sent by the old configuration until this moment


def misplaced(pipeline: Client, schema: TableSchema) -> Iterator[Misplaced]:
    """Yield the rows of a table that are not on the shard where the configuration puts them.

    Args:
        pipeline: the deployment.
        schema: the table's definition.
    """
    if pipeline.topology.table(schema.name).reference:
        yield from _unequal(pipeline, schema)
        return
    topology, (key, bucket_of) = pipeline.topology, placing_of(pipeline.topology, schema)
    column = schema.columns[schema.index[key]]
    for shard in topology.shards:
        for row_id, value in shard_keys_of(pipeline.nodes.primary(shard), schema, key):
            try:
                belongs = topology.shard_of(bucket_of(value))
                if (piece := topology.piece_of(schema.name, column, value)) is not None:
                    belongs = piece.shard
            except ShardKeyError as error:
                belongs = f"nowhere ({error})"
            if belongs != shard:
                yield Misplaced(shard, row_id, belongs)


def renew_epochs(pipeline: Client, among: Iterable[str] = ()) -> None:
    """Raise epochs, each above all of them: each process compares its configuration before its next op.

    Args:
        pipeline: the deployment.
        among: the names of scopes; none: of all.

    Raises:
        ShardUnavailable: a primary did not answer.
    """
    log, every = pipeline.log, pipeline.publisher.scopes
    scopes = {name: every[name] for name in among or every}
    known = max(log.epoch(name)[0] for name in scopes)
    for name, scope in scopes.items():
        for _ in clock.polls(RAISE_S, first_s=0.01):
            epoch, _, seen = log.epoch(name)
            if log.raise_epoch(name, seen, new_epoch(pipeline.nodes, scope, max(known, epoch))):
                break
        else:
            raise LogUnavailable(f"the epoch of {name!r} could not be raised", sent=False)


def noted_of(pipeline: Client) -> tuple[Agreement, Fingerprint]:
    """Return what all shards and Redis have noted, and the newest of that.

    Args:
        pipeline: the deployment.

    Raises:
        PipelineError: nothing is noted: these databases belong to no deployment yet.
    """
    notes = asked(pipeline.log, pipeline.nodes, pipeline.topology)
    if notes.noted is None:
        raise PipelineError("these databases belong to no deployment yet; run: pipeline migrate")
    return notes, notes.noted


def refuse_unless(notes: Agreement, expected: Fingerprint) -> None:
    """Raise where the configuration differs from what it is expected to be after a change.

    Args:
        notes: has the configuration's own fingerprint.
        expected: the other.

    Raises:
        WrongDeployment: with a sentence for each difference.
    """
    if found := [*notes.strangers(), *notes.apart(), *differences(notes.mine, expected), *notes.standing(expected)]:
        raise WrongDeployment(found)


def _grown(pipeline: Client, noted: Fingerprint, shard: str) -> Fingerprint:
    """Return the deployment's fingerprint with one shard more, which takes buckets that were never used."""
    taken = set(pipeline.topology.buckets_of(shard))
    kept = tuple((name, format_ranges({*numbers(parse_ranges(own))} - taken)) for name, own in noted.shards)
    return replace(noted, shards=(*kept, (shard, format_ranges(taken))))


def _refuse_crossing(pipeline: Client, standing: Iterable[str]) -> None:
    """Raise if a foreign key of a shard would refuse rows whose parents are on another shard from now on."""
    sessions = [pipeline.nodes.primary(shard) for shard in standing]
    if found := crossing(sessions, published(pipeline), pipeline.topology):
        raise PipelineError(
            f"foreign keys would reach from one shard into another: {'; '.join(found)}. Make the parents reference "
            f"tables, or shard the tables by these fields; or drop the keys ({'; '.join(found.values())}), and let the "
            "application do what ondelete did"
        )


def _give_up(pipeline: Client, noted: Fingerprint, taken: Iterable[int]) -> None:
    """Let the shards that own buckets give them up, if these were never used.

    Raises:
        PipelineError: some were used; nothing was changed on their shard.
    """
    wanted, used = set(taken), {*pipeline.log.tails(taken)}
    for shard, own in noted.shards:
        mine = wanted & {*numbers(parse_ranges(own))}
        if not mine:
            continue
        session = pipeline.nodes.primary(shard)
        listed = ", ".join(map(str, sorted(mine)))
        with session.translated(), session.transaction():
            found = session.rows(
                f"SELECT bucket FROM pipeline_watermarks WHERE bucket IN ({listed}) AND epoch > 0{session.dialect.hold}"
            )
            if in_use := {bucket for (bucket,) in found} | (mine & used):
                raise PipelineError(
                    f"the buckets {format_ranges(in_use)} of {shard} are in use: write the map as it is, and "
                    'buckets = "" under the new shard; then run: pipeline move'
                )
            session.execute(f"UPDATE pipeline_watermarks SET state = 'moved' WHERE bucket IN ({listed})")


def _copy_reference(pipeline: Client, shard: str, target: NodeSession) -> int:
    """Copy the rows of all reference tables from a shard at one watermark; return how many. Once done, do nothing."""
    bucket, source = pipeline.topology.reference_bucket, pipeline.nodes.primary(shard)
    if ledger_queries.marks_of(target, [bucket]):
        return 0
    everywhere = [one for one in published(pipeline) if pipeline.topology.table(one.name).reference]
    named = {one.name_there: one for one in everywhere}
    if full := [name for name in named if holds_rows(target, name)]:
        raise PipelineError(f"{full[0]} on {target.node} has rows already: empty it, and give the command again")
    columns = {name: [column.name for column in columns_of(source, name)] for name in named}
    copied = 0
    with source.translated(), source.transaction():
        # a worker that would apply to a reference table passes over the bucket meanwhile
        source.rows(f"SELECT epoch FROM pipeline_watermarks WHERE bucket = {bucket}{source.dialect.hold}")
        with target.translated(), target.transaction(), unordered(target):
            for name, schema in named.items():  # parents first
                copied += copy_table(source, target, name, columns[name], _column(schema, schema.id_name))
            copy_records(source, target, bucket)
    return copied


def _refuse_queued(pipeline: Client) -> None:
    """Raise while ops wait: those of the old spread would be applied after newer ones of the same row."""
    for shard in pipeline.topology.shards:
        marks = ledger_queries.marks_of(pipeline.nodes.primary(shard))
        behind = {b: mark.position if mark.position.epoch else START for b, mark in marks.items() if mark.owned}
        if waiting := sum(pipeline.log.queued(behind).values()):
            raise PipelineError(f"{waiting} ops of {shard} wait; stop the writers, run: pipeline drain {shard}")


def placing_of(topology: Topology, schema: TableSchema) -> tuple[str, Rule]:
    """Return the field by which the rows of a table are spread, and the function from its stored value to the bucket.

    That function raises what a write of the value raises: `BadValue`, `ShardKeyError`.

    Args:
        topology: the configuration.
        schema: of a table that is no reference table.
    """
    key = topology.table(schema.name).shard_key or schema.id_name
    column = schema.columns[schema.index[key]]
    final, placed = checker(schema.name, column), topology.placing(schema.name, column)
    return key, lambda value: placed(final(value))


def shard_keys_of(session: NodeSession, schema: TableSchema, key: str) -> Iterator[tuple[Any, Any]]:
    """Yield id and shard key of each row of a table on a shard."""
    quote, table = session.dialect.quote, schema.name_there
    if not columns_of(session, table):
        return
    name = quote(table)
    row_id, of_key = quote(_column(schema, schema.id_name)), quote(_column(schema, key))
    behind = ""
    while rows := session.query(f"SELECT {row_id}, {of_key} FROM {name}{behind} ORDER BY {row_id} LIMIT {ROWS}"):
        yield from rows
        behind = f" WHERE {row_id} > {int(rows[-1][0])}"


def _unequal(pipeline: Client, schema: TableSchema) -> Iterator[Misplaced]:
    """Yield the ids that some shard lacks: a reference table has all rows on each."""
    ids = {
        shard: {row_id for row_id, _ in shard_keys_of(pipeline.nodes.primary(shard), schema, schema.id_name)}
        for shard in pipeline.topology.shards
    }
    every = set().union(*ids.values())
    for shard, own in ids.items():
        yield from (Misplaced("another shard", row_id, shard) for row_id in sorted(every - own))


def _column(schema: TableSchema, field: str) -> str:
    """Return a field's name in the database."""
    return schema.columns[schema.index[field]].name_there
