"""Change what a deployment is fixed on, or bring it to what is published: `shard`, `restore`, `migrate`, …"""

from __future__ import annotations

import json

import click

from pipeline.admin import reshape, shards
from pipeline.admin.absence import Restored, restoration_of, restore, take_queue
from pipeline.admin.check.evidence import gather
from pipeline.admin.check.schemas import drift_lines
from pipeline.admin.migration import Plan, migrate, plan_of
from pipeline.admin.migration.definitions import definitions, forget
from pipeline.admin.migration.statement import Behind, online_text
from pipeline.admin.migration.steps import Step
from pipeline.admin.moving import Mover, orders
from pipeline.admin.shards import KINDS, SAMPLE_S, Transfer, Weights, joined_moves, planned
from pipeline.admin.stops import who
from pipeline.cli.move import keep_option, watch
from pipeline.cli.options import config_option, opened
from pipeline.client import Client
from pipeline.config.buckets import format_ranges
from pipeline.config.files import replace_file
from pipeline.errors import MigrationUnfinished, PipelineError

#: Rows that are listed; more are counted.
SHOWN = 20
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
#: How many buckets move together where nobody says.
TOGETHER = 16


@click.group("shard")
def shard_group() -> None:
    """Take a shard into the deployment, or out of it."""


@shard_group.command("add")
@config_option
@click.argument("name", metavar="SHARD")
@click.option("--primary", metavar="URI", help="Its primary; the section is written into the configuration.")
@click.option("--replicas", metavar="URI", multiple=True, help="A replica; may be given several times.")
@click.option("--print", "prints", is_flag=True, help="Print the new configuration instead of writing it.")
def add_command(config: str | None, name: str, primary: str | None, replicas: tuple[str, ...], prints: bool) -> None:
    """Take SHARD into the deployment: its tables, and the rows of reference tables.

    With --primary SHARD owns no bucket, and its section is written into the configuration. Quote the address, so that
    ${NAME} stays a variable there. All processes go on; restart them, the workers first, before buckets move to SHARD.

    Without --primary the configuration names SHARD already. SHARD may own buckets that were never used; buckets with
    ops stay where they are. Restart all processes with the new configuration afterwards: if SHARD owns buckets, the
    older one is refused.

    \f

    Args:
        config: see `options.config_option`.
        name: the shard's name.
        primary: the address of its primary; None where the configuration names the shard.
        replicas: the addresses of its replicas.
        prints: whether to print the new configuration.
    """
    if primary is None and (replicas or prints):
        raise click.UsageError("--replicas and --print go with --primary")
    with opened(config) as pipeline:
        grown = shards.grown(pipeline.settings, name, primary, replicas) if primary else None
        copied, owned = shards.take_shard(grown) if grown else shards.add(pipeline, name)
    if grown and not prints:
        replace_file(grown.path, grown.text)
    elif grown:
        click.echo(grown.text, nl=False)
    done = f"{name} is a shard now: buckets {owned or 'none'}, {copied} rows of reference tables copied; "
    click.echo(f"{done}restart all processes, the workers first", err=prints)


@shard_group.command("remove")
@config_option
@click.argument("name", metavar="SHARD")
@click.option("--print", "prints", is_flag=True, help="Print the new configuration instead of writing it.")
def remove_command(config: str | None, name: str, prints: bool) -> None:
    """Take SHARD, which owns no bucket any more, out of the deployment. Its database is left as it is.

    Its section is taken out of the configuration, and each other shard gets the buckets written down that it owns by
    now. Restart all processes afterwards: those with the older configuration are refused. Then stop its servers.

    \f

    Args:
        config: see `options.config_option`.
        name: the shard's name.
        prints: whether to print the new configuration.
    """
    with opened(config) as pipeline:
        shrunk = shards.shrunk(pipeline, name) if name in pipeline.settings.shards else None
        if shrunk is None:  # the command was killed, or somebody has written the file by hand
            shards.remove_shard(pipeline, name)
    if shrunk:
        before = shrunk.path.read_bytes().decode()
        if not prints:
            replace_file(shrunk.path, shrunk.text)
        try:
            shards.give_away(shrunk)
        except PipelineError:
            if not prints:
                replace_file(shrunk.path, before)
            raise
        if prints:
            click.echo(shrunk.text, nl=False)
    click.echo(f"{name} is no shard any more; restart all processes", err=prints)


