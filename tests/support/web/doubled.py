"""Two requests with one idempotency key at the same moment: how an application lets them meet, and who sends them.

The requests meet before their call and after it, by files, for they may be served by two processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from support.web.shop import Shop
from support.web.web2py_server import Answer, Browser

#: `meet(folder, step, query)` for a model or an application; *query* has `key` and `who`: first or second.
MEET = '''\
def meet(folder, step, query):
    """Wait until both requests with this key have come so far."""
    import os
    from pipeline.clock import polls
    gates = os.path.join(folder, "gates")
    os.makedirs(gates, exist_ok=True)
    paths = [os.path.join(gates, "%s.%s.%s" % (query["key"], step, who)) for who in ("first", "second")]
    open(paths[query["who"] == "second"], "w").close()
    for _ in polls(20):
        if all(map(os.path.exists, paths)):
            return
    raise RuntimeError("the other request did not come")
'''


class Doubled(NamedTuple):
    """The answers to the first request and to the second."""

    first: Answer
    second: Answer


def sent_at_once(browsers: Sequence[Browser], action: str, fields: dict[str, Any], **query: Any) -> Doubled:
    """Post a form twice at the same moment, by two users; its `qty` tells which it was: 1 or 2."""

    def send(nth: int) -> Answer:
        asked = "&".join(f"{name}={value}" for name, value in {**query, "who": ("first", "second")[nth]}.items())
        return browsers[nth].post(f"{action}?{asked}", fields, qty=nth + 1)

    with ThreadPoolExecutor(2) as threads:
        return Doubled(*threads.map(send, range(2)))


def both_show_the_one_row(browsers: Sequence[Browser], answers: Doubled, shop: Shop, customer: int) -> None:
    """Assert that both were redirected to the page of the one row that a customer has."""
    shown = [user.get(answer.location).json() for user, answer in zip(browsers, answers, strict=True)]

    assert [answer.status for answer in answers] == [303, 303]
    [row] = shop.sales(f"customer={customer}", "id, qty")
    assert ["{id}\t{qty}".format(**page) for page in shown] == [row, row]


def the_second_wrote_the_row(browsers: Sequence[Browser], answers: Doubled, shop: Shop, customer: int) -> None:
    """Assert that the first ended in a ticket, and that the second was redirected to the page of its own row."""
    failed, redirected = answers
    shown = browsers[1].get(redirected.location).json()

    assert (failed.status, redirected.status) == (500, 303)
    assert shop.sales(f"customer={customer}", "id, qty") == [f"{shown['id']}\t2"]
