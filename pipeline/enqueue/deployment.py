"""Compare this process's configuration with the fingerprint of its deployment: in Redis, and in each shard's database.

Redis has a copy, so that a process that gets its epoch queries no database. A database is queried only where Redis has
forgotten the fingerprint, or does not know the database's address. How a table is spread is noted before its first op.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from uuid import uuid4

from msgspec.structs import replace

from pipeline import clock
from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE, numbers_text
from pipeline.errors import LogUnavailable, NotMigrated, Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.model import Position, deleted_behind
from pipeline.model.fingerprint import Fingerprint, differences, newest, strangers, table_differences
from pipeline.model.schema import TableSchema
from pipeline.oplog import Log
from pipeline.oplog.appends import EVERYWHERE, Scope
from pipeline.shard import NodeSession
from pipeline.shard.columns import columns_of, holds_rows
from pipeline.shard.nodes import Nodes
from pipeline.shard.records import ledger_queries

#: For how long a comparison begins anew because others note something meanwhile, s: of those that try, one succeeds.
AGREE_S = 10.0
logger = logging.getLogger("pipeline.deployment")


class Agreement:
    """The fingerprints that Redis and some databases keep, beside this process's own.

    Args:
        log: has Redis's copy.
        nodes: the databases.
        topology: the configuration.
        scope: the name of a scope: Redis is the one that has its logs.

    Attributes:
        mine: this process's own.
        redis: Redis's copy, if it has one.
        shards: what each database that was asked keeps, if anything.
    """

    def __init__(self, log: Log, nodes: Nodes, topology: Topology, scope: str = EVERYWHERE):
        self._log, self._nodes, self.mine = log, nodes, topology.fingerprint
        self._scope, self._scopes = scope, scopes_of_servers(topology)
        group = topology.group_of(scope)
        self._groups = topology.groups
        self._redis = self._groups.get(group, self.mine.redis[0])
        self._seen = log.deployment(scope)
        self.redis = Fingerprint.noted(self._seen)
        self.shards: dict[str, Fingerprint | None] = {}
        self._names: dict[str, str] = {}

    @property
    def noted(self) -> Fingerprint | None:
        """The newest fingerprint that was found."""
        return newest((self.redis, *self.shards.values()))

    @property
    def newest_of_shards(self) -> Fingerprint | None:
        """The newest fingerprint that a database keeps."""
        return newest(self.shards.values())

    def unknown(self, shard: str) -> bool:
        """Return whether Redis does not know the address of a shard's database.

        Args:
            shard: its name.
        """
        return self.redis is None or not self.mine.leads_to(shard, self.redis)

    @property
    def by_another_name(self) -> bool:
        """Whether this process calls Redis by an address that is not noted: after a wipe only the address is left."""
        return self.redis is not None and self._redis not in self.redis.redis

    def ask(self, shard: str) -> None:
        """Read what the database of a shard keeps.

        Args:
            shard: its name.

        Raises:
            ShardUnavailable: its primary did not answer.
        """
        text, self._names[shard] = ledger_queries.fingerprint_of(self._nodes.primary(shard))
        self.shards[shard] = Fingerprint.from_json(text) if text else None

    def faults(self, *, running: bool = False, used: Collection[str] = ()) -> list[str]:
        """Return what does not fit, a sentence each; see `model.fingerprint`.

        Args:
            running: whether a shard may be missing that owns no bucket: one is added while processes run.
            used: the tables that this process sends ops of.
        """
        noted = self.noted
        if noted is None:
            return []
        mine = self.mine.beside(noted) if running else self.mine
        return self.strangers() or [*differences(mine, noted), *self.standing(noted, used)]

    def strangers(self) -> list[str]:
        """Return a sentence for each server that belongs to another deployment, or that nobody knows."""
        here = replace(self.mine, redis=(self._redis,))
        return strangers(here, self.redis, self.shards, self._names)

    def apart(self) -> list[str]:
        """Return a sentence for each Redis of a group that is another deployment's, or that nobody knows."""
        noted, found = self.noted, list[str]()
        if noted is None:
            return found
        for scope in self._scopes[1:]:
            group = dict(self.mine.groups)[scope]
            there, url = Fingerprint.noted(self._log.deployment(scope)), self._groups[group]
            if there is not None and there.deployment != noted.deployment:
                found.append(
                    f"[redis.{group}] url and prefix {self.mine.prefix!r} in {self.mine.source} are the queue of "
                    f"{there.source}; give {self.mine.source} a [redis] prefix of its own, or another url there"
                )
            elif there is None and url not in noted.redis and group in dict(noted.groups).values():
                found.append(
                    f"[redis.{group}] url in {self.mine.source} is {url}, which knows nothing of this deployment; "
                    "write the url of before; if that Redis is gone for good, stop what uses it and run: pipeline "
                    "restore --redis"
                )
        return found

    def refuse(self, *, running: bool = False, used: Collection[str] = ()) -> None:
        """Raise where something does not fit.

        Args:
            running, used: see `faults`.

        Raises:
            WrongDeployment: with a sentence for each fault.
        """
        if found := self.faults(running=running, used=used):
            raise WrongDeployment(found)

    @property
    def named(self) -> Fingerprint:
        """This process's own, with the names of the databases that were asked, and of no others."""
        names = [(one, tuple(sorted({*self.mine.known(one), self._names[one]} - {""}))) for one in self.shards]
        return replace(self.mine, databases=tuple(names))

    def settled(self, used: Iterable[str] = ()) -> Fingerprint:
        """Return the fingerprint that the deployment is to keep, where nothing is at fault; draw one where it has none.

        The fingerprint learns the names of the databases that were asked, and how tables are spread that it lacks. That
        a table is spread by its own id is noted in Redis alone: a database that has no word of the table says the same.

        Args:
            used: the tables that this process sends ops of.
        """
        noted, mine = self.noted, self.named
        if noted is None:
            return replace(mine, deployment=uuid4().hex)
        met = noted.meeting(replace(mine, redis=(self._redis,)))  # the other Redis are met with their own scopes
        told = met.with_tables(mine.tables)
        told = told if told is met else replace(told, version=met.version + 1)
        return told.with_tables((name, mine.spread(name)) for name in used)

    def keep(self, new: Fingerprint, *, adopted: str = "") -> bool:
        """Store a fingerprint where it is not yet: in Redis, and in the databases that were asked; a change in all.

        Args:
            new: in force from then on.
            adopted: the table whose spread is meant to change.

        Returns:
            Whether it is kept; False where another process has noted another one meanwhile: begin anew, see `tries`.

        Raises:
            WrongDeployment: the Redis of a group is another deployment's, or has noted another spread of a table.
        """
        noted = self.noted
        text, changes = new.to_json(), noted is not None and new.version > noted.version
        added = {name for name, _ in new.tables if noted is not None and not noted.names(name)} - {adopted}
        for scope in self._scopes if changes else ():
            self._refuse_elsewhere(Fingerprint.noted(self._log.deployment(scope)), added)
        if self.redis != new and not self._log.note_deployment(self._seen, text, self._scope):
            return False
        if changes:
            self._note_elsewhere(new, added)
        for shard in self._nodes.shards if changes else self.shards:
            if changes or self.shards[shard] != new:
                ledger_queries.keep_fingerprint(self._nodes.primary(shard), new)
        self._seen, self.redis = text, new
        return True

    def _refuse_elsewhere(self, there: Fingerprint | None, added: Collection[str]) -> None:
        """Raise where the Redis of a group has noted of a table that a change adds that its ops go elsewhere."""
        if there is not None:
            found = table_differences(self.mine, there)
            if faults := [why for name, why in found.items() if name in added and there.names(name)]:
                raise WrongDeployment(faults)

    def _note_elsewhere(self, new: Fingerprint, added: Collection[str]) -> None:
        """Note a change in the Redis of every other group, unless that is another deployment's."""
        known = {one.deployment for one in (self.redis, *self.shards.values()) if one is not None}
        for scope in self._scopes:
            for _ in tries():
                seen = self._log.deployment(scope)
                there = Fingerprint.noted(seen)
                self._refuse_elsewhere(there, added)  # it may have been noted since
                if there is not None and there.deployment not in {*known, new.deployment}:
                    raise WrongDeployment([f"the Redis of {scope} keeps another deployment's queue under this prefix"])
                text = new.after(there).with_tables(there.tables if there is not None else ()).to_json()
                if seen == text or self._log.note_deployment(seen, text, scope):
                    break

    def standing(self, noted: Fingerprint, used: Collection[str] = ()) -> list[str]:
        """Return the differences of those tables that both name, or that have a row on some shard.

        A table that only the deployment names is none of this process's, until it is used.

        Args:
            noted: the deployment's fingerprint.
            used: the tables that this process sends ops of.
        """
        found = table_differences(self.mine, noted)
        firm = {name for name in found if noted.names(name) and (self.mine.names(name) or name in used)}
        if unsure := found.keys() - firm:
            published = {name: TableSchema.from_json(text) for name, text in self._log.newest_schemas().items()}
            named = {name: published[name].name_there if name in published else name for name in unsure}
            primaries = [self._nodes.primary(shard) for shard in self._nodes.shards]
            firm |= {name for name in unsure if any(holds_rows(one, named[name]) for one in primaries)}
        return [why for name, why in found.items() if name in firm]


