"""Print a worker's whole log, Celery's part too, as `[log] format` says: a line an event, no values of rows."""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger

from pipeline.config.settings import load
from pipeline.events import Lines


@after_setup_logger.connect
@after_setup_task_logger.connect
def print_lines(logger: logging.Logger, **_: Any) -> None:
    """Give the handlers that Celery has just made our formatter.

    Args:
        logger: Celery's, whose handlers print.
    """
    lines = Lines(load().log.format)
    for handler in logger.handlers:
        handler.setFormatter(lines)
