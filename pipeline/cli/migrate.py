"""Bring the primaries to the published definitions (`pipeline migrate`); show and withdraw those (`tables`)."""

from __future__ import annotations

import json

import click

from pipeline.admin.check.drift import drift_lines
from pipeline.admin.check.evidence import gather
from pipeline.admin.migrate import Plan, migrate, plan_of
from pipeline.admin.migration.definitions import definitions, forget
from pipeline.admin.migration.replica_lag import Behind
from pipeline.admin.migration.statement import online_text
from pipeline.admin.migration.steps import Step
from pipeline.cli.options import config_option, opened
from pipeline.errors import MigrationUnfinished


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
            click.echo(_as_json(plan, drift) if as_json else _as_sql(plan, drift))
            raise SystemExit(1 if plan.faults else 0)
        try:
            if as_json:
                done = migrate(pipeline, contracts=contract, offline=offline)
            else:
                done = migrate(pipeline, _show, contracts=contract, offline=offline)
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


def _show(event: Step | Behind) -> None:
    click.echo(f"{event.shard}: {event.what}" if isinstance(event, Step) else str(event))


def _as_json(plan: Plan, drift: list[str]) -> str:
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
