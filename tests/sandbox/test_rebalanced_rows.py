"""What a plan to even out a deployment's shards knows of the rows."""

from __future__ import annotations

from collections import Counter

from support.sandbox.deployments import Site, run, site

from pipeline.admin import rebalance, reshape

__all__ = ["site"]


def test_the_rows_of_all_buckets_are_counted_and_an_empty_shard_gets_a_third_of_them(site: Site) -> None:
    customers = range(150)
    old = run(site, *customers)
    new = site.client(shards={"s0": "0-31", "s1": "32-63", "s2": ""})
    reshape.add_shard(new, "s2")

    steps, rows = rebalance.planned(new)

    assert rows == Counter(old.topology.bucket_of("purchase", customer) for customer in customers)
    assert {step.target for step in steps} == {"s2"}
    assert abs(sum(rows[step.bucket] for step in steps) - 50) <= 6
