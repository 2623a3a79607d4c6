"""The judge of crash tests asks the shards who owns a bucket, and waits for what a move leaves behind."""

from __future__ import annotations

import pytest
from support.oracle import judge
from support.sandbox.deployments import Site, run, site

from pipeline.admin import moving as movers
from pipeline.admin.moving import orders

__all__ = ["site"]


def test_rows_that_a_move_has_left_are_told_from_those_of_a_second_owner(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    client, other = run(site, *range(8)), site.client()
    uris = {name: shard.primary for name, shard in client.settings.shards.items()}
    bucket = client.topology.buckets_of("s0")[0]

    steps = orders.order_move(other, [bucket], "s1", "me", keep_s=1).steps()
    while next(steps).text != "s1 goes on":
        assert judge.owners_of(uris, client.topology).get(bucket, "s0") == "s0"
    assert client.topology.shard_of(bucket) == "s0"  # its map is old
    assert judge.owners_of(uris, client.topology)[bucket] == "s1"
    assert judge.moving(uris) == [f"bucket {bucket}, s0 to s1, is moved on s0"]
    assert [step.stage for step in steps][-1] == "over"
    assert judge.moving(uris) == []

    with client.nodes.primary("s0").transaction() as session:
        session.execute(f"UPDATE pipeline_watermarks SET state = 'active' WHERE bucket = {bucket}")
    with pytest.raises(AssertionError, match=f"two shards own bucket {bucket}: s0 and s1"):
        judge.owners_of(uris, client.topology)
