"""Connections to Redis or Valkey, alone or behind Sentinel; the scripts; drivers' errors become ours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from pipeline.errors import LogUnavailable, PipelineFull

#: A socket may idle this long behind a firewall before the next use checks it, s.
HEALTH_CHECK_S = 30


def connect(url: str, *, read_s: float, connect_s: float) -> redis.Redis:
    """Return a client of `redis://`, `rediss://`, `unix://` or `sentinel://host:port,host:port/master/db`.

    Nothing is sent yet. Commands are not retried by the driver: only the caller knows what may be sent twice.
    """
    options: dict[str, Any] = {
        "socket_timeout": read_s,
        "socket_connect_timeout": connect_s,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_S,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "pipeline",
    }
    url = url.replace("redis+socket://", "unix://", 1)  # kombu's word for the same
    if not url.startswith("sentinel://"):
        if url.startswith("unix://"):
            options.pop("socket_connect_timeout")
            options.pop("socket_keepalive")
        return redis.Redis.from_url(url, **options)
    hosts, master, login = sentinel_parts(url)
    sentinel: Any = Sentinel(hosts, sentinel_kwargs={"socket_timeout": connect_s}, **options)  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(master, **login)
    return client


def sentinel_parts(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """Split `sentinel://[user:password@]host:port,host:port/master/db`."""
    parts = urlsplit(url)
    login, _, netloc = parts.netloc.rpartition("@")
    hosts = []
    for host in netloc.split(","):
        name, _, port = host.partition(":")
        hosts.append((name, int(port or 26379)))
    master, _, db = parts.path.strip("/").partition("/")
    options: dict[str, Any] = {"db": int(db or 0), **dict(parse_qsl(parts.query))}
    if login:
        user, _, password = login.partition(":")
        options |= {"username": unquote(user) or None, "password": unquote(password) or None}
    return hosts, master, options


@cache
def script(name: str) -> tuple[str, str]:
    """Return a script's text and its SHA1."""
    text = (files("pipeline.oplog.redis") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def translated(*, sent: bool = False) -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise PipelineFull("Redis is at maxmemory") from error
    except redis.exceptions.ResponseError as error:
        if str(error).startswith("OOM") or "-OOM" in str(error):
            raise PipelineFull("Redis is at maxmemory") from error
        raise LogUnavailable(str(error), sent=False) from error
    except (redis.exceptions.RedisError, OSError) as error:
        raise LogUnavailable(f"{type(error).__name__}: {error}", sent=sent) from error
