"""Run `pipeline healthcheck`: one sentence and an exit code for systemd, compose and Kubernetes."""

from __future__ import annotations

import json
from typing import Any

import click

from pipeline import clock
from pipeline.admin.health import flower, sign, web
from pipeline.cli.options import config_option
from pipeline.config.settings import load

_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group("healthcheck")
def healthcheck() -> None:
    """Prove that a worker, a web host or Flower of this machine does its work. Exits with 0, or with 1 if it does not.

    Nothing fails because Redis or a database is away: a restart would mend neither.
    """


@healthcheck.command("worker")
@config_option
@click.option("--shard", help="Only workers that hear this shard's doorbells.")
@click.option(
    "--within", "within_s", type=click.FloatRange(2, 3600), default=sign.WITHIN_S, show_default=True,
    help="Seconds for which a worker may do nothing although there is something to do.",
)  # fmt: skip
@_json_option
def worker_command(config: str | None, shard: str | None, within_s: float, as_json: bool) -> None:
    """Say whether this host's workers consume, or have nothing to do. Asks no server.

    \f

    Args:
        config: see `options.config_option`.
        shard: of which workers.
        within_s: how long a worker may do nothing, seconds.
        as_json: whether to print JSON.
    """
    spool = load(config).spool.path
    found = [one for one in sign.signs(spool) if shard is None or shard in one.shards]
    now_s = clock.mono_s()
    faults = [sign.sickness_of(one, now_s, within_s) for one in found]
    names = {f"{one.name} ({one.pid})": why for one, why in zip(found, faults, strict=True)}
    workers = [_plain(one, now_s, why) for one, why in zip(found, faults, strict=True)]
    _say(sign.judge_workers(names, shard, spool), as_json, workers=workers)


@healthcheck.command("web")
@config_option
@_json_option
def web_command(config: str | None, as_json: bool) -> None:
    """Say whether what this host enqueues leaves it: to Redis, or into the spool and out again. Run it as its web user.

    \f

    Args:
        config: see `options.config_option`.
        as_json: whether to print JSON.
    """
    _say(web.judge_web(load(config)), as_json)


@healthcheck.command("flower")
@config_option
@click.option("--url", default="http://127.0.0.1:5555", show_default=True, help="With Flower's prefix, if it has one.")
@_json_option
def flower_command(config: str | None, url: str, as_json: bool) -> None:
    """Say whether Flower answers, and hears the workers that run.

    \f

    Args:
        config: see `options.config_option`.
        url: where it listens.
        as_json: whether to print JSON.
    """
    _say(flower.judge_flower(load(config), url), as_json)


def _plain(one: sign.Sign, now_s: float, why: str) -> dict[str, Any]:
    told = {"name": one.name, "pid": one.pid, "shards": one.shards, "taken": one.taken}
    return {**told, "age_s": round(now_s - one.at_s, 1), "ok": not why, "why": why}


def _say(answer: tuple[bool, str], as_json: bool, **more: Any) -> None:
    well, sentence = answer
    click.echo(json.dumps({"ok": well, "sentence": sentence, **more}) if as_json else sentence)
    raise SystemExit(0 if well else 1)
