"""The fingerprint of a configuration: the same for files that fit each other, and without passwords."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.model.fingerprint import BY_ID, Fingerprint, differences, table_differences

MYSQL = "mysql:pymysql://app:s3cret@DB0/shop?set_encoding=utf8mb4"


def made(url: str = "redis://:s3cret@redis:6379/0", primary: str = MYSQL, **tables: Any) -> Fingerprint:
    sections = {"redis": {"url": url}, "shards": {"s0": {"primary": primary}}, "tables": tables}
    return Topology(load(sections, {})).fingerprint


def test_it_is_read_back_as_it_was_written() -> None:
    fingerprint = made(purchase={"shard_key": "customer"})

    assert Fingerprint.from_json(fingerprint.to_json()) == fingerprint


def test_no_login_is_in_it_and_one_server_has_one_name() -> None:
    fingerprint = made()

    assert "s3cret" not in fingerprint.to_json()
    assert fingerprint.redis == ("redis:6379/0",) == made("rediss://u:p@redis:6379/0?ssl_verify=false").redis
    assert fingerprint.databases == (("s0", ("mysql db0:3306 shop",)),)
    assert fingerprint.databases == made(primary="mysql:MySQLdb://other:pw@db0:3306/shop").databases


def test_a_table_with_defaults_is_as_one_that_no_section_names() -> None:
    assert made(purchase={"on_reject": "skip", "unique": [["a"]]}).tables == made().tables == ()
    assert made().spread("purchase") == BY_ID


@pytest.mark.parametrize("size", [3, 300])
def test_a_lookup_is_the_same_in_any_order_and_differs_by_one_bucket(size: int) -> None:
    lookup = {f"tenant{n}": n % 7 for n in range(size)}
    one, turned, other = (
        made(t={"shard_key": "tenant", "rule": "lookup", "lookup": dict(table)})
        for table in (lookup.items(), reversed(lookup.items()), {**lookup, "tenant1": 8}.items())
    )

    assert table_differences(one, turned) == {}
    assert [*table_differences(one, other)] == ["t"]
    assert max(map(len, table_differences(one, other).values())) < 1_000


def test_what_places_no_rows_makes_no_difference() -> None:
    assert differences(made(primary="sqlite:///x/y.sqlite"), made()) == []
    assert differences(made(url="redis://other"), made()) == []
