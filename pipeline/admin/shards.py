"""Add a shard, or take one out; plan which buckets move, so that each shard has its share.

Plan which buckets move, so that each shard has its share of rows, bytes and load; a plan changes nothing.
The plan takes a bucket from the shard that is furthest above its share to the one that is furthest below it, again and
again. Each such move makes the two more even. No bucket moves twice. Where all buckets are alike, no plan with
fewer moves is as even.

Add a shard that the configuration does not name yet, or take one out of both: the deployment, and the file's text. A
shard is taken before the file is written: a process that starts with the new file finds a shard that is known. A shard
that goes is taken out of the file first: the command that was killed in between is given again.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from pipeline import clock
from pipeline.admin import reshape
from pipeline.admin.check.evidence import ERROR
from pipeline.admin.check.servers import server
from pipeline.admin.migration import published
from pipeline.admin.reshape import placing_of, shard_keys_of
from pipeline.client import Client
from pipeline.config import Topology
from pipeline.config.buckets import Placement, format_ranges, numbers, parse_ranges
from pipeline.config.files import with_shard, without_shard
from pipeline.config.settings import Settings, ShardSettings, load
from pipeline.enqueue.buckets import follow
from pipeline.enqueue.deployment import tries
from pipeline.errors import ConfigError, PipelineError, Unavailable, did_you_mean
from pipeline.model import START, Position
from pipeline.model.fingerprint import Fingerprint
from pipeline.shard.columns import bytes_of
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger_queries import positions_of
from pipeline.shard.survey import survey

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
    weights: Mapping[int, float],
    owners: Mapping[int, str],
    shards: Mapping[str, float],
    tolerance: float = TOLERANCE,
    fixed: Collection[int] = (),
) -> list[Transfer]:
    """Return the moves that even out shards, in order; after each of them it is more even than before.

    Args:
        weights: of each bucket its part of what is evened out; a bucket that is not named weighs nothing.
        owners: of each bucket its shard.
        shards: of each shard its share, as a number beside the others'.
        tolerance: the part of its share by which a shard may be off.
        fixed: what counts and stays where it is.
    """
    total, whole = sum(weights.get(bucket, 0.0) for bucket in owners), sum(shards.values())
    share = {name: total * own / whole for name, own in shards.items()}
    over = {name: -aim for name, aim in share.items()}
    left: dict[str, dict[int, float]] = {name: {} for name in shards}
    for bucket, name in owners.items():
        over[name] += weights.get(bucket, 0.0)
        if bucket not in fixed:
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
            away = {piece.of.bucket: piece.number for piece in topology.pieces_on(shard)}
            rows = Counter(bucket_of(value) for _, value in shard_keys_of(session, schema, key))
            rows = Counter({away.get(bucket, bucket): count for bucket, count in rows.items()})
            found.rows.update(rows)
            size = bytes_of(session, schema.name_there) if rows else 0
            found.bytes.update({bucket: size * count // rows.total() for bucket, count in rows.items()})
    clock.sleep_s(sample.left_s)
    for shard, marks in before.items():
        now = positions_of(pipeline.nodes.primary(shard))
        owned = {*topology.buckets_of(shard)} & now.keys()
        found.load.update({bucket: applied_since(marks.get(bucket, START), now[bucket]) for bucket in owned})
    for bucket, piece in topology.split.items():  # both shards pass each op; whose it is, their rows say about
        ops, both = found.load[bucket], found.rows[bucket] + found.rows[piece.number]
        own = ops * found.rows[piece.number] // both if both else 0
        found.load.update({piece.number: own, bucket: -own})
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
    if follow(pipeline.log, pipeline.nodes, topology, anew=True).moves:
        raise PipelineError("buckets move right now; wait until they have, see: pipeline move list")
    found = weigh(pipeline, sample_s)
    owners = {bucket: name for name in topology.shards for bucket in topology.buckets_of(name)}
    owners |= {piece.number: piece.shard for piece in topology.split.values()}
    # a bucket one of whose keys has a shard of its own stays where it is, and so does the key
    fixed = {*topology.split, *(piece.number for piece in topology.split.values())}
    return plan(found.together(by), owners, dict.fromkeys(topology.shards, 1.0), fixed=fixed), found


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


class Grown(NamedTuple):
    """A configuration with one shard more, or less, which is not written yet.

    Attributes:
        path: of the file.
        text: the file's new text.
        settings: what the new text says.
        shard: the name of the shard.
    """

    path: Path
    text: str
    settings: Settings
    shard: str


def grown(settings: Settings, shard: str, primary: str, replicas: Sequence[str]) -> Grown:
    """Return the configuration with a shard more, which owns no bucket; change nothing.

    Args:
        settings: of the file as it is.
        shard: the name of the new shard.
        primary: the address of its primary; variables are not replaced.
        replicas: the addresses of its replicas, likewise.

    Raises:
        ConfigError: the file cannot be edited, it names the shard, or the new one is wrong.
    """
    path = _toml(settings)
    if shard in settings.shards:
        raise ConfigError([f"[shards.{shard}] is in {path} already; leave --primary out to take it as it is there"])
    topology = Topology(settings)
    owned = {name: topology.ranges_of(name) for name in topology.shards}
    text = with_shard(path.read_bytes().decode(), shard, primary, replicas, owned)
    return Grown(path, text, load(tomllib.loads(text), file=path), shard)


def shrunk(pipeline: Client, shard: str) -> Grown:
    """Return the configuration with a shard less, in which each other has the buckets that it owns; change nothing.

    Args:
        pipeline: the deployment, with the configuration that names the shard.
        shard: its name.

    Raises:
        ConfigError: the file cannot be edited.
        PipelineError: the shard owns buckets, or some move from or to it.
    """
    path, topology = _toml(pipeline.settings), pipeline.topology
    moves = follow(pipeline.log, pipeline.nodes, topology, anew=True).moves
    if owned := topology.buckets_of(shard):
        raise PipelineError(f"{shard!r} owns the buckets {format_ranges(owned)}: move them first, see pipeline move")
    if pieces := topology.pieces_on(shard):
        raise PipelineError(
            f"{shard!r} has the key {pieces[0].of}: send it back first: pipeline move back {pieces[0].of}"
        )
    if any(shard in pair for pair in moves.values()):
        raise PipelineError(f"buckets move from or to {shard!r}: wait for them, see pipeline move list")
    others = {name: format_ranges(topology.buckets_of(name)) for name in topology.shards if name != shard}
    text = without_shard(path.read_bytes().decode(), shard, others)
    return Grown(path, text, load(tomllib.loads(text), file=path), shard)


def give_away(one: Grown) -> None:
    """Take a shard out of the deployment, by the configuration that lacks it; see `remove_shard`.

    Args:
        one: the configuration.
    """
    with closing(Client(one.settings)) as client:
        remove_shard(client, one.shard)


def remove_shard(pipeline: Client, shard: str) -> None:
    """Take a shard that owns no bucket out of the deployment; its database is left as it is.

    Args:
        pipeline: the deployment, with a configuration that lacks the shard. Where that gave buckets to the shard, it
            gives them to those who own them now; it may do so for others that have moved.
        shard: its name.

    Raises:
        WrongDeployment: the configuration differs in more than the shard, and owners.
        PipelineError: a bucket is not yet owned where the configuration puts it. Or the shard is part of a move, is not
            known, or is still in the configuration.
    """
    for _ in tries():
        notes, noted = reshape.noted_of(pipeline)
        held = dict(noted.shards)
        if shard not in held:
            raise PipelineError(f"no shard {shard!r} is in this deployment{did_you_mean(shard, held)}")
        if shard in pipeline.topology.shards:
            raise PipelineError(f"take [shards.{shard}] out of {pipeline.settings.source} first")
        _refuse_moving(pipeline, shard)
        if astray := _owned_elsewhere(pipeline, noted):
            raise PipelineError(
                f"{pipeline.settings.source} puts the buckets {format_ranges(astray)} where they are not: write "
                f"[shards.{shard}] and buckets as they were, move what {shard} owns, see pipeline move, and let "
                "pipeline shard remove write the file"
            )
        others = [name for name in held if name != shard]
        rebased = tuple((name, dict(notes.mine.shards).get(name, "")) for name in others)
        reshape.refuse_unless(notes, replace(noted, shards=rebased))
        if notes.keep(noted.changed(notes.named)):
            break
    reshape.renew_epochs(pipeline)


def _toml(settings: Settings) -> Path:
    path = Path(settings.source)
    if path.suffix == ".ini":
        raise ConfigError([f"{path} is no TOML file: name one there, config = pipeline.toml, and move the settings"])
    return path


def take_shard(one: Grown) -> tuple[int, str]:
    """Take the new shard into the deployment; see `add`.

    Args:
        one: the configuration that names it.

    Raises:
        PipelineError: a server of the shard does not answer, or does not do; nothing was changed. Else as
            `reshape.add_shard`; give the command again.
    """
    if found := list(_unfit(one.settings.shards[one.shard])):
        raise PipelineError("; ".join(found))
    with closing(Client(one.settings)) as client:
        return add(client, one.shard)


def add(client: Client, shard: str) -> tuple[int, str]:
    """Take a shard into the deployment; return how many rows were copied, and the shard's buckets as ranges.

    Args:
        client: with the configuration that names the shard.
        shard: its name.
    """
    return reshape.add_shard(client, shard), client.topology.ranges_of(shard)


def _refuse_moving(pipeline: Client, shard: str) -> None:
    """Raise where a move from or to a shard is not over: as Redis knows it, since the shard is not asked any more."""
    noted = Placement.noted(pipeline.log.placement())
    drawn = follow(pipeline.log, pipeline.nodes, pipeline.topology, anew=True)
    moves = [*drawn.moves.values(), *(noted.moves.values() if noted else ())]
    if any(shard in pair for pair in moves):
        raise PipelineError(f"buckets move from or to {shard!r}: wait for them, see pipeline move list")
    pieces = [*drawn.pieces.values(), *(noted.pieces.values() if noted else ())]
    for piece in pieces:
        if piece.shard == shard:
            raise PipelineError(f"{shard!r} has the key {piece.of}: send it back first: pipeline move back {piece.of}")


def _owned_elsewhere(pipeline: Client, noted: Fingerprint) -> list[int]:
    """Return the buckets that are not on the shard where the configuration puts them, other than the fingerprint."""
    began = {bucket: shard for shard, own in noted.shards for bucket in numbers(parse_ranges(own))}
    found = []
    for shard, own in pipeline.topology.fingerprint.shards:
        taken = [bucket for bucket in numbers(parse_ranges(own)) if began.get(bucket) != shard]
        if taken:
            marks = ledger_queries.marks_of(pipeline.nodes.primary(shard), taken)
            found += [bucket for bucket in taken if bucket not in marks or not marks[bucket].owned]
    return found


def _unfit(shard: ShardSettings) -> Iterator[str]:
    """Yield why a node of the shard cannot serve."""
    for at, (key, uri) in enumerate(shard.nodes()):
        try:
            found = survey(shard.name, uri, (), primary=at == 0)
        except Unavailable as error:
            yield f"{key} cannot be asked: {error}"
            continue
        if found.engine != "mysql":
            continue
        yield from (f"{key}: {one.place} {one.what}; {one.fix}" for one in server(found) if one.severity == ERROR)
        if at == 0 and found.variables.get("read_only") in ("1", "on"):
            yield f"{key}: read_only is ON; name the primary, or SET GLOBAL read_only = OFF"
