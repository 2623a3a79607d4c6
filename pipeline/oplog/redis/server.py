"""One Redis or Valkey server, and the connections on which it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import redis

from pipeline.oplog.redis.connection import connect, script, translated
from pipeline.oplog.redis.keys import Keys
from pipeline.wait_budget import Patience

Result = TypeVar("Result")


class Server:
    """What every role of the log asks.

    Args:
        url: see `connection.connect`.
        prefix: of every key.
        timeout_s: the longest that one append may take in all, its second try included.
        read_s: the longest that any other call may take.
        patience: of the callers, where there is a spool to go to: then also what a web request needs beside appends
            (definitions, ids, epochs) ends with it.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "pl",
        timeout_s: float = 0.25,
        read_s: float = 5.0,
        patience: Patience | None = None,
    ):
        self.keys = Keys(prefix)
        self._client = connect(url, read_s=read_s, connect_s=min(read_s, 2.0))
        # raw replies: the driver would make a dict of every entry
        for command in ("XRANGE", "XREVRANGE"):
            self._client.response_callbacks.pop(command, None)
        self._leisurely = connect(url, read_s=read_s, connect_s=min(read_s, 2.0)).connection_pool
        # two tries: read, then connect and read again
        self._reply_s = timeout_s * 0.4
        self._quick = connect(url, read_s=self._reply_s, connect_s=timeout_s * 0.2)
        self._lines = self._quick.connection_pool
        self._patience = patience

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._client.connection_pool.disconnect()
        self._lines.disconnect()
        self._leisurely.disconnect()

    def _soon(self, work: Callable[[redis.Redis], Result]) -> Result:
        """Do what a web request may be waiting for; then a thread does it, and the request leaves in time."""
        patience = self._patience
        if patience is None or patience.here.budget is None:
            return work(self._client)
        return patience.aside(lambda: work(self._quick))

    def _run(self, name: str, keys: list[str], arguments: list[Any], client: redis.Redis | None = None) -> Any:
        client, (text, sha) = client or self._client, script(name)
        with translated():
            try:
                return client.evalsha(sha, len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                return client.eval(text, len(keys), *keys, *arguments)

    def _despite_oom(self, command: str, key: str, *rest: Any) -> Any:
        return self._run("despite_oom", [key], [command, *rest])
