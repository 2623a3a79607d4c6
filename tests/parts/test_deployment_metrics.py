"""The deployment's metrics are made of its record; alerts and the dashboard name nothing that is not shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pipeline.admin.observe.moves import MoveRecord
from pipeline.admin.observe.published import Newest
from pipeline.admin.observe.record import HostRecord, NodeRecord, ReadCount, Record, RedisRecord, ShardRecord
from pipeline.model.wait_reason import WaitReason
from pipeline.reads.health import NodeState
from workers.metrics.port import Tables, metrics_of, of_record

DEPLOY = Path(__file__).parents[2] / "deploy"
NODE = NodeRecord("s0-r0", "replica", NodeState.IN, lag_ops=12, lag_ms=1500, age_ms=900)
WAITS = tuple(WaitReason(kind, "s0", scope) for kind, scope in (("early", "s0"), ("early", "t"), ("breaker", "t")))
S0 = ShardRecord(
    "s0",
    depth=30,
    oldest_ms=2500,
    dirty=3,
    rejected=2,
    parked=1,
    lost=0,
    forged=0,
    given_up=0,
    nodes=(NODE,),
    waits=WAITS,
    owned=96,
)
AWAY = ShardRecord("s1", queue_why="it does not answer", why="it does not answer")
RECORD = Record(
    0,
    RedisRecord(0.25, 1_000_000),
    (S0, AWAY),
    (ReadCount("s0-r0", "replica", "fresh", 12),),
    fingerprint="ab12",
    buckets=256,
    hosts=(HostRecord("web1", "web", 0, 7, 4096, 61_000),),
)


def metrics(**changes: Any) -> list[Metric]:
    return list(of_record(Newest(replace(RECORD, **changes), 1200)))


class Shown:
    """Collects families."""

    def __init__(self, *shown: Metric):
        self._shown = shown

    def collect(self) -> Any:
        return self._shown


def exposed(*shown: Metric) -> dict[str, float]:
    """Return what Prometheus would read: each value by its series, the labels in the order of their names."""
    registry = CollectorRegistry()
    registry.register(Shown(*shown))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for one in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


def test_a_record_becomes_gauges_in_seconds_bytes_and_ops():
    found = exposed(*metrics())

    assert found["pipeline_record_age_seconds"] == 1.2
    assert found["pipeline_deployment_info{buckets=256,fingerprint=ab12,shards=2}"] == 1
    assert found["pipeline_redis_memory_bytes"] == 1e6
    assert found["pipeline_redis_full"] == 0
    assert found["pipeline_queue_ops{shard=s0}"] == 30
    assert found["pipeline_queue_oldest_seconds{shard=s0}"] == 2.5
    assert found["pipeline_owned_buckets{shard=s0}"] == 96
    assert found["pipeline_node_lag_seconds{node=s0-r0,role=replica,shard=s0}"] == 1.5
    assert found["pipeline_node_state{node=s0-r0,role=replica,shard=s0,state=in}"] == 1
    assert found["pipeline_spool_oldest_seconds{host=web1,kind=web}"] == 61
    assert found["pipeline_waits{kind=early,shard=s0}"] == 2
    assert found["pipeline_waits{kind=paused,shard=s0}"] == 0
    assert found["pipeline_ops_lost_total{shard=s0}"] == 0
    assert found["pipeline_reads_total{kind=replica,node=s0-r0,reason=fresh}"] == 12


def test_what_is_unknown_is_left_out_and_never_zero():
    found = exposed(*metrics())

    assert found["pipeline_known"] == 0
    assert not any("shard=s1" in series for series in found)
    assert "pipeline_node_reading_seconds{node=s0-r0,role=replica,shard=s0}" not in found
    silent = RedisRecord(why="it does not answer")
    assert not any("redis" in series for series in exposed(*metrics(redis=silent)))


def test_a_shard_that_does_not_answer_shows_the_reason_that_is_known():
    away = replace(AWAY, waits=(WaitReason("primary-away", "s1", "s1"),), depth=9)

    found = exposed(*metrics(shards=(away,)))

    assert {series for series in found if "shard=s1" in series} == {
        "pipeline_waits{kind=primary-away,shard=s1}",
        "pipeline_queue_ops{shard=s1}",
    }


def test_nothing_queued_has_an_age_of_zero_so_that_an_alert_ends():
    empty = replace(S0, depth=0, oldest_ms=None)

    found = exposed(*metrics(shards=(empty,)))

    assert found["pipeline_queue_oldest_seconds{shard=s0}"] == 0


def test_moves_are_counted_by_state_with_their_rows_and_what_stands_still():
    copying = MoveRecord("0-3", "s0", "s1", "copying", 40_000, rows=30, total=100)
    stuck = MoveRecord("9", "s0", "s1", "waiting", 10_000, rows=5, total=5, still="no mover has been at it for 99 s")
    other = MoveRecord("8", "s1", "s0", "comparing", 90_000, rows=7)

    found = exposed(*metrics(at_ms=100_000, moves=(stuck, copying, other)))
    none = exposed(*metrics(shards=(S0,)))

    assert {state: found[f"pipeline_moves{{state={state}}}"] for state in ("copying", "waiting", "comparing")} == {
        "copying": 1, "waiting": 1, "comparing": 1,
    }  # fmt: skip
    assert found["pipeline_moves_stuck"] == 1
    assert found["pipeline_moves_oldest_seconds"] == 90
    assert found["pipeline_move_rows{source=s0,target=s1}"] == 35
    assert found["pipeline_move_rows_known{source=s0,target=s1}"] == 105
    assert found["pipeline_move_rows{source=s1,target=s0}"] == 7
    assert "pipeline_move_rows_known{source=s1,target=s0}" not in found
    assert (none["pipeline_moves_stuck"], none["pipeline_moves{state=copying}"]) == (0, 0)
    assert none["pipeline_moves_oldest_seconds"] == 0


def test_where_a_shard_does_not_answer_it_is_not_said_that_nothing_moves():
    assert not any(series.startswith("pipeline_move") for series in exposed(*metrics()))


def names_shown() -> set[str]:
    """Return the names of all series: of a histogram, with the ends that it gives them."""
    found = set()
    counted = (metric for prefix in ("pipeline_", "pipeline_worker_") for metric in metrics_of({}, prefix, Tables()))
    for metric in (*metrics(), *counted):
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
        found |= {metric.name + end for end in ends}
    return found


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bpipeline_[a-z_]+\b", text))


def test_every_alert_and_every_panel_names_only_metrics_that_are_shown():
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    expressions = " ".join(re.findall(r"expr: (>-\n(?: {10}.+\n)+|.+)", alerts))
    dashboard = json.loads((DEPLOY / "grafana" / "pipeline.json").read_text())
    panels, choices = dashboard["panels"], json.dumps(dashboard["templating"])
    drawn = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))

    assert len(names_in(expressions)) > 10
    assert len(names_in(drawn)) > 15
    assert [panel["title"] for panel in panels if panel["type"] != "row" and not panel.get("targets")] == []
    assert names_in(choices)
    assert names_in(expressions) | names_in(drawn) | names_in(choices) <= names_shown()


def test_every_alert_says_what_to_run():
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()

    rules = alerts.split("- alert: ")[1:]

    assert len(rules) > 15
    for rule in rules:
        assert re.search(r"^ +command: pipeline (why( {{ \$labels\.shard }})?|status)$", rule, re.MULTILINE), rule
        assert re.search(r"labels: { severity: (critical|warning) }", rule), rule


def test_the_manual_names_every_metric_and_no_other():
    manual = (DEPLOY.parent / "docs" / "operations.md").read_text().partition("### Metrics\n")[2].partition("\n## ")[0]
    rows = "".join(line for line in manual.splitlines() if line.startswith("| `pipeline_"))

    ends = re.compile("_(bucket|sum|count)$")

    assert names_in(rows) == {ends.sub("", name) for name in names_shown() if not name.startswith("pipeline_worker_")}
