"""Let reads of an attached table through the application's own DAL wait for what its user has written.

They see it where the DAL is on the primary, as with a single shard. A read waits for its user's own ops as long as a
page does, then shows what there is. MySQL shows the state of a transaction's first read to its end: where the request
has read other tables before, what is applied after that shows in the next request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.dal.objects import real_name, tables_in

READS = ("select", "iterselect", "count")


def wait_in_reads(adapter: Any, catch_up: Callable[[str], object]) -> None:
    """Let an adapter's reads wait for what is queued.

    Args:
        adapter: of the application's DAL.
        catch_up: gives the primaries the time to get what the user has written, if the table of that name is attached.
    """
    for name in READS:
        setattr(adapter, name, _waiting(getattr(adapter, name), catch_up))


def _waiting(own: Callable[..., Any], catch_up: Callable[[str], object]) -> Callable[..., Any]:
    def read(query: Any, *rest: Any, **options: Any) -> Any:
        for name in _names(query, rest):
            catch_up(name)
        return own(query, *rest, **options)

    return read


def _names(query: Any, rest: tuple[Any, ...]) -> set[str]:
    """Return the tables of a query, of the fields asked for, and of joins."""
    parts = [query, *(part for part in rest if not isinstance(part, dict))]
    for attributes in rest:
        if isinstance(attributes, dict):
            parts += [attributes.get("join"), attributes.get("left")]
    return {real_name(table) for part in parts for table in tables_in(part)}
