"""Run `pipeline top`: the record live, a shard's page, and keys that pause, resume and replay.

The screen waits for no server: it shows what the threads of `watcher` have found and done.
"""

from __future__ import annotations

import os
import re
import select
import sys
from contextlib import closing
from typing import Any, Self

import click
from rich.console import Console
from rich.live import Live

from pipeline import clock
from pipeline.admin.observe.observer import Observer
from pipeline.cli.options import config_option, max_age_option, opened
from pipeline.cli.status_screen import lines
from pipeline.cli.top.board import Board, heard, pressed
from pipeline.cli.top.screens import TopScreen
from pipeline.cli.top.watcher import Hands, Watcher
from pipeline.config.settings import load

try:
    import termios
    import tty

    _POSIX = True
except ImportError:  # Windows
    _POSIX = False

#: The time between two looks, s.
APART_S = 1.0
#: How long a key is waited for before the screen is drawn again, s.
KEY_S = 0.2
#: One key: an arrow as terminals send it, or a character.
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_NAMES = {"A": "up", "B": "down", "C": "enter", "D": "escape"}
_SINGLE = {"\r": "enter", "\n": "enter", "\x1b": "escape", "\x7f": "escape", "\b": "escape", "k": "up", "j": "down"}


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
