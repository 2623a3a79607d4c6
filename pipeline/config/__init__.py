"""Map table and key to bucket and shard, and back.

There is one log more than there are buckets: the *reference bucket*, whose number is the number of buckets. The
reference bucket holds the ops of reference tables, and every shard applies it.

A *piece* is one shard key that has a shard of its own. The ops of a piece stay in the log of its bucket, and both
shards apply that log, each its own keys' ops. What a shard keeps of a piece has the piece's number, which is no
bucket's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized
from dataclasses import replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any

from pipeline.bounds import keep_newest
from pipeline.config.buckets import (
    NOWHERE,
    Piece,
    Placement,
    Rule,
    compile_rule,
    format_ranges,
    key_text,
    log_number,
    owners,
    spread_alike,
)
from pipeline.config.settings import Settings, TableSettings
from pipeline.config.uris import database_of, server_of
from pipeline.errors import WrongDeployment
from pipeline.model import bucket_of, carries_bucket
from pipeline.model.fingerprint import BY_ID, Fingerprint
from pipeline.model.schema import Column
from pipeline.model.values import lenient

#: Tables of web2py itself, and our own: never published for being defined, only for being written to or configured.
NOT_OURS = ("auth_", "web2py_session_", "scheduler_", "pipeline_")
#: The longest list or table that a fingerprint has in full, characters.
MOST_WORDS = 120
#: A number from here on is refused: it may have more digits than Python writes.
_END = 10**400


class Topology:
    """Who has which bucket in one deployment: as its settings draw it, and its map says. Safe to share between threads.

    Attributes:
        owners: the shard of each bucket, `*` for the reference bucket; another tuple once a map is followed.
        placement: the map that is followed.
        split: by bucket, the piece of it that is away, or on the way; a bucket has one at most. Empty nearly always.
        heard_at_s: when Redis was last asked for the map, and had it, by this process's steady clock.
    """

    __slots__ = (
        "_began",
        "_finding",
        "_owned",
        "_placing",
        "_rules",
        "_settings",
        "buckets",
        "heard_at_s",
        "owners",
        "placement",
        "reference_bucket",
        "shards",
        "split",
    )

    def __init__(self, settings: Settings):
        self._settings = settings
        self.buckets = settings.buckets
        self.reference_bucket = settings.buckets
        #: In the order of the file.
        self.shards = tuple(settings.shards)
        self.heard_at_s = -math.inf
        self._began = owners(self.buckets, {name: shard.buckets for name, shard in settings.shards.items()})
        self._act_on(NOWHERE)
        self._rules: dict[str, Rule] = {}
        self._placing: dict[tuple[str, Column], Rule] = {}
        self._finding: dict[tuple[str, Column], Rule] = {}

    def follow(self, placement: Placement) -> None:
        """Act on a map from now on; one that is equal changes nothing, so that what was found under it counts on.

        Args:
            placement: the map.

        Raises:
            WrongDeployment: it names a shard or a bucket that the configuration lacks; nothing was changed.
        """
        if placement != self.placement:
            self._act_on(placement)

    def _act_on(self, placement: Placement) -> None:
        pieces = placement.pieces.values()
        if strangers := {*placement.owners.values(), *(piece.shard for piece in pieces)} - {*self.shards}:
            name = min(strangers)
            raise WrongDeployment(
                [
                    f"[shards.{name}] is missing in {self._settings.source}, but owns buckets of this deployment by "
                    "now; restart with the configuration that names it"
                ]
            )
        now = list(self._began)
        for bucket, shard in placement.owners.items():
            if not 0 <= bucket < self.buckets:
                raise WrongDeployment([f"the map names the bucket {bucket}; there are {self.buckets}"])
            now[bucket] = shard
        owned: dict[str, list[int]] = {name: [] for name in self.shards}
        for bucket, shard in enumerate(now):
            owned[shard].append(bucket)
        if strange := [piece.of.bucket for piece in pieces if not 0 <= piece.of.bucket < self.buckets]:
            raise WrongDeployment([f"the map names the bucket {strange[0]}; there are {self.buckets}"])
        self.split = {piece.of.bucket: piece for piece in pieces}
        self._owned = {name: tuple(own) for name, own in owned.items()}
        self.owners = (*now, "*")
        self.placement = placement

    def began(self, bucket: int) -> str:
        """Return the shard where the settings put *bucket*."""
        return self._began[bucket]

    def ignores(self, table: str) -> bool:
        """Return whether *table* is left to its database: by its name, or by a pattern."""
        return any(fnmatchcase(table, pattern) for pattern in self._settings.ignore)

    def bucket_of(self, table: str, key: int | str) -> int:
        """Return the bucket of the rows of *table* with a *key* that is one form already, as an id or a number is.

        Any key will do for a reference table.

        Raises:
            ShardKeyError: the table's rule cannot take the key.
        """
        rule = self._rules.get(table)
        return (rule or keep_newest(self._rules, table, self._rule(self.table(table))))(key)

    def placing(self, name: str, column: Column) -> Rule:
        """Return the function from a final value of the shard key to its bucket.

        Args:
            name: the table's.
            column: the shard key's, or the id's where rows are spread by their ids.
        """
        found = self._placing.get((name, column))
        return found or keep_newest(self._placing, (name, column), self._rule(self.table(name), column))

    def finding(self, name: str, column: Column) -> Rule:
        """Return the function from each spelling of a shard key to the bucket that `placing` gives its final value.

        That function raises what a write of the value raises: `BadValue`, `ShardKeyError`.

        Args:
            name: the table's.
            column: as for `placing`.
        """
        found = self._finding.get((name, column))
        if found is None:
            found = keep_newest(self._finding, (name, column), self._spelt(name, column))
        return found

    def _spelt(self, name: str, column: Column) -> Rule:
        place = self.placing(name, column)
        if self.table(name).reference:
            return place
        if column.kind in ("id", "reference"):
            # a number that is no id names no row, and is no fault: one database finds nothing, too
            number = lenient(name, replace(column, type="bigint"))
            return lambda key: place(key if type(key) is int and -_END < key < _END else number(key))
        final = lenient(name, column)
        return lambda key: place(final(key))

    def _rule(self, table: TableSettings, column: Column | None = None) -> Rule:
        everywhere = self.reference_bucket
        return (lambda key: everywhere) if table.reference else compile_rule(table, self.buckets, column)

    def bucket_in(self, row_id: Any) -> int | None:
        """Return the bucket that *row_id* carries, or None if this deployment has not made the id."""
        if not isinstance(row_id, int) or not carries_bucket(row_id):
            return None
        bucket = bucket_of(row_id)
        return bucket if bucket < self.buckets else None

    def bucket_making(self, table: str, row_id: int) -> int | None:
        """Return the bucket of every op that may make a row with a given id; None: the id does not say.

        Args:
            table: its name in the model.
            row_id: the id.
        """
        settings = self.table(table)
        if settings.reference:
            return self.reference_bucket
        if settings.ids == "database":
            return None
        return self.bucket_of(table, row_id) if settings.shard_key is None else self.bucket_in(row_id)

    def shard_of(self, bucket: int) -> str:
        """Return the shard that owns *bucket*.

        Raises:
            ValueError: there is no such bucket, or it is the reference bucket, which every shard owns.
        """
        if 0 <= bucket < self.buckets:
            return self.owners[bucket]
        which = "is the reference bucket, of every shard" if bucket == self.reference_bucket else "does not exist"
        raise ValueError(f"bucket {bucket} {which}; the others are 0-{self.buckets - 1}")

    def elsewhere(self, shard: str, numbers: Iterable[int]) -> set[int]:
        """Return those of some buckets that another shard owns, by the map that this process knows.

        Args:
            shard: the shard.
            numbers: of buckets; pieces and the reference bucket are passed over.
        """
        return {one for one in numbers if 0 <= one < self.buckets and self.owners[one] != shard}

    def serves(self, number: int) -> str:
        """Return the shard that has the rows of a bucket, without those of a piece of it, or of a piece.

        Args:
            number: of either; a piece that the map does not know is in its bucket. Of the reference bucket, which
                every shard has, it is the first.
        """
        if number == self.reference_bucket:
            return self.shards[0]
        piece = self.placement.pieces.get(number)
        return piece.shard if piece is not None else self.shard_of(log_number(number))

    def shards_of(self, bucket: int) -> tuple[str, ...]:
        """Return the shards that apply *bucket*: its own first, and that of a piece; all for the reference bucket.

        What a shard keeps of it there has the number that `mark_of` returns.
        """
        if bucket == self.reference_bucket:
            return self.shards
        own = self.shard_of(bucket)
        piece = self.split.get(bucket)
        return (own,) if piece is None or piece.shard == own else (own, piece.shard)

    def mark_of(self, shard: str, bucket: int) -> int:
        """Return the number under which a shard keeps what it has applied of a bucket's log: its own, or a piece's.

        Args:
            shard: one of `shards_of`.
            bucket: which.
        """
        piece = self.split.get(bucket)
        return bucket if piece is None or piece.shard != shard or shard == self.owners[bucket] else piece.number

    def applied_by(self, shard: str) -> tuple[int, ...]:
        """Return the numbers of all that a shard applies: its buckets, the reference bucket, and pieces away there.

        Args:
            shard: which.
        """
        return (*self.buckets_of(shard), self.reference_bucket, *(piece.number for piece in self.pieces_on(shard)))

    def pieces_on(self, shard: str) -> tuple[Piece, ...]:
        """Return the pieces that are on a shard, away from their buckets.

        Args:
            shard: which.
        """
        pieces = self.placement.pieces.values()
        return tuple(one for one in pieces if one.shard == shard != self.owners[one.of.bucket])

    def takes(self, piece: Piece, table: str) -> bool:
        """Return whether rows of a table may be a piece's.

        Args:
            piece: which.
            table: its name.
        """
        return spread_alike(self.table(table), self.table(piece.of.table))

    def piece_of(self, name: str, column: Column, key: Any) -> Piece | None:
        """Return the piece that a shard key is, away from its bucket or on the way; None: it is none, as nearly always.

        Args:
            name: the table's.
            column: the shard key's, or the id's where rows are spread by their ids.
            key: in any spelling that a write takes.

        Raises:
            BadValue, ShardKeyError: a write would refuse the key, too.
        """
        if not self.split:
            return None
        piece = self.split.get(self.finding(name, column)(key))
        if piece is None or not self.takes(piece, name):
            return None
        return piece if key_text(self.table(name), column, key) == piece.of.key else None

    def buckets_of(self, shard: str) -> tuple[int, ...]:
        """Return the buckets that *shard* owns, ascending, without the reference bucket.

        Raises:
            KeyError: there is no such shard.
        """
        return self._owned[shard]

    def group_of(self, scope: str) -> str:
        """Return the name of the Redis that has the logs of a scope; the empty name is that of [redis].

        Args:
            scope: a shard's name; any other is the reference log's, or one that nothing is configured for.
        """
        shard = self._settings.shards.get(scope)
        return shard.redis if shard is not None else ""

    @property
    def groups(self) -> dict[str, str]:
        """By name, the address of each Redis that has logs of some shard, beside the first."""
        settings = self._settings
        named = {self.group_of(shard) for shard in self.shards}
        return {name: server_of(group.url) for name, group in settings.groups.items() if name in named}

    def ranges_of(self, shard: str) -> str:
        """Return the buckets that the settings give to *shard*, as the file would say it: `0-127`."""
        return format_ranges(bucket for bucket, name in enumerate(self._began) if name == shard)

    @property
    def configured(self) -> tuple[str, ...]:
        """The tables that the settings name."""
        return tuple(self._settings.tables)

    def ours(self, name: str) -> bool:
        """Return whether the table *name* is one for the pipeline, unless it stays in the application's database."""
        return not self.ignores(name) and (name in self._settings.tables or not name.startswith(NOT_OURS))

    def table(self, name: str) -> TableSettings:
        """Return how the table *name* is spread: as configured, else by its own id, with the defaults."""
        return self._settings.tables.get(name) or TableSettings(name)

    @property
    def fingerprint(self) -> Fingerprint:
        """What the settings say of all that no two processes of a deployment may disagree on."""
        settings = self._settings
        spreads = ((name, spread_of(table)) for name, table in sorted(settings.tables.items()))
        nodes = ((name, tuple(database_of(uri) for _, uri in one.nodes())) for name, one in settings.shards.items())
        return Fingerprint(
            buckets=self.buckets,
            shards=tuple((name, self.ranges_of(name)) for name in self.shards),
            tables=tuple((name, spread) for name, spread in spreads if spread != BY_ID),
            prefix=settings.redis.prefix,
            source=settings.source,
            redis=(server_of(settings.redis.url), *self.groups.values()),
            groups=tuple((name, shard.redis) for name, shard in settings.shards.items() if shard.redis),
            databases=tuple(nodes),
        )

    def __reduce__(self) -> tuple[type[Topology], tuple[Settings]]:
        return Topology, (self._settings,)  # a compiled rule cannot be pickled


def spread_of(table: TableSettings) -> str:
    """Return in words how a table is spread: the same words place each row in the same bucket."""
    if table.reference:
        return "with reference = true"
    if table.shard_key is None:
        return BY_ID
    words = f"by shard_key = {table.shard_key!r}, rule = {table.rule!r}"
    placed = {"bounds": list(table.bounds), "lookup": dict(sorted(table.lookup.items(), key=repr))}
    return words + "".join(f", {name} = {_brief(value)}" for name, value in placed.items() if value)


def _brief(value: Sized) -> str:
    """Return a list or a table of the configuration; a long one as a digest of it."""
    text = repr(value)
    return (
        text
        if len(text) <= MOST_WORDS
        else f"({len(value)} items, {blake2b(text.encode(), digest_size=6).hexdigest()})"
    )
