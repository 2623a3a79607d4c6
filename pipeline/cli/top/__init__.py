"""Run `pipeline top`: the record live, a shard's page, and keys that pause, resume and replay.

The screen waits for no server: it shows what the threads of `watcher` have found and done.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading
from contextlib import closing, suppress
from queue import Empty, SimpleQueue
from typing import Any, Self

import click
from rich.console import Console
from rich.live import Live

from pipeline import clock
from pipeline.admin import stops
from pipeline.admin.dead import HEADS, AsideCount, Where, chosen, replay, tally, waiting_behind
from pipeline.admin.observe import Observer
from pipeline.admin.observe.record import Record
from pipeline.admin.stops import release
from pipeline.cli.options import config_option, max_age_option, opened
from pipeline.cli.status_screen import lines
from pipeline.cli.top.screens import Board, Order, Question, Sight, TopScreen, heard, pressed
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.errors import PipelineError

#: The time between two counts of what is set aside, s: it is a query of the shard's primary.
ASIDE_S = 3.0
#: The time between two looks, s.
APART_S = 1.0
#: How long a key is waited for before the screen is drawn again, s.
KEY_S = 0.2
#: One key: an arrow as terminals send it, or a character.
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_NAMES = {"A": "up", "B": "down", "C": "enter", "D": "escape"}
_SINGLE = {"\r": "enter", "\n": "enter", "\x1b": "escape", "\x7f": "escape", "\b": "escape", "k": "up", "j": "down"}


class Watcher:
    """Finds the newest record, and what is set aside on the shard whose page is open.

    Args:
        pipeline: the deployment.
        every_s: seconds between two looks.

    Attributes:
        shard: whose page is open; the screen sets it.
    """

    def __init__(self, pipeline: Client, every_s: float):
        self._pipeline, self._every_s = pipeline, every_s
        self.shard: str | None = None
        self._record: tuple[Record, float] | None = None
        self._aside: tuple[str, tuple[AsideCount, ...] | str] = ("", ())
        self._over = False
        for work in (self._look, self._count):
            threading.Thread(target=work, name="pipeline-top", daemon=True).start()

    def found(self) -> Sight:
        """Return what is known now; never waits."""
        of, aside = self._aside
        if self._record is None:
            return Sight()
        record, at_s = self._record
        return Sight(record, clock.mono_s() - at_s, aside if of == self.shard else ())

    def close(self) -> None:
        """Stop at the next look."""
        self._over = True

    def _look(self) -> None:
        observer = Observer(self._pipeline.settings)
        while not self._over:
            with suppress(PipelineError):
                self._record = (observer.newest(), clock.mono_s())
            clock.sleep_s(self._every_s)

    def _count(self) -> None:
        while not self._over:
            shard, looked = self.shard, clock.Deadline(ASIDE_S)
            if shard is not None:
                try:
                    self._aside = (shard, tuple(tally(self._pipeline, Where(shard=shard))))
                except PipelineError as error:
                    self._aside = (shard, str(error))
            for _ in clock.polls(looked.left_s, first_s=0.1, most_s=0.1):
                if self.shard != shard or self._over:
                    break


class Hands:
    """Carries out orders, one after the other.

    Args:
        pipeline: the deployment.
    """

    def __init__(self, pipeline: Client):
        self._pipeline = pipeline
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._news: SimpleQueue[Question | str] = SimpleQueue()
        threading.Thread(target=self._run, name="pipeline-top-acts", daemon=True).start()

    def order(self, order: Order) -> None:
        """Have something done; never waits.

        Args:
            order: what.
        """
        self._orders.put(order)

    def news(self) -> list[Question | str]:
        """Return what was asked or said since the last call."""
        found: list[Question | str] = []
        with suppress(Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def _run(self) -> None:
        while True:
            order = self._orders.get()
            try:
                self._news.put(getattr(self, f"_{order.verb}")(order))
            except PipelineError as error:
                self._news.put(f"not done: {error}")
            except Exception as error:  # the outermost loop: the screen says it, and takes the next order
                self._news.put(f"not done: {type(error).__name__}: {error}")

    def _pause(self, order: Order) -> str:
        target = self._target(order)
        stops.pause(self._pipeline, target, "by pipeline top")
        return f"{target} is paused; r lets it go on"

    def _resume(self, order: Order) -> str:
        target, done = self._target(order), 0
        lifted = stops.resume(self._pipeline, target)
        for shard in target.shards:
            for settled in release(self._pipeline, shard, stops.who()):
                done += settled
                self._news.put(f"releasing ops of {target}: {done:,} so far…")
        stays = [one for shard in target.shards for one in stops.stops_on(self._pipeline, shard, target)]
        if stays:
            return f"{target} stays halted on {len(stays)} of {len(target.shards)} shards: an op was refused again"
        return f"{target} {'goes on' if lifted else 'was not stopped'}; {done:,} ops that were set aside are settled"

    def _count(self, order: Order) -> Question | str:
        found = chosen(self._pipeline, Where(shard=order.shard, table=order.table), HEADS)
        ops = sum(len(own) for buckets in found.values() for own in buckets.values())
        of = f"{order.table} on {order.shard}" if order.table else order.shard
        if not ops:
            return f"nothing of {of} is set aside that could be replayed"
        behind = sum(waiting_behind(self._pipeline, shard, buckets) for shard, buckets in found.items())
        then = f", and {behind:,} that wait behind" if behind else ""
        text = f"replay {ops:,} op{'s' * (ops != 1)} of {of}{then}? in order; refused ones stay set aside"
        return Question(text, order._replace(verb="replay", ops=found))

    def _replay(self, order: Order) -> str:
        done = dict.fromkeys(("replayed", "refused", "parked"), 0)
        left: list[str] = []
        for step in replay(self._pipeline, order.ops or {}):
            done = {name: count + getattr(step.done, name) for name, count in done.items()}
            left += step.left
            self._news.put(f"replaying: {done['replayed']:,} applied, {done['refused']:,} refused again…")
        told = f"{done['replayed']:,} replayed, {done['refused']:,} refused again, {done['parked']:,} still wait"
        return "; ".join((told, *(f"not tried: {why}" for why in left)))

    def _target(self, order: Order) -> stops.Target:
        name = f"table:{order.table}" if order.table else f"shard:{order.shard}"
        return stops.target_of(self._pipeline, name)


try:
    import termios
    import tty

    _POSIX = True
except ImportError:  # Windows
    _POSIX = False


@click.command("top")
@config_option
@click.option("--every", "every_s", type=click.FloatRange(0.2, 60), default=APART_S, show_default=True, help="Seconds.")
@max_age_option
def top_command(config: str | None, every_s: float, max_age_s: float) -> None:
    """Show the status live, and act on it: keys are on the last line. Without a terminal, as lines of text.

    Each order asks first, and says how many ops it is about. `q` or Ctrl-C ends.

    \f

    Args:
        config: see `options.config_option`.
        every_s: seconds between two looks.
        max_age_s: see `options.max_age_option`.
    """
    console = Console()
    try:
        if console.is_terminal:
            _live(config, console, every_s, max_age_s)
        else:
            _lines(config, every_s, max_age_s)
    except KeyboardInterrupt:
        return


def _live(config: str | None, console: Console, every_s: float, max_age_s: float) -> None:
    with opened(config) as pipeline, Keyboard() as keyboard, closing(Watcher(pipeline, every_s)) as watcher:
        hands, board = Hands(pipeline), Board()
        with Live(TopScreen(board, max_age_s), console=console, screen=True, auto_refresh=False) as live:
            while not board.ended:
                watcher.shard = board.opened
                live.update(TopScreen(board, max_age_s), refresh=True)
                key = keyboard.pressed(KEY_S)
                board = heard(board, watcher.found(), hands.news())
                board, order = pressed(board, key)
                if order is not None:
                    hands.order(order)


def _lines(config: str | None, every_s: float, max_age_s: float) -> None:
    observer = Observer(load(config))
    try:
        while True:
            click.echo("\n".join(lines(observer.newest(), max_age_s)))
            clock.sleep_s(every_s)
    finally:
        observer.close()


class Keyboard:
    """The keys of this process's terminal; where there is none, a wait and no key."""

    def __init__(self) -> None:
        self._before: Any = None
        self._keys: list[str] = []

    def __enter__(self) -> Self:
        if _POSIX and sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def pressed(self, seconds: float) -> str:
        """Return the next key by its name, or the empty string.

        Args:
            seconds: how long to wait for one.
        """
        if not self._keys:
            self._read(seconds)
        return self._keys.pop(0) if self._keys else ""

    def _read(self, seconds: float) -> None:
        if self._before is None:
            clock.sleep_s(seconds)
        elif select.select([sys.stdin], [], [], seconds)[0]:
            self._keys = keys_in(os.read(sys.stdin.fileno(), 256).decode(errors="ignore"))


def keys_in(text: str) -> list[str]:
    """Return the names of keys: `up`, `down`, `enter`, `escape`, or the character.

    Args:
        text: as a terminal sends it.
    """
    return [_NAMES.get(key[-1], "") if len(key) > 1 else _SINGLE.get(key, key) for key in _KEY.findall(text)]
