"""Run `pipeline status` and `pipeline top`: print how far each shard is, once or live.

While `top` runs, the terminal gives single keys without Enter; its mode is restored at the end.
"""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.live import Live

from pipeline import clock
from pipeline.admin.observe.observer import Observer
from pipeline.admin.observe.record import OWN_LOOK
from pipeline.cli.options import config_option, max_age_option
from pipeline.cli.status_screen import lines, screen
from pipeline.config.settings import load

try:
    import termios
    import tty

    _POSIX = True
except ImportError:  # Windows
    _POSIX = False

#: Waits so many seconds for a key, and returns the key, or nothing.
Pressed = Callable[[float], str]

#: The time between two looks, s: long enough for a rate, short enough for a waiting person.
APART_S = 1.0


@click.command("status")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs; null is unknown.")
@max_age_option
@click.pass_context
def status_command(context: click.Context, config: str | None, as_json: bool, max_age_s: float) -> None:
    """Show what is wrong, what waits and why, how fast ops are applied, and how far the replicas are.

    Shows the record that workers publish each second. Where none run, it asks all servers itself, and takes a second
    to measure a rate. Exits with 1 if a server does not answer, if ops were refused or lost, if a table is halted, or
    if an op is older than --max-age.

    \f

    Args:
        context: Click's context, for the exit code.
        config: see `options.config_option`.
        as_json: whether to print JSON.
        max_age_s: see `options.max_age_option`.
    """
    console = Console()
    with _observer(config) as observer:
        found = observer.newest()
        if found.source == OWN_LOOK:
            clock.sleep_s(APART_S)
            found = observer.look()
    if as_json:
        click.echo(json.dumps(found.as_json(max_age_s), indent=2))
    elif console.is_terminal:
        console.print(screen(found, console, max_age_s))
    else:
        for line in lines(found, max_age_s):
            click.echo(line)
    if found.unknown or found.faults(max_age_s):
        context.exit(1)


@click.command()
@config_option
@click.option("--every", "every_s", type=click.FloatRange(0.2, 60), default=APART_S, show_default=True, help="Seconds.")
@max_age_option
def top(config: str | None, every_s: float, max_age_s: float) -> None:
    """Show the status live, until q or Ctrl-C; without a terminal, as lines of text.

    \f

    Args:
        config: see `options.config_option`.
        every_s: seconds between two looks.
        max_age_s: see `options.max_age_option`.
    """
    console = Console()
    with _observer(config) as observer, keyboard() as pressed:
        try:
            if console.is_terminal:
                _live(observer, console, pressed, every_s, max_age_s)
            else:
                while True:
                    click.echo("\n".join(lines(observer.newest(), max_age_s)))
                    clock.sleep_s(every_s)
        except KeyboardInterrupt:
            return


def _live(observer: Observer, console: Console, pressed: Pressed, every_s: float, max_age_s: float) -> None:
    first = screen(observer.newest(), console, max_age_s, live=True)
    with Live(first, console=console, screen=True, auto_refresh=False) as live:
        while pressed(every_s) not in ("q", "Q"):
            live.update(screen(observer.newest(), console, max_age_s, live=True), refresh=True)


@contextmanager
def _observer(config: str | None) -> Iterator[Observer]:
    observer = Observer(load(config))
    try:
        yield observer
    finally:
        observer.close()


@contextmanager
def keyboard() -> Iterator[Pressed]:
    """Yield a function that waits for a key; where there is no terminal, it waits and returns no key."""
    if not (_POSIX and sys.stdin.isatty()):
        yield _wait
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _key
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _wait(seconds: float) -> str:
    clock.sleep_s(seconds)
    return ""


def _key(seconds: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1) if ready else ""
