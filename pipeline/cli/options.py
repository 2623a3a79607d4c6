"""Hold what commands share: the option for the configuration, a client that is closed, a signal that acts as Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from pipeline.admin.observe.record import MAX_AGE_S
from pipeline.client import Client
from pipeline.config.settings import DEFAULT_PATH, VARIABLE
from pipeline.enqueue.buckets import follow_noted
from pipeline.errors import ConfigError
from pipeline.events import log_to_stderr
from pipeline.owners import stranger


def _meant(_context: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    """Refuse a file that is only found, not named, and that others may write: it names servers, and code to run."""
    found = Path(DEFAULT_PATH)
    if given is None and VARIABLE not in os.environ and found.exists() and (who := stranger(found)):
        raise ConfigError([f"{found.absolute()} may be written by {who}; if you mean it, name it: --config {found}"])
    return given


config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False),
    callback=_meant,
    help="The configuration; by default $PIPELINE_CONFIG, else ./pipeline.toml.",
)
max_age_option = click.option(
    "--max-age",
    "max_age_s",
    type=click.FloatRange(min=0),
    default=MAX_AGE_S,
    show_default=True,
    help="Seconds from which on a waiting op is a fault.",
)


@contextmanager
def opened(config: str | None) -> Iterator[Client]:
    """Yield a client, and close it at the end.

    Args:
        config: the path of the configuration; None for the default.
    """
    client = Client(config)
    log_to_stderr(client.settings.log.format)
    try:
        follow_noted(client.log, client.topology)
        yield client
    finally:
        client.close()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as Ctrl-C is handled, so that the command cleans up.

    Args:
        number: the signal's number.
        frame: where the signal arrived; not used.
    """
    raise KeyboardInterrupt
