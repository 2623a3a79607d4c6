"""Who of a shard's nodes takes writes now: asked of the nodes themselves, decided by their own `read_only`.

The pipeline follows a failover and never decides one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.shard.session import Session

#: How long a node has to say whether it takes writes, s.
ASK_S = 1
_log = logging.getLogger("pipeline.shard")


def writable_of(shard: str, told: Mapping[str, bool | None]) -> str | None:
    """Return the node that takes writes, or None where none is known to.

    Args:
        shard: also the name of its configured primary, which wins where it takes writes: two at once are a split that
            only an operator can mend, and all processes must stay on the same side of it.
        told: whether each node takes writes; None where it is not known.

    Raises:
        ShardUnavailable: several replicas take writes, and the configured primary does not.
    """
    writable = [node for node, takes in told.items() if takes]
    if shard in writable or not writable:
        return shard if writable else None
    if len(writable) > 1:
        raise ShardUnavailable(
            shard, f"{' and '.join(writable)} both take writes; set read_only on all nodes but the primary"
        )
    return writable[0]


def takes_writes(session: Session) -> bool | None:
    """Ask a node whether it takes writes; None where its engine cannot tell.

    Raises:
        ShardUnavailable: it did not answer in time.
    """
    if session.dialect.read_only is None:
        return None
    return is_off(session.query(f"SELECT {session.dialect.read_only}")[0][0])


def is_off(value: object) -> bool:
    """Return whether a server variable is off; newer MariaDB gives `read_only` as a word."""
    return str(value).upper() in ("0", "OFF")


def ask(uris: Mapping[str, str]) -> dict[str, bool | None]:
    """Ask all nodes at once, each on a connection of its own with a short time-out; None from one that is silent."""
    with ThreadPoolExecutor(len(uris), thread_name_prefix="pipeline-ask") as threads:
        return dict(zip(uris, threads.map(_ask_one, uris, uris.values()), strict=True))


def _ask_one(node: str, uri: str) -> bool | None:
    session = Session(node, uri, read_only=True, connect_s=ASK_S, statement_s=ASK_S)
    try:
        return takes_writes(session)
    except PipelineError as error:
        _log.info("asking who is the primary: %s", error)
        return None
    finally:
        session.discard()
