"""The configuration: whether it can be used, and whether it leaves room to grow."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import ERROR, WARNING, Finding
from pipeline.errors import ConfigError

#: With fewer buckets than this per shard a new shard cannot get an even part.
BUCKETS_PER_SHARD = 16
_KEY = re.compile(r"(\[[^\]]+\](?: (?!has |is )[a-z_]+)?)(?: (.*))?")


def faults(error: ConfigError) -> Iterator[Finding]:
    """Yield what keeps the configuration from being used."""
    for fault in error.faults:
        match = _KEY.fullmatch(fault)
        place, what = (match[1], match[2] or "") if match and match[2] else ("configuration", fault)
        yield Finding(ERROR, place, what, "correct the configuration; the sentence says what is accepted")


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is usable but unwise."""
    buckets, shards = evidence.topology.buckets, len(evidence.topology.shards)
    if buckets < BUCKETS_PER_SHARD * shards:
        yield Finding(
            WARNING,
            "[pipeline] buckets",
            f"is {buckets} for {shards} shards; less than {BUCKETS_PER_SHARD} for each makes uneven shards",
            f"buckets = {BUCKETS_PER_SHARD * shards} or more, before the first op: it is fixed for life",
        )
