"""`python -m examples.web2py`: the shop on a cluster of this machine, until Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from examples.web2py.running import running_shop
from examples.web2py.server import why_not


@click.command()
@click.option(
    "--engine",
    type=click.Choice(["auto", "embedded", "mariadb"]),
    default="auto",
    show_default=True,
    help="embedded: SQLite shards and a bundled Valkey; mariadb: real servers; auto: mariadb where it is installed.",
)
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="0 for a free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
def main(engine: str, port: int, workers: int) -> None:
    """Run a web2py shop whose writes go through the pipeline. Ctrl-C takes everything down."""
    if reason := why_not():
        raise click.ClickException(reason)
    if not _free(port):
        raise click.ClickException(f"port {port} is in use; --port 0 takes one that is free")
    console = Console(highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, _interrupt)
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-shop-", ignore_cleanup_errors=True) as folder,
        suppress(KeyboardInterrupt),
    ):
        chosen = _installed() if engine == "auto" else engine
        console.print(f"[bold]A shop in web2py[/] on two shards with a replica each ({chosen})")
        with running_shop(
            Path(folder), chosen, port=port, workers=workers, report=lambda step: console.print(f"  [dim]{step}[/]")
        ) as shop:
            console.print(f"\n  [bold green]{shop.url}/default/index[/]")
            console.print(
                "  log in as [bold]ada@example.com[/] or [bold]bob@example.com[/], password [bold]pipeline[/]"
            )
            console.print(f"  its configuration: {shop.cluster.config}")
            console.print("  Ctrl-C takes everything down")
            shop.server.wait()
            console.print("[red]web2py has ended by itself[/]")
    console.print("everything is down again")


def _free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def _installed() -> str:
    places = "/usr/sbin:/usr/local/sbin"
    found = shutil.which("mariadbd") or shutil.which("mariadbd", path=places)
    return "mariadb" if found and shutil.which("redis-server") else "embedded"


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Make SIGTERM clean up as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
