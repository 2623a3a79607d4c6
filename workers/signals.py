"""Meet the signals of Celery and Flower: log as we do, listen on this machine only, show our pages. Mend Celery.

Let the consumer reconnect where kombu meets a reply on a channel whose connection is gone.
`broker_channel_error_retry` in `celeryconfig.py` does the same for what Redis refuses.
Let a worker that is stopped end soon.

An application's own reporter is called where the database refuses an op:

    from workers.signals import op_rejected

    @op_rejected.connect
    def report(sender, rejection, **_): ...

Let Flower listen on this machine only, unless Flower requires a login: its pages show what is written and where. Flower
by itself listens on every address of the machine, to everybody. Also here: the metrics of the deployment, which its
`/metrics` shows behind its own, and the Pipeline tab. Both need Flower's login as all pages do. `/healthcheck` does
not, and says when Flower last heard a worker.
"""

from __future__ import annotations

import logging
import os
import sys
from ipaddress import ip_address
from typing import Any

from billiard import pool
from celery.signals import after_setup_logger, after_setup_task_logger, import_modules
from celery.utils.dispatch import Signal
from kombu.transport.redis import Transport

from pipeline.apply import Rejection, on_reject
from pipeline.config.settings import load
from pipeline.events import Lines

#: Sent after the commit, with `rejection`, a `pipeline.Rejection`. What a receiver raises is logged.
op_rejected = Signal(name="op_rejected", providing_args={"rejection"})
#: Flower's own variable for its `--address`, which goes before it.
VARIABLE = "FLOWER_ADDRESS"


def outlive_collected_channels() -> None:
    """Count AttributeError as a lost connection, for every Redis transport of this process, Sentinel's too.

    After a restart within a second kombu may use a channel whose connection has been collected meanwhile. It raises
    `'NoneType' object has no attribute 'hostname'` (celery/kombu#582), and Celery ends the worker's main process.
    """
    Transport.connection_errors = (*Transport.connection_errors, AttributeError)


def end_soon() -> None:
    """Let a process of the pool that is to end wait for two seconds, and not for thirty, until its results are read.

    A worker that stops forgets a task that a process has taken, if it has not heard of that yet (`AsynPool.flush`,
    celery#6863), and reads no more. Without the result the broker delivers the bell again, which costs nothing.
    """
    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 20


@on_reject
def _send(rejection: Rejection) -> None:
    op_rejected.send(sender=rejection.shard, rejection=rejection)


@after_setup_logger.connect
@after_setup_task_logger.connect
def print_lines(logger: logging.Logger, **_: Any) -> None:
    """Give the handlers that Celery has just made our formatter: a line an event, no values of rows.

    Args:
        logger: Celery's, whose handlers print.
    """
    lines = Lines(load().log.format)
    for handler in logger.handlers:
        handler.setFormatter(lines)


os.environ.setdefault(VARIABLE, "127.0.0.1")


def is_flower() -> bool:
    """Return whether this process is to be Flower: Celery's command loads Flower's for each of its commands."""
    return "flower.command" in sys.modules and "flower" in sys.argv


def put_ours(handlers: list[Any]) -> None:
    """Replace Flower's pages of metrics and of its health, before Flower makes its application.

    Args:
        handlers: Flower's own list, of tuples and URLSpecs.
    """
    from workers.pipeline_tab import HealthPage, MetricsPage  # only Flower's process needs them

    ours: dict[str, Any] = {"/metrics": MetricsPage, "/healthcheck": HealthPage}
    handlers[:] = [(path, ours[path]) if (path := _path_of(one)) in ours else one for one in handlers]


def _path_of(handler: Any) -> str:
    return handler[0] if isinstance(handler, tuple) else str(handler.regex.pattern)


def show_tab(handlers: list[Any], settings: dict[str, Any]) -> None:
    """Add the Pipeline tab, before Flower makes its application.

    Args:
        handlers: Flower's own list.
        settings: of Flower's application.
    """
    from workers.pipeline_tab import add_tab  # only Flower's process needs it

    add_tab(handlers, settings)


if is_flower():
    put_ours(sys.modules["flower.urls"].handlers)
    show_tab(sys.modules["flower.urls"].handlers, sys.modules["flower.urls"].settings)


@import_modules.connect
def refuse_strangers(**_: Any) -> None:
    """End Flower before it listens beyond this machine without a login; its app imports its modules before."""
    if not is_flower():
        return
    options = sys.modules["tornado.options"].options
    if options.unix_socket or is_loopback(options.address) or options.auth or any(options.basic_auth or ()):
        return
    sys.exit(
        f"Flower does not start: it would listen on {options.address or 'every address'} without a login; "
        "give it --address=127.0.0.1, or set FLOWER_BASIC_AUTH=user:password"
    )


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an address; with the empty one, everybody reaches it.

    Args:
        address: a name or a number.
    """
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False
