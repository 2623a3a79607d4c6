"""Add a shard that the configuration does not name yet: look at its servers, take it, and make the new file's text.

The shard is taken before the file is written: a process that starts with the new file finds a shard that is known.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pipeline.admin import reshape
from pipeline.admin.check.finding import ERROR
from pipeline.admin.check.servers import server
from pipeline.client import Client
from pipeline.config.settings import Settings, ShardSettings, load
from pipeline.config.shard_section import with_shard
from pipeline.config.topology import Topology
from pipeline.errors import ConfigError, PipelineError, Unavailable
from pipeline.shard.survey import survey


class Grown(NamedTuple):
    """A configuration with one shard more, which is not written yet.

    Attributes:
        path: of the file.
        text: the file's new text.
        settings: what the new text says.
        shard: the new shard's name.
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
    path = Path(settings.source)
    if path.suffix == ".ini":
        raise ConfigError([f"{path} is no TOML file: name one there, config = pipeline.toml, and move the settings"])
    if shard in settings.shards:
        raise ConfigError([f"[shards.{shard}] is in {path} already; leave --primary out to take it as it is there"])
    topology = Topology(settings)
    owned = {name: topology.ranges_of(name) for name in topology.shards}
    text = with_shard(path.read_bytes().decode(), shard, primary, replicas, owned)
    return Grown(path, text, load(tomllib.loads(text), file=path), shard)


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
