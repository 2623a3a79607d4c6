"""Follow the map of buckets that have moved; make it anew from the shards where Redis has lost it.

Each shard says in the state of a watermark whether it owns a bucket. The map in Redis is a copy of that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pipeline.config.bucket_ranges import Placement
from pipeline.config.topology import Topology
from pipeline.errors import LogUnavailable, Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.oplog.appends import Appends
from pipeline.oplog.contract import Log
from pipeline.shard.nodes import Nodes
from pipeline.shard.records import moves
from pipeline.shard.records.ledger import GONE, MOVED, OWNED
from pipeline.shard.records.moves import ON_THE_WAY, Leg

#: The last move of each bucket, by the shards that have answered.
Told = Mapping[str, Mapping[int, Leg]]
logger = logging.getLogger("pipeline.moves")


def follow(log: Log, nodes: Nodes, topology: Topology, *, anew: bool = False) -> Placement:
    """Let a process act on the map of its deployment; return the map.

    Args:
        log: has the map.
        nodes: the databases, asked where Redis has no map.
        topology: follows the map.
        anew: whether to ask the databases in any case: this Redis may be of another time.

    Raises:
        WrongDeployment: buckets have moved to a shard that the configuration lacks.
        LogUnavailable: Redis did not answer.
    """
    text = log.placement()
    known = Placement.noted(text)
    if known is None or anew:
        drawn, whole = draw(nodes, topology, known or topology.placement)
        # of a shard that is silent the map says on what it said. Without a map of before, what such a shard owns is not
        # known: nothing is written down, and the next process asks again
        if drawn != known and (whole or known is not None):
            log.note_placement(text, drawn.to_json())
        known = drawn
    topology.follow(known)
    return known


def follow_noted(log: Appends, topology: Topology) -> None:
    """Let a command act on the map that Redis has; without Redis, or a map there, buckets are where they began.

    Args:
        log: has the map.
        topology: follows the map.

    Raises:
        WrongDeployment: buckets have moved to a shard that the configuration lacks.
    """
    try:
        known = Placement.noted(log.placement())
    except LogUnavailable:
        return
    if known is not None:
        topology.follow(known)


def where(nodes: Nodes, bucket: int, shard: str) -> tuple[str, Leg | None]:
    """Return the shard that owns a bucket and None; at a cut-over, the shard that has stopped and its row of the move.

    Args:
        nodes: the databases.
        bucket: which; not the reference bucket.
        shard: one that owns it as far as a map says, perhaps an old one.

    Raises:
        ShardUnavailable: a shard that has to be asked does not answer.
    """
    leg, asked = moves.legs(nodes.primary(shard), [bucket]).get(bucket), {shard}
    while leg is not None and leg.state not in OWNED:
        arrives = leg.state in ON_THE_WAY
        other = leg.source if arrives else leg.target
        try:
            theirs = moves.legs(nodes.primary(other), [bucket]).get(bucket)
        except Unavailable:
            if leg.state == MOVED:
                break
            raise
        if theirs is None and arrives:  # it has forgotten the move, or never owned the bucket under one
            return other, None
        if theirs is None or other in asked or theirs.state in ON_THE_WAY:
            break
        asked.add(other)
        shard, leg = other, theirs
        if arrives and leg.state == MOVED:
            break
    return shard, None if leg is None or leg.state in OWNED else leg


def draw(nodes: Nodes, topology: Topology, known: Placement) -> tuple[Placement, bool]:
    """Return the map as the shards say it, and whether all of them have answered.

    Args:
        nodes: the databases.
        topology: where buckets began.
        known: the map of before, for the buckets of shards that do not answer.

    Raises:
        WrongDeployment: a bucket has left for a shard that the configuration lacks.
    """
    told: dict[str, Mapping[int, Leg]] = {}
    for shard in topology.shards:
        try:
            told[shard] = moves.legs(nodes.primary(shard))
        except Unavailable as error:
            logger.warning(Event("map_without_shard", shard=shard, error=error))
    _refuse_unknown(told, topology)
    silent = [shard for shard in topology.shards if shard not in told]
    buckets = {bucket for found in told.values() for bucket in found}
    owners = {bucket: _owner(bucket, told, topology) for bucket in buckets}
    under_way = {
        bucket: (leg.source, leg.target)
        for shard, found in told.items()
        for bucket, leg in found.items()
        if leg.under_way(shard)
    }
    if silent:
        owners = {**{b: shard for b, shard in known.owners.items() if shard in silent}, **owners}
        under_way = {**{b: pair for b, pair in known.moves.items() if {*pair} & {*silent}}, **under_way}
    # also those that are where the file puts them: an older file puts them elsewhere
    elsewhere = dict(sorted(owners.items()))
    version = known.version + (elsewhere != dict(known.owners))
    return Placement(version, elsewhere, dict(sorted(under_way.items()))), not silent


def _refuse_unknown(told: Told, topology: Topology) -> None:
    """Raise if a bucket has left for a shard that is not asked: this process cannot say who owns the bucket."""
    owned = {bucket for found in told.values() for bucket, leg in found.items() if leg.state in OWNED}
    for leg in (leg for found in told.values() for leg in found.values()):
        if leg.state in (MOVED, GONE) and leg.bucket not in owned and leg.target not in topology.shards:
            raise WrongDeployment(
                [
                    f"[shards.{leg.target}] is missing in {topology.fingerprint.source}, but bucket {leg.bucket} has "
                    "left for it; restart with the configuration that names it"
                ]
            )


def _owner(bucket: int, told: Told, topology: Topology) -> str:
    """Return the shard that owns a bucket, or will go on with it: one that has stopped is followed by its target."""
    for shard, found in told.items():
        if bucket in found and found[bucket].state in OWNED:
            return shard
    shard = topology.began(bucket)
    for _ in topology.shards:
        leg = told[shard].get(bucket) if shard in told else None
        if leg is None or leg.state != GONE or leg.target not in topology.shards:
            break
        shard = leg.target
    stopped = (one for one, found in told.items() if bucket in found and found[bucket].state == MOVED)
    return next(stopped, shard)
