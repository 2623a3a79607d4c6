"""Buckets: every one active on exactly one shard, the one that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import ERROR, Finding
from pipeline.placement import format_ranges


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield buckets that no shard, two shards or another shard would apply."""
    reference = evidence.topology.reference_bucket
    active: dict[int, list[str]] = {}
    for node in evidence.primaries:
        if node.marks is None:
            continue
        here = {bucket for bucket, mark in node.marks.items() if mark.state == "active"}
        for bucket in here:
            active.setdefault(bucket, []).append(node.node)
        own = {bucket: mark.position.epoch for bucket, mark in node.marks.items() if bucket in here - {reference}}
        if ahead := {bucket for bucket, epoch in own.items() if epoch > evidence.epochs.get(node.node, epoch)}:
            yield Finding(
                ERROR,
                "buckets",
                f"{format_ranges(ahead)} were applied from another Redis, or under another prefix: both deployments "
                "take ops for applied that are not",
                "stop one of them, or give each databases of its own; then enqueue again what receipts call lost",
                (node.node,),
            )
        wanted = {*evidence.topology.buckets_of(node.node), evidence.topology.reference_bucket}
        if missing := wanted - node.marks.keys():
            yield Finding(
                ERROR,
                "buckets",
                f"{format_ranges(missing)} have no watermark row here",
                "pipeline migrate",
                (node.node,),
            )
        if idle := (wanted & node.marks.keys()) - here:
            yield Finding(
                ERROR,
                "buckets",
                f"{format_ranges(idle)} have moved away, but the configuration gives them to this shard",
                _MAP,
                (node.node,),
            )
        if stray := here - wanted:
            yield Finding(
                ERROR,
                "buckets",
                f"{format_ranges(stray)} are active here, but the configuration gives them to another shard",
                _MAP,
                (node.node,),
            )
    doubled: dict[tuple[str, ...], list[int]] = {}
    for bucket, shards in active.items():
        if len(shards) > 1 and bucket != reference:
            doubled.setdefault(tuple(shards), []).append(bucket)
    for nodes, buckets in doubled.items():
        yield Finding(
            ERROR,
            "buckets",
            f"{format_ranges(buckets)} are active on more than one shard: their ops are applied twice",
            "stop the workers, and set state = 'moved' where they do not belong (UPDATE pipeline_watermarks …)",
            nodes,
        )


_MAP = 'write the map as it is: buckets = "…" under each [shards.…]'
