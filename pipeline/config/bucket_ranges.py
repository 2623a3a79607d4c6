"""Assign buckets to shards: an even split in the order of the file, the ranges that it names, or the map of moves.

A text of ranges names bucket numbers, such as `0-127,200`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from pipeline.config.validators import is_whole, refusal
from pipeline.errors import BadOp

#: (first, last), both included.
Ranges = tuple[tuple[int, int], ...]
#: At most four digits: what is larger is no bucket, and would only make a huge list.
_RANGE = re.compile(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?")


def owners(buckets: int, shards: Mapping[str, Ranges | None]) -> tuple[str, ...]:
    """Return the owning shard of each bucket from 0 on.

    Args:
        buckets: the number of buckets.
        shards: each shard's ranges, or None for the even split; without `placement_faults`.
    """
    if all(ranges is None for ranges in shards.values()):
        names = tuple(shards)
        return tuple(names[bucket * len(names) // buckets] for bucket in range(buckets))
    owner = {bucket: name for name, ranges in shards.items() for bucket in numbers(ranges or ())}
    return tuple(owner[bucket] for bucket in range(buckets))


def placement_faults(buckets: int, shards: Mapping[str, Ranges | None]) -> list[str]:
    """Return what keeps *shards* from owning each bucket exactly once, a sentence each.

    Args:
        buckets: the number of buckets.
        shards: each shard's ranges, or None for the even split.
    """
    silent = [name for name, ranges in shards.items() if ranges is None]
    if len(silent) == len(shards):
        few = f"[pipeline] buckets is {buckets} for {len(shards)} shards; it must be at least one for each shard"
        return [few] if buckets < len(shards) else []
    if silent:
        return [f"[shards.{name}] buckets is missing; give it for every shard, or for none" for name in silent]
    faults = []
    times = Counter[int]()
    for name, ranges in shards.items():
        own = numbers(ranges or ())
        times.update(set(own))
        if beyond := [bucket for bucket in own if bucket >= buckets]:
            faults.append(f"[shards.{name}] buckets names {format_ranges(beyond)}; the buckets are 0-{buckets - 1}")
    if doubled := [bucket for bucket, count in times.items() if count > 1]:
        faults.append(
            f"[shards.*] buckets: more than one shard has {format_ranges(doubled)}; each bucket has one owner"
        )
    if orphans := [bucket for bucket in range(buckets) if bucket not in times]:
        faults.append(f"[shards.*] buckets: no shard has {format_ranges(orphans)}; each bucket needs an owner")
    return faults


def parse_ranges(text: str) -> Ranges:
    """Return the ranges of a text such as `0-127,200`; the empty text is no bucket at all.

    Raises:
        ValueError: the text is not of that form, or a range runs backwards.
    """
    if not text.strip():
        return ()
    found = [_RANGE.fullmatch(part) for part in text.split(",")]
    ranges = tuple((int(one[1]), int(one[2] or one[1])) for one in found if one)
    if not all(found) or any(first > last for first, last in ranges):
        raise ValueError("not a list of bucket numbers and ranges")
    return ranges


def ranges(value: object) -> str | None:
    """Accept *value* if it is what `parse_ranges` returns; a check for `faults_of`."""
    if isinstance(value, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and all(map(is_whole, pair)) and 0 <= pair[0] <= pair[1]
        for pair in value
    ):
        return None
    return refusal(value, "bucket numbers and ranges, such as '0-127,200'")


def format_ranges(buckets: Iterable[int]) -> str:
    """Return *buckets* as the shortest text of ranges."""
    spans: list[list[int]] = []
    for bucket in sorted(set(buckets)):
        if spans and bucket == spans[-1][1] + 1:
            spans[-1][1] = bucket
        else:
            spans.append([bucket, bucket])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def numbers(ranges: Ranges) -> list[int]:
    """Return each number in *ranges*, in their order."""
    return [bucket for first, last in ranges for bucket in range(first, last + 1)]


def named_buckets(text: str) -> list[int]:
    """Return the numbers of the buckets that an operator names, in order.

    Args:
        text: numbers and ranges, such as `0-15,40`.

    Raises:
        BadOp: it is nothing of the kind.
    """
    try:
        return sorted({*numbers(parse_ranges(text))})
    except ValueError:
        raise BadOp(f"{text!r} is no list of buckets: write numbers and ranges, such as 0-15,40") from None


class Placement(NamedTuple):
    """Where buckets are that have moved: the map that all processes of a deployment act on.

    The shards themselves say who owns a bucket, in the state of its watermark; the configuration only says where it
    began. The map is a copy of that in Redis, made anew from the shards wherever Redis has lost it.

    Attributes:
        version: grows with each change of the owners; 0: nothing has moved yet.
        owners: the shard of each bucket that is not where the configuration puts it.
        moves: of each bucket that is under way or has left rows behind, the shards from and to which it moves.
    """

    version: int = 0
    owners: Mapping[int, str] = MappingProxyType({})
    moves: Mapping[int, tuple[str, str]] = MappingProxyType({})

    def to_json(self) -> str:
        """Return it as JSON."""
        return msgspec.json.encode({**self._asdict(), "owners": dict(self.owners), "moves": dict(self.moves)}).decode()

    @classmethod
    def noted(cls, text: str) -> Placement | None:
        """Return the map that Redis has; None where nobody of ours has written it.

        Args:
            text: the value.
        """
        try:
            found = msgspec.json.decode(text, type=_Written)
        except ValueError:
            return None
        return cls(found.version, dict(found.owners), dict(found.moves))


#: The map of a deployment in which nothing has moved.
NOWHERE = Placement()


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    owners: dict[int, str]
    moves: dict[int, tuple[str, str]]
