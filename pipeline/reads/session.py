"""A reader's session: his token grows with what he writes and sees, so that he never sees an older state again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.model.op import Position
from pipeline.reads.token import Need, Token, is_receipt, token_of


class Session:
    """What one reader has written and seen. Pass it as `after=`; threads may share it.

    Args:
        token: what he brought along.
        seal: prints the token: see `seal.Seal.print`.
    """

    def __init__(self, token: Token, seal: Any):
        self._lock = threading.Lock()
        self._token, self._seal = token, seal

    @property
    def token(self) -> Token:
        """What the next read must see."""
        return self._token

    def wrote(self, receipts: Any) -> None:
        """Let the next reads see these ops: a receipt, or any number of them."""
        token = token_of([receipts] if is_receipt(receipts) else receipts)
        with self._lock:
            self._token = self._token.merged(token)

    def saw(self, marks: Mapping[int, Position], passed: Mapping[int, Position], *, stale: bool) -> None:
        """Note an answer.

        Args:
            marks: the watermarks that the node had after it had answered.
            passed: what every node is known to have; need not be remembered.
            stale: the answer was marked as stale, so the node may lack what the token asks for.
        """
        with self._lock:
            if stale:
                seen = Token({bucket: Need(mark) for bucket, mark in marks.items() if mark.epoch > 0})
                self._token = self._token.merged(seen).forget(passed)
            else:
                self._token = self._token.saw(marks).forget(passed)

    def __str__(self) -> str:
        return str(self._seal.print(self._token))

    def __repr__(self) -> str:
        return f"<Session {self._token!r}>"


def least_marks(marks: Iterable[Mapping[int, Position]]) -> dict[int, Position]:
    """Return the watermarks that every node has passed; none where there is a node of which nothing is known."""
    least: dict[int, Position] | None = None
    for known in marks:
        if least is None:
            least = dict(known)
        else:
            least = {bucket: min(position, known[bucket]) for bucket, position in least.items() if bucket in known}
    return least or {}
