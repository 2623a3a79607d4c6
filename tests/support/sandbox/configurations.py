"""Small configurations, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.settings import load
from pipeline.errors import ConfigError

SECRET = "s3cr3t-pass"


def small(**changes: Any) -> dict[str, Any]:
    """Return the smallest configuration, with whole sections replaced."""
    sections = {"redis": {"url": "redis://localhost"}, "shards": {"s0": {"primary": "sqlite://s0.sqlite"}}}
    return {**sections, **changes}


def faults_of(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(small(**changes), {})
    return caught.value.faults


def only_fault_of(**changes: Any) -> str:
    (fault,) = faults_of(**changes)
    return fault


def shard(**keys: Any) -> dict[str, Any]:
    return {"s0": {"primary": "sqlite://s0.sqlite", **keys}}
