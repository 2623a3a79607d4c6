"""Movers of one shard key that end by SIGKILL: `python -m support.servers.dying_movers CONFIG`.

Each line of the input is an order, `[key, shard, stage, moment]`; each line of the output says what became of the mover
that was forked for it. A mover ends so many moments behind the beginning of a stage, or where the stage ends. Moments
are before and behind each commit, and behind each step of the log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.admin import moving as movers
from pipeline.admin.moving import MoveEnded, Mover, orders
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import PipelineError
from pipeline.shard import NodeSession
from support.oracle.producer import environment

#: In the order of a move.
STAGES = ("order", "begin", "copy", "catch", "finish", "publish", "clean")
#: Which stage is behind which; `undo` follows where a move is given up.
_ORDER = {stage: n for n, stage in enumerate(STAGES)} | {"abandon": 6, "undo": 6, "over": 7}
#: What of the log is a step.
LOG_STEPS = ("note_placement", "raise_epoch", "mark_dirty", "mark_clean", "postpone", "finish")
#: How long a move may take, s.
MOVE_S = 120
#: What an order to give up a move names in place of a stage.
GIVE_UP = "give up"
#: What becomes of a mover that has nothing to do.
THERE = "there"


class DyingMovers:
    """A process that forks movers; close it."""

    def __init__(self, config: Path):
        command = [sys.executable, "-m", "support.servers.dying_movers", str(config)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._child = subprocess.Popen(command, env=environment(), **pipes)

    def move(self, key: str, to: str, stage: str = "", moment: int = 0) -> str:
        """Let a mover order a move or go on with it; return `killed`, `over`, `there`, or why it has ended.

        Args:
            key: TABLE=VALUE.
            to: the name of the shard.
            stage: in which the mover ends; empty: nobody kills it.
            moment: how many moments behind the beginning of the stage.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(json.dumps([key, to, stage, moment]), file=self._child.stdin, flush=True)
        return self._child.stdout.readline().strip()

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate(timeout=10)


def main(config: str) -> None:
    """Fork a mover for each order."""
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            try:
                print(_live(config, *json.loads(line)), flush=True)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def _live(config: str, key: str, to: str, stage: str, moment: int) -> str:
    movers.HEARD_S = 0.0
    client, end = Client(config), _End(stage, moment)
    end.watch(client)
    mover = _ordered(client, key, to)
    if mover is None:
        return THERE
    end.mover = mover
    if stage == GIVE_UP:
        mover.give_up("a test")
        return "given up"
    for _ in polls(MOVE_S, first_s=0.02, most_s=0.1):
        if mover.stage() == "over":
            return "over"
        if mover.hold():
            try:
                for _ in mover.steps():
                    pass
            except MoveEnded as error:
                return f"given up: {error}".replace("\n", " ")
            finally:
                mover.release()
            return "over"
    return "a worker is at it"


def _ordered(client: Client, key: str, to: str) -> Mover | None:
    """Return the mover of the key's move, which is ordered where none is under way; None: the key is there."""
    why = ""
    for _ in polls(MOVE_S, first_s=0.02, most_s=0.2):
        with suppress(PipelineError):
            return orders.of_named(client, key)[0]
        try:
            return orders.order_key(client, key, to, "a test", keep_s=0)
        except PipelineError as error:
            why = str(error)
            if "already" in why and "being moved" not in why:
                return None
            if "pipeline dead" in why:  # somebody has to
                break
    raise AssertionError(f"{key} cannot be moved to {to}: {why}")


class _End:
    """Ends this process at a moment of a stage."""

    def __init__(self, stage: str, moment: int):
        self._stage, self._left = stage, moment
        self._now = "order"
        self.mover: Mover | None = None

    def watch(self, client: Client) -> None:
        """Let commits and steps of the log be moments."""
        if not self._stage:
            return
        stage, transaction = Mover.stage, NodeSession.transaction

        def seen(mover: Mover) -> str:
            self._now = stage(mover)
            if self._stage != GIVE_UP and _ORDER[self._now] > _ORDER[self._stage]:
                self._kill()
            return self._now

        @contextmanager
        def committed(session: NodeSession) -> Iterator[NodeSession]:
            with transaction(session):
                yield session
                self._moment()
            self._moment()

        Mover.stage = seen  # type: ignore[method-assign]
        NodeSession.transaction = committed  # type: ignore[assignment,method-assign]
        for name in LOG_STEPS:
            setattr(client.log, name, self._behind(getattr(client.log, name)))

    def _behind(self, first: Callable[..., Any]) -> Callable[..., Any]:
        def both(*arguments: Any, **options: Any) -> Any:
            found = first(*arguments, **options)
            self._moment()
            return found

        return both

    def _moment(self) -> None:
        if self._stage in (self._now, GIVE_UP):
            self._left -= 1
            if self._left <= 0:
                self._kill()

    def _kill(self) -> None:
        if self.mover is not None:
            self.mover.release()  # as if its lease had run out
        print("killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
