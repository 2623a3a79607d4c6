"""What is secret, and what rows hold, is in no log, error, status or metric: planted, provoked, searched for."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest
from pydal import DAL, Field

import pipeline
from pipeline import cli
from pipeline.admin import stops
from pipeline.admin.observe.published import Newest
from pipeline.admin.observe.record import Record, RedisRecord, ShardRecord
from pipeline.admin.trace import story
from pipeline.admin.why import why
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config.settings import ApplySettings, load
from pipeline.errors import PipelineError, Rejected
from pipeline.events import Lines
from pipeline.model.receipt import Receipt
from pipeline.shard import NodeSession
from pipeline.testing import Sandbox, sandbox
from workers.metrics.port import of_record

#: Each is planted in one place, and belongs in no sight of anybody but whom the documentation names.
VALUE, OTHER = "v4lue-of-a-row", "0ther-value"
KEY, PASSWORD, BROKER, SIGN, TOKEN = "1dem-key", "pa55-word", "br0ker-pass", "s1gn-" * 8, "t0ken-secret-of-reads"
PLANTED = (VALUE, OTHER, KEY, PASSWORD, BROKER, SIGN, TOKEN)
#: Nobody listens there.
AWAY = f"""
[pipeline]
buckets = 16
[redis]
url = "redis://web:{PASSWORD}@127.0.0.1:1/0"
broker_url = "redis://web:{BROKER}@127.0.0.1:1/1"
sign_key = "{SIGN}"
[shards.s0]
primary = "mysql:pymysql://app:{PASSWORD}@127.0.0.1:1/shop"
replicas = ["mysql:pymysql://app:{PASSWORD}@127.0.0.1:1/copy"]
[reads]
secret = "{TOKEN}"
"""


class Sights:
    """All that somebody may see, and where; the log as text and as JSON."""

    def __init__(self, caplog: pytest.LogCaptureFixture):
        self._caplog = caplog
        self.texts: dict[str, str] = {}

    def see(self, where: str, text: object) -> None:
        self.texts[f"{where} {len(self.texts)}"] = str(text)

    def error(self, error: BaseException) -> None:
        self.see("error", f"{error} {error!r} {''.join(traceback.format_exception_only(error))}")

    def found(self) -> list[tuple[str, str]]:
        """Return what is seen of what was planted."""
        lines = [Lines(form).format(record) for form in ("text", "json") for record in self._caplog.records]
        seen = {**self.texts, **{f"log {n}": line for n, line in enumerate(lines)}}
        return [(where, text) for where, text in seen.items() if any(secret in text for secret in PLANTED)]


@pytest.fixture
def sights(caplog: pytest.LogCaptureFixture) -> Sights:
    caplog.set_level(logging.DEBUG)
    return Sights(caplog)


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A shard that says what MariaDB says, values and all."""
    real = NodeSession.execute

    def execute(session: NodeSession, sql: str) -> Any:
        if VALUE in sql and "sale" in sql and "INSERT" in sql and "pipeline_" not in sql:
            raise pymysql.err.IntegrityError(1062, f"Duplicate entry '{VALUE}' for key 'code'")
        if OTHER in sql and "pipeline_" not in sql:
            raise pymysql.err.OperationalError(1205, f"Lock wait timeout near '{OTHER}' at line 1")
        return real(session, sql)

    monkeypatch.setattr(NodeSession, "execute", execute)
    monkeypatch.setattr("pipeline.apply.pace.READ_EVERY_S", 0.0)
    with sandbox({"sale": {"shard_key": "customer"}}, shards=1) as box:
        monkeypatch.setattr("pipeline.cli.inspect.opened", lambda config: nullcontext(box.client))
        monkeypatch.setattr("pipeline.cli.dead.opened", lambda config: nullcontext(box.client))
        yield box


