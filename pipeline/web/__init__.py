"""Keep one client per process and configuration, and warm the process up once.

Requests come and go; connections and what is known of the nodes stay. An application's configuration is the section
`[pipeline]` of its AppConfig, or a TOML file beside it. Files are read once; a request costs a look into a dict.

web2py collects all garbage at every hundredth request, and Python does it now and then. All threads wait while every
object of the process is visited. So what is imported and made by then is frozen: it is visited no more. A frozen object
is still freed when nothing refers to it, unless in a cycle.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from ssl import CERT_NONE
from typing import Any, NamedTuple
from urllib.parse import quote

import pipeline
from pipeline.client import Client
from pipeline.config.files import ELSEWHERE, NOT_FOUND, OWN, SECTION, own_address, read_sections, sections
from pipeline.config.settings import Settings, load
from pipeline.config.uris import Address, database_of, host_of
from pipeline.errors import ConfigError, PipelineError
from pipeline.events import Event

_lock = threading.Lock()
_clients: dict[Hashable, Client] = {}
#: Sections of an application's ini file, by the path of that file.
_read: dict[Path, Mapping[str, Any]] = {}
logger = logging.getLogger("pipeline.web")


def client_of(key: Hashable, source: Callable[[], Path | Mapping[str, Any] | Settings]) -> Client:
    """Return the process's client of a configuration.

    The first one also answers for the functions of `pipeline`, unless somebody has called `pipeline.configure`.

    Args:
        key: what tells this configuration from others; cheap to make, since every request does.
        source: returns the configuration; called once.
    """
    client = _clients.get(key)
    if client is None:
        with _lock:
            client = _clients.get(key)
            if client is None:
                client = _clients[key] = Client(source())
                if not pipeline.configured():
                    pipeline.configure(client)
    return client


def close_clients() -> None:
    """Close all clients; the next request makes its own."""
    with _lock:
        while _clients:
            _clients.popitem()[1].close()


#: Files in an application's `private/` that are looked for where no configuration is given, in this order.
TOML_FILE, INI_FILE = "pipeline.toml", "appconfig.ini"


def configuration_of(folder: str, given: Any = None) -> Any:
    """Return the configuration that an application means: what it gives, else the sections of its ini file.

    Args:
        folder: the application's; its files are in `private/`.
        given: what the model gives; None for nothing, as older applications have no AppConfig.

    Returns:
        None where a TOML file or a call of `pipeline.configure` comes first, or nothing is there.
    """
    private = Path(folder, "private")
    if given is not None or _configured_by_hand() or (private / TOML_FILE).exists():
        return given
    path = private / INI_FILE
    if path not in _read and path.exists() and SECTION in (found := read_sections(path)):
        _read[path] = found
    return _read.get(path)


def client_for(folder: str, db: Any, configuration: Any = None, redis_conn: Any = None) -> Client:
    """Return the client that an application means.

    Args:
        folder: the application's; its files are in `private/`.
        db: the application's DAL.
        configuration: what `configuration_of` returns: web2py's AppConfig, or anything else with sections that hold
            keys.
        redis_conn: web2py's `RConn(...)`: the logs go there, instead of to the key `redis`.

    Raises:
        ConfigError: with every fault; each names the file and the key.
    """
    private = Path(folder, "private")
    if configuration is None and redis_conn is None:
        return _client_beside(private)
    section = _section(configuration, private)
    if elsewhere := section.get(ELSEWHERE):
        if redis_conn is not None:
            raise ConfigError([f"{private / elsewhere} has [redis] url already: leave redis_conn= out"])
        return client_of(str(private / elsewhere), lambda: private / elsewhere)
    if redis_conn is not None:
        section["redis"] = address_of(redis_conn)
    uri = db._uri if isinstance(db._uri, str) else None
    key: Hashable = (folder, uri, *sorted(section.items()))
    return client_of(key, lambda: _settings(private, section, _own(db, uri, configuration)))


def _client_beside(private: Path) -> Client:
    """Return the client of the TOML file in an application's folder, else the one that the process has."""
    path = private / TOML_FILE
    if not _configured_by_hand() and path.exists():
        return client_of(str(path), lambda: path)
    try:
        return pipeline.current()
    except ConfigError as error:
        here = f"the application has neither [{SECTION}] in {private / INI_FILE} nor {path}: write one of them"
        raise ConfigError([*error.faults, here]) from None


