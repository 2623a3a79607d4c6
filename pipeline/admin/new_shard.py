"""Add a shard that the configuration does not name yet, or take one out of both: the deployment, and the file's text.

A shard is taken before the file is written: a process that starts with the new file finds a shard that is known. One
that goes is taken out of the file first: the command that was killed in between is given again.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from pipeline.admin import reshape
from pipeline.admin.check.finding import ERROR
from pipeline.admin.check.servers import server
from pipeline.client import Client
from pipeline.config.bucket_ranges import Placement, format_ranges, numbers, parse_ranges
from pipeline.config.settings import Settings, ShardSettings, load
from pipeline.config.shard_section import with_shard, without_shard
from pipeline.config.topology import Topology
from pipeline.enqueue import bucket_map
from pipeline.errors import ConfigError, PipelineError, Unavailable, did_you_mean
from pipeline.model.fingerprint import Fingerprint
from pipeline.shard.records import ledger_queries
from pipeline.shard.survey import survey


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
    moves = bucket_map.follow(pipeline.log, pipeline.nodes, topology, anew=True).moves
    if owned := topology.buckets_of(shard):
        raise PipelineError(f"{shard!r} owns the buckets {format_ranges(owned)}: move them first, see pipeline move")
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
        PipelineError: a bucket is not owned where the configuration puts it by now, the shard is part of a move, is not
            known, or is still in the configuration.
    """
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
            f"[shards.{shard}] and buckets as they were, move what {shard} owns, see pipeline move, and let pipeline "
            "shard remove write the file"
        )
    others = [name for name in held if name != shard]
    rebased = tuple((name, dict(notes.mine.shards).get(name, "")) for name in others)
    reshape.refuse_unless(notes, replace(noted, shards=rebased))
    notes.publish(noted.changed(notes.named))
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
    drawn = bucket_map.follow(pipeline.log, pipeline.nodes, pipeline.topology, anew=True)
    moves = [*drawn.moves.values(), *(noted.moves.values() if noted else ())]
    if any(shard in pair for pair in moves):
        raise PipelineError(f"buckets move from or to {shard!r}: wait for them, see pipeline move list")


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
