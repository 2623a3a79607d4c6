"""Connect to Redis or Valkey, alone or behind Sentinel; run scripts; turn replies into values, and errors into ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from pipeline.config.settings import RedisSettings
from pipeline.errors import LogUnavailable, PipelineFull
from pipeline.model.op import FORGED, TOO_LARGE, Entry, Position
from pipeline.oplog.redis.keys import Keys
from pipeline.oplog.redis.signature import has_signature, keys_of, opened, place
from pipeline.wait_budget import WaitBudgets, WaitBudgetSpent

#: A socket may idle this long behind a firewall before the next use checks it, s.
HEALTH_CHECK_S = 30


def connect(url: str, *, read_s: float, connect_s: float) -> redis.Redis:
    """Return a client of `redis://`, `rediss://`, `unix://` or `sentinel://host:port,host:port/master/db`.

    Nothing is sent yet. The driver retries no command: only the caller knows what may be sent twice.

    Args:
        url: the address.
        read_s: the longest wait for a reply.
        connect_s: the longest wait for a connection.
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
    """Return the hosts with their ports, the master's name, and the options of the master's client.

    Args:
        url: `sentinel://[user:password@]host:port,host:port/master/db`.
    """
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
    """Return a script's text and its SHA1.

    Args:
        name: of the file in `lua/`, without its ending.
    """
    text = (files("pipeline.oplog.redis") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def translated(*, sent: bool = False) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Args:
        sent: whether a command without a reply may have been done.

    Raises:
        PipelineFull: Redis has no memory left.
        LogUnavailable: Redis refused the command, or did not answer.
    """
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise PipelineFull("Redis is at maxmemory") from error
    except redis.exceptions.ResponseError as error:
        if str(error).startswith("OOM") or "-OOM" in str(error):
            raise PipelineFull("Redis is at maxmemory") from error
        raise LogUnavailable(str(error), sent=False) from error
    except (redis.exceptions.RedisError, OSError) as error:
        silent = not isinstance(error, WaitBudgetSpent)
        raise LogUnavailable(f"{type(error).__name__}: {error}", sent=sent, silent=silent) from error


_Result = TypeVar("_Result")


class RedisServer:
    """The server that every role of the log uses.

    Args:
        url: see `connect`.
        prefix: of every key.
        timeout_s: the longest that one append may take in all, its second try included.
        read_s: the longest that any other call may take.
        wait_budgets: of the callers, if there is a spool: they also end what a web request needs beside appends, which
            is schemas, ids and epochs.
        sign_key: as in the settings; signs ops and definitions, and tells those of others.
        accept_unsigned: whether what has no signature is taken all the same.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "pl",
        timeout_s: float = 0.25,
        read_s: float = 5.0,
        wait_budgets: WaitBudgets | None = None,
        sign_key: str = "",
        accept_unsigned: bool = False,
    ):
        self.keys = Keys(prefix)
        self._sign_keys, self._unsigned = keys_of(sign_key, prefix), accept_unsigned
        self._client = connect(url, read_s=read_s, connect_s=min(read_s, 2.0))
        # raw replies: the driver would make a dict of every entry
        for command in ("XRANGE", "XREVRANGE"):
            self._client.response_callbacks.pop(command, None)
        self._leisurely = connect(url, read_s=read_s, connect_s=min(read_s, 2.0)).connection_pool
        # two tries: read, then connect and read again
        self._reply_s = timeout_s * 0.4
        self._quick = connect(url, read_s=self._reply_s, connect_s=timeout_s * 0.2)
        self._lines = self._quick.connection_pool
        self._wait_budgets = wait_budgets

    @classmethod
    def of(cls, redis: RedisSettings, **times: Any) -> Self:
        """Return the server that a deployment's settings name.

        Args:
            redis: the settings.
            times: as for the class.
        """
        key, lenient = redis.sign_key, redis.accept_unsigned
        return cls(redis.url, prefix=redis.prefix, sign_key=key, accept_unsigned=lenient, **times)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._client.connection_pool.disconnect()
        self._lines.disconnect()
        self._leisurely.disconnect()

    def _soon(self, work: Callable[[redis.Redis], _Result]) -> _Result:
        """Do what a web request may wait for; a thread does it if the request has a wait budget."""
        wait_budgets = self._wait_budgets
        if wait_budgets is None or wait_budgets.here.budget is None:
            return work(self._client)
        # a cold process is slow itself: its caller's budget ends the wait, and no reply's time-out
        return wait_budgets.aside(lambda: work(self._client if wait_budgets.cold else self._quick))

    def _run(self, name: str, keys: list[str], arguments: list[Any], client: redis.Redis | None = None) -> Any:
        client, (text, sha) = client or self._client, script(name)
        with translated():
            try:
                return client.evalsha(sha, len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                return client.eval(text, len(keys), *keys, *arguments)

    def _despite_oom(self, command: str, key: str, *rest: Any) -> Any:
        return self._run("despite_oom", [key], [command, *rest])


def text_of(value: Any) -> str:
    """Return a reply as text; None is the empty text.

    Args:
        value: the reply.
    """
    return value.decode() if isinstance(value, bytes) else value or ""


def hash_of(found: Mapping[Any, Any]) -> dict[str, str]:
    """Return a hash as texts.

    Args:
        found: the reply.
    """
    return {text_of(key): text_of(value) for key, value in found.items()}


def ring_of(reply: Any) -> tuple[bool, int]:
    """Return whether to ring, and how many buckets are dirty.

    Args:
        reply: of `finish.lua` or `sweep.lua`.
    """
    ring, dirty = text_of(reply).split(" ")
    return ring == "1", int(dirty)


def position_of(id: Any) -> Position:
    """Return an entry's id as a position.

    Args:
        id: the reply.
    """
    return Position.parse(text_of(id))


def entries_of(bucket: int, reply: Any, keys: Sequence[bytes] = (), *, unsigned: bool = False) -> list[Entry]:
    """Return what XRANGE found.

    Args:
        bucket: the log's bucket.
        reply: of XRANGE.
        keys: of the deployment, see `signature`; none: ops need no signature.
        unsigned: whether an op needs none all the same.
    """
    entries = []
    for id, fields in reply:
        epoch, _, nth = id.partition(b"-")
        position = Position(int(epoch), int(nth))
        try:
            _, producer, _, seq, _, payload = fields  # p <producer> s <producer seq> o <op>, always in this order
            sender, number = int(producer), int(seq)
        except ValueError:
            sender = number = 0
        if not (0 < sender < TOO_LARGE and 0 < number < TOO_LARGE):
            sender, number, payload = 0, 0, _strange(fields)
        elif keys or has_signature(payload):
            text = opened(keys, place(bucket, sender, number), payload, unsigned=unsigned)
            if text is None:
                sender, number, text = 0, FORGED, _strange(fields)
            payload = text
        entries.append(Entry(bucket, position, sender, number, payload))
    return entries


def _strange(fields: Sequence[bytes]) -> bytes:
    """Return the fields of an entry as JSON in ASCII: a character for each byte."""
    return json.dumps([field.decode("latin-1") for field in fields]).encode()