@click.command("restore")
@config_option
@click.argument("shard", required=False)
@click.option(
    "--redis", "queue", is_flag=True, help="Begin the queue of these databases anew in this Redis and prefix."
)
@_yes_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def restore_command(config: str | None, shard: str | None, queue: bool, yes: bool, as_json: bool) -> None:
    """Let the database of SHARD, which was restored from a backup, go on behind what was applied, never at the start.

    A backup with the pipeline's tables says what it has. The log is applied from there, as far as it reaches. What it
    has deleted is recorded as lost. A backup without them goes on behind the last op that was applied. Of a bucket that
    has moved to another shard since, SHARD gives up what it has. A backup without the rows of one that came is refused.

    \f

    Args:
        config: see `options.config_option`.
        shard: the shard's name.
        queue: whether to take another Redis or prefix.
        yes: whether to do it without a question.
        as_json: whether to print JSON.
    """
    if (shard is None) != queue:
        raise click.UsageError("name a SHARD, or give --redis")
    with opened(config) as pipeline:
        if shard is None:
            redis = pipeline.settings.redis
            _ask(f"Is every process that uses the queue before {redis.prefix!r} stopped?", yes)
            take_queue(pipeline)
            click.echo(f"the queue of these databases is {redis.prefix!r} of {pipeline.settings.source} from now on")
            return
        plan = restoration_of(pipeline, shard)
        if not as_json:
            _show_restored(plan)
        _ask(
            f"Is {pipeline.settings.shards[shard].name} of {pipeline.settings.source} restored as far as it will be?",
            yes,
        )
        done = restore(pipeline, shard)
    click.echo(
        json.dumps([_restored_as_json(one) for one in done]) if as_json else f"{shard} goes on behind what was applied"
    )


@click.command("adopt-rows")
@config_option
@click.argument("table")
@click.pass_context
def adopt_rows_command(context: click.Context, config: str | None, table: str) -> None:
    """Accept how the configuration spreads TABLE now, if each of its rows is where it belongs by that.

    Else the rows that are not are listed, and the exit code is 1. Stop the writers first: nothing may be queued.

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        table: the table's name.
    """
    with opened(config) as pipeline:
        found = reshape.adopt_rows(pipeline, table)
    for row in found[:SHOWN]:
        click.echo(f"{table} {row.row_id} is on {row.shard} and belongs on {row.belongs}")
    if found:
        click.echo(f"{len(found)} rows are not where they belong: move them, or write [tables.{table}] as it was")
        context.exit(1)
    click.echo(f"every row of {table} is where it belongs; restart all processes")


def _ask(question: str, yes: bool) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)


def _show_restored(plan: list[Restored]) -> None:
    for one in plan:
        lost = sum(gap.last - gap.first + 1 for gap in one.lost)
        parts = (
            f"{one.replayed} ops are applied from the log" if one.replayed else "",
            f"{one.skipped} ops of the log count as applied" if one.skipped else "",
            f"{lost} ops are in no log any more, and recorded as lost" if lost else "",
        )
        if one.owner:
            click.echo(f"bucket {one.bucket} is on {one.owner} by now: its rows here are deleted")
        elif any(parts):
            click.echo(f"bucket {one.bucket} goes on behind {one.position}: {', '.join(filter(None, parts))}")


