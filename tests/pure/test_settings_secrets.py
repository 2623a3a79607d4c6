"""Settings: no password is ever shown, by whatever is printed or raised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sandbox.configurations import SECRET, faults_of

from pipeline.config.settings import RedisSettings, redact
from pipeline.config.uris import SHARD_SCHEMES


@pytest.mark.parametrize("key", ["url", "broker_url", "prefix", "timeout_s", "unknown"])
def test_no_fault_of_redis_repeats_a_text(key: str) -> None:
    faults = faults_of(redis={"url": "redis://h", key: f"cluster+redis://:{SECRET}@h"})

    assert faults
    assert SECRET not in "".join(faults)


@pytest.mark.parametrize("scheme", ["mysql", "mysql:pymsql", "mysql:pymysql", "redis", "", SECRET])
@pytest.mark.parametrize("key", ["primary", "replicas", "buckets"])
def test_no_fault_of_a_shard_repeats_a_text(key: str, scheme: str) -> None:
    uri = f"{scheme}://app:{SECRET}@x@db0/shop"

    faults = faults_of(shards={"s0": {"primary": "sqlite://a", key: [uri] if key == "replicas" else uri}})

    assert faults
    assert SECRET not in "".join(faults)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mysql:pymysql://app:pw@db0/shop?x=1", "mysql:pymysql://app:***@db0/shop?x=1"),
        ("mysql:pymysql://root@127.0.0.1/shop", "mysql:pymysql://root@127.0.0.1/shop"),
        ("mysql:pymysql://app:p@s/s:w@db0/shop", "mysql:pymysql://app:***@db0/shop"),
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
        ("sentinel://:pw@h1;sentinel://:pw@h2/0", "sentinel://:***@h2/0"),
        ("oracle://scott/pw@orcl", "oracle://scott:***@orcl"),
        ("sqlite:///var/s0.sqlite", "sqlite:///var/s0.sqlite"),
        ("app:pw@db0/shop", "app:***@db0/shop"),
        ("app:p://w@db0/shop", "app:***@db0/shop"),
        ("redis://:pw", "redis://***"),
        ("mysql:pymysql://app:pw/shop", "mysql:pymysql://***"),
        ("redis://:x;redis://pw@h/0", "redis://:***@h/0"),
        ("sentinel://h1:26379,[::1]:26379/m/0", "sentinel://h1:26379,[::1]:26379/m/0"),
    ],
)
def test_redact_hides_the_password_and_nothing_else(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@given(
    st.sampled_from(sorted(SHARD_SCHEMES | {"redis", "rediss", "unix"})),
    st.text(st.characters(codec="utf-8")),
)
def test_redact_hides_any_password(scheme: str, tail: str) -> None:
    password = "Pa55" + tail

    shown = redact(f"{scheme}://app:{password}@host/name")

    assert "Pa55" not in shown
    assert shown == f"{scheme}://app:***@host/name"


KEY = "k" * 32


@pytest.mark.parametrize("key", [KEY, f"{KEY} {KEY}", ""])
def test_one_key_or_two_sign_and_are_shown_nowhere(key: str) -> None:
    settings = RedisSettings("redis://h/0", sign_key=key)

    assert settings.sign_key == key
    assert not settings.accept_unsigned
    assert "kkkk" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    "key", [SECRET, f"{KEY} {SECRET}", f"{KEY} {KEY} {KEY}", f"{KEY}  {KEY}", 5, SECRET + " " * 40]
)
def test_a_key_that_is_too_short_is_refused_without_being_repeated(key: object) -> None:
    faults = faults_of(redis={"url": "redis://h/0", "sign_key": key})

    assert len(faults) == 1
    assert faults[0].startswith("[redis] sign_key")
    assert SECRET not in faults[0]
    assert "kkkk" not in faults[0]
