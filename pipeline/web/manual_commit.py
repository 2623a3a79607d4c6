"""Send or drop a request's ops where the application ends its transaction itself, in the middle of the request.

Old controllers do that: `db.commit()` in a loop so that a later fault does not undo all, `db.rollback()` behind an
`except`. What was queued by then is sent with the one, and dropped with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.web.request import Request

#: Returns the requests of the moment whose ops go with a DAL.
Begun = Callable[[], Iterable[Request]]
#: Where a DAL, which may outlive a request, keeps whom it tells.
_TOLD = "_pipeline_told"


def follow_commits(db: Any, begun: Begun) -> None:
    """Let `db.commit()` send what is held, and `db.rollback()` drop it; frameworks end requests in another way.

    Args:
        db: the application's DAL.
        begun: returns the requests of the moment whose ops go with *db*.
    """
    told: list[Begun] | None = vars(db).get(_TOLD)
    if told is None:
        told = _tell(db)
    if begun not in told:
        told.append(begun)


def _tell(db: Any) -> list[Begun]:
    told: list[Begun] = []
    own_commit, own_rollback = db.commit, db.rollback

    def requests() -> Iterator[Request]:
        for begun in told:
            yield from begun()

    def commit() -> None:
        own_commit()
        for request in requests():
            request.send()

    def rollback() -> None:
        own_rollback()
        for request in requests():
            request.forget()

    for name, value in ((_TOLD, told), ("commit", commit), ("rollback", rollback)):
        object.__setattr__(db, name, value)
    return told
