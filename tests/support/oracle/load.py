"""A load: random deeds sent through a client, each noted once it is acknowledged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pipeline import clock
from pipeline.client import Client
from pipeline.enqueue.op_builder import Archive
from pipeline.errors import InDoubt, PipelineError
from pipeline.model.receipt import Receipt
from support.oracle.ledger import Acknowledged
from support.oracle.model import Deed

#: How long a sure load tries one op, through whatever happens to Redis.
SURE_S = 60
#: Deeds and their weights: mostly what shows an op done twice or out of order.
MIXED = {"insert": 4, "bump": 8, "version": 3, "bump_all": 2, "upsert": 3, "delete": 1, "clash": 1, "group": 1}
#: Groups of two shard keys of one bucket: they name rows by their ids alone, or the keys.
TWO_KEYS = {"pair": 2, "both": 1}
#: The most rows of a bulk call.
MOST_ROWS = 40


class Load:
    """Sends deeds of one producer.

    Args:
        name: unique in the test; names its rows and its tokens.
        owners: the shard keys it writes to; other loads may write to them too.
        weights: how often which deed.
        sure: send an op again under its idempotency key until it is acknowledged.
        sheets: how likely `send_some` sends many rows in one call.
    """

    def __init__(
        self,
        client: Client,
        db: Any,
        luck: random.Random,
        name: str,
        owners: Sequence[int],
        *,
        weights: dict[str, int] | None = None,
        sure: bool = False,
        durability: str = "redis",
        sheets: float = 0.0,
    ):
        self._client, self._db, self._luck, self._name = client, db, luck, name
        self._owners, self._sure, self._durability = owners, sure, durability
        self._weights = dict(weights or MIXED)
        if sure:
            self._weights.pop("group", None)  # a group takes no idempotency key
        if sure or durability != "redis":
            self._weights.pop("version", None)  # what a table's own words queue has neither key nor level
        self._mine: dict[int, list[tuple[int, str]]] = {owner: [] for owner in owners}
        self._count, self._sheets = 0, sheets

    def send_some(self) -> list[Acknowledged]:
        """Send one random deed, or the inserts of one bulk call."""
        if self._luck.random() >= self._sheets:
            return [self.send()]
        self._count += 1
        owners = self._luck.choices(self._owners, k=self._luck.randint(2, MOST_ROWS))
        rows = [{"owner": owner, "name": f"{self._name}-{self._count}.{n}"} for n, owner in enumerate(owners)]
        found = list[Acknowledged]()
        for row, receipt in zip(rows, self._client.enqueue_bulk_insert(self._db.tally, rows), strict=True):
            assert receipt.id is not None
            self._mine[row["owner"]].append((receipt.id, row["name"]))
            found.append(Acknowledged.of(receipt, ["insert", row["owner"], row["name"], receipt.id]))
        return found

    def send(self) -> Acknowledged:
        """Send one random deed."""
        self._count += 1
        owner = self._luck.choice(self._owners)
        [kind] = self._luck.choices(list(self._weights), list(self._weights.values()))
        if kind in ("bump", "version", "delete", "clash", "group", "pair") and not self._mine[owner]:
            kind = "insert"
        receipt, deed = getattr(self, f"_{kind}")(owner)
        return Acknowledged.of(receipt, deed)

    def _insert(self, owner: int, name: str | None = None) -> tuple[Receipt, Deed]:
        name = name or f"{self._name}-{self._count}"
        receipt = self._again(lambda **how: self._client.enqueue_insert(self._db.tally, owner=owner, name=name, **how))
        assert receipt.id is not None
        self._mine[owner].append((receipt.id, name))
        return receipt, ["insert", owner, name, receipt.id]

    def _clash(self, owner: int) -> tuple[Receipt, Deed]:
        """Insert a name that was taken: refused, unless it has been deleted since."""
        return self._insert(owner, self._pick(owner)[1])

    def _bump(self, owner: int) -> tuple[Receipt, Deed]:
        row, _ = self._pick(owner)
        query = self._db.tally.id == row
        receipt = self._again(lambda **how: self._client.enqueue_update(query, **self._bumped(), **how))
        return receipt, ["bump", owner, row, self._token]

    def _version(self, owner: int) -> tuple[Receipt, Deed]:
        """Update as an attached table that keeps versions does."""
        row, _ = self._pick(owner)
        archive = Archive(self._db.tally_archive, "current_record")
        made = self._client.op_builder.versioned_update(self._db.tally.id == row, self._bumped(), archive)
        receipt = self._client.take_together(made)
        return receipt, ["version", owner, row, self._token, made[0].op.id]

    def _bump_all(self, owner: int) -> tuple[Receipt, Deed]:
        query = self._db.tally.owner == owner
        receipt = self._again(lambda **how: self._client.enqueue_update(query, **self._bumped(), **how))
        return receipt, ["bump_all", owner, self._token]

    def _upsert(self, owner: int) -> tuple[Receipt, Deed]:
        name, token = f"shared-{self._luck.randrange(4)}", self._token
        row = {"owner": owner, "name": name, "n": 1, "trace": token}
        receipt = self._again(
            lambda **how: self._client.enqueue_upsert(self._db.tally, key=["owner", "name"], **row, **how)
        )
        return receipt, ["upsert", owner, name, token]

    def _delete(self, owner: int) -> tuple[Receipt, Deed]:
        row, _ = self._pick(owner)
        receipt = self._again(lambda **how: self._client.enqueue_delete(self._db.tally.id == row, **how))
        return receipt, ["delete", owner, row]

    def _group(self, owner: int) -> tuple[Receipt, Deed]:
        with self._client.atomic():
            first, deed = self._insert(owner)
            _, second = self._bump(owner)
            _, third = self._bump_all(owner)
        return first, ["group", deed, second, third]

    def _pair(self, owner: int) -> tuple[Receipt, Deed]:
        """Update rows of two keys by their ids alone."""
        owners = [one for one in self._neighbours(owner) if self._mine[one]]
        picked = [(one, self._pick(one)[0]) for one in self._luck.choices(owners, k=2)]
        with self._client.atomic():
            [*receipts] = (self._client.enqueue_update(self._db.tally.id == row, **self._bumped()) for _, row in picked)
        return receipts[0], ["group", *(["bump", one, row, self._token] for one, row in picked)]

    def _both(self, owner: int) -> tuple[Receipt, Deed]:
        """Insert rows of two keys in one group."""
        owners = self._luck.choices(self._neighbours(owner), k=2)
        with self._client.atomic():
            made = [self._insert(one, f"{self._name}-{self._count}.{n}") for n, one in enumerate(owners)]
        return made[0][0], ["group", *(deed for _, deed in made)]

    def _neighbours(self, owner: int) -> list[int]:
        bucket_of = self._client.topology.bucket_of
        return [one for one in self._owners if bucket_of("tally", one) == bucket_of("tally", owner)]

    @property
    def _token(self) -> str:
        return f"{self._name}.{self._count},"

    def _bumped(self) -> dict[str, Any]:
        tally = self._db.tally
        return {"n": tally.n + 1, "trace": tally.trace + self._token}

    def _pick(self, owner: int) -> tuple[int, str]:
        return self._luck.choice(self._mine[owner])

    def _again(self, enqueue: Any) -> Receipt:
        how = {} if self._durability == "redis" else {"durability": self._durability}
        if not self._sure:
            return enqueue(**how)  # type: ignore[no-any-return]
        key = f"{self._owners[0]} {self._name}.{self._count}"  # other tests on the same servers name theirs alike
        for deadline in clock.polls(SURE_S):
            try:
                return enqueue(idempotency_key=key, **how)  # type: ignore[no-any-return]
            except PipelineError as error:
                if deadline.passed or not (error.retryable or isinstance(error, InDoubt)):  # the key makes it harmless
                    raise
        raise AssertionError
