"""The deployment's metrics are made of its record; alerts and the dashboard name nothing that is not shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from workers.metrics import deployment, exposition

DEPLOY = Path(__file__).parents[2] / "deploy"
NOW_MS = 1_800_000_000_000
NODE = {
    "node": "s0-r0",
    "role": "replica",
    "state": "in",
    "lag_ms": 1500,
    "lag_ops": 12,
    "reading_ms": None,
    "age_ms": 900,
}
SHARD = {
    "shard": "s0", "depth": 30, "oldest_ms": 2500, "dirty": 3, "rejected": 2, "parked": 1, "lost": 0, "forged": 0,
    "poison": [], "waits": [{"kind": "early"}, {"kind": "early"}, {"kind": "breaker"}], "nodes": [NODE],
    "why": "",
}  # fmt: skip
AWAY = {
    "shard": "s1", "depth": None, "oldest_ms": None, "dirty": None, "rejected": None, "parked": None, "lost": None,
    "forged": None, "poison": [], "waits": [], "nodes": [], "why": "it does not answer",
}  # fmt: skip
RECORD = {
    "version": 1, "at_ms": NOW_MS - 1200, "known": False, "faults": [{}, {}],
    "redis": {"memory_share": 0.25, "memory_bytes": 1_000_000, "full": None, "why": ""},
    "deployment": {"fingerprint": "ab12", "buckets": 256, "shards": 2}, "shards": [SHARD, AWAY],
    "hosts": [{"host": "web1", "kind": "web", "spooled": 7, "bytes": 4096, "oldest_ms": 61_000}],
}  # fmt: skip
#: What Flower, and Prometheus' own client, show by themselves.
OTHERS = re.compile(r"flower_|process_")


def record_of(**changes: Any) -> Any:
    return json.loads(json.dumps({**RECORD, **changes}), object_hook=lambda found: SimpleNamespace(**found))


class Shown:
    """Collects families."""

    def __init__(self, *metrics: Any):
        self._metrics = metrics

    def collect(self) -> Any:
        return self._metrics


def exposed(*metrics: Any) -> dict[str, float]:
    """Return what Prometheus would read: each value by its series, the labels in the order of their names."""
    registry = CollectorRegistry()
    registry.register(Shown(*metrics))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for one in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


def test_a_record_becomes_gauges_in_seconds_bytes_and_ops():
    found = exposed(*deployment.of_record(record_of(), NOW_MS))

    assert found["pipeline_record_age_seconds"] == 1.2
    assert found["pipeline_deployment_info{buckets=256,fingerprint=ab12,shards=2}"] == 1
    assert found["pipeline_redis_memory_bytes"] == 1e6
    assert found["pipeline_redis_full"] == 0
    assert found["pipeline_queue_ops{shard=s0}"] == 30
    assert found["pipeline_queue_oldest_seconds{shard=s0}"] == 2.5
    assert found["pipeline_node_lag_seconds{node=s0-r0,role=replica,shard=s0}"] == 1.5
    assert found["pipeline_node_state{node=s0-r0,role=replica,shard=s0,state=in}"] == 1
    assert found["pipeline_spool_oldest_seconds{host=web1,kind=web}"] == 61
    assert found["pipeline_waits{kind=early,shard=s0}"] == 2
    assert found["pipeline_waits{kind=paused,shard=s0}"] == 0
    assert found["pipeline_ops_lost_total{shard=s0}"] == 0


def test_what_is_unknown_is_left_out_and_never_zero():
    found = exposed(*deployment.of_record(record_of(), NOW_MS))

    assert found["pipeline_known"] == 0
    assert not any("shard=s1" in series for series in found)
    assert "pipeline_node_reading_seconds{node=s0-r0,role=replica,shard=s0}" not in found
    silent = {"memory_share": None, "memory_bytes": None, "full": None, "why": "it does not answer"}
    assert not any("redis" in series for series in exposed(*deployment.of_record(record_of(redis=silent), NOW_MS)))


def test_a_shard_that_does_not_answer_shows_the_reason_that_is_known():
    away = {**AWAY, "waits": [{"kind": "primary-away"}], "depth": 9}

    found = exposed(*deployment.of_record(record_of(shards=[away]), NOW_MS))

    assert {series for series in found if "shard=s1" in series} == {
        "pipeline_waits{kind=primary-away,shard=s1}",
        "pipeline_queue_ops{shard=s1}",
    }


def test_nothing_queued_has_an_age_of_zero_so_that_an_alert_ends():
    empty = {**SHARD, "depth": 0, "oldest_ms": None}

    found = exposed(*deployment.of_record(record_of(shards=[empty]), NOW_MS))

    assert found["pipeline_queue_oldest_seconds{shard=s0}"] == 0


def names_shown() -> set[str]:
    """Return the names of all series: of a histogram, with the ends that it gives them."""
    found = set()
    for metric in (*deployment.of_record(record_of(), NOW_MS), *exposition.shown({}, "pipeline_worker_")):
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
        found |= {metric.name + end for end in ends}
    return found


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bpipeline_[a-z_]+\b", text))


def test_every_alert_and_every_panel_names_only_metrics_that_are_shown():
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    expressions = " ".join(re.findall(r"expr: (>-\n(?: {10}.+\n)+|.+)", alerts))
    panels = json.loads((DEPLOY / "grafana" / "pipeline.json").read_text())["panels"]
    drawn = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))

    assert len(names_in(expressions)) > 10
    assert len(names_in(drawn)) > 15
    assert names_in(expressions) | names_in(drawn) <= names_shown()


def test_every_alert_says_what_to_run():
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()

    rules = alerts.split("- alert: ")[1:]

    assert len(rules) > 15
    for rule in rules:
        assert re.search(r"^ +command: pipeline why( {{ \$labels\.shard }})?$", rule, re.MULTILINE), rule
        assert re.search(r"labels: { severity: (critical|warning) }", rule), rule