def tries() -> Iterator[None]:
    """Yield for each attempt to read the fingerprints, compare, and keep a new one; break once it is kept.

    Raises:
        LogUnavailable: others have noted something in each attempt; nothing is kept, and the command may be repeated.
    """
    for _ in clock.polls(AGREE_S, first_s=0.01):
        yield
    raise LogUnavailable("the deployment's fingerprint keeps changing", sent=False)


def asked(log: Log, nodes: Nodes, topology: Topology) -> Agreement:
    """Return the fingerprints that Redis and every database keep.

    Args:
        log: has Redis's copy.
        nodes: the databases.
        topology: the configuration.

    Raises:
        LogUnavailable, ShardUnavailable: a server did not answer.
    """
    notes = Agreement(log, nodes, topology)
    for shard in topology.shards:
        notes.ask(shard)
    return notes


def scopes_of_servers(topology: Topology) -> list[str]:
    """Return one scope of each Redis that has logs.

    Args:
        topology: the configuration.
    """
    groups = {topology.group_of(shard): shard for shard in topology.shards}
    return [EVERYWHERE, *(shard for group, shard in groups.items() if group)]


def verify(
    log: Log, nodes: Nodes, topology: Topology, scope: Scope, *, asking: bool = False, used: Collection[str] = ()
) -> Fingerprint:
    """Return what is noted, where the configuration fits it; give Redis what it has forgotten, or has not known.

    Args:
        log: has Redis's copy of the fingerprint.
        nodes: the databases.
        topology: the configuration.
        scope: what is about to be written to; its Redis is asked, and its shards.
        asking: whether to ask their databases, too, that Redis knows.
        used: the tables that this process sends ops of.

    Raises:
        WrongDeployment: it does not fit; nothing was changed.
        NotMigrated: no database keeps a fingerprint.
        ShardUnavailable: a database that has to be asked did not answer.
        LogUnavailable: other processes keep changing it.
    """
    for _ in tries():
        notes = Agreement(log, nodes, topology, scope.name)
        for shard in scope.shards:
            if asking or notes.unknown(shard):
                notes.ask(shard)
            elif notes.by_another_name:
                _ask_if_there(notes, shard)
        if scope.name != EVERYWHERE and notes.faults(running=True, used=used):
            for shard in scope.shards:  # a change may not have reached this copy
                notes.ask(shard)
        notes.refuse(running=True, used=used)
        if notes.noted is None:
            raise NotMigrated(", ".join(scope.shards), "it keeps no fingerprint")
        if notes.keep(noted := notes.settled(used)):
            break
    return noted


