"""An operator who gives the commands that a refused move names, and what each of them settles, when."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from pipeline.apply.replay import Replay
from pipeline.cli import pipeline as command
from pipeline.config.buckets import FIRST_PIECE, log_number
from pipeline.shard import NodeSession, records
from pipeline.shard.records import LENT, moves, replays
from pipeline.shard.records.replays import DROPPED, Aside, Place
from support.oracle.ledger import Settled

_COMMANDS = re.compile(r"pipeline dead (?:replay|drop) \d+:\d+-\d+")
_REFUSED = re.compile(r"[1-9]\d* refused again")


class Operator:
    """Settles what is set aside; `settled` has what was done, in order.

    Args:
        config: of the deployment.
    """

    def __init__(self, config: Path):
        self._config, self.settled, self.commands = config, list[Settled](), list[str]()

    def named(self, refused: str) -> list[str]:
        """Return the commands that the sentence of a refusal names."""
        return _COMMANDS.findall(refused)

    def settle(self, named: list[str]) -> bool:
        """Give commands, one after the other while ops are refused again; return whether one has settled its op."""
        with self._seen():
            for text in named:
                result = CliRunner().invoke(command, [*shlex.split(text)[1:], "--config", str(self._config)])
                self.commands.append(f"{text}: {result.output.strip() or result.exception}")
                if not _REFUSED.search(result.output):
                    return result.exit_code == 0
        return False

    @contextmanager
    def _seen(self) -> Iterator[None]:
        """Note what replays do in this process, once it is committed."""
        settle, finish, done = replays.settle, Replay._finish, list[Settled]()

        def noted(session: NodeSession, ops: list[Aside], rows: Any, states: dict[str, list[Place]], left: Any) -> Any:
            found = settle(session, ops, rows, states, left)
            stay = {(one.entry.bucket, one.entry.position) for one in left}
            done[:] = _settled(session, ops, {*states[DROPPED]}, stay)
            return found

        def finished(self: Replay, *arguments: Any) -> None:
            finish(self, *arguments)
            committed.extend(done)
            done.clear()

        committed = self.settled
        replays.settle, Replay._finish = noted, finished  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            replays.settle, Replay._finish = settle, finish  # type: ignore[method-assign]


def _settled(session: NodeSession, ops: list[Aside], dropped: set[Place], stay: set[Place]) -> Iterator[Settled]:
    """Yield what a replay's transaction does, by bucket or piece, with the watermark that it holds."""
    numbers = {op.entry.bucket for op in ops}
    marks, keys = records.marks(session), dict[int, int]()
    for piece, leg in moves.pieces_within(session, numbers).items() if numbers else ():
        if leg.of is not None and (piece in numbers or (leg.apart and leg.home == LENT)):
            keys |= {number: int(leg.of.key) for number in (piece, leg.of.bucket) if number in numbers}
    for number in numbers:
        mine = [op for op in ops if op.entry.bucket == number]
        named = {op.place: (log_number(number), op.entry.producer, op.entry.producer_seq) for op in mine}
        yield Settled(
            log_number(number),
            marks[number].position,
            tuple(named.values()),
            frozenset(name for place, name in named.items() if place in dropped),
            (keys[number], number >= FIRST_PIECE) if number in keys else None,
            frozenset(name for place, name in named.items() if place in stay),
        )
