"""Define the fingerprint of a deployment: what places its rows and names its queue, and may not differ between files.

Every shard keeps the fingerprint, and Redis does. A process has one of its own, from its configuration. What the two
disagree on is a sentence each: both values, both files, and what to write or to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

#: The spread of a table that no configuration names.
BY_ID = "by its own id"


class Fingerprint(msgspec.Struct, frozen=True):
    """What the processes of one deployment agree on.

    Attributes:
        buckets: how many there are.
        shards: of each shard its name and its buckets as ranges, in the order of the file.
        tables: of each table that a configuration names, or that had an op: its name and how it is spread, in words;
            by name.
        prefix: of the keys in Redis.
        source: the file that it was read from, for people.
        deployment: names the deployment, drawn when it was made; empty in a process's own.
        version: grows with each change of what is above.
        redis: the addresses by which its Redis is known.
        databases: of each shard, the addresses by which its databases are known, and the names that they give
            themselves. In a process's own fingerprint the primary's address comes first.
        groups: of each shard whose logs are not in the first Redis, the name of the Redis that has them.
    """

    buckets: int
    shards: tuple[tuple[str, str], ...]
    tables: tuple[tuple[str, str], ...]
    prefix: str
    source: str
    deployment: str = ""
    version: int = 1
    redis: tuple[str, ...] = ()
    databases: tuple[tuple[str, tuple[str, ...]], ...] = ()
    groups: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """Return the fingerprint as canonical JSON."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """Read a fingerprint from the text that `to_json` makes.

        Args:
            text: canonical JSON.
        """
        return msgspec.json.decode(text, type=cls)

    @classmethod
    def noted(cls, text: str) -> Fingerprint | None:
        """Read what Redis keeps; None where it has none of ours.

        Args:
            text: the value.
        """
        try:
            return cls.from_json(text)
        except (msgspec.MsgspecError, UnicodeError):
            return None

    @property
    def placing(self) -> Fingerprint:
        """What says into which queue and bucket an op goes, and nothing else."""
        return Fingerprint(self.buckets, (), self.tables, self.prefix, self.source)

    def spread(self, table: str) -> str:
        """Return how a table is spread, in words.

        Args:
            table: its name.
        """
        return dict(self.tables).get(table, BY_ID)

    def names(self, table: str) -> bool:
        """Return whether it says how a table is spread; another table is spread by its own id, or not known.

        Args:
            table: its name.
        """
        return any(name == table for name, _ in self.tables)

    def with_tables(self, tables: Iterable[tuple[str, str]]) -> Fingerprint:
        """Return this fingerprint with those tables that it lacks.

        Args:
            tables: of each its name and its spread.
        """
        both = tuple(sorted({**dict(tables), **dict(self.tables)}.items()))
        return self if both == self.tables else msgspec.structs.replace(self, tables=both)

    def known(self, shard: str) -> frozenset[str]:
        """Return the addresses by which the databases of a shard are known.

        Args:
            shard: its name.
        """
        return frozenset(dict(self.databases).get(shard, ()))

    def leads_to(self, shard: str, other: Fingerprint, name: str = "") -> bool:
        """Return whether a shard's primary, as this process's own names it, is a database that *other* knows.

        Args:
            shard: its name.
            other: the deployment's.
            name: the name that the database gives itself, if it was asked.
        """
        return not {*dict(self.databases)[shard][:1], name}.isdisjoint(other.known(shard))

    def changed(self, mine: Fingerprint) -> Fingerprint:
        """Return this fingerprint with what *mine* says of buckets, shards and prefix, as a new version.

        It has the tables of both.

        Args:
            mine: a process's own.
        """
        met = self.meeting(mine)
        return msgspec.structs.replace(
            met,
            databases=tuple(pair for pair in met.databases if pair[0] in dict(mine.shards)),
            buckets=mine.buckets,
            shards=mine.shards,
            tables=self.with_tables(mine.tables).tables,
            prefix=mine.prefix,
            source=mine.source,
            groups=mine.groups,
            version=self.version + 1,
        )

    def meeting(self, other: Fingerprint) -> Fingerprint:
        """Return this fingerprint, with the addresses that *other* knows.

        Args:
            other: of the same deployment.
        """
        names = dict.fromkeys(name for name, _ in (*self.databases, *other.databases))
        databases = tuple((name, tuple(sorted(self.known(name) | other.known(name)))) for name in sorted(names))
        redis = tuple(sorted({*self.redis, *other.redis}))
        return msgspec.structs.replace(self, databases=databases, redis=redis)

    def after(self, kept: Fingerprint | None) -> Fingerprint:
        """Return what a server keeps once this fingerprint has come to it: the newer one, with all its addresses.

        Args:
            kept: what the server keeps so far; another deployment's is replaced.
        """
        if kept is None or kept.deployment != self.deployment or kept.version < self.version:
            return self
        return kept if kept.version > self.version else self.meeting(kept)

    def beside(self, noted: Fingerprint) -> Fingerprint:
        """Return this fingerprint with the shards of the deployment that it lacks and that own no bucket.

        A process may run without such a shard: no row of the shard is there that another has not.

        Args:
            noted: the deployment's.
        """
        mine = dict(self.shards)
        empty = tuple(pair for pair in noted.shards if pair[0] not in mine and not pair[1])
        return msgspec.structs.replace(self, shards=(*self.shards, *empty))


def table_differences(mine: Fingerprint, noted: Fingerprint) -> dict[str, str]:
    """Return a sentence for each table that is spread otherwise.

    Args:
        mine: a process's own.
        noted: the deployment's.
    """
    names = sorted({name for name, _ in (*mine.tables, *noted.tables)})
    return {
        name: f"[tables.{name}] is spread {mine.spread(name)} in {mine.source}, but {noted.spread(name)} in "
        f"{noted.source}; write it as it was, or, where there is no row yet or each is where the new key belongs, run: "
        f"pipeline adopt-rows {name}"
        for name in names
        if mine.spread(name) != noted.spread(name)
    }


def placed_otherwise(mine: Fingerprint, noted: Fingerprint | None) -> dict[str, str]:
    """Return a sentence for each table whose ops the other configuration puts elsewhere; `""`: of each table.

    Args:
        mine: the `placing` of a process's own.
        noted: that of another; None: none is known.
    """
    if noted is None:
        return {}
    if mine.buckets == noted.buckets and noted.prefix in (mine.prefix, ""):  # releases of before noted no prefix
        return table_differences(mine, noted)
    return {"": differences(mine, noted)[0]}


def differences(mine: Fingerprint, noted: Fingerprint) -> list[str]:
    """Return a sentence for each difference but those of tables.

    Args:
        mine: a process's own.
        noted: the deployment's.
    """
    here, there = f"in {mine.source}", f"in {noted.source}"
    found = []
    if mine.prefix != noted.prefix:
        found.append(
            f"[redis] prefix is {mine.prefix!r} {here}, but these databases belong to the prefix {noted.prefix!r} "
            f"{there}; write that prefix, or give this deployment databases of its own; to begin a queue of another "
            "name on these databases, stop the other and run: pipeline restore --redis"
        )
    if mine.buckets != noted.buckets:
        return [
            *found,
            f"[pipeline] buckets is {mine.buckets} {here}, but {noted.buckets} {there}; write buckets = "
            f"{noted.buckets}: the number is fixed for life, since it has placed the rows that stand",
        ]
    found += _group_differences(mine, noted, here, there)
    return [*found, *_shard_differences(dict(mine.shards), dict(noted.shards), here, there)]


def _group_differences(mine: Fingerprint, noted: Fingerprint, here: str, there: str) -> Iterable[str]:
    """Yield a sentence for each shard whose logs would be looked for in another Redis than the one that has them."""
    ours, theirs = dict(mine.groups), dict(noted.groups)
    both = dict(mine.shards).keys() & dict(noted.shards).keys()
    for name in sorted(both):
        if ours.get(name, "") != theirs.get(name, ""):
            was = theirs.get(name, "")
            cure = f'write redis = "{was}" under [shards.{name}]' if was else f"take redis out of [shards.{name}]"
            yield (
                f"[shards.{name}] has its logs in {_redis_of(ours.get(name))} {here}, but in {_redis_of(was)} {there}; "
                f"{cure}: ops that wait there would never be applied; a shard's Redis is chosen before its first op"
            )


def _redis_of(group: str | None) -> str:
    return f"[redis.{group}]" if group else "[redis]"


def _shard_differences(mine: Mapping[str, str], noted: Mapping[str, str], here: str, there: str) -> Iterable[str]:
    gone, new = [name for name in noted if name not in mine], [name for name in mine if name not in noted]
    for name in gone:
        held = f"buckets {noted[name]}" if noted[name] else "no bucket"
        yield (
            f"[shards.{name}] is missing {here}, but holds {held} {there}; write it again"
            + ("" if noted[name] else f", or, to take it away, run: pipeline shard remove {name}")
        )
    for name in new:
        yield f"[shards.{name}] is new {here}, and unknown {there}; run: pipeline shard add {name}"
    for name in noted:
        if name in mine and mine[name] != noted[name]:
            yield (
                f"[shards.{name}] has the buckets {mine[name] or 'none'} {here}, but {noted[name] or 'none'} {there}; "
                f'write buckets = "{noted[name]}" under [shards.{name}]: the order and number of shards change the '
                "even split"
            )


def newest(notes: Iterable[Fingerprint | None]) -> Fingerprint | None:
    """Return the newest of the fingerprints that were found; None where there is none.

    Args:
        notes: of Redis and of shards.
    """
    return max((note for note in notes if note is not None), key=lambda note: note.version, default=None)


def strangers(
    mine: Fingerprint, redis: Fingerprint | None, shards: Mapping[str, Fingerprint | None], names: Mapping[str, str]
) -> list[str]:
    """Return a sentence for each database or Redis that belongs to another deployment, or that nobody knows.

    Args:
        mine: a process's own.
        redis: what this Redis keeps under this prefix.
        shards: what each database that was asked keeps.
        names: the names that those databases give themselves.
    """
    found = []
    for shard, note in shards.items():
        address = dict(mine.databases)[shard][0]
        if redis is None:
            if note is not None and note.prefix == mine.prefix and not {*note.redis} & {*mine.redis}:
                found.append(
                    f"the database of {shard} ({address}) belongs to the queue in Redis {' or '.join(note.redis)} by "
                    f"{note.source}, but {mine.source} names {' or '.join(mine.redis)}, which knows nothing of it; "
                    "write that [redis] url, or give this deployment databases of its own; if that Redis is gone for "
                    "good, stop what uses it and run: pipeline restore --redis"
                )
        elif note is not None and note.deployment != redis.deployment:
            found.append(
                f"[redis] url and prefix {mine.prefix!r} in {mine.source} are the queue of {redis.source}, but the "
                f"database of {shard} ({address}) belongs to the deployment of {note.source}; give {mine.source} a "
                "[redis] prefix or url of its own"
            )
        elif shard in dict(redis.shards) and not mine.leads_to(shard, redis, names[shard]):
            known = ", ".join(sorted(redis.known(shard))) or "no database"
            found.append(
                f"[redis] url and prefix {mine.prefix!r} in {mine.source} are the queue of {redis.source}, whose "
                f"{shard} is {known}, but [shards.{shard}] is {address}; give {mine.source} a [redis] prefix or url "
                f"of its own; if the database has moved there, run: pipeline restore {shard}"
            )
    return found
