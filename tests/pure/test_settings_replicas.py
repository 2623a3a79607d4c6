"""Settings: a replica is an address, or an address with a weight and a limit."""

from __future__ import annotations

import pytest
from support.sandbox.configurations import faults_of, small

from pipeline.config.sections import Load
from pipeline.config.settings import load


def test_a_replica_may_be_written_with_a_weight_and_a_limit() -> None:
    items = ["sqlite://b", {"uri": "sqlite://c", "weight": 2, "limit": 50}, {"uri": "sqlite://d", "weight": 0}]

    settings = load(small(shards={"s0": {"primary": "sqlite://a", "replicas": items}}), {})

    assert settings.shards["s0"].replicas == ("sqlite://b", "sqlite://c", "sqlite://d")
    assert settings.loads() == {"s0-r0": Load(), "s0-r1": Load(2, 50), "s0-r2": Load(0)}


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ({"uri": "sqlite://b", "weight": -1}, "weight is -1; it must be a number from 0 to 1000"),
        ({"uri": "sqlite://b", "weight": "2"}, "weight is a text; it must be a number from 0 to 1000"),
        ({"uri": "sqlite://b", "limit": 0}, "limit is 0; it must be a whole number from 1 to 100000"),
        ({"uri": "sqlite://b", "wieght": 2}, "has an unknown key 'wieght'; did you mean 'weight'?"),
        (7, "is an int; it must be an address, or a table { uri = … }"),
    ],
)
def test_a_replica_that_is_written_wrongly_is_refused_with_a_word_on_what_to_do(item: object, fault: str) -> None:
    faults = faults_of(shards={"s0": {"primary": "sqlite://a", "replicas": [item]}})

    assert f"[shards.s0] replicas item 1 {fault}" in faults


def test_a_replica_without_an_address_is_refused() -> None:
    [fault] = faults_of(shards={"s0": {"primary": "sqlite://a", "replicas": [{"weight": 1}]}})

    assert fault.startswith("[shards.s0] replicas item 1 uri is missing; it must be")
