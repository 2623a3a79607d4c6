"""Plan which buckets move, so that each shard has its share of the rows; a plan changes nothing.

The plan takes a bucket from the shard that is furthest above its share to the one that is furthest below it, again and
again. Each such move makes the two more even. No bucket moves twice. Where all buckets are alike, no plan with
fewer moves is as even.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline.admin.migrate import published
from pipeline.admin.reshape import placing_of, shard_keys_of
from pipeline.client import Client
from pipeline.enqueue import bucket_map
from pipeline.errors import PipelineError

#: A shard this near to its share stays as it is.
TOLERANCE = 0.05


class Transfer(NamedTuple):
    """A bucket that moves from a shard to another."""

    bucket: int
    source: str
    target: str


def plan(
    weights: Mapping[int, float], owners: Mapping[int, str], shards: Mapping[str, float], tolerance: float = TOLERANCE
) -> list[Transfer]:
    """Return the moves that even out shards, in order; after each of them it is more even than before.

    Args:
        weights: of each bucket its part of what is evened out; a bucket that is not named weighs nothing.
        owners: of each bucket its shard.
        shards: of each shard its share, as a number beside the others'.
        tolerance: the part of its share by which a shard may be off.
    """
    total, whole = sum(weights.get(bucket, 0.0) for bucket in owners), sum(shards.values())
    share = {name: total * own / whole for name, own in shards.items()}
    over = {name: -aim for name, aim in share.items()}
    left: dict[str, dict[int, float]] = {name: {} for name in shards}
    for bucket, name in owners.items():
        over[name] += weights.get(bucket, 0.0)
        left[name][bucket] = weights.get(bucket, 0.0)
    steps: list[Transfer] = []
    while True:
        source, target = max(over, key=over.__getitem__), min(over, key=over.__getitem__)
        if over[source] <= tolerance * share[source] and -over[target] <= tolerance * share[target]:
            return steps
        gap = over[source] - over[target]
        # what is too small to matter beside all would only be rounding
        fit = {bucket: own for bucket, own in left[source].items() if total * 1e-9 < own < gap * (1 - 1e-9)}
        if not fit:
            return steps
        bucket = min(fit, key=lambda one: (abs(fit[one] - gap / 2), one))
        steps.append(Transfer(bucket, source, target))
        del left[source][bucket]
        over[source], over[target] = over[source] - fit[bucket], over[target] + fit[bucket]


def rows_per_bucket(pipeline: Client) -> Counter[int]:
    """Return how many rows each bucket has: the key of every row of every sharded table is read.

    Args:
        pipeline: the deployment; its primaries are read.

    Raises:
        ShardUnavailable: a primary did not answer.
        ShardKeyError, BadValue: a row has a key that its table's rule does not take.
    """
    topology, found = pipeline.topology, Counter[int]()
    for schema in published(pipeline):
        if topology.table(schema.name).reference:
            continue
        key, bucket_of = placing_of(topology, schema)
        for shard in topology.shards:
            found.update(bucket_of(value) for _, value in shard_keys_of(pipeline.nodes.primary(shard), schema, key))
    return found


def planned(pipeline: Client) -> tuple[list[Transfer], Counter[int]]:
    """Return the moves that even out the rows of all shards, and the rows of each bucket.

    Args:
        pipeline: the deployment.

    Raises:
        PipelineError: buckets move right now: their rows are on two shards.
    """
    topology = pipeline.topology
    if bucket_map.follow(pipeline.log, pipeline.nodes, topology, anew=True).moves:
        raise PipelineError("buckets move right now; wait until they have, see: pipeline move list")
    rows = rows_per_bucket(pipeline)
    owners = {bucket: name for name in topology.shards for bucket in topology.buckets_of(name)}
    return plan(rows, owners, dict.fromkeys(topology.shards, 1.0)), rows


def joined_moves(steps: Iterable[Transfer], most: int) -> Iterator[tuple[str, str, list[int]]]:
    """Yield source, target and buckets of each move that does a part of a plan.

    Args:
        steps: the plan.
        most: how many buckets move together at most.
    """
    pairs: dict[tuple[str, str], list[int]] = {}
    for bucket, source, target in steps:
        pairs.setdefault((source, target), []).append(bucket)
    for (source, target), buckets in pairs.items():
        for first in range(0, len(buckets), most):
            yield source, target, sorted(buckets[first : first + most])
