"""A producer of its own: `python -m support.oracle.producer CONFIG OUTPUT OPTIONS`, so that it may be killed.

Each acknowledged op is a line of OUTPUT, `[receipt, deed]`, written before the next op is sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import clock
from pipeline.clock import polls
from pipeline.devcluster.processes import import_path
from pipeline.model.receipt import Receipt
from support.oracle.ledger import Acknowledged

#: How long a producer that has sent all waits for its losses to be judged, s.
SETTLE_S = 60
#: The folder that holds the package `support`.
TESTS = Path(__file__).resolve().parents[2]


@dataclass
class Producer:
    """A running producer, and what it has noted."""

    child: subprocess.Popen[bytes]
    output: Path

    def finish(self, timeout_s: float = 120) -> None:
        """Wait until it has sent all."""
        assert self.child.wait(timeout_s) == 0, f"a producer failed, see {self.output}.log"

    def stop(self) -> None:
        """Let it send no more."""
        _stop_of(self.output).touch()

    def kill(self) -> None:
        """Kill it if it still runs."""
        with suppress(ProcessLookupError):
            self.child.kill()
        self.child.wait(10)

    @property
    def count(self) -> int:
        """How many ops were acknowledged to it so far."""
        return self.output.read_bytes().count(b"\n")

    @property
    def noted(self) -> list[Acknowledged]:
        """What was acknowledged to it so far."""
        whole = [line for line in self.output.read_text().splitlines(keepends=True) if line.endswith("\n")]
        pairs = [json.loads(line) for line in whole]
        return [Acknowledged.of(Receipt.parse(text, None), deed) for text, deed in pairs]


def _stop_of(output: Path) -> Path:
    """Return the file whose presence ends a producer."""
    return Path(f"{output}.stop")


def environment() -> dict[str, str]:
    """Return the environment in which a child finds the pipeline and this package."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), import_path()["PYTHONPATH"]])}


def start(config: Path, output: Path, **options: Any) -> Producer:
    """Start a producer; see `Load` for the options, *ops* for how many, and *per_s* for how many a second at most."""
    output.touch()
    with Path(f"{output}.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "support.oracle.producer", str(config), str(output), json.dumps(options)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Producer(child, output)


def _main(config: str, output: str, options: dict[str, Any]) -> None:
    from pipeline.client import Client
    from support.chance import chance
    from support.oracle.load import Load
    from support.tables import define

    ops, name, per_s = options.pop("ops"), options["name"], options.pop("per_s", 0)
    client, db = Client(config), define()
    client.define_tables(db)
    load = Load(client, db, chance(options.pop("seed"), name), **options)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    stop = _stop_of(Path(output))
    for _ in range(ops):
        if stop.exists():
            break
        lines = list[bytes]()
        for noted in load.send_some():
            receipt = Receipt(noted.bucket, noted.position, None, noted.producer, noted.seq, client.follower)
            lines.append(json.dumps([str(receipt), noted.deed]).encode() + b"\n")
        os.write(file, b"".join(lines))
        if per_s:
            clock.sleep_s(1 / per_s)
    for _ in polls(SETTLE_S):  # what it knows of losses is written down while it lives
        if client.publisher.settle():
            break
    client.close()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