def compare_all(log: Log, nodes: Nodes, topology: Topology) -> None:
    """Compare with every database that answers, and let all know the names by which this process calls them.

    Args:
        log: has Redis's copy of the fingerprint.
        nodes: the databases.
        topology: the configuration.

    Raises:
        WrongDeployment: the configuration does not fit; nothing was changed.
        LogUnavailable, ShardUnavailable: a server went away; what was not compared is before its first epoch.
    """
    notes = Agreement(log, nodes, topology)
    for shard in topology.shards:
        _ask_if_there(notes, shard)
    notes.refuse(running=True)
    if None not in notes.shards.values():
        notes.keep(notes.settled())


def _ask_if_there(notes: Agreement, shard: str) -> None:
    try:
        notes.ask(shard)
    except Unavailable as error:
        logger.warning(Event("configuration_not_compared", shard=shard, error=error))


def misfits_of(log: Log, nodes: Nodes, topology: Topology) -> list[str]:
    """Return everything that does not fit, a sentence each; change nothing.

    Args:
        log: has Redis's copy of the fingerprint.
        nodes: the databases; one that does not answer is passed over.
        topology: the configuration.
    """
    notes, found = Agreement(log, nodes, topology), []
    for shard in topology.shards:
        try:
            notes.ask(shard)
            found.append(restored(log, nodes, topology, shard))
        except Unavailable as error:
            logger.info(Event("configuration_not_compared", shard=shard, error=error))
    return [*notes.faults(), *notes.apart(), *filter(None, found)]


