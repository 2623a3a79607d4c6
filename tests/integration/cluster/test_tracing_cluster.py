"""One trace over processes: a request here, a real Celery worker with Celery's own instrumentation there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from support.servers.rig import Rig

from pipeline import cli
from pipeline.client import Client
from pipeline.clock import polls

pytestmark = pytest.mark.mariadb

#: Python imports it as it starts: what `opentelemetry-instrument` does for an application.
SITE = """
import os
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
out = open(os.environ["SPANS"], "a", buffering=1)
line = lambda span: span.to_json(indent=None) + "\\n"
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out, formatter=line)))
trace.set_tracer_provider(provider)
CeleryInstrumentor().instrument()
"""


def spans(path: Path) -> list[dict[str, Any]]:
    """Return what is written whole by now."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def test_a_request_s_trace_reaches_the_commit_of_a_real_worker_below_celery_s_own_span(
    mariadb: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    provider, written = TracerProvider(), tmp_path / "spans"
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    client = Client(mariadb.config)
    client.define_tables(mariadb.db)
    [owner] = mariadb.owners(1)
    path = f"{tmp_path}"
    with mariadb.frozen(), mariadb.worker(PYTHONPATH=path, SPANS=str(written)):
        with provider.get_tracer("web").start_as_current_span("request") as request:
            receipt = client.enqueue_insert(mariadb.db.event, {"owner": owner, "body": "planted-value-91"})
        assert receipt.wait(30) in ("applied", "durable")
        wanted = f"0x{request.get_span_context().trace_id:032x}"
        for _ in polls(20):  # the span follows the commit
            commits = [one for one in spans(written) if one["name"] == "pipeline.commit"]
            tasks = {one["context"]["span_id"]: one["name"] for one in spans(written)}
            batches = [one for one in spans(written) if one["name"] == "pipeline.apply" and one["links"]]
            if commits and batches and batches[0]["parent_id"] in tasks:
                break
    told = CliRunner().invoke(cli.pipeline, ["trace", str(receipt), "--json", "--config", str(mariadb.config)])
    client.close()

    assert [one["context"]["trace_id"] for one in commits] == [wanted]
    assert commits[0]["attributes"]["pipeline.position"] == str(receipt.position)
    assert tasks[batches[0]["parent_id"]] == "run/pipeline.apply"
    assert "planted-value-91" not in written.read_text()
    found = json.loads(told.output)
    assert found["status"] in ("applied", "durable")
    # workers trim a log every ten seconds
    assert found["enqueued"]["table"] == ("event" if found["place"]["there"] else None)
    [shard] = found["shards"]
    assert shard["committed_ms"] is not None
    assert shard["worker"] is not None
    assert [replica["seen"] for replica in found["replicas"]] in ([], [True])
