"""SQL text goes around the pipeline, and nothing can catch it; where it writes to an attached table, that is logged."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

_WRITES = re.compile(r"\s*(insert|replace|update|delete|truncate|load)\b", re.IGNORECASE)
_WORDS = re.compile(r"\w+")
_log = logging.getLogger("pipeline.attachment")


def warn(db: Any, attached: Callable[[], Iterable[str]]) -> None:
    """Let `db.executesql` log what goes around the pipeline.

    Args:
        attached: returns the names of the attached tables.
    """
    own = db.executesql

    def executesql(query: Any, *rest: Any, **options: Any) -> Any:
        if _WRITES.match(str(query)):
            for name in sorted(set(attached()) & set(_WORDS.findall(str(query)))):
                _log.warning(
                    "executesql writes to %r around the pipeline: ops that are queued for its rows come after it, and "
                    "other shards and the users' own reads know nothing of it; use enqueue_update or enqueue_delete",
                    name,
                )
        return own(query, *rest, **options)

    object.__setattr__(db, "executesql", executesql)


def unwarn(db: Any) -> None:
    """Take the warning away again."""
    vars(db).pop("executesql", None)
