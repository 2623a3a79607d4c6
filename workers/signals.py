"""Meet Celery's signals: print its log as ours, and send one for each op that the database refused.

from workers.signals import op_rejected

@op_rejected.connect
def report(sender, rejection, **_): ...
"""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger
from celery.utils.dispatch import Signal

from pipeline.apply.rejections import Rejection, on_reject
from pipeline.config.settings import load
from pipeline.events import Lines

#: Sent after the commit, with `rejection`, a `pipeline.Rejection`. What a receiver raises is logged.
op_rejected = Signal(name="op_rejected", providing_args={"rejection"})


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
