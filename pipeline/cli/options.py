"""Hold what the subcommands share: the option for the configuration, and a client that is closed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from pipeline.client import Client

config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False),
    help="The configuration; by default $PIPELINE_CONFIG, else ./pipeline.toml.",
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
