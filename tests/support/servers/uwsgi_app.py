"""A WSGI application that makes one web request with one op, as a face does; uWSGI serves it in tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pipeline
from pipeline.web.request import Request
from support.tables import define


@cache
def tables() -> Any:
    return define()


def application(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Insert an event; `?owner=1&body=text`."""
    given = dict(pair.split("=") for pair in environment["QUERY_STRING"].split("&"))
    client = pipeline.current()
    client.define_tables(tables())
    request = Request(client, client.held(), "")
    receipt = request.enqueue_insert("event", owner=int(given["owner"]), body=given["body"])
    request.finish()
    start("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"sent": receipt.position is not None, "receipt": str(receipt)}).encode()]
