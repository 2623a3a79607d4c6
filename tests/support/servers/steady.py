"""A producer that never pauses: `python -m support.servers.steady CONFIG ROW OWNER OVER`.

Once the file OVER is there, it ends as soon as fifty ops in a row went directly into the log, and prints how many ops
it has sent in all. An error ends it too.
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

#: So many ops in a row went directly: the host does not only pass the direct way by.
IN_A_ROW = 50


def _main(config: str, row: int, owner: int, over: Path) -> None:
    from pipeline import clock
    from pipeline.client import Client
    from support.tables import define

    client, db = Client(config), define()
    client.define_tables(db)
    direct = 0
    for nth in count():
        values = {"n": db.tally.n + 1, "trace": db.tally.trace + f"{nth},"}
        receipt = client.enqueue_update("tally", row, values, shard_key=owner)
        direct = direct + 1 if receipt.position is not None and over.exists() else 0
        if direct == IN_A_ROW:
            print(nth + 1)
            break
        clock.sleep_s(0.005)
    client.close()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
