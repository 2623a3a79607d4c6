"""Map a shard key to its bucket, by rules that must never change, and assign buckets to shards.

Map a shard key to its bucket: pure functions that must never change, since they have placed the rows that exist.
The rule `hash`, in full:

* An int from 2**49 up to 2**53 is an id of this package. The bucket of an id is `id & 1023`, modulo the number of
  buckets. So a row whose shard key is such an id shares the bucket of the row that it refers to.
* Any other key is taken as text, and its bucket is `crc32(text) % buckets`. Keys of the same text share a bucket,
  whatever their type: 7, "7" and Decimal("7"). So the decimal digits of an id have the bucket of the id.

The rules `lookup` and `range` take keys as the file has them, `modulo` takes ints only.

Assign buckets to shards: an even split in the order of the file, the ranges that it names, or the map of moves.
A text of ranges names bucket numbers, such as `0-127,200`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import date
from decimal import Decimal
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import msgspec

from pipeline.config.validators import is_whole, refusal
from pipeline.errors import BadOp, BadValue, ConfigError, ShardKeyError
from pipeline.model import END, SMALLEST
from pipeline.model.schema import Column
from pipeline.model.values import key_form, lenient

if TYPE_CHECKING:
    from pipeline.config.sections import TableSettings


Rule = Callable[[Any], int]
#: (first, last), both included.
Ranges = tuple[tuple[int, int], ...]
#: Pieces have numbers from here on: above all buckets, and modulo this their bucket's. So whoever has a piece's number
#: finds its log without asking anybody. Below `END_OF_PIECES`, as databases keep them in 32 bits with a sign.
FIRST_PIECE, END_OF_PIECES = 2048, 2**31
#: At most four digits: what is larger is no bucket, and would only make a huge list.
_RANGE = re.compile(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?")


def compile_rule(table: TableSettings, buckets: int, column: Column | None = None) -> Rule:
    """Return the function from a final shard key of *table* to its bucket, 0 ≤ bucket < *buckets*.

    The function raises `ShardKeyError` for a key that its rule cannot take.

    Args:
        table: the table's settings.
        buckets: how many there are.
        column: the shard key's. With it, keys that are equal there share a bucket, and the file may spell them in any
            way that the column takes.
    """
    makers = {"hash": _hash, "modulo": _modulo, "range": _range, "lookup": _lookup}
    make = makers.get(table.rule, _own)
    if column is None:
        return make(table, buckets)
    form, rule = key_form(column), make(spelt_by(column, table), buckets)
    return rule if form is None else lambda key: rule(form(key))


def spelt_by(column: Column, table: TableSettings) -> TableSettings:
    """Return the settings of a table, the keys that they list in the form that finds their rows."""
    final, form = lenient(table.name, column), key_form(column)

    def formed(key: Any) -> Any:
        try:
            found = final(key)
        except BadValue as error:
            raise ConfigError([f"[tables.{table.name}] {table.rule} lists the key {key!r}, but {error}"]) from None
        return found if form is None else form(found)

    lookup = {key if key == "*" else formed(key): bucket for key, bucket in table.lookup.items()}
    if len(lookup) < len(table.lookup):
        raise ConfigError([f"[tables.{table.name}] lookup lists two keys that are equal in {column.name!r}"])
    bounds = tuple(bound if isinstance(bound, int) else formed(bound) for bound in table.bounds)
    return replace(table, lookup=lookup, bounds=bounds)


def spread_alike(one: TableSettings, other: TableSettings) -> bool:
    """Return whether rows of two tables with the same key, by `key_text`, always share a bucket.

    Args:
        one, other: the tables' settings.
    """
    rules = ((table.rule, table.bounds, table.lookup) for table in (one, other))
    return not (one.reference or other.reference) and len({*map(repr, rules)}) == 1


def key_text(table: TableSettings, column: Column, key: Any) -> str:
    """Return the text by which a shard key is hashed and found, of any spelling of the key that the column takes.

    Args:
        table: whose key it is.
        column: the shard key's.
        key: the key.

    Raises:
        BadValue, ShardKeyError: a write would refuse the key, too.
    """
    return key_texts(table, column)(key)


def key_texts(table: TableSettings, column: Column) -> Callable[[Any], str]:
    """Return `key_text` of one column; keep it.

    Args:
        table: whose key it is.
        column: the shard key's.
    """
    whole = column.kind in ("id", "reference")
    final, form = lenient(table.name, replace(column, type="bigint") if whole else column), key_form(column)

    def text(key: Any) -> str:
        found = final(key)
        return canonical(found if form is None else form(found), table).decode(errors="surrogateescape")

    return text


def canonical(key: Any, table: TableSettings) -> bytes:
    """Return the text by which *key* is hashed and found.

    An int becomes its decimal digits, a date or datetime ISO 8601, a Decimal its `str`. A str becomes UTF-8 with
    nothing normalised; bytes stay as they are.

    Args:
        key: the shard key.
        table: whose key it is, for messages.

    Raises:
        ShardKeyError: the key is of another type, a bool, None, a Decimal that is no number, or a text with a lone
            surrogate.
    """
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise _refused(table, "is a text that UTF-8 cannot hold") from None
    if isinstance(key, int) and not isinstance(key, bool):
        return b"%d" % key
    if isinstance(key, bytes | bytearray | memoryview):
        return bytes(key)
    if isinstance(key, date):  # a datetime is one too
        return key.isoformat().encode()
    if isinstance(key, Decimal) and key.is_finite():
        return str(key).encode()
    raise _wrong_type(table, key, "an int, str, bytes, date, datetime or finite Decimal")


def _hash(table: TableSettings, buckets: int) -> Rule:
    def of_any(key: Any) -> int:
        text = canonical(key, table)
        if 15 <= len(text) <= 16 and text.isdigit() and text[0] != 48 and SMALLEST <= (id := int(text)) < END:
            return (id & 1023) % buckets
        return crc32(text) % buckets

    def rule(key: Any) -> int:
        if type(key) is not int:
            return of_any(key)
        if SMALLEST <= key < END:
            return (key & 1023) % buckets
        return crc32(b"%d" % key) % buckets

    return rule


def _modulo(table: TableSettings, buckets: int) -> Rule:
    def rule(key: Any) -> int:
        if not isinstance(key, int) or isinstance(key, bool):
            raise _wrong_type(table, key, "an int, as rule = 'modulo' needs it")
        return int(key) % buckets

    return rule


def _range(table: TableSettings, buckets: int) -> Rule:
    bounds = table.bounds
    kind = int if isinstance(bounds[0], int) else str

    def rule(key: Any) -> int:
        if not isinstance(key, kind) or isinstance(key, bool):
            raise _wrong_type(table, key, f"of the bounds' type, {kind.__name__}")
        return bisect_right(bounds, key)

    return rule


def _lookup(table: TableSettings, buckets: int) -> Rule:
    found = {canonical(key, table): bucket for key, bucket in table.lookup.items()}
    default = found.pop(b"*", None)

    def rule(key: Any) -> int:
        bucket = found.get(canonical(key, table), default)
        if bucket is None:
            raise _refused(table, f"({type(key).__name__}) is not in its lookup, which has no '*' for the others")
        return bucket

    return rule


def _own(table: TableSettings, buckets: int) -> Rule:
    function: Callable[[Any, int], Any] | None = None

    def rule(key: Any) -> int:
        nonlocal function
        function = function or _imported(table)
        bucket = function(key, buckets)
        if type(bucket) is not int:
            raise _refused(table, f"got a {type(bucket).__name__} from {table.rule}; it must return an int")
        if not 0 <= bucket < buckets:
            raise _refused(table, f"got {bucket} from {table.rule}; the buckets are 0-{buckets - 1}")
        return bucket

    return rule


def _imported(table: TableSettings) -> Callable[[Any, int], Any]:
    module, _, name = table.rule.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError([f"[tables.{table.name}] rule {table.rule!r} cannot be imported: {error}"]) from error
    if not callable(function):
        raise ConfigError([f"[tables.{table.name}] rule {table.rule!r} is no function"])
    return function  # type: ignore[no-any-return]


def _wrong_type(table: TableSettings, key: Any, must: str) -> ShardKeyError:
    return _refused(
        table, f"is missing (None); it must be {must}" if key is None else f"is {_a(key)}; it must be {must}"
    )


def _refused(table: TableSettings, why: str) -> ShardKeyError:
    return ShardKeyError(f"table {table.name!r}: the shard key {table.shard_key or 'id'!r} {why}")


def _a(key: Any) -> str:
    return f"of type {type(key).__name__}"


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


def numbers_text(numbers: Iterable[int], pieces: Mapping[int, Piece] = MappingProxyType({})) -> str:
    """Return buckets as ranges, and pieces among them by their keys, as people are shown them.

    Args:
        numbers: of both.
        pieces: those that the map knows.
    """
    found = {*numbers}
    buckets = format_ranges(number for number in found if number < FIRST_PIECE)
    keys = sorted(number for number in found if number >= FIRST_PIECE)
    names = (str(pieces[one].of) if one in pieces else f"a key of bucket {log_number(one)}" for one in keys)
    return ",".join(filter(None, (buckets, *names)))


def log_number(number: int) -> int:
    """Return the bucket whose log has the ops of a bucket, or of a piece.

    Args:
        number: of either.
    """
    return number % FIRST_PIECE


def new_piece(bucket: int, drawn: int) -> int:
    """Return a number for a piece of a bucket. It is to be drawn anew for each key, so that none comes twice.

    Args:
        bucket: which.
        drawn: a random number.
    """
    return (1 + drawn % (END_OF_PIECES // FIRST_PIECE - 1)) * FIRST_PIECE + bucket


class KeyName(NamedTuple):
    """One value of a shard key: whose ops are in the log of a bucket, and whose rows may have a shard of their own.

    Attributes:
        bucket: whose log has its ops.
        table: a table that is spread by it; so are all that are spread by the same rule.
        key: the text by which it is hashed and found, see `bucket_rules.canonical`.
    """

    bucket: int
    table: str
    key: str

    def __str__(self) -> str:
        """Return it as people are shown it, and as commands take it."""
        return f"{self.table}={self.key}"


class Piece(NamedTuple):
    """A shard key that is away from its bucket, or on the way: under a number of its own, behind those of buckets.

    Its shard keeps all of it by that number: watermark, producers, what is set aside. The log is the bucket's.

    Attributes:
        number: its own.
        of: the key, and its bucket.
        shard: that has its rows, and applies its ops; the bucket's own while it has not left, or is back.
    """

    number: int
    of: KeyName
    shard: str


class Placement(NamedTuple):
    """Where buckets are that have moved: the map that all processes of a deployment act on.

    The shards themselves say who owns a bucket, in the state of its watermark; the configuration only says where it
    began. The map is a copy of that in Redis, made anew from the shards wherever Redis has lost it.

    Attributes:
        version: grows with each change of the owners; 0: nothing has moved yet.
        owners: the shard of each bucket that is not where the configuration puts it.
        moves: the shards from and to which a bucket moves, for each that is under way or has left rows behind. A piece
            is there by its number, too.
        pieces: the keys that are away from their buckets, or under way, by number.
    """

    version: int = 0
    owners: Mapping[int, str] = MappingProxyType({})
    moves: Mapping[int, tuple[str, str]] = MappingProxyType({})
    pieces: Mapping[int, Piece] = MappingProxyType({})

    def numbers_named(self, text: str) -> list[int]:
        """Return the numbers of the buckets that an operator names, or of a key that has a shard of its own.

        Args:
            text: numbers and ranges, or a table and a key as screens show it, such as `purchase=4711`.

        Raises:
            BadOp: it is neither, or no key of that name is away, or on its way.
        """
        if "=" not in text:
            return named_buckets(text)
        found = [number for number, piece in self.pieces.items() if str(piece.of) == text]
        if not found:
            raise BadOp(f"{text!r} is no key that has a shard of its own: see pipeline move list")
        return found

    def to_json(self) -> str:
        """Return it as JSON; without pieces as releases write it that know none."""
        pieces = {number: (*piece.of, piece.shard) for number, piece in self.pieces.items()}
        written = _Written(self.version, dict(self.owners), dict(self.moves), pieces)
        return msgspec.json.encode(written).decode()

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
        pieces = {n: Piece(n, KeyName(*said[:3]), said[3]) for n, said in found.pieces.items()}
        return cls(found.version, dict(found.owners), dict(found.moves), pieces)


#: The map of a deployment in which nothing has moved.
NOWHERE = Placement()


class _Written(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    version: int
    owners: dict[int, str]
    moves: dict[int, tuple[str, str]]
    pieces: dict[int, tuple[int, str, str, str]] = {}
