"""promtool, which Prometheus brings, accepts the shipped rules and the metrics; each alert fires on its fault."""

from __future__ import annotations

from support.servers.deploying import DEPLOY, needs, run

RULES = DEPLOY / "prometheus" / "alerts.yml"


@needs("promtool")
def test_promtool_accepts_the_alert_rules() -> None:
    assert "SUCCESS" in run("promtool", "check", "rules", str(RULES)).stdout


@needs("promtool")
def test_each_alert_fires_on_its_fault_and_none_without() -> None:
    done = run("promtool", "test", "rules", str(RULES.with_name("alerts_test.yml")))

    assert "SUCCESS" in done.stdout
    tested = RULES.with_name("alerts_test.yml").read_text()
    for alert in RULES.read_text().split("- alert: ")[1:]:
        name = alert.split()[0]
        assert tested.count(f"- alertname: {name}\n") >= 1, name
        assert f"alertname: {name}, eval_time: 2h, exp_alerts: []" in tested, name
