"""Buckets: every one active on exactly one shard, the one that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import ERROR, Finding
from pipeline.config.bucket_ranges import format_ranges


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield buckets that no shard, two shards, another shard or another deployment would apply."""
    active: dict[int, list[str]] = {}
    for node in evidence.primaries:
        if node.marks is None:
            continue
        here = {bucket: mark.position.epoch for bucket, mark in node.marks.items() if mark.state == "active"}
        for bucket in here:
            active.setdefault(bucket, []).append(node.node)
        for what, fix in _faults(evidence, node.node, node.marks.keys(), here):
            yield Finding(ERROR, "buckets", what, fix, (node.node,))
    yield from _doubled(active, evidence.topology.reference_bucket)


def _faults(evidence: Evidence, node: str, known: Set[int], here: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the buckets of one node, and what to do.

    Args:
        known: those that have a row.
        here: the epoch of each that is active.
    """
    reference = evidence.topology.reference_bucket
    wanted = {*evidence.topology.buckets_of(node), reference}
    newest = evidence.epochs.get(node)
    if newest is not None and (ahead := {b for b, epoch in here.items() if epoch > newest and b != reference}):
        yield (
            f"{format_ranges(ahead)} were applied from another Redis, or under another prefix: both deployments "
            "take ops for applied that are not",
            "stop one of them, or give each databases of its own; then enqueue again what receipts call lost",
        )
    if missing := wanted - known:
        yield f"{format_ranges(missing)} have no watermark row here", "pipeline migrate"
    if idle := (wanted & known) - here.keys():
        yield f"{format_ranges(idle)} have moved away, but the configuration gives them to this shard", _MAP
    if stray := here.keys() - wanted:
        yield f"{format_ranges(stray)} are active here, but the configuration gives them to another shard", _MAP


def _doubled(active: Mapping[int, list[str]], reference: int) -> Iterator[Finding]:
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