def _restored_as_json(one: Restored) -> dict[str, object]:
    lost = sum(gap.last - gap.first + 1 for gap in one.lost)
    return {
        "bucket": one.bucket, "position": str(one.position), "replayed": one.replayed, "skipped": one.skipped,
        "lost": lost, "owner": one.owner,
    }  # fmt: skip


@click.command("rebalance")
@config_option
@click.option("--plan", "only_plan", is_flag=True, help="Print what would move; move nothing.")
@click.option("--max", "most", type=click.IntRange(min=1), default=TOGETHER, show_default=True, help="At a time.")
@keep_option
@click.option("--by", "kinds", type=click.Choice(KINDS), multiple=True, help="What is evened out.  [default: all]")
@click.option(
    "--sample", "sample_s", type=click.FloatRange(min=0), default=SAMPLE_S, show_default=True, help="Seconds."
)
@click.option("--json", "as_json", is_flag=True, help="For programs; with --plan.")
def rebalance_command(
    config: str | None, only_plan: bool, most: int, keep_s: int, kinds: tuple[str, ...], sample_s: float, as_json: bool
) -> None:
    """Move buckets until each shard has its share of rows, bytes and load, at most --max of them at a time.

    The key of every row is read, and what is applied is counted for --sample. Each counts alike, unless --by names what
    counts. A shard within 5 % of its share stays as it is. The rows that buckets leave are deleted after --keep. A
    command that was killed is given again once its last move is over: pipeline move list.

    \f

    Args:
        config: see `options.config_option`.
        only_plan: whether to move nothing.
        most: how many buckets move together at most.
        keep_s: how long a shard keeps the rows of buckets that have left, s.
        kinds: what is evened out; none: all.
        sample_s: for how long applied ops are counted, s.
        as_json: whether to print JSON.
    """
    if as_json and not only_plan:
        raise click.UsageError("--json goes with --plan")
    with opened(config) as client:
        steps, weights = planned(client, sample_s, kinds or KINDS)
        moves = list(joined_moves(steps, most))
        if as_json:
            click.echo(json.dumps([step._asdict() | _named([step.bucket], weights) for step in steps]))
            return
        for line in _lines(steps, weights, sample_s):
            click.echo(line)
        begun = [] if only_plan else [_begin(client, one, weights, keep_s) for one in moves]
        for mover in begun:
            watch(mover, None)


def _begin(client: Client, move: tuple[str, str, list[int]], weights: Weights, keep_s: int) -> Mover:
    """Move some buckets until their new shard goes on; what the old one keeps of them holds up no other move."""
    source, target, buckets = move
    mover = orders.order_move(client, buckets, target, who(), keep_s)
    watch(mover, _named(buckets, weights)["rows"], begun=True)
    click.echo(f"{target} has {format_ranges(buckets)}, which {source} deletes after {keep_s} s")
    return mover


def _named(buckets: list[int], weights: Weights) -> dict[str, int]:
    return {kind: sum(getattr(weights, kind)[bucket] for bucket in buckets) for kind in KINDS}


def _lines(steps: list[Transfer], weights: Weights, sample_s: float) -> list[str]:
    few = [] if weights.sampled else [f"few ops in {sample_s:g} s, so load does not count; give a longer --sample"]
    if not steps:
        return [*few, "each shard has its share; nothing moves"]
    return few + [
        f"{format_ranges(buckets)} from {source} to {target}: " + _words(_named(buckets, weights), sample_s)
        for source, target, buckets in joined_moves(steps, len(steps))
    ]


def _words(named: dict[str, int], sample_s: float) -> str:
    size = f", {named['bytes'] / 1e6:,.1f} MB" if named["bytes"] else ""
    return f"{named['rows']:,} rows{size}, {named['load']:,} ops in {sample_s:g} s"


