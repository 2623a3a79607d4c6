"""Hold what commands share: the option for the configuration, a client that is closed, a signal that acts as Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from pipeline.admin.status import MAX_AGE_S
from pipeline.client import Client

config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False),
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
    try:
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