def known_positions(session: NodeSession) -> dict[int, Position]:
    """Return how far each bucket is applied on a node; nothing where it lacks the pipeline's own tables.

    Args:
        session: of the node.
    """
    return ledger_queries.positions_of(session) if columns_of(session, "pipeline_watermarks") else {}


def applied_once(log: Log, topology: Topology, shard: str) -> dict[int, Position]:
    """Return how far each bucket was once applied, as was published: by a shard, or by one that had the bucket before.

    Args:
        log: has copies of the watermarks.
        topology: names the shards.
        shard: the one whose pieces and reference bucket count, too.
    """
    found = {bucket: mark for bucket, mark in log.marks(shard).items() if mark.epoch}
    for other in topology.shards:
        for bucket, mark in log.marks(other).items() if other != shard else ():
            if bucket < topology.buckets and mark.epoch:
                found[bucket] = max(mark, found.get(bucket, mark))
    return found


def restored(log: Log, nodes: Nodes, topology: Topology, shard: str) -> str:
    """Return why the database of a shard is not the one that the log was applied to; empty where it is.

    Watermarks are missing whose logs were used; or the log has deleted what is behind a watermark, since a later one
    was committed once.

    Args:
        log: has the entries, and copies of the watermarks.
        nodes: the databases.
        topology: the buckets of the shard.
        shard: its name.
    """
    session = nodes.primary(shard)
    marks = known_positions(session)
    wanted = {one for one in topology.applied_by(shard) if one < FIRST_PIECE or one not in topology.placement.moves}
    applied = {bucket: mark for bucket, mark in applied_once(log, topology, shard).items() if bucket in wanted}
    lacking = wanted - marks.keys()
    found = {*lacking & applied.keys(), *log.tails(lacking)}
    behind = {bucket: marks[bucket] for bucket, mark in applied.items() if marks.get(bucket, mark) < mark}
    firsts = {bucket: head.position for bucket, head in log.heads(behind).items()}
    deleted = {b for b, mark in behind.items() if deleted_behind(mark, firsts.get(b), applied[b])}
    found |= {bucket for bucket in deleted if log.trimmed(bucket)}
    if not found:
        return ""
    lacks = numbers_text(found, topology.placement.pieces)
    return (
        f"the database of {shard} lacks what was applied there in the buckets {lacks}: it was restored "
        f"from a backup, or is another one; run: pipeline restore {shard}"
    )
