"""Foreign keys on MariaDB: `ondelete` of tables that `migrate` made does what plain pyDAL's does on the same server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pydal import DAL, Field
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.admin.migration import migrate, plan_of
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard import NodeSession
from pipeline.shard.table_facts import constraints_of

pytestmark = pytest.mark.mariadb
_numbers = count(1)
#: Whose rows are together: on one shard all are, on two the configuration says it.
#: A refused delete keeps back no other, as in plain pyDAL.
ONE: dict[str, Any] = {"customer": {"on_reject": "skip"}}
TOGETHER = {
    **ONE,
    "node": {"reference": True},
    "bought": {"shard_key": "customer"},
    "item": {"shard_key": "bought"},
    "asked": {"shard_key": "customer"},
    "owes": {"shard_key": "customer"},
}


class Case:
    """A deployment over databases of its own, and a database that plain pyDAL writes."""

    def __init__(self, rig: Rig, shards: int, tables: dict[str, Any]):
        name = f"keys{next(_numbers)}"
        self.uris = {s: uri.replace("/shop", f"/{name}") for s, uri in [*rig.primaries.items()][:shards]}
        self.plain = rig.primaries["s0"].replace("/shop", f"/{name}plain")
        for shard in self.uris:
            nodes.rows(rig.primaries[shard], f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        nodes.rows(rig.primaries["s0"], f"CREATE DATABASE {name}plain CHARACTER SET utf8mb4")
        self.client = Client(
            {
                "pipeline": {"buckets": 16},
                "redis": {"url": "redis://away.invalid/0"},
                "shards": {shard: {"primary": uri} for shard, uri in self.uris.items()},
                "tables": tables,
                "apply": {"breaker": False},
            },
            log=MemoryLog(),
            bell=SilentBell(),
        )

    def sql(self, statement: str, shard: str = "s0") -> list[tuple[Any, ...]]:
        return nodes.rows(self.uris[shard], statement)

    def publish(self, *tables: tuple[Any, ...]) -> Any:
        db = DAL(None, migrate=False)
        for name, *fields in tables:
            db.define_table(name, *fields)
        self.client.define_tables(db)
        return db

    def drain(self) -> None:
        for shard in self.client.topology.shards:
            settings, session = self.client.settings, self.client.nodes.primary(shard)
            applier = Applier(shard, session, self.client.log, settings.apply, tables=settings.tables)
            while applier.apply().left:
                pass


@pytest.fixture
def case(mariadb: Rig, request: pytest.FixtureRequest) -> Iterator[Case]:
    made = Case(mariadb, *getattr(request, "param", (1, ONE)))
    yield made
    made.client.close()


@pytest.mark.parametrize("case", [(1, ONE), (2, TOGETHER)], indirect=True, ids=["one shard", "two shards"])
def test_ondelete_does_what_it_does_in_plain_pydal(case: Case, tmp_path: Path) -> None:
    plain = DAL(case.plain, folder=str(tmp_path), bigint_id=True)
    model(plain)
    db = DAL(None, migrate=False)
    model(db)
    case.client.define_tables(db)
    migrate(case.client)
    assert plan_of(case.client).steps == []
    ours = Written(case.client, case.drain, db)

    told = {"ours": [*story(ours)], "plain": [*story(Plain(plain))]}

    assert told["ours"] == told["plain"]
    assert told["plain"].count("refused") == 2
    assert named_rows([DAL(uri, migrate=False) for uri in case.uris.values()]) == named_rows([plain])
    for shard in case.uris:  # the key needs no index beside the one that is there
        assert {name for (name,) in case.sql(INDEXES, shard)} == {"PRIMARY", "ix_bought_customer"}
    plain.close()


def test_tables_that_refer_to_each_other_get_both_foreign_keys(case: Case) -> None:
    case.publish(
        ("chief", Field("of", "reference team", ondelete="SET NULL")), ("team", Field("head", "reference chief"))
    )

    migrate(case.client)

    assert keys(case) == {"chief.of>team SET NULL", "team.head>chief CASCADE"}
    assert plan_of(case.client).steps == []


def test_a_new_reference_in_a_table_with_rows_gets_its_foreign_key_while_others_write(case: Case) -> None:
    case.publish(("customer", Field("name")), ("bought", Field("name")))
    migrate(case.client)
    case.sql("INSERT INTO bought (name) VALUES ('a'), ('b')")
    case.publish(("customer", Field("name")), ("bought", Field("name"), Field("customer", "reference customer")))

    migrate(case.client)

    assert keys(case) == {"bought.customer>customer CASCADE"}
    with pytest.raises(pymysql.IntegrityError):
        case.sql("UPDATE bought SET customer = 7")


def test_rows_that_refer_already_keep_their_table_as_it_is(case: Case) -> None:
    case.publish(("bought", Field("customer", "reference customer")))
    migrate(case.client)
    case.sql("INSERT INTO bought (customer) VALUES (7)")

    case.publish(("customer", Field("name")), ("bought", Field("customer", "reference customer")))
    migrate(case.client)

    assert keys(case) == set()
    case.sql("UPDATE bought SET customer = NULL")
    assert [step.what for step in plan_of(case.client).steps] == ["bought.customer: foreign key to customer"]


@pytest.mark.parametrize("case", [(2, {"bought": {"shard_key": "customer"}, "item": {"shard_key": "bought"},
                                        "customer": {"shard_key": "name"}})], indirect=True)  # fmt: skip
def test_ids_from_before_the_pipeline_carry_no_bucket_and_their_children_get_no_foreign_key(case: Case) -> None:
    case.publish(("customer", Field("name")))
    migrate(case.client)
    case.sql("INSERT INTO customer (id, name) VALUES (1, 'old')")

    model(db := DAL(None, migrate=False))
    case.client.define_tables(db)
    migrate(case.client)

    assert keys(case, "s1") == keys(case) == {"item.bought>bought CASCADE"}


def test_a_reference_that_the_model_drops_goes_with_its_foreign_key_and_its_index(case: Case) -> None:
    case.publish(("customer", Field("name")), ("bought", Field("name"), Field("customer", "reference customer")))
    migrate(case.client)
    case.publish(("bought", Field("name")))

    migrate(case.client, contracts=True)

    assert case.sql("SHOW COLUMNS FROM bought LIKE 'customer'") == []


def test_an_account_that_may_only_read_sees_what_a_foreign_key_does(case: Case) -> None:
    case.publish(("owner",), ("held", Field("owner", "reference owner", ondelete="SET NULL")))
    migrate(case.client)
    name = f"{case.uris['s0'].rpartition('/')[2].partition('?')[0]}_reader"
    case.sql(f"CREATE USER {name}@'127.0.0.1' IDENTIFIED BY 'own'")
    case.sql(f"GRANT SELECT ON {name.removesuffix('_reader')}.* TO {name}@'127.0.0.1'")
    reader = NodeSession("s0-r0", re.sub(r"//.*?@", f"//{name}:own@", case.uris["s0"]), read_only=True)

    seen = constraints_of(reader, "held")
    reader.discard()
    case.sql(f"DROP USER {name}@'127.0.0.1'")

    assert [key.on_delete for key in seen.parents] == ["SET NULL"]
    # without the right TRIGGER each table counts as one with triggers
    seen = replace(seen, triggers=(), sources=(), writing=(), reached=frozenset())
    assert seen == constraints_of(case.client.nodes.primary("s0"), "held")


def model(db: Any) -> None:
    """Define one table for each rule, two levels, and one that refers to itself."""
    named = Field("name", length=20)
    db.define_table("customer", named.clone())
    db.define_table("bought", named.clone(), Field("customer", "reference customer"))
    db.define_table("item", named.clone(), Field("bought", "reference bought"))
    db.define_table("asked", named.clone(), Field("customer", "reference customer", ondelete="SET NULL"))
    db.define_table("owes", named.clone(), Field("customer", "reference customer", ondelete="RESTRICT"))
    db.define_table("node", named.clone(), Field("up", "reference node"))


class Plain:
    """Plain pyDAL: each write is committed, or refused by the database."""

    def __init__(self, db: Any):
        self.db = db

    def insert(self, table: str, **values: Any) -> int:
        made = self.db[table].insert(**values)
        self.db.commit()
        return int(made)

    def delete(self, table: str, row_id: int) -> str:
        try:
            self.db(self.db[table].id == row_id).delete()
        except pymysql.IntegrityError:
            self.db.rollback()
            return "refused"
        self.db.commit()
        return "done"


class Written:
    """The same through the pipeline: each write is applied before the next."""

    def __init__(self, client: Client, drain: Any, db: Any):
        self.client, self.drain, self.db = client, drain, db

    def insert(self, table: str, **values: Any) -> int:
        receipt = self.client.enqueue_insert(self.db[table], **values)
        self.drain()
        assert receipt.id is not None
        return receipt.id

    def delete(self, table: str, row_id: int) -> str:
        receipt = self.client.enqueue_delete(self.db[table], row_id)
        self.drain()
        return "refused" if receipt.status() == "rejected" else "done"


def story(writes: Plain | Written) -> Iterator[str]:
    """Make three customers with all that may refer to them, and delete; yield what became of each delete."""
    customers = [writes.insert("customer", name=f"c{n}") for n in range(3)]
    for n, customer in enumerate(customers):
        bought = writes.insert("bought", name=f"b{n}", customer=customer)
        writes.insert("item", name=f"i{n}", bought=bought)
        writes.insert("asked", name=f"a{n}", customer=customer)
    debt = writes.insert("owes", name="o", customer=customers[1])
    root = writes.insert("node", name="root")
    leaf = writes.insert("node", name="leaf", up=writes.insert("node", name="twig", up=root))
    writes.insert("node", name="other")
    yield writes.delete("customer", customers[0])
    yield writes.delete("customer", customers[1])
    yield writes.delete("customer", customers[1])
    yield writes.delete("owes", debt)
    yield writes.delete("customer", customers[1])
    yield writes.delete("node", leaf)
    yield writes.delete("node", root)


def named_rows(databases: list[Any]) -> dict[str, Counter[tuple[str, bool]]]:
    """Return of each table the rows by name, and whether they refer; a copy of a reference table counts once."""
    fields = {"customer": "id", "bought": "customer", "item": "bought", "asked": "customer", "owes": "customer",
              "node": "up"}  # fmt: skip
    found: dict[str, Counter[tuple[str, bool]]] = {name: Counter() for name in fields}
    for at, db in enumerate(databases):
        for table, field in fields.items():
            rows = db.executesql(f"SELECT name, {field} IS NOT NULL FROM {table}")
            if at == 0 or table != "node":
                found[table].update((name, bool(refers)) for name, refers in rows)
        db.rollback()
    return found


def keys(case: Case, shard: str = "s0") -> set[str]:
    found = case.sql(
        "SELECT k.table_name, column_name, k.referenced_table_name, delete_rule"
        " FROM information_schema.key_column_usage k"
        " JOIN information_schema.referential_constraints r ON r.constraint_schema = k.table_schema"
        " AND r.table_name = k.table_name AND r.constraint_name = k.constraint_name"
        " WHERE k.table_schema = DATABASE() AND k.referenced_table_name IS NOT NULL",
        shard,
    )
    return {f"{table}.{column}>{parent} {rule}" for table, column, parent, rule in found}


INDEXES = (
    "SELECT DISTINCT index_name FROM information_schema.statistics WHERE table_schema = DATABASE()"
    " AND table_name = 'bought'"
)