@click.command("migrate")
@config_option
@click.option("--plan", "plan_only", is_flag=True, help="Print the SQL of each shard and change nothing.")
@click.option("--contract", is_flag=True, help="Also drop and narrow what the newest definitions no longer ask for.")
@click.option("--offline", is_flag=True, help="Let writes to a table wait while the server copies it.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def migrate_command(config: str | None, plan_only: bool, contract: bool, offline: bool, as_json: bool) -> None:
    """Bring every primary to the published definitions: new tables, new columns, wider types, indexes, buckets.

    Only what applications have published is done: pipeline.define_tables(db) publishes. Running it twice changes
    nothing, and after a failure or a kill it goes on where it stopped. Exit code 1 if something could not be done.

    \f

    Args:
        config: see `options.config_option`.
        plan_only: whether to print the SQL and change nothing.
        contract: whether to drop and narrow.
        offline: whether writes may wait for a statement.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        if plan_only:
            plan = plan_of(pipeline, contracts=contract)
            drift = drift_lines(gather(pipeline.settings))
            click.echo(_plan_as_json(plan, drift) if as_json else _as_sql(plan, drift))
            raise SystemExit(1 if plan.faults else 0)
        try:
            if as_json:
                done = migrate(pipeline, contracts=contract, offline=offline)
            else:
                done = migrate(pipeline, _show_step, contracts=contract, offline=offline)
        except MigrationUnfinished as error:
            if not as_json:
                raise
            click.echo(json.dumps({"statements": error.done, "faults": error.faults}))
            raise SystemExit(1) from error
    if as_json:
        click.echo(json.dumps({"statements": done, "faults": []}))
    elif done:
        click.echo(f"{done} statements; all primaries are prepared")
    else:
        click.echo("nothing was missing; all primaries are prepared")


def _show_step(event: Step | Behind) -> None:
    click.echo(f"{event.shard}: {event.what}" if isinstance(event, Step) else str(event))


def _plan_as_json(plan: Plan, drift: list[str]) -> str:
    steps = [{"shard": step.shard, "what": step.what, "sql": step.sql} for step in plan.steps]
    return json.dumps({"steps": steps, "faults": list(map(str, plan.faults)), "drift": drift})


def _as_sql(plan: Plan, drift: list[str]) -> str:
    """Return the plan as a script: what is no SQL is a comment."""
    parts = []
    for step in plan.steps:
        online = online_text(step)
        parts.append(f"-- {step.shard}: {step.what}{f' ({online})' if online else ''}\n{step.sql};\n")
    parts += [f"-- cannot be done: {fault}\n" for fault in plan.faults]
    if drift:
        parts.append("-- the nodes differ:\n" + "\n".join(f"--   {line}" for line in drift) + "\n")
    return "\n".join(parts or ["-- nothing is missing"])


@click.group()
def tables() -> None:
    """Show and withdraw the published definitions of tables."""


@tables.command("list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_command(config: str | None, as_json: bool) -> None:
    """List the published tables: fields, the hash of the newest definition, and queued ops by definition.

    \f

    Args:
        config: see `options.config_option`.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        found = definitions(pipeline)
    if as_json:
        click.echo(json.dumps([one._asdict() for one in found]))
        return
    width = max((len(one.table) for one in found), default=0)
    for one in found:
        older = f", {one.older} of them of older definitions" if one.older else ""
        click.echo(f"{one.table:{width}}  {one.hash}  {one.fields:>3} fields  {one.queued:,} ops not applied{older}")
    if not found:
        click.echo("no table is published: pipeline.define_tables(db) publishes")


@tables.command("forget")
@config_option
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def forget_command(config: str | None, name: str, as_json: bool) -> None:
    """Withdraw the definition of NAME, which no model has any more; its rows stay where they are.

    Refused while an op that is not applied names the table. A process whose model has the table publishes it again.

    \f

    Args:
        config: see `options.config_option`.
        name: the table's name in the model.
        as_json: whether to print JSON.
    """
    with opened(config) as pipeline:
        forget(pipeline, name)
    click.echo(json.dumps({"forgotten": name}) if as_json else f"{name} is no longer published; its rows stay")
