"""`pipeline migrate` over SQLite: what an older release or an older model left, and what cannot be done."""

from __future__ import annotations

from pipeline.admin.migrate import migrate
from pipeline.shard.columns import columns_of
from pipeline.testing import Sandbox

TABLES: dict[str, dict[str, object]] = {}


def test_own_tables_of_an_older_release_get_their_new_columns(box: Sandbox) -> None:
    primary = box.client.nodes.primary("s1")
    with primary.transaction():
        primary.execute("ALTER TABLE pipeline_rejects DROP COLUMN code")

    assert migrate(box.client) == 1

    assert "code" in [column.name for column in columns_of(primary, "pipeline_rejects")]
    assert migrate(box.client) == 0
