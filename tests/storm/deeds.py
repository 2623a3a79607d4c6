"""Callers: each makes one call after the other, and notes what was said of it. Their deeds show every fault.

A deed leaves a token where it takes effect, once. A row's `trace` keeps the order of its deeds, its `n` counts them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from storm import families

from pipeline.client import Client
from pipeline.errors import LogUnavailable, PipelineError, Unavailable
from pipeline.model.receipt import Receipt

#: What a caller does, and how often.
WEIGHTS = {"bump": 10, "group": 2, "event": 2, "note": 1, "upsert": 2, "short": 2, "country": 1, "family": 3, "read": 4}
#: How often a call with an idempotency key is made again, whatever became of it.
AGAIN = 0.3
#: What a receipt may say at last of an op that took effect.
DONE = frozenset({"applied", "durable", "replayed"})
#: What was said to the caller of a deed.
ACKNOWLEDGED, IN_DOUBT, REFUSED = "acknowledged", "in doubt", "refused"


@dataclass
class Deed:
    """One call, what was said of it, and where its token is if it took effect.

    Attributes:
        places: the rows that hold its token, as (table, owner, row).
        after: the deed of the same caller that it undoes or overwrites.
    """

    kind: str
    owner: int
    token: str
    places: list[tuple[str, int, int | str]] = field(default_factory=list)
    said: str = REFUSED
    receipts: list[Receipt] = field(default_factory=list)
    error: str = ""
    told: str = ""


@dataclass
class Sight:
    """What a read showed of a row to a caller whose last acknowledged deed on the row is *own*."""

    own: Deed
    trace: str
    session: bool


class Caller:
    """Makes calls through one client, one after the other.

    Args:
        shared: of each owner, the id of the row that all callers write to.
    """

    def __init__(
        self, name: str, client: Client, db: Any, luck: random.Random, shared: dict[int, int], durability: str = "redis"
    ):
        self.name, self.client, self._db, self._luck = name, client, db, luck
        self._shared, self.durability = shared, durability
        self.deeds: list[Deed] = []
        self.sights: list[Sight] = []
        self.families: list[families.Family] = []
        self.surprises: list[str] = []
        self.in_sessions, self.reads = 0.5, dict[str, Any]()
        self._session = client.session_token()
        self._own: dict[int, Deed] = {}  # owner -> the last acknowledged deed on the shared row

    def act(self, kind: str = "") -> None:
        """Make one call."""
        [kind] = [kind] if kind else self._luck.choices(list(WEIGHTS), list(WEIGHTS.values()))
        owner = self._luck.choice(list(self._shared))
        getattr(self, f"_{kind}")(owner)

    def pause_s(self, most_s: float) -> float:
        """Return how long to wait before the next call."""
        return self._luck.uniform(0, most_s)

    def last(self) -> None:
        """Make one call for each owner: what a process knows of a loss must not hang on more."""
        for owner in self._shared:
            self._bump(owner)

    # deeds --------------------------------------------------------------------------------------------------

    def _bump(self, owner: int) -> None:
        deed = self._noted("bump", owner, ("tally", owner, self._shared[owner]))
        key = {"idempotency_key": deed.token} if self._luck.random() < AGAIN else {}
        self._try(deed, lambda **how: self._bumped(owner, deed.token, **how), **key)

    def _group(self, owner: int) -> None:
        deed = self._noted("group", owner, ("tally", owner, self._shared[owner]), ("event", owner, self._token))

        def grouped(**how: Any) -> Receipt:
            with self.client.atomic():
                receipt = self._bumped(owner, deed.token)
                self.client.enqueue_insert(self._db.event, owner=owner, body=deed.token)
            return receipt

        if self.durability == "redis":  # a group has the level of its first op
            self._try(deed, grouped)
        else:
            self.deeds.remove(deed)

    def _event(self, owner: int) -> None:
        deed = self._noted("event", owner, ("event", owner, self._token))
        self._try(deed, lambda **how: self.client.enqueue_insert(self._db.event, owner=owner, body=deed.token, **how))

    def _note(self, owner: int) -> None:
        """Insert a row that gets its id from the database."""
        deed = self._noted("note", owner, ("note", owner, self._token))
        self._try(deed, lambda **how: self.client.enqueue_insert(self._db.note, owner=owner, body=deed.token, **how))

    def _country(self, owner: int) -> None:
        deed = self._noted("country", owner, ("country", 0, self._token))
        self._try(deed, lambda **how: self.client.enqueue_insert(self._db.country, name=deed.token, **how))

    def _upsert(self, owner: int) -> None:
        """Overwrite a row of one's own."""
        deed = self._noted("upsert", owner, ("upserted", owner, f"up-{self.name}"))
        row = {"owner": owner, "name": f"up-{self.name}", "n": 1, "trace": deed.token}
        self._try(deed, lambda **how: self.client.enqueue_upsert(self._db.tally, key=["owner", "name"], **row, **how))

    def _short(self, owner: int) -> None:
        """Make a row, write to it, delete it."""
        made = self._noted("insert", owner, ("row", owner, self._token))
        tally = self._db.tally
        self._try(made, lambda **how: self.client.enqueue_insert(tally, owner=owner, name=made.token, **how))
        if made.said != ACKNOWLEDGED:
            return
        row = made.receipts[0].id
        bumped = self._noted("update", owner, ("row", owner, made.token))
        self._try(bumped, lambda **how: self._bumped(owner, bumped.token, row=row, **how))
        if self._luck.random() < 0.5:
            deleted = self._noted("delete", owner, ("row", owner, made.token))
            self._try(deleted, lambda **how: self.client.enqueue_delete(tally.id == row, shard_key=owner, **how))

    def _family(self, owner: int) -> None:
        """Make a parent and a child in another bucket of its shard; delete both, or the parent alone, or neither."""
        topology, db, client = self.client.topology, self._db, self.client
        shard_of = {one: topology.shard_of(topology.bucket_of(families.PARENT, one)) for one in self._shared}
        other = self._luck.choice([one for one in self._shared if shard_of[one] == shard_of[owner]])
        token, end = self._token, self._luck.random()
        self.families.append(families.Family([]))
        parent = {"owner": owner, "body": token}
        made = self._relative(families.PARENT, owner, lambda **how: client.enqueue_insert(db.parent, **parent, **how))
        child = {"owner": other, "up": made, "body": token}
        born = self._relative(families.CHILD, other, lambda **how: client.enqueue_insert(db.child, **child, **how))
        rows = {families.ORPHANED: (db.child.id == born, other), families.LEFT: (db.parent.id == made, owner)}
        for kind in families.KINDS[2:] if end < 0.3 else families.KINDS[3:] if end < 0.5 else ():
            row, key = rows[kind]
            self._relative(kind, key, lambda row=row, key=key, **how: client.enqueue_delete(row, shard_key=key, **how))

    def _relative(self, kind: str, owner: int, call: Callable[..., Receipt]) -> int:
        """Note a deed of the last family, unless one before was not acknowledged; return the row's id, or 0."""
        family = self.families[-1]
        if any(deed.said != ACKNOWLEDGED for deed in family.deeds):
            return 0
        deed = self._noted(kind, owner)
        family.deeds.append(deed)
        self._try(deed, call)
        return int(deed.receipts[0].id) if deed.said == ACKNOWLEDGED else 0

    def _read(self, owner: int) -> None:
        """Read a row that this caller has written to."""
        own, in_session = self._own.get(owner), self._luck.random() < self.in_sessions
        if own is None:
            return
        after: Any = self._session if in_session else own.receipts[-1]
        if in_session:
            self._session.wrote(own.receipts)
        try:
            row = self.client.get("tally", self._shared[owner], after=after, **self.reads)
        except PipelineError:
            return  # a read may be refused; what it shows may not be wrong
        self.sights.append(Sight(own, "" if row is None else row.trace, in_session))

    # parts --------------------------------------------------------------------------------------------------

    @property
    def _token(self) -> str:
        return f"{self.name}.{len(self.deeds)},"

    def _noted(self, kind: str, owner: int, *places: tuple[str, int, int | str]) -> Deed:
        deed = Deed(kind, owner, self._token, list(places))
        self.deeds.append(deed)
        return deed

    def _bumped(self, owner: int, token: str, *, row: int | None = None, **how: Any) -> Receipt:
        tally = self._db.tally
        values = {"n": tally.n + 1, "trace": tally.trace + token}
        return self.client.enqueue_update("tally", row or self._shared[owner], values, shard_key=owner, **how)

    def _try(self, deed: Deed, call: Callable[..., Receipt], **how: Any) -> None:
        if self.durability != "redis" and deed.kind != "group":
            how["durability"] = self.durability
        times = 1 + ("idempotency_key" in how and self._luck.random() < 0.5)
        for _ in range(times):
            self._once(deed, lambda: call(**how))
        if deed.said == ACKNOWLEDGED and deed.places and deed.places[0][0] == "tally":
            self._own[deed.owner] = deed

    def _once(self, deed: Deed, call: Callable[[], Receipt]) -> None:
        try:
            deed.receipts.append(call())
            deed.said = ACKNOWLEDGED
        except Unavailable as error:
            deed.error = f"{type(error).__name__}: {error}"
            if deed.said == REFUSED and _in_doubt(error):
                deed.said = IN_DOUBT
            if "is locked" in str(error):
                self.surprises.append(f"{deed.token} met {deed.error}")
        except PipelineError as error:
            deed.error = f"{type(error).__name__}: {error}"
            self.surprises.append(f"{deed.token} met {deed.error}")


def _in_doubt(error: Unavailable) -> bool:
    sent = isinstance(error, LogUnavailable) and error.sent
    return bool(sent or error.numbered or getattr(error, "receipt", None))


def told_together(told: set[str]) -> str:
    """Return what the receipts of one deed say: of two ops with one key, that which is done counts."""
    words = {"applied" if one in DONE else one for one in told}
    return " and ".join(sorted(words - {"lost"} if "applied" in words else words))


def all_deeds(callers: Sequence[Caller]) -> list[Deed]:
    """Return what all callers have done."""
    return [deed for caller in callers for deed in caller.deeds]
