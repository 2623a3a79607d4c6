"""Plan which buckets move, so that each shard has its share of rows, bytes and load; a plan changes nothing.

The plan takes a bucket from the shard that is furthest above its share to the one that is furthest below it, again and
again. Each such move makes the two more even. No bucket moves twice. Where all buckets are alike, no plan with
fewer moves is as even.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.admin.migrate import published
from pipeline.admin.reshape import placing_of, shard_keys_of
from pipeline.client import Client
from pipeline.enqueue import bucket_map
from pipeline.errors import PipelineError
from pipeline.model.op import START, Position
from pipeline.shard.columns import bytes_of
from pipeline.shard.records.ledger_queries import positions_of

#: What is evened out.
KINDS = ("rows", "bytes", "load")
#: For how long applied ops are counted where nobody says, s.
SAMPLE_S = 10.0
#: A sample with fewer ops a bucket, in the mean, is chance: 1 op a bucket puts 30 to 45 % too many rows on a shard, 10
#: at most 20 % (300 plans of 64 buckets that were equally busy).
LEAST_OPS = 10
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


class Weights(NamedTuple):
    """What each bucket has, and takes.

    Attributes:
        rows: how many, of all sharded tables.
        bytes: of these rows: the size of each table by the part of its rows that are the bucket's; none on SQLite.
        load: how many ops were applied to it while a sample was taken.
    """

    rows: Counter[int]
    bytes: Counter[int]
    load: Counter[int]

    def together(self, by: Iterable[str] = KINDS) -> dict[int, float]:
        """Return of each bucket its part of all, between 0 and 1: the mean of its parts of each kind.

        Args:
            by: kinds that count; one of which nothing is known does not, nor does a load of few ops.
        """
        known = [getattr(self, name) for name in by if name != "load" or self.sampled]
        kinds = [(kind, kind.total()) for kind in known if kind.total()]
        buckets = {bucket for kind, _ in kinds for bucket in kind}
        return {bucket: sum(kind[bucket] / total for kind, total in kinds) / len(kinds) for bucket in buckets}

    @property
    def sampled(self) -> bool:
        """Whether the sample has so many ops that its load counts."""
        return self.load.total() >= LEAST_OPS * len(self.load)


def weigh(pipeline: Client, sample_s: float = SAMPLE_S) -> Weights:
    """Return what each bucket has: the key of every row of every sharded table is read.

    Args:
        pipeline: the deployment; its primaries are read.
        sample_s: for how long applied ops are counted at least, s.

    Raises:
        ShardUnavailable: a primary did not answer.
        ShardKeyError, BadValue: a row has a key that its table's rule does not take.
    """
    topology, found, sample = pipeline.topology, Weights(Counter(), Counter(), Counter()), clock.Deadline(sample_s)
    before = {shard: positions_of(pipeline.nodes.primary(shard)) for shard in topology.shards}
    for schema in published(pipeline):
        if topology.table(schema.name).reference:
            continue
        key, bucket_of = placing_of(topology, schema)
        for shard in topology.shards:
            session = pipeline.nodes.primary(shard)
            rows = Counter(bucket_of(value) for _, value in shard_keys_of(session, schema, key))
            found.rows.update(rows)
            size = bytes_of(session, schema.name_there) if rows else 0
            found.bytes.update({bucket: size * count // rows.total() for bucket, count in rows.items()})
    clock.sleep_s(sample.left_s)
    for shard, marks in before.items():
        now = positions_of(pipeline.nodes.primary(shard))
        owned = {*topology.buckets_of(shard)} & now.keys()
        found.load.update({bucket: applied_since(marks.get(bucket, START), now[bucket]) for bucket in owned})
    return found


def applied_since(before: Position, now: Position) -> int:
    """Return how many entries are between two watermarks; of a new epoch those are counted that are of it."""
    return now.seq - before.seq if now.epoch == before.epoch else now.seq + 1


def planned(pipeline: Client, sample_s: float = SAMPLE_S, by: Iterable[str] = KINDS) -> tuple[list[Transfer], Weights]:
    """Return the moves that even out all shards, and what each bucket has.

    Args:
        pipeline: the deployment.
        sample_s: for how long applied ops are counted at least, s.
        by: kinds of weight that count.

    Raises:
        PipelineError: buckets move right now: their rows are on two shards.
    """
    topology = pipeline.topology
    if bucket_map.follow(pipeline.log, pipeline.nodes, topology, anew=True).moves:
        raise PipelineError("buckets move right now; wait until they have, see: pipeline move list")
    found = weigh(pipeline, sample_s)
    owners = {bucket: name for name in topology.shards for bucket in topology.buckets_of(name)}
    return plan(found.together(by), owners, dict.fromkeys(topology.shards, 1.0)), found


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