@pytest.fixture
def db(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("sale", Field("customer", "integer"), Field("code"), Field("qty", "integer"))
    pipeline.define_tables(db)
    yield db
    db.close()


def run(*words: str) -> str:
    return CliRunner().invoke(cli.pipeline, words).output


def refused(db: Any, sights: Sights, worker: Applier) -> list[Receipt]:
    """Have ops refused until their table halts, one parked, one that waits for a lock; see the errors."""
    receipts = [
        pipeline.enqueue_insert(db.sale, customer=7, code=VALUE, idempotency_key=f"{KEY}-{n}") for n in range(60)
    ]
    parked = pipeline.enqueue_update(db.sale.id == receipts[0].id, code=VALUE + "2")
    pipeline.enqueue_insert(db.sale, customer=8, code=OTHER)
    for _ in polls(30):
        sights.see("Flower's result", worker.apply().summary())
        if "queued" not in [receipt.status() for receipt in receipts]:
            break
    for receipt in receipts[:2]:
        with pytest.raises(Rejected) as caught:
            receipt.wait(0)
        sights.error(caught.value)
    assert VALUE in caught.value.reason  # the application's own value, for the application
    return [receipts[0], parked]


def test_a_run_in_which_all_is_refused_shows_no_value_and_no_key(box: Sandbox, db: Any, sights: Sights):
    settings = ApplySettings(early_wait_s=0)
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, settings, tables=box.client.settings.tables)
    receipt, *others = refused(db, sights, worker)
    waits = tuple(reason for name in ("s0", "sale") for reason in why(box.client, name).reasons)
    record = Record(0, RedisRecord(), (ShardRecord("s0", waits=waits),))

    for name in ("s0", "sale", str(receipt), *map(str, others)):
        sights.see("why", run("why", name))
        sights.see("why --json", run("why", name, "--json"))
    for one in (receipt, *others):
        told = story(box.client, str(one))
        sights.see("trace", [*told.lines(), told.as_json()])
    sights.see("status --json", json.dumps(record.as_json(60)))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(type("Shown", (), {"collect": lambda self: of_record(Newest(record, 0))})())  # type: ignore[arg-type]
    sights.see("metrics", generate_latest(registry).decode())
    sights.see("replay", run("dead", "replay", "--all", "--json"))
    sights.see("receipt", f"{receipt} {receipt!r}")
    with suppress(PipelineError):
        stops.resume(box.client, stops.target_of(box.client, "sale"))
    box.log.restart()
    with pytest.raises(PipelineError) as caught:
        pipeline.enqueue_insert(db.sale, customer=7, code=VALUE, idempotency_key=KEY * 99)
    sights.error(caught.value)

    assert [reason.kind for reason in waits].count("breaker") == 2
    assert sights.found() == []
    assert VALUE in run("dead", "list")  # as documented
    assert VALUE in run("dead", "show", f"{receipt.bucket}:{receipt.position}")


def test_commands_calls_and_errors_show_no_password_and_no_key_while_all_servers_are_away(
    tmp_path: Path, sights: Sights, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "pipeline.toml"
    path.write_text(AWAY)
    settings = load(path)
    sights.see("settings", f"{settings!r} {settings}")

    commands = ("check", "check --json", "status", "status --json", "healthcheck worker", "healthcheck web --json")
    more = ("why s0", "dead list", "spool status --json", "pause s0", "migrate", "spool drain --timeout 0")
    for words in (*commands, *more):
        found = CliRunner().invoke(cli.pipeline, [*words.split(), "--config", str(path)])
        sights.see(words, f"{found.output} {found.exception!r}")
    client: Any = Client(path)
    for call in (client.publisher.warm, client.log.full, lambda: client.nodes.primary("s0").query("SELECT 1")):
        with pytest.raises(PipelineError) as caught:
            call()
        sights.error(caught.value)
    sights.see("client", repr(client))
    client.close()
    for broken in (AWAY.replace("127.0.0.1:1/0", "127.0.0.1:x/0"), AWAY + "nonsense = 1\n", AWAY[:-40]):
        path.write_text(broken)
        sights.see("a broken file", CliRunner().invoke(cli.pipeline, ["check", "--config", str(path)]).output)
        with pytest.raises(PipelineError) as caught:
            load(path)
        sights.error(caught.value)

    assert sights.found() == []
    assert len(sights.texts) > 20
