"""Report to an application which ops its database refused: call what `pipeline.on_reject` registers, after the commit.

A function can neither fail nor hold up a batch: what it raises is logged, and it has a few seconds for all of a batch.
A worker that ends between its commit and the call calls no function; `pipeline dead list` has every rejection.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import NewerOp, NotAnOp
from pipeline.events import Event
from pipeline.model import Op, decode

if TYPE_CHECKING:
    from pipeline.shard.records import Reject


#: How long the functions may take for the rejections of one batch, s.
MOST_S = 5.0
logger = logging.getLogger("pipeline.apply")


@dataclass(frozen=True, slots=True)
class Rejection:
    """One op that the database refused for good.

    Attributes:
        shard: the shard's name.
        place: `bucket:epoch-seq`, as `pipeline dead show` takes it.
        table: the table's name.
        row: what names the row.
        code: the database's number of the error, or None.
        reason: the database's sentence.
        op: the op; None for an entry that is none.
    """

    shard: str
    place: str
    table: str
    row: str
    code: int | None
    reason: str
    op: Op | None


_Function = Callable[[Rejection], object]
_functions: list[_Function] = []
_running: threading.Thread | None = None


def on_reject(function: _Function) -> _Function:
    """Call a function in the worker for each op that the database refused, after the commit; use it as a decorator.

    The call is no part of the op: it may be missed where a worker dies, and has a few seconds for all of a batch.

    Args:
        function: takes a `Rejection`; what it raises is logged.

    Returns:
        The function.
    """
    if function not in _functions:
        _functions.append(function)
    return function


def tell(shard: str, rejects: Iterable[Reject]) -> None:
    """Call the functions for what a committed batch rejected. Never raises.

    Args:
        shard: the shard's name.
        rejects: the ops.
    """
    global _running
    rejects = list(rejects)
    if not (_functions and rejects):
        return
    if _running is not None and _running.is_alive():
        logger.error(
            Event("on_reject_busy", shard=shard, ops=len(rejects), text="the rejections of this batch are not told")
        )
        return
    _running = threading.Thread(target=_call, args=(shard, rejects), name="pipeline-on-reject", daemon=True)
    _running.start()
    _running.join(MOST_S)
    if _running.is_alive():
        logger.error(Event("on_reject_slow", shard=shard, ops=len(rejects), after_s=MOST_S, text="the worker goes on"))


def _call(shard: str, rejects: list[Reject]) -> None:
    for rejection in (_rejection(shard, reject) for reject in rejects):
        for function in tuple(_functions):
            try:
                function(rejection)
            except Exception:
                logger.exception(Event("on_reject_failed", shard=rejection.shard, op=rejection.place))


def _rejection(shard: str, reject: Reject) -> Rejection:
    entry = reject.entry
    try:
        op: Op | None = decode(entry.payload)
    except (NotAnOp, NewerOp):
        op = None
    place = f"{entry.bucket}:{entry.position}"
    return Rejection(shard, place, reject.table, reject.row_key, reject.code, reject.reason, op)
