"""Let pyDAL's own words write through the pipeline, table by table: `attach(db.purchase, pipeline)`.

    db.purchase.insert(customer=7)        # queued; returns the real id
    db(db.purchase.id == 5).update(qty=2) # queued; returns how many ops

Forms, grids, appadmin and CSV import use the same words, so they work unchanged. Reads are not touched.
"""

from __future__ import annotations

from pipeline.attachment.form import enqueue_form
from pipeline.attachment.table import Sink, attach, attached, detach

__all__ = ["Sink", "attach", "attached", "detach", "enqueue_form"]
