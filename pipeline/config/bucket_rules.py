"""Map a shard key to its bucket: pure functions that must never change, since they have placed the rows that exist.

The rule `hash`, in full:

* An int from 2**49 up to 2**53 is an id of this package. The bucket of an id is `id & 1023`, modulo the number of
  buckets. So a row whose shard key is such an id shares the bucket of the row that it refers to.
* Any other key is taken as text, and its bucket is `crc32(text) % buckets`. Keys of the same text share a bucket,
  whatever their type: 7, "7" and Decimal("7"). So the decimal digits of an id have the bucket of the id.

The rules `lookup` and `range` take keys as the file has them, `modulo` takes ints only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from decimal import Decimal
from importlib import import_module
from typing import Any
from zlib import crc32

from pipeline.config.settings import TableSettings
from pipeline.errors import BadValue, ConfigError, ShardKeyError
from pipeline.model.ids import END, SMALLEST
from pipeline.model.schema import Column
from pipeline.model.values import key_form, lenient

Rule = Callable[[Any], int]


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
