"""Let pyDAL's own words write through the pipeline, table by table: `pipeline.attach(db.purchase)`.

    db.purchase.insert(customer=7)        # queued; returns the real id
    db(db.purchase.id == 5).update(qty=2) # queued; returns how many ops

Forms, grids, appadmin and CSV import use the same words, so they work unchanged. Reads go where they went; before the
first of a request, its database is given the time to get what the user has written before. What the request itself has
written is seen with `reads = "own"`; else a warning says that it is not.
"""

from __future__ import annotations

from pipeline.attachment.forms import editing, enqueue_form
from pipeline.attachment.hooks import attach, attached, detach, sees_own
from pipeline.attachment.reads import Reading, reads_own, unheard

__all__ = [
    "Reading",
    "attach",
    "attached",
    "detach",
    "editing",
    "enqueue_form",
    "reads_own",
    "sees_own",
    "unheard",
]
