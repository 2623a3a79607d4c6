"""Keep one client per process and configuration, and warm the process up once.

Requests come and go; connections and what is known of the nodes stay. An application's configuration is the section
`[pipeline]` of its AppConfig, or a TOML file beside it. Files are read once; a request costs a look into a dict.

web2py collects all garbage at every hundredth request, and Python does it now and then: all threads stand still while
every object of the process is visited. So what is imported and made by then is frozen: it is visited no more, and still
freed when nothing refers to it, unless in a cycle.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pipeline
from pipeline.client import Client
from pipeline.config import ini
from pipeline.errors import ConfigError

_lock = threading.Lock()
_clients: dict[Hashable, Client] = {}


def client_of(key: Hashable, source: Callable[[], Path | Mapping[str, Any]]) -> Client:
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


#: The file that is looked for where no configuration is given.
INI_FILE = "pipeline.toml"


def client_for(folder: str, db: Any, configuration: Any = None, redis_conn: Any = None) -> Client:
    """Return the client that an application means.

    Args:
        folder: the application's; its files are in `private/`.
        db: the application's DAL.
        configuration: web2py's AppConfig, or anything else with sections that hold keys.
        redis_conn: web2py's `RConn(...)`: the logs go there, instead of to the key `redis`.

    Raises:
        ConfigError: with every fault; each names the file and the key.
    """
    private = Path(folder, "private")
    if configuration is None and redis_conn is None:
        path = private / INI_FILE
        if pipeline.configured():
            return pipeline.current()
        return client_of(str(path), lambda: path) if path.exists() else pipeline.current()
    section = _section(configuration, private)
    if elsewhere := section.get(ini.ELSEWHERE):
        if redis_conn is not None:
            raise ConfigError([f"{private / elsewhere} has [redis] url already: leave redis_conn= out"])
        return client_of(str(private / elsewhere), lambda: private / elsewhere)
    if redis_conn is not None:
        section["redis"] = address_of(redis_conn)
    own = db._uri if isinstance(db._uri, str) else None
    key: Hashable = (folder, own, *sorted(section.items()))
    label = f"{private / 'appconfig.ini'}"
    try:
        return client_of(key, lambda: ini.sections(section, label, own))
    except ConfigError as error:
        raise ConfigError(ini.in_ini_names(error.faults, label)) from None


def address_of(redis_conn: Any) -> str:
    """Return the address of *redis_conn*, a redis-py client such as web2py's `RConn(...)` returns.

    Raises:
        ConfigError: its pool does not tell.
    """
    pool = getattr(redis_conn, "connection_pool", None)
    given: Mapping[str, Any] | None = getattr(pool, "connection_kwargs", None)
    if given is None or not ("host" in given or "path" in given):
        raise ConfigError(["redis_conn= is no RConn(...) with a host: write the address as the key redis instead"])
    name = quote(given.get("username") or "", safe="")
    secret = quote(str(given.get("password") or ""), safe="")
    user = f"{name}:{secret}@" if secret else ""
    number = given.get("db") or 0
    if "path" in given:
        return f"unix://{user}{given['path']}?db={number}"
    secure = "SSL" in getattr(pool, "connection_class", type(None)).__name__
    return f"{'rediss' if secure else 'redis'}://{user}{given['host']}:{given.get('port') or 6379}/{number}"


def _section(configuration: Any, private: Path) -> dict[str, str]:
    if configuration is None:
        return {}
    # not its own get: AppConfig's turns "7" into 7 and "a, b" into an iterator
    section = dict.get(configuration, ini.SECTION) if isinstance(configuration, dict) else None
    if not isinstance(section, Mapping):
        raise ConfigError([f"{private / 'appconfig.ini'} has no section [{ini.SECTION}]"])
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
    client.bell.prepare()
    gc.collect()
    gc.freeze()
