"""The end of a web2py request: its ops are sent once every database has committed, or dropped with a ticket.

web2py calls `response.custom_commit` with the adapter of each DAL, which it must commit, and once more with None; on a
ticket it calls `response._custom_rollback`. `redirect` and `raise HTTP(...)` are no failures: web2py commits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gluon import current

from pipeline.web.request import Request


def attend(request: Request, db: Any, keep: Callable[[str | None], None]) -> None:
    """Let a request's pipeline end with the request.

    What was in the two hooks before is called first; what a controller puts there afterwards must do the same.

    Args:
        db: any DAL, to roll back with.
        keep: takes the text of the user's session.
    """
    response = current.response
    commit: Any = response.custom_commit
    rollback: Any = response._custom_rollback

    def committed(adapter: Any) -> None:
        if adapter is None:
            if commit:
                commit(None)
            keep(request.finish())
        elif commit:
            commit(adapter)
        else:
            adapter.commit()

    def rolled_back() -> None:
        request.drop()
        if rollback:
            rollback()
        else:
            type(db._adapter).close_all_instances("rollback")

    response.custom_commit, response._custom_rollback = committed, rolled_back
