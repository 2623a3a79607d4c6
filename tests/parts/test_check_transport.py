"""Whether `pipeline check` names what others on the network could hear or forge."""

from __future__ import annotations

import pytest

from pipeline.admin.check.evidence import Evidence
from pipeline.admin.check.servers import transport_findings
from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.errors import PipelineError

KEY = "k" * 32
NEAR = ("redis://u:p@127.0.0.1:6379/0", "redis://localhost/1", "mysql:pymysql://u:p@127.0.0.1:3306/shop")


def found(log: str, broker: str, primary: str, *, key: str = KEY) -> list[tuple[str, str]]:
    loaded = load(
        {"redis": {"url": log, "broker_url": broker, "sign_key": key}, "shards": {"s0": {"primary": primary}}}
    )
    away = PipelineError("not asked")
    evidence = Evidence(loaded, Topology(loaded), away, away, (), "", None, {}, {})
    return [(one.severity, one.place) for one in transport_findings(evidence)]


@pytest.mark.parametrize(
    "addresses",
    [
        NEAR,
        ("redis://[::1]:6379/0", "redis://localhost/1", "sqlite:///tmp/never.sqlite"),
        (
            "unix:///run/redis.sock?db=0",
            "redis://127.8.0.1/1",
            "mysql:pymysql://u:p@db/shop?unix_socket=/run/mysqld.sock",
        ),
    ],
)
def test_servers_of_this_machine_are_no_fault_with_a_key_or_without(addresses: tuple[str, str, str]) -> None:
    assert found(*addresses) == found(*addresses, key="") == []


@pytest.mark.parametrize(
    ("nth", "address", "place"),
    [
        (0, "redis://u:p@10.0.0.5/0", "[redis] url"),
        (0, "redis://log/0", "[redis] url"),
        (1, "redis://broker/0", "[redis] broker_url"),
        (2, "mysql:pymysql://u:p@db-1/shop", "[shards.s0] primary"),
    ],
)
def test_an_address_of_another_machine_without_tls_is_named(nth: int, address: str, place: str) -> None:
    addresses = list(NEAR)
    addresses[nth] = address

    assert found(*addresses) == [("warning", place)]


def test_addresses_with_tls_are_no_fault_and_a_remote_log_without_a_key_is() -> None:
    remote = (
        "rediss://log/0",
        "rediss://broker/0",
        "mysql:pymysql://u:p@db/shop?ssl_ca=/etc/ssl/certs/ca-certificates.crt",
    )

    assert found(*remote) == []
    assert found(*remote, key="") == [("warning", "[redis] sign_key")]
