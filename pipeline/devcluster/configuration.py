"""The `pipeline.toml` of a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.devcluster.layout import Shard
from pipeline.devcluster.ports import LOOPBACK

CONFIG_FILE = "pipeline.toml"


def config_text(shards: Iterable[Shard], *, redis_port: int, buckets: int, tables: str = "") -> str:
    """Return the file's text: the cluster's servers, then *tables* as given."""
    redis = f"redis://{LOOPBACK}:{redis_port}"
    parts = [
        f"[pipeline]\nbuckets = {buckets}\n",
        f"[redis]\nurl = {_quote(redis + '/0')}\nbroker_url = {_quote(redis + '/1')}\n",
        '[spool]\npath = "run/pipeline.spool"\n',
    ]
    for shard in shards:
        replicas = ", ".join(map(_quote, shard.replicas))
        parts.append(f"[shards.{shard.name}]\nprimary = {_quote(shard.primary)}\nreplicas = [{replicas}]\n")
    return "\n".join([*parts, *([tables.strip() + "\n"] if tables.strip() else [])])


def write_config(directory: Path, text: str) -> Path:
    """Write the file, readable by its owner only."""
    path = directory / CONFIG_FILE
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string.
    return json.dumps(text, ensure_ascii=False)