def _configured_by_hand() -> bool:
    """Return whether the process's client is somebody's own, and not that of an application's file."""
    return pipeline.configured() and pipeline.current() not in _clients.values()


class _Own(NamedTuple):
    """An application's own database: as `DAL(...)` has it, and as the ini file says it; empty where it is not said."""

    uri: str
    written: str


def _own(db: Any, uri: str | None, configuration: Any) -> _Own:
    written = (dict.get(configuration or {}, "db") or {}).get("uri")
    databases = getattr(db, "_folder", None)
    decoded = getattr(db, "_decode_credentials", False)
    return _Own(*(own_address(str(one), databases, decoded=decoded) if one else "" for one in (uri, written)))


def _settings(private: Path, section: Mapping[str, str], own: _Own) -> Settings:
    """Return the settings of a section, as workers and the command line read them from the same file."""
    path = private / INI_FILE
    shape = sections(section, str(path), own.uri)
    if not any(key.startswith("shard_") and key != "shard_keys" for key in section):
        if not own.written:
            logger.warning(
                Event(
                    "no_shard_named",
                    path=path,
                    section=SECTION,
                    text=f"names no shard, so it is db. {NOT_FOUND}",
                )
            )
        elif database_of(own.written) != database_of(own.uri):
            other = f"{path} [db] uri names another database than db, and workers read it there: write shard_{OWN}"
            raise ConfigError([other])
    return load(shape, file=path if private.is_dir() else None)


def address_of(redis_conn: Any) -> str:
    """Return the address of *redis_conn*, a redis-py client such as web2py's `RConn(...)` returns.

    Raises:
        ConfigError: its pool does not tell.
    """
    pool = getattr(redis_conn, "connection_pool", None)
    given: Mapping[str, Any] | None = getattr(pool, "connection_kwargs", None)
    if given is None or not ("host" in given or "path" in given):
        raise ConfigError(["redis_conn= is no RConn(...) with a host: write the address as the key redis instead"])
    secure = "SSL" in getattr(pool, "connection_class", type(None)).__name__
    user, secret = given.get("username") or None, given.get("password") or None
    text = secret.decode() if isinstance(secret, bytes) else secret
    login = Address("", user, None if text is None else str(text)).login
    if "path" in given:
        return f"unix://{login}{quote(given['path'])}?db={given.get('db') or 0}"
    host = host_of((given["host"], given.get("port")), 6379)
    return f"{'rediss' if secure else 'redis'}://{login}{host}/{given.get('db') or 0}{_tls(given) if secure else ''}"


def _tls(given: Mapping[str, Any]) -> str:
    """Return the arguments of an address that say of TLS what a redis-py client does."""
    files = {"ssl_ca": "ssl_ca_certs", "ssl_cert": "ssl_certfile", "ssl_key": "ssl_keyfile"}
    found = [f"{ours}={quote(str(given[theirs]))}" for ours, theirs in files.items() if given.get(theirs)]
    if given.get("ssl_cert_reqs", "required") in (None, "none", CERT_NONE):
        found.append("ssl_verify=false")
    return f"?{'&'.join(found)}" if found else ""


def _section(configuration: Any, private: Path) -> dict[str, str]:
    if configuration is None:
        return {}
    # not its own get: AppConfig's turns "7" into 7 and "a, b" into an iterator
    section = dict.get(configuration, SECTION) if isinstance(configuration, dict) else None
    if not isinstance(section, Mapping):
        raise ConfigError([f"{private / INI_FILE} has no section [{SECTION}]"])
    return {str(key): str(value) for key, value in section.items()}


_warmed_in = 0


def warm_up(client: Client) -> None:
    """Begin to warm this process up for *client*, unless that has been done; costs the caller nothing."""
    global _warmed_in
    if _warmed_in == os.getpid():
        return
    _warmed_in = os.getpid()  # two threads at once do no harm
    threading.Thread(target=_warm, args=(client,), name="pipeline-warming", daemon=True).start()


def _warm(client: Client) -> None:
    try:
        client.publisher.warm()
    except PipelineError as error:  # the first op meets the same, and says so
        logger.info(Event("not_warm_yet", error=error))
    client.bell.prepare()
    gc.collect()
    gc.freeze()
