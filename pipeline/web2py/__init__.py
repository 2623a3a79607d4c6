"""The pipeline in web2py: one line in a model, and controllers write through the queue and see their own writes.

    # models/pipeline.py                     web2py runs models in the order of their names: db.py first
    from pipeline.web2py import Pipeline
    pipeline = Pipeline(db, configuration)   # [pipeline] of private/appconfig.ini

    # controllers/default.py
    def buy():
        receipt = pipeline.enqueue_insert(db.purchase, customer=auth.user_id, qty=3)
        redirect(URL("show", args=receipt.id))

Only this package imports gluon.
"""

from __future__ import annotations

from pipeline.web2py.face import Pipeline

__all__ = ["Pipeline"]
