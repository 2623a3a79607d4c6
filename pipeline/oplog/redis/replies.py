"""What Redis replies, as values of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.model.op import Entry, Position


def text_of(value: Any) -> str:
    """Return a reply as text; None is the empty text."""
    return value.decode() if isinstance(value, bytes) else value or ""


def hash_of(found: Mapping[Any, Any]) -> dict[str, str]:
    """Return a hash as texts."""
    return {text_of(key): text_of(value) for key, value in found.items()}


def ring_of(reply: Any) -> tuple[bool, int]:
    """Return whether to ring, and how many buckets are dirty."""
    ring, dirty = text_of(reply).split(" ")
    return ring == "1", int(dirty)


def position_of(id: Any) -> Position:
    """Return an entry's id as a position."""
    return Position.parse(text_of(id))


def entries_of(bucket: int, reply: Any) -> list[Entry]:
    """Return what XRANGE found."""
    entries = []
    for id, (_, producer, _, seq, _, payload) in reply:  # p <producer> s <producer seq> o <op>, always in this order
        epoch, _, nth = id.partition(b"-")
        entries.append(Entry(bucket, Position(int(epoch), int(nth)), int(producer), int(seq), payload))
    return entries
