"""Rescue what a spool's file holds that was removed or damaged: move it aside, and take over what can be read of it."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from pipeline import clock
from pipeline.events import Event

#: What SQLite writes beside the file, by the end of its name.
BESIDE = ("-wal", "-shm")
#: What a removed or damaged file has that nothing else has, by table. Its numbers are never given again.
_RESCUED = {
    "definitions": "hash, table_name, text, waits",
    "entries": "bucket, producer, seq, kept, sent, payload",
    "agreed": "one, text",
}
logger = logging.getLogger("pipeline.spool")


def moved_aside(path: Path) -> sqlite3.Connection:
    """Move a damaged file aside for good, and return a connection to it.

    Args:
        path: the file.
    """
    aside = f"{path}.damaged-{clock.wall_ms()}"
    for suffix in ("", *BESIDE):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    logger.error(Event("spool_damaged", path=path, moved_to=aside, text="a new one takes its place"))
    return sqlite3.connect(f"file:{quote(aside)}?mode=ro", uri=True, isolation_level=None)


def take_over(old: sqlite3.Connection, new: sqlite3.Connection, path: Path) -> None:
    """Take over what another file holds, as far as it can be read; close the connection to it.

    One process does, at once: later would double. To send an op again is harmless for as long as Redis or the shard
    know its number.

    Args:
        old: to the other file.
        new: to the file that takes its place.
        path: of that file.
    """
    taken = 0
    try:
        [own] = old.execute("PRAGMA user_version").fetchone()
        new.execute("BEGIN IMMEDIATE")
        if new.execute("INSERT OR IGNORE INTO rescued VALUES (?)", (own,)).rowcount:
            for table, columns in _RESCUED.items():
                for row in old.execute(f"SELECT {columns} FROM {table} ORDER BY rowid"):
                    marks = ", ".join("?" * len(row))
                    sql = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
                    taken += new.execute(sql, row).rowcount
    except sqlite3.Error as error:
        logger.error(Event("spool_not_recovered", path=path, error=error, text="not all of the spool could be read"))
    finally:
        if new.in_transaction:
            new.execute("COMMIT")
        old.close()
    logger.warning(Event("spool_recovered", path=path, rows=taken))
