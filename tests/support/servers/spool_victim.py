"""A producer that dies: `python -m support.servers.spool_victim CONFIG OUTPUT STEP ROW OWNER`.

Each acknowledged op's receipt is a line of OUTPUT. From the tenth op on it kills itself at the step.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from typing import Any


def _main(config: str, output: str, step: str, row: int, owner: int) -> None:
    from pipeline import clock
    from pipeline.client import Client
    from pipeline.spool import Spool
    from pipeline.spool.sqlite_file import SpoolFile
    from support.tables import define

    sent = 0

    def die(name: str) -> None:
        if name == step and sent >= 10:
            os.kill(os.getpid(), signal.SIGKILL)

    class Mortal(Spool):
        def add(self, *arguments: Any, **options: Any) -> Any:
            die("add")
            numbers = super().add(*arguments, **options)
            die("spooled")
            return numbers

    class MortalFile(SpoolFile):
        @property
        def marked(self) -> bool:
            there = super().marked
            if there and self._db is not None and self._db.in_transaction:
                die("marked")
            return there

    client, db = Client(config), define()
    client.spool.__class__ = Mortal  # type: ignore[union-attr]  # the configuration has a spool
    client.spool.file.__class__ = MortalFile  # type: ignore[union-attr]
    client.drainer._step = die  # type: ignore[union-attr]
    client.define_tables(db)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for nth in count():
        tally = db.tally
        values = {"n": tally.n + 1, "trace": tally.trace + f"{nth},"}
        receipt = client.enqueue_update("tally", row, values, shard_key=owner)
        os.write(file, str(receipt).encode() + b"\n")
        sent += 1
        clock.sleep_s(0.01)


if __name__ == "__main__":
    _main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]))
