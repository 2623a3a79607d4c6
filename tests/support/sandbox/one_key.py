"""A request that makes its call with the one key that others use too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from pipeline.client import Client
from pipeline.enqueue.held_ops import Held
from pipeline.model.receipt import Receipt


class Caller:
    """A request in mode on_commit, whose op is sent when it ends, or with `held=False` in mode now."""

    def __init__(self, client: Client, buy: Callable[..., Receipt], *, held: bool):
        self._client, self._buy = client, buy
        self._ops: Held | None = client.held() if held else None

    def buys(self, qty: int, **options: Any) -> Receipt:
        with nullcontext() if self._ops is None else self._client.holding(self._ops):
            return self._buy(qty, idempotency_key="form 1", **options)

    def ends(self, ticket: bool = False) -> None:
        if self._ops is not None:
            self._ops.drop() if ticket else self._ops.send()
