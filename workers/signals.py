"""Define the signal that a worker sends for each op that the database refused, for Celery's own way to listen.

from workers.signals import op_rejected

@op_rejected.connect
def report(sender, rejection, **_): ...
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

from pipeline.apply.rejections import Rejection, on_reject

#: Sent after the commit, with `rejection`, a `pipeline.Rejection`. What a receiver raises is logged.
op_rejected = Signal(name="op_rejected", providing_args={"rejection"})


@on_reject
def _send(rejection: Rejection) -> None:
    op_rejected.send(sender=rejection.shard, rejection=rejection)
