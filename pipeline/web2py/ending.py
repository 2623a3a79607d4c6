"""The end of a web2py request: its ops are sent once every database has committed, or dropped with a ticket.

web2py calls `response.custom_commit` with the adapter of each DAL, which it must commit, and once more with None; on a
ticket it calls `response._custom_rollback`. pyDAL swallows a commit's error there: here it becomes a ticket, and
nothing is sent. `redirect` and `raise HTTP(...)` are no failures: web2py commits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gluon import current

from pipeline.web.request import Request


def attend(request: Request, db: Any, keep: Callable[[str | None], None], *, from_db: bool = False) -> None:
    """Let a request's pipeline end with the request.

    What was in the two hooks before is called first; what a controller puts there afterwards must do the same.

    Args:
        db: the application's DAL.
        keep: takes the text of the user's session.
        from_db: the ops stand in a table of *db*, whose connection is used once more after web2py has given it back.
    """
    response = current.response
    commit: Any = response.custom_commit
    rollback: Any = response._custom_rollback

    failed: list[Exception] = []

    def committed(adapter: Any) -> None:
        if adapter is not None:
            try:
                commit(adapter) if commit else adapter.commit()
            except Exception as error:  # pyDAL swallows it, and web2py takes the request for a success
                failed.append(error)
                raise
            return
        if commit:
            commit(None)
        if failed:
            request.drop()
            raise failed[0]
        try:
            keep(request.finish())
        finally:
            if from_db:
                db._adapter.close("commit")

    def rolled_back() -> None:
        request.drop()
        if rollback:
            rollback()
        else:
            type(db._adapter).close_all_instances("rollback")

    response.custom_commit, response._custom_rollback = committed, rolled_back
