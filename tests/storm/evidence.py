"""What is kept of a schedule on servers that was not back in time: without it nobody can say what stood still."""

from __future__ import annotations

import faulthandler
import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from storm.deeds import Caller, Deed
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.admin.why import why

#: Where it is kept, a folder for each seed.
KEPT = Path("storm-failures")
#: Of so many ops it is kept why each waits, and of each log so many entries.
MOST_OPS, MOST_ENTRIES = 40, 200


def keep(rig: Rig, seed: int, callers: Sequence[Caller], open_deeds: Sequence[Deed], folder: Path = KEPT) -> Path:
    """Keep logs, spools, watermarks, streams, stacks, and what each op waits for; return the folder.

    Args:
        rig: as it stands, with its workers at work.
        seed: of the schedule.
        callers: all of them.
        open_deeds: what is not settled.
        folder: where to keep it.
    """
    kept = folder / str(seed)
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    with (kept / "stacks.txt").open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    directory = rig.cluster.directory
    shutil.copytree(directory / "logs", kept / "logs")
    for file in (directory / "run").glob("*.spool*"):
        with suppress(OSError):
            shutil.copy(file, kept / file.name)
    buckets = sorted({receipt.bucket for deed in open_deeds for receipt in deed.receipts})
    facts = {
        "why": _sentences(callers, open_deeds),
        "shards": _said(lambda: why(rig.client).sentences),
        "spools": [_said(caller.client.spool.counts) for caller in callers[:2]],
        "logs": {bucket: _log(rig, bucket) for bucket in buckets},
        **{
            table: {name: _rows(uri, f"SELECT * FROM pipeline_{table}") for name, uri in rig.primaries.items()}
            for table in ("watermarks", "rejects", "lost", "epochs")
        },
    }
    (kept / "state.json").write_text(json.dumps(facts, indent=1, default=repr))
    return kept


def add(kept: Path, sentence: str) -> None:
    """Add a sentence to what is kept."""
    with (kept / "later.txt").open("a") as file:
        file.write(sentence + "\n")


def _sentences(callers: Sequence[Caller], open_deeds: Iterable[Deed]) -> list[str]:
    clients = {id(deed): caller.client for caller in callers for deed in caller.deeds}
    return [
        f"{deed.token} {deed.kind} {receipt!r} {receipt.producer} {receipt.producer_seq}: "
        f"{_said(lambda receipt=receipt, deed=deed: clients[id(deed)].follower.why(receipt))}"
        for deed in list(open_deeds)[:MOST_OPS]
        for receipt in deed.receipts
    ]


def _log(rig: Rig, bucket: int) -> dict[str, Any]:
    key = rig.client.log.keys.log(bucket)
    return {
        "info": _said(lambda: repr(rig.redis.xinfo_stream(key))),
        "first": _said(lambda: list(map(repr, rig.redis.xrange(key, count=MOST_ENTRIES)))),
    }


def _rows(uri: str, sql: str) -> Any:
    return _said(lambda: nodes.rows(uri, sql))


def _said(ask: Any) -> Any:
    try:
        return ask()
    except Exception as error:  # what can't be asked is a fact, too
        return f"{type(error).__name__}: {error}"
