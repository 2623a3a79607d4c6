"""Connect to Redis or Valkey, alone or behind Sentinel; run scripts; turn replies and errors into ours."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from ssl import CERT_NONE, CERT_REQUIRED
from typing import Any, Self, TypeVar

import redis
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from pipeline import clock
from pipeline.bounds import WaitBudgets, WaitBudgetSpent
from pipeline.config.buckets import log_number
from pipeline.config.settings import RedisSettings
from pipeline.config.uris import TLS, parse
from pipeline.errors import LogUnavailable, PipelineFull
from pipeline.model import Position
from pipeline.oplog.redis.keys import Keys, keys_of
from pipeline.oplog.redis.wire import Wire
from pipeline.per_process import PerProcess

#: A socket may idle this long behind a firewall before the next use checks it, s.
HEALTH_CHECK_S = 30
#: Digits of a number of ours at most: it is below 2**63. What has more was put there by somebody else.
MOST_DIGITS = 19
#: A reason why nothing is taken is shorter, characters.
MOST_REASON = 300
#: Where ops are so large, the server sends only how an entry begins if its place or its age is all that is wanted.
CUT_BYTES = 100_000
#: So many bytes of entries are cut in one round trip at most: a server does all of it before it serves anybody else.
CUT_AT_ONCE_BYTES = 10_000_000
_Result = TypeVar("_Result")
#: How long a server may take to answer, s.
ANSWER_S = 2.0


def connect(url: str, *, read_s: float, connect_s: float) -> redis.Redis:
    """Return a client of `redis://`, `rediss://`, `unix://` or `sentinel://host:port,host:port/master/db`.

    Nothing is sent yet. The driver retries no command: only the caller knows what may be sent twice. A server with TLS
    is verified, unless the address says `ssl_verify=false`.

    Args:
        url: the address; see `pipeline.config.uris`.
        read_s: the longest wait for a reply.
        connect_s: the longest wait for a connection.

    Raises:
        ValueError: the address cannot be read.
    """
    address = parse(url)
    options: dict[str, Any] = {
        "username": address.user,
        "password": address.password,
        "db": address.number,
        "socket_timeout": read_s,
        "health_check_interval": HEALTH_CHECK_S,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "pipeline",
    }
    if address.on_socket:
        return _client(options | {"connection_class": redis.UnixDomainSocketConnection, "path": address.path})
    secure = tls_options(address.tls)
    options |= {"socket_connect_timeout": connect_s, "socket_keepalive": True, **secure}
    if address.scheme == "sentinel":
        hosts = [(host, port or address.default_port) for host, port in address.hosts]
        sentinel: Any = Sentinel(
            hosts, sentinel_kwargs=to_sentinels(address.tls, connect_s), ssl=bool(secure), **options
        )  # type: ignore[no-untyped-call]
        client: redis.Redis = sentinel.master_for(address.master)
        return client
    host, port = address.hosts[0]
    kind = redis.SSLConnection if secure else redis.Connection
    options |= {"host": host or "localhost", "port": port or address.default_port}
    return _client(options | {"connection_class": kind})


def _client(options: Mapping[str, Any]) -> redis.Redis:
    client = redis.Redis(connection_pool=redis.ConnectionPool(**options))
    client.auto_close_connection_pool = True
    return client


def tls_options(tls: TLS | None) -> dict[str, Any]:
    """Return what redis-py, and Celery's transport over it, take for TLS; nothing without it.

    Args:
        tls: what the address says.
    """
    if tls is None:
        return {}
    files = {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.cert, "ssl_keyfile": tls.key}
    return {
        "ssl_cert_reqs": CERT_REQUIRED if tls.verify else CERT_NONE,
        "ssl_check_hostname": tls.verify,
        **{name: path for name, path in files.items() if path},
    }


def to_sentinels(tls: TLS | None, wait_s: float) -> dict[str, Any]:
    """Return the options of connections to Sentinels: each is queried once, where redis-py would try for seconds.

    Args:
        tls: what the address says.
        wait_s: the longest wait for one of them.
    """
    waits = {"socket_timeout": wait_s, "socket_connect_timeout": wait_s, "retry": Retry(NoBackoff(), 0)}
    return {**waits, "ssl": tls is not None, **tls_options(tls)}


@cache
def script(name: str) -> tuple[str, str]:
    """Return a script's text and its SHA1.

    Args:
        name: of the file in `lua/`, without its ending.
    """
    text = (files("pipeline.oplog.redis") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class translated:  # noqa: N801
    """Turns the driver's errors into ours, within a `with`; a generator's context takes three times as long.

    Args:
        sent: whether a command without a reply may have been done.

    Raises:
        PipelineFull: Redis has no memory left.
        LogUnavailable: Redis refused the command, or did not answer.
    """

    __slots__ = ("_sent",)

    def __init__(self, *, sent: bool = False):
        self._sent = sent

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise our error in place of the driver's."""
        if isinstance(error, redis.exceptions.ResponseError):
            full = isinstance(error, redis.exceptions.OutOfMemoryError)
            if full or str(error).startswith("OOM") or "-OOM" in str(error):
                raise PipelineFull("Redis is at maxmemory") from error
            raise LogUnavailable(str(error), sent=False) from error
        if isinstance(error, redis.exceptions.RedisError | OSError):
            silent = not isinstance(error, WaitBudgetSpent)
            raise LogUnavailable(f"{type(error).__name__}: {error}", sent=self._sent, silent=silent) from error


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
        #: Of each log with large ops where it ended, and where its last epoch began, and until when that counts, s.
        self._lasts: dict[int, tuple[bytes, float]] = {}
        self._firsts: dict[int, tuple[Position, float]] = {}
        self._leisurely = connect(url, read_s=read_s, connect_s=min(read_s, 2.0)).connection_pool
        # two tries: read, then connect and read again; see `RedisLine.ask` for when the first lasts longer
        self._reply_s = timeout_s * 0.4
        self._quick = connect(url, read_s=self._reply_s, connect_s=timeout_s * 0.2)
        self._lines = self._quick.connection_pool
        self._wait_budgets = wait_budgets
        #: The wire of each thread that applies, and when it was last used, s.
        self._own = PerProcess(threading.local)

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

    def _run_own(self, name: str, keys: list[str], arguments: list[Any]) -> Any:
        """Run a script as `_run` does, over a wire that this thread keeps: at half of the driver's work."""
        [found] = self._told(("EVALSHA", script(name)[1], len(keys), *keys, *arguments))
        if isinstance(found, redis.exceptions.NoScriptError):
            return self._run(name, keys, arguments)
        return result_of(found)

    def _told(self, *commands: Sequence[Any]) -> list[Any]:
        """Return the replies to commands that are sent together over this thread's wire; a refusal is among them.

        For threads that last: a wire stays open until the server's client is closed, whether or not its thread ends.
        """
        packed = b"".join(pack_command(tuple(command)) for command in commands)
        with translated(), self._wire() as wire:
            return wire.ask_all(packed, len(commands))

    def _own_hash(self, key: str) -> dict[str, str]:
        """Return a hash as texts, over this thread's wire."""
        [found] = self._told(("HGETALL", key))
        flat = result_of(found)
        return hash_of(flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True)))

    @contextmanager
    def _wire(self) -> Iterator[Wire]:
        """Yield this thread's own wire. It is made anew after an error, after a pause, and where the server is gone."""
        own, now_s = self._own(), clock.mono_s()
        wire: Wire | None = getattr(own, "wire", None)
        if wire is not None and (now_s > own.used_s + HEALTH_CHECK_S or wire.readable()):
            wire.drop()
            wire = None
        own.wire, own.used_s = None, now_s
        wire = wire or Wire(self._client.connection_pool)
        try:
            yield wire
        except BaseException:
            wire.drop()
            raise
        own.wire = wire

    def _run_each(self, name: str, calls: Sequence[tuple[list[str], list[Any]]]) -> list[Any]:
        """Run a script several times, with keys and arguments, in one round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        for keys, arguments in calls:
            pipe.evalsha(script(name)[1], len(keys), *keys, *arguments)
        with translated():
            try:
                return list(pipe.execute())
            except redis.exceptions.NoScriptError:  # what some calls have done already, all do again
                return [self._run(name, keys, arguments) for keys, arguments in calls]

    def _large(self, buckets: Iterable[int]) -> dict[int, int]:
        """Return of each bucket that has large ops how large they are."""
        names = list(buckets)
        with translated():
            found: Any = (
                self._client.mget([f"{self.keys.bigs}{log_number(bucket)}" for bucket in names]) if names else []
            )
        sizes = {bucket: numbers_of(text_of(one), " ", 1) for bucket, one in zip(names, found, strict=True) if one}
        return {bucket: size[0] for bucket, size in sizes.items() if size and size[0] >= CUT_BYTES}

    def _despite_oom(self, command: str, key: str, *rest: Any) -> Any:
        return self._run("despite_oom", [key], [command, *rest])


def result_of(reply: Any) -> Any:
    """Return a reply that is no refusal.

    Args:
        reply: of a wire.

    Raises:
        PipelineFull, LogUnavailable: the server refused the command.
    """
    if isinstance(reply, redis.exceptions.RedisError):
        with translated():
            raise reply
    return reply


def text_of(value: Any) -> str:
    """Return a reply as text; None is the empty text.

    Args:
        value: the reply.
    """
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def numbers_of(text: str, separator: str, count: int) -> tuple[int, ...] | None:
    """Return whole numbers that a key of ours keeps as text; None where anybody else has put something there.

    Args:
        text: the value.
        separator: stands between the numbers.
        count: how many there are.
    """
    parts = text.split(separator)
    fit = len(parts) == count and all(
        part.isascii() and part.isdecimal() and len(part) <= MOST_DIGITS for part in parts
    )
    return tuple(map(int, parts)) if fit else None


def by_bucket(found: Mapping[Any, Any]) -> dict[int, str]:
    """Return a hash as texts by bucket, without fields that are no bucket.

    Args:
        found: the reply.
    """
    return {int(key): text for key, text in hash_of(found).items() if numbers_of(key, " ", 1)}


def position_or_none(text: str) -> Position | None:
    """Return a position that a key of ours keeps as text; None where anybody else has put something there.

    Args:
        text: the value.
    """
    numbers = numbers_of(text.replace("--1", "-0", 1), "-", 2)
    return Position.parse(text) if numbers else None


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


@dataclass(frozen=True, slots=True)
class Health:
    """One server, seen through one database.

    Attributes:
        version: of the server's commands; Valkey names the Redis version that it is compatible with.
        run_id: equal for two addresses of one server.
        role: `master` or `slave`.
        max_bytes: the memory limit, 0 for none.
        policy: what the server evicts at the limit.
        append_only: whether the server has an append-only file.
        fsync: when the append-only file is synced, or None if this user may not see it.
        skew_ms: the server's clock minus this machine's; 0 if the round trip explains the difference.
        cluster: whether the server is a node of a Redis Cluster.
        bulk_bytes: the size of the largest text that it takes, or None if this user may not see it.
    """

    version: str
    run_id: str
    role: str
    max_bytes: int
    policy: str
    append_only: bool
    fsync: str | None
    skew_ms: int
    cluster: bool
    bulk_bytes: int | None = None

    @property
    def release(self) -> tuple[int, ...]:
        """The first two numbers of the version."""
        return tuple(int(part) for part in self.version.split(".")[:2] if part.isdigit())


def health_of(url: str) -> Health:
    """Query the server at an address.

    Args:
        url: of the log or of the broker.

    Raises:
        LogUnavailable: the server did not answer in time, or refused.
    """
    try:
        client = connect(url, read_s=ANSWER_S, connect_s=ANSWER_S)
    except ValueError as error:
        raise LogUnavailable("its address cannot be read", sent=False) from error
    try:
        with translated():
            facts: dict[str, Any] = dict(client.info())
            before = clock.wall_ms()
            seconds, micros = client.time()
            after = clock.wall_ms()
        there = seconds * 1000 + micros // 1000
        return Health(
            version=str(facts.get("redis_version", "")),
            run_id=str(facts.get("run_id", "")),
            role=str(facts.get("role", "")),
            max_bytes=int(facts.get("maxmemory", 0)),
            policy=str(facts.get("maxmemory_policy", "")),
            append_only=bool(int(facts.get("aof_enabled", 0))),
            fsync=setting(client, "appendfsync"),
            skew_ms=there - min(max(there, before), after),
            cluster=bool(int(facts.get("cluster_enabled", 0))),
            bulk_bytes=int(setting(client, "proto-max-bulk-len") or 0) or None,
        )
    finally:
        client.close()


def setting(client: redis.Redis, name: str) -> str | None:
    """Return a setting of a server; None where the server hides its configuration, as managed ones do.

    Args:
        client: of the server.
        name: as in `redis.conf`.
    """
    try:
        found: Any = client.config_get(name)
        return str(found.get(name) or "") or None
    except redis.exceptions.ResponseError:
        return None
