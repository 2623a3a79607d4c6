"""The tables of the crash tests, and how they are sharded."""

from __future__ import annotations

from typing import Any

from pydal import DAL, Field

#: One deed in 23 is refused on purpose, which is near what makes a table halt.
TABLES_TOML = """\
[apply]
breaker = false

[tables.tally]
shard_key = "owner"
unique = [["owner", "name"]]

[tables.event]
shard_key = "owner"

[tables.note]
shard_key = "owner"
ids = "database"
on_reject = "skip"

[tables.country]
reference = true
"""


def define() -> Any:
    """Return a DAL that only holds the definitions: the rows live on the shards."""
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table(
        "tally",
        Field("owner", "integer", notnull=True),
        Field("name", length=40, notnull=True),
        Field("n", "integer", default=0),
        Field("trace", "text", default=""),
    )
    # versions of rows of `tally`: the only table here without a shard key, as an archive is if nobody configures it
    db.define_table("tally_archive", Field("current_record", "reference tally"), db.tally)
    db.define_table("event", Field("owner", "integer", notnull=True), Field("body", "text"))
    db.define_table("note", Field("owner", "integer", notnull=True), Field("body", length=100, unique=True))
    db.define_table("country", Field("name", length=60), Field("inhabitants", "bigint"))
    return db
