"""The users of deploy/redis/log.acl, on a server that a test has started."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis

from support.servers.deploying import DEPLOY

#: Of the servers of the log that tests start.
PASSWORD = secrets.token_hex(16)


def as_shipped(server: Any, user: str) -> str:
    """Give a server a user of the shipped file, beside its own; return the server's address for the user."""
    lines = (DEPLOY / "redis" / "log.acl").read_text().splitlines()
    [rules] = [rules for _, name, *rules in map(str.split, lines) if name == user]
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", user, *(">secret" if one[0] == ">" else one for one in rules))
    return f"redis://{user}:secret@127.0.0.1:{server.port}/0"


@contextmanager
def admin_of(log: Any) -> Iterator[Redis]:
    """Connect to a log's server as one who may do everything there."""
    port = log._client.connection_pool.connection_kwargs["port"]
    with Redis(port=port, password=PASSWORD, socket_timeout=5, socket_connect_timeout=2) as admin:
        yield admin
