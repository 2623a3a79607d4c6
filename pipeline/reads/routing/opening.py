"""One read's node, as a context manager: opened on the way in; noted in the session and given back on the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

from pipeline.errors import ShardUnavailable
from pipeline.model.op import Position
from pipeline.reads.node_dal import NodeDAL
from pipeline.reads.routing.bounds import Bounds
from pipeline.reads.routing.contract import Needs, Opened
from pipeline.reads.session import Session


class Ways(Protocol):
    """See `router.Router`."""

    def enter(self, shard: str, needs: Needs, bounds: Bounds) -> Opened: ...  # noqa: D102
    def leave(self, shard: str, node: str, failure: BaseException | None) -> None: ...  # noqa: D102
    def passed(self, shard: str) -> dict[int, Position]: ...  # noqa: D102


class Opening:
    """A node of a shard for one read, used once. A class, since two generators cost as much as all the rest of routing.

    Args:
        needs: what the read must see.
        session: takes up what the node had of the *buckets* (None: of all).
        ready: makes the DAL ready for its user.
    """

    __slots__ = ("_asked", "_buckets", "_opened", "_ready", "_relied_on", "_router", "_session", "_shard")

    def __init__(
        self,
        router: Ways,
        shard: str,
        needs: Needs,
        bounds: Bounds,
        session: Session | None,
        buckets: Iterable[int] | None,
        ready: Callable[[NodeDAL], object] | None,
    ):
        self._router, self._shard, self._asked = router, shard, (needs, bounds)
        self._session, self._buckets, self._ready = session, buckets, ready

    def __enter__(self) -> NodeDAL:
        """Choose a node and open it.

        Raises:
            StaleRead: no node has what the read must see, in time, or may serve it.
            ShardUnavailable: no node answers.
        """
        needs, bounds = self._asked
        self._opened = self._router.enter(self._shard, needs, bounds)  # counted as running from here on
        db = NodeDAL(*self._opened)
        # knowledge belongs to the connection: should it be replaced in the middle, the read must fail
        self._relied_on = self._opened.reader.rely(bool(needs))
        try:
            if self._ready is not None:
                self._ready(db)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return db

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the node back."""
        reader, info = self._opened
        reader.relied(self._relied_on)
        try:
            if failure is None and self._session is not None:
                # looked at afterwards: rows may be newer than a mark that was looked at before
                marks = reader.marks(self._buckets)
                self._session.saw(marks, self._router.passed(self._shard), stale=info.stale)
        except ShardUnavailable as late:
            failure = late
            raise
        finally:
            self._router.leave(self._shard, info.node, failure)
