"""Spans of OpenTelemetry join the application's traces, have no values, and cost nothing where there is no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from pydal import DAL, Field
from support.sandbox.spooling import Shop

import pipeline
from pipeline.apply.applier import MOST_LINKS
from pipeline.enqueue.publisher import Publisher
from pipeline.errors import Unavailable
from pipeline.model import START, Op, TracedOp, decode, encode
from pipeline.oplog.doorbell import APPLY_TASK
from pipeline.testing import Drained, Sandbox, sandbox

SECRET = "planted-value-4410"
TABLES = {"sale": {"shard_key": "customer"}}


class Traces:
    """What was exported, by name."""

    def __init__(self, sampler: Sampler = ALWAYS_ON):
        self.exporter, self.provider = InMemorySpanExporter(), TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @contextmanager
    def request(self) -> Iterator[Any]:
        with self.provider.get_tracer("web").start_as_current_span("request") as span:
            yield span

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span

    @property
    def text(self) -> str:
        return "".join(span.to_json() for span in self.exporter.get_finished_spans())


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    traces = Traces()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: traces.provider)
    return traces


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("sale", Field("customer", "integer"), Field("code", length=40, unique=True), Field("note"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any, traces: Traces) -> Iterator[Sandbox]:
    with sandbox(TABLES, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def payloads(box: Sandbox) -> list[bytes]:
    buckets = range(box.client.topology.buckets + 1)
    logs = box.log.read(dict.fromkeys(buckets, START), dict.fromkeys(buckets, 1000))
    return [entry.payload for entries in logs.values() for entry in entries]


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert span.context is not None
    assert parent.context is not None
    same = span.context.trace_id == parent.context.trace_id
    return same and span.parent is not None and span.parent.span_id == parent.context.span_id


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


def test_one_trace_goes_from_the_request_to_the_commit(db: Any, box: Sandbox, traces: Traces):
    with traces.request():
        receipt = pipeline.enqueue_insert(db.sale, customer=7, note=SECRET)
    box.drain()

    call, commit, batch = (traces.one(f"pipeline.{name}") for name in ("enqueue", "commit", "apply"))
    assert call.context is not None
    assert batch.context is not None
    assert is_child(call, traces.one("request"))
    assert is_child(commit, call)
    assert linked(batch) == {call.context.span_id}
    assert linked(commit) == {batch.context.span_id}
    assert [event.name for event in batch.events] == ["commit"]
    assert call.attributes == {
        "pipeline.kind": "insert", "pipeline.table": "sale", "pipeline.ops": 1, "pipeline.way": "direct",
    }  # fmt: skip
    assert commit.attributes is not None
    assert commit.attributes["pipeline.position"] == str(receipt.position)
    assert commit.attributes["pipeline.state"] == "applied"
    assert SECRET not in traces.text
    assert receipt.status() == "applied"


def test_without_an_open_span_an_op_has_no_byte_more_and_nothing_is_exported(db: Any, box: Sandbox, traces: Traces):
    receipt = pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()
    pipeline.get(db.sale, receipt.id)

    [payload] = payloads(box)
    assert type(decode(payload)) is Op
    assert encode(decode(payload)) == payload
    assert traces.text == ""


def test_a_span_that_is_not_exported_costs_no_byte(db: Any, box: Sandbox, traces: Traces):
    with Traces(ALWAYS_OFF).request():
        pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()

    assert [type(decode(payload)) for payload in payloads(box)] == [Op]
    assert traces.text == ""


def test_where_no_provider_is_set_nothing_of_it_is_wired(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)

    with sandbox(TABLES, buckets=4) as box:
        assert type(box.client.dispatch._publisher) is Publisher
        assert {type(applier).__name__ for applier in box._appliers.values()} == {"Applier"}
        assert type(box.client.reads._router).__name__ == "Router"


def test_of_a_bulk_call_the_first_op_of_each_bucket_names_the_span(db: Any, box: Sandbox, traces: Traces):
    with traces.request():
        pipeline.enqueue_bulk_insert(db.sale, [{"customer": n} for n in range(40)])
    assert box.drain() == Drained(40, 0)

    ops = [decode(payload) for payload in payloads(box)]
    call, buckets = traces.one("pipeline.enqueue"), {entry.bucket for entry in entries(box)}
    assert call.attributes is not None
    assert call.attributes["pipeline.ops"] == 40
    assert sum(isinstance(op, TracedOp) for op in ops) == len(buckets) > 1
    assert all(is_child(commit, call) for commit in traces.named("pipeline.commit"))
    assert len(traces.named("pipeline.commit")) == len(traces.named("pipeline.apply")) == 2  # a batch per shard


def entries(box: Sandbox) -> list[Any]:
    return [entry for log in box.log._server.logs.values() for entry in log]


def test_a_batch_links_to_a_bounded_number_of_calls_and_applies_all(db: Any, box: Sandbox, traces: Traces):
    for _ in range(MOST_LINKS + 5):
        with traces.request():
            pipeline.enqueue_insert(db.sale, customer=7)
    assert box.drain() == Drained(MOST_LINKS + 5, 0)

    [batch] = [span for span in traces.named("pipeline.apply") if span.links]
    assert len(batch.links) == len(traces.named("pipeline.commit")) == MOST_LINKS


def test_a_group_is_one_op_of_the_trace(db: Any, box: Sandbox, traces: Traces):
    with traces.request(), pipeline.atomic():
        pipeline.enqueue_insert(db.sale, customer=7)
        pipeline.enqueue_insert(db.sale, customer=7)
    box.drain()

    assert len(box.rows("sale")) == 2
    commit = traces.one("pipeline.commit")
    assert commit.attributes is not None
    assert commit.attributes["pipeline.kind"] == "group"


def test_a_refused_op_fails_its_span_and_quotes_no_value(db: Any, box: Sandbox, traces: Traces):
    pipeline.enqueue_insert(db.sale, customer=7, code=SECRET)
    with traces.request():
        pipeline.enqueue_insert(db.sale, customer=7, code=SECRET)
    assert box.drain() == Drained(1, 1)

    commit = traces.one("pipeline.commit")
    assert commit.attributes is not None
    assert commit.attributes["pipeline.state"] == "rejected"
    assert (commit.status.is_ok, commit.status.description) == (False, None)
    assert SECRET not in traces.text
    [kept] = box.client.nodes.primary("s0").query("SELECT op FROM pipeline_rejects") or box.client.nodes.primary(
        "s1"
    ).query("SELECT op FROM pipeline_rejects")
    assert isinstance(decode(kept[0].encode()), TracedOp)  # as it was sent, to be replayed


def test_an_idempotency_key_that_was_used_is_no_failure(db: Any, box: Sandbox, traces: Traces):
    for _ in range(2):
        with traces.request():
            pipeline.enqueue_insert(db.sale, customer=7, idempotency_key=SECRET)
    assert box.drain() == Drained(1, 0)

    assert all(span.status.is_unset for span in traces.named("pipeline.enqueue"))
    assert SECRET not in traces.text


def test_a_call_that_fails_names_the_type_of_its_error_only(db: Any, box: Sandbox, traces: Traces):
    pipeline.enqueue_insert(db.sale, customer=7)

    def away(*_: object) -> None:
        raise ConnectionError(SECRET)

    box.log.fault = away
    with traces.request(), pytest.raises(Unavailable):
        pipeline.enqueue_insert(db.sale, customer=7)

    call = traces.one("pipeline.enqueue")
    assert call.attributes is not None
    assert call.attributes["error.type"] in ("LogUnavailable", "InDoubt")
    assert (call.status.is_ok, call.events) == (False, ())


def test_reads_say_which_node_and_why_also_in_the_threads_of_a_gather(db: Any, box: Sandbox, traces: Traces):
    receipt = pipeline.enqueue_insert(db.sale, customer=7, note=SECRET)
    box.drain()

    with traces.request():
        pipeline.get(db.sale, receipt.id)
        pipeline.select(db.sale.note == SECRET)

    reads = traces.named("pipeline.read")
    assert len(reads) == 3  # one row, and the rows of two shards
    for read in reads:
        assert is_child(read, traces.one("request"))
        assert read.attributes is not None
        assert read.attributes["pipeline.node"] in ("s0", "s1")
        assert (read.attributes["pipeline.role"], read.attributes["pipeline.reason"]) == ("primary", "no-replica")
    assert SECRET not in traces.text


def test_celerys_own_span_is_the_batch_s_parent(db: Any, box: Sandbox, traces: Traces):
    app = Celery("traced", broker="memory://")

    @app.task(name=APPLY_TASK)
    def apply(shard: str) -> None:
        box._appliers[shard].apply()

    with traces.request():
        receipt = pipeline.enqueue_insert(db.sale, customer=7)
    shard = box.client.topology.shard_of(receipt.bucket)
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=traces.provider)
    try:
        apply.apply(args=(shard,))
    finally:
        instrumentor.uninstrument()

    assert is_child(traces.one("pipeline.apply"), traces.one("run/pipeline.apply"))
    assert is_child(traces.one("pipeline.commit"), traces.one("pipeline.enqueue"))


def test_a_spooled_op_keeps_its_trace(tmp_path: Path, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    shop = Shop(tmp_path, monkeypatch)
    shop.buy(1)
    shop.log.away = True
    with traces.request():
        assert shop.buy(1).status() == "spooled"
    shop.log.away = False
    shop.drain()
    shop.box.drain()

    call = traces.one("pipeline.enqueue")
    assert call.attributes is not None
    assert call.attributes["pipeline.way"] == "spool"
    assert is_child(traces.one("pipeline.commit"), call)
