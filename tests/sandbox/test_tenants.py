"""What one tenant reads and changes is what plain pyDAL would let it: no row of another tenant is seen or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import count
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples

import pipeline
from pipeline.admin.dead import HEADS, Where, chosen, replay
from pipeline.attachment import attached, detach
from pipeline.errors import BadOp, StaleRead
from pipeline.testing import Sandbox, sandbox
from pipeline.web.request import Request

TABLES: dict[str, dict[str, Any]] = {
    "note": {"shard_key": "name", "unique": [["name", "request_tenant"]]},
    "page": {"shard_key": "name", "unique": [["name"]]},
    "place": {"shard_key": "name", "unique": [["name", "slot"]]},
    "sale": {"shard_key": "name"},
    "visit": {"shard_key": "name"},
}


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox(TABLES) as made:
        yield made


def model(tenant: str | None, common: Any = None) -> Any:
    """Return the application's DAL as a request of *tenant* has it."""
    db = DAL("sqlite:memory", migrate=False, bigint_id=True)
    db.define_table(
        "note",
        Field("name", length=20, notnull=True),
        Field("request_tenant", length=20, default=tenant, writable=False),
        Field("n", "integer", default=0),
    )
    db.define_table("page", Field("name", length=20, notnull=True), Field("owner", length=20), common_filter=common)
    db.define_table("memo", Field("text"), Field("request_tenant", length=20, default=tenant))
    db.define_table(
        "place",
        Field("name", length=20, notnull=True),
        Field("slot", "integer"),
        Field("n", "integer"),
        Field("request_tenant", length=20, default=tenant),
    )
    pipeline.define_tables(db)
    return db


# upserts: the key finds the row, whatever the filters hide -------------------------------------------------------


def test_an_upsert_overwrites_no_row_that_a_filter_hides(box: Sandbox) -> None:
    theirs = pipeline.enqueue_insert(model("a").page, name="home", owner="a")
    mine = model("b", lambda query: mine.page.owner == "b")

    with pytest.raises(BadOp, match="filters hide"):
        pipeline.enqueue_upsert(mine.page, key="name", name="home", owner="b")

    box.drain()
    assert [(row["id"], row["owner"]) for row in box.rows("page")] == [(theirs.id, "a")]


def test_an_upsert_by_a_key_with_the_tenant_in_it_keeps_to_the_tenants_rows(box: Sandbox) -> None:
    a, b = model("a"), model("b")
    pipeline.enqueue_insert(a.note, name="x", n=1)
    for n in (2, 3):
        pipeline.enqueue_upsert(b.note, key=["name", "request_tenant"], name="x", request_tenant="b", n=n)

    box.drain()

    assert sorted((row["request_tenant"], row["n"]) for row in box.rows(a.note)) == [("a", 1), ("b", 3)]


def test_an_upsert_in_the_name_of_another_tenant_is_refused(box: Sandbox) -> None:
    pipeline.enqueue_insert(model("a").note, name="x", n=1)

    with pytest.raises(BadOp, match="filters hide"):
        pipeline.enqueue_upsert(model("b").note, key=["name", "request_tenant"], name="x", request_tenant="a", n=2)

    box.drain()
    assert [row["n"] for row in box.rows("note")] == [1]


def test_an_upsert_by_an_id_or_with_one_beside_its_key_takes_no_row_of_another_tenant(box: Sandbox) -> None:
    a, b = model("a"), model("b")
    memo, note = pipeline.enqueue_insert(a.memo, text="x"), pipeline.enqueue_insert(a.note, name="x", n=1)
    key = ["name", "request_tenant"]

    with pytest.raises(BadOp, match="filters hide"):
        pipeline.enqueue_upsert(b.memo, key="id", id=memo.id, text="y")
    with pytest.raises(BadOp, match="leave the id out"):
        pipeline.enqueue_upsert(b.note, key=key, id=note.id, name="x", request_tenant="b", n=2)

    box.drain()
    assert [row["text"] for row in box.rows(a.memo)] == ["x"]
    assert [row["n"] for row in box.rows(a.note)] == [1]


# what leads on from a row, and what writes by other doors -----------------------------------------------------------


def linked(tenant: str) -> Any:
    """Return a DAL whose notes are of tenants, and whose links refer to notes."""
    db = DAL("sqlite:memory", migrate=False, bigint_id=True)
    db.define_table("memo", Field("text"), Field("request_tenant", length=20, default=tenant))
    db.define_table("link", Field("memo", "reference memo"))
    pipeline.define_tables(db)
    return db


def test_a_reference_leads_to_no_row_of_another_tenant(box: Sandbox) -> None:
    a, b = linked("a"), linked("b")
    theirs = pipeline.enqueue_insert(a.memo, text="secret").id
    link = pipeline.enqueue_insert(b.link, memo=theirs).id
    box.drain()

    found = pipeline.get(b.link, link)

    with pytest.raises(RuntimeError, match="broken reference"):  # pyDAL's own words for a row that is not there
        print(found.memo.text)
    assert pipeline.get(a.link, link).memo.text == "secret"


def test_rows_that_refer_to_a_row_are_the_tenants_own(box: Sandbox) -> None:
    def refers(tenant: str) -> Any:
        db = DAL("sqlite:memory", migrate=False, bigint_id=True)
        db.define_table("link", Field("text"))
        db.define_table("memo", Field("link", "reference link"), Field("request_tenant", default=tenant))
        pipeline.define_tables(db)
        return db

    a, b = refers("a"), refers("b")
    link = pipeline.enqueue_insert(a.link, text="x").id
    mine = {db.memo.request_tenant.default: pipeline.enqueue_insert(db.memo, link=link).id for db in (a, b)}
    box.drain()

    for db in (a, b):
        row = pipeline.get(db.link, link)
        assert [one.id for one in row.memo.select()] == [mine[db.memo.request_tenant.default]]
        assert row.memo.count() == 1


def test_what_is_written_through_the_primarys_dal_keeps_to_the_tenants_rows(box: Sandbox) -> None:
    a, b = model("a"), model("b")
    theirs = pipeline.enqueue_insert(a.note, name="x", n=1).id
    box.drain()

    pdb = pipeline.get_db(b.note, "x")
    changed = [pdb(pdb.note.id == theirs).update(n=2), pdb(pdb.note.name == "x").delete()]
    pdb.commit()

    assert (changed, [row["n"] for row in box.rows(a.note)]) == ([0, 0], [1])


def test_a_write_of_an_attached_table_that_looks_for_its_rows_counts_none_of_another_tenant(box: Sandbox) -> None:
    a, b = model("a"), model("b")
    for db, name in ((a, "x"), (a, "y"), (b, "z")):
        pipeline.enqueue_insert(db.note, name=name, n=1)
    box.drain()
    pipeline.attach(b.note)

    updated = b(b.note.n == 1).update(n=2)
    box.drain()
    deleted = b(b.note.n >= 1).delete()
    box.drain()

    assert (updated, deleted) == (1, 1)
    assert [row["n"] for row in box.rows(a.note)] == [1, 1]


def versioned(tenant: str) -> Any:
    db = DAL("sqlite:memory", bigint_id=True)
    db.define_table(
        "memo",
        Field("text"),
        Field("request_tenant", length=20, default=tenant),
        Field("is_active", "boolean", default=True),
    )
    db.memo._enable_record_versioning()
    pipeline.define_tables(db)
    pipeline.attach(db.memo)
    return db


def test_no_version_of_another_tenants_row_is_kept_or_shown(box: Sandbox) -> None:
    a, b = versioned("a"), versioned("b")
    theirs = a.memo.insert(text="one")
    a(a.memo.id == theirs).update(text="two")
    b(b.memo.id == theirs).update(text="stolen")
    b(b.memo.id == theirs).delete()
    with pytest.raises(BadOp, match="filters hide"):
        pipeline.enqueue_upsert(b.memo, key="id", id=theirs, text="stolen")
    box.drain()

    assert [(row["text"], row["is_active"]) for row in box.rows(a.memo)] == [("two", True)]
    assert [row["text"] for row in box.rows(a.memo_archive)] == ["one"]
    assert [row.text for row in pipeline.select(a.memo_archive)] == ["one"]
    assert list(pipeline.select(b.memo_archive)) == []


def test_a_replayed_op_keeps_to_the_rows_of_the_tenant_that_enqueued_it(box: Sandbox) -> None:
    a, b = model("a"), model("b")
    for db, slot in ((a, 1), (b, 2)):
        pipeline.enqueue_insert(db.place, name="x", slot=slot, n=0)
    pipeline.enqueue_update(b.place.name == "x", slot=1, n=9)  # the other tenant's row has the slot
    box.drain()
    pipeline.enqueue_update(a.place.name == "x", slot=3)
    box.drain()
    dead = chosen(box.client, Where(), HEADS)

    list(replay(box.client, dead))

    assert sum(len(positions) for buckets in dead.values() for positions in buckets.values()) == 1
    rows = {row["request_tenant"]: (row["slot"], row["n"]) for row in box.rows(a.place)}
    assert rows == {"a": (3, 0), "b": (1, 9)}


# every verb: pyDAL on one database is the model -------------------------------------------------------------------

NAMES, TENANTS = ("x", "y", "z"), ("a", "b")


class Side(NamedTuple):
    """The application as one tenant's request has it: its DAL, and how code runs in the request's thread."""

    db: Any
    run: Callable[[Callable[[], Any]], Any]


def tables_of(db: Any, owner: Callable[[], Any]) -> Any:
    """Define a table with pyDAL's tenant, and one with a common filter."""
    db.define_table(
        "sale", Field("mark", "integer"), Field("name"), Field("n", "integer"), Field("request_tenant", writable=False)
    )
    db.define_table(
        "visit",
        Field("mark", "integer"),
        Field("name"),
        Field("n", "integer"),
        Field("owner"),
        common_filter=lambda query: db.visit.owner == owner(),
    )
    return db


class World:
    """Two tenants' requests on the pipeline, and the same on plain pyDAL and one database."""

    def __init__(self, box: Sandbox, folder: Any, face: str):
        self.box = box
        if face == "py4web":
            with catch_warnings():
                simplefilter("ignore")
                import_module("py4web")  # it makes pyDAL's fields per thread, those that are made from now on
        self.plain = {tenant: self._plain(tenant, folder) for tenant in TENANTS}
        self.ours = self._as_web2py() if face == "web2py" else self._as_py4web()
        self.ids: dict[tuple[str, int], tuple[int, int]] = {}
        self.marks = count(1)

    def _plain(self, tenant: str, folder: Any) -> Any:
        db = DAL("sqlite://plain.sqlite", folder=str(folder), migrate=tenant == TENANTS[0], bigint_id=True)
        tables_of(db, lambda: tenant).sale.request_tenant.default = tenant
        db.visit.owner.default = tenant
        db.commit()
        return db

    def _as_web2py(self) -> dict[str, Side]:
        """Each request makes its own DAL, with its tenant."""
        made = {}
        for tenant in TENANTS:
            db = tables_of(DAL("sqlite:memory", bigint_id=True), lambda tenant=tenant: tenant)
            db.sale.request_tenant.default = db.visit.owner.default = tenant
            made[tenant] = Side(db, lambda call: call())
            pipeline.define_tables(db)
        return made

    def _as_py4web(self) -> dict[str, Side]:
        """All threads share one DAL, whose fields have other defaults in each thread."""
        from threadsafevariable import ThreadSafeVariable

        db = DAL("sqlite:memory", bigint_id=True)
        tables_of(db, lambda: db.visit.owner.default)
        pipeline.define_tables(db)
        frozen, made = ThreadSafeVariable.freeze(), {}

        def begin(tenant: str) -> None:
            ThreadSafeVariable.restore(frozen)
            db.sale.request_tenant.default = db.visit.owner.default = tenant

        for tenant in TENANTS:
            thread = ThreadPoolExecutor(1)
            thread.submit(begin, tenant).result()
            made[tenant] = Side(db, lambda call, thread=thread: thread.submit(call).result())
        return made

    def close(self) -> None:
        for db in self.plain.values():
            db.close()

    # writes -----------------------------------------------------------------------------------------------------

    def do(self, tenant: str, table: str, verb: str, name: str, n: int, mark: int) -> None:
        """Do the same on both sides; *mark* chooses a row among those that were ever inserted."""
        known = sorted(one for one in self.ids if one[0] == table)
        row = self.ids[known[mark % len(known)]] if known else None
        ours, plain = self.ours[tenant], self.plain[tenant]
        request = Request(self.box.client)
        if verb in ("insert", "bulk"):
            marks = [next(self.marks) for _ in range(1 if verb == "insert" else 2)]
            rows = [{"mark": one, "name": name, "n": n} for one in marks]
            there = [int(plain[table].insert(**one)) for one in rows]
            here = ours.run(lambda: self._inserted(request, ours.db[table], rows, verb))
            self.ids |= {(table, one): ids for one, *ids in zip(marks, here, there, strict=True)}  # type: ignore[misc]
        elif row is not None:
            self.box.drain()  # an attached table's write looks for its rows
            ours.run(lambda: WRITES[verb](request, ours.db, ours.db[table], row[0], name, n))
            PLAIN[verb](plain, plain[table], row[1], name, n)
        plain.commit()

    @staticmethod
    def _inserted(request: Request, table: Any, rows: list[dict[str, Any]], verb: str) -> list[int]:
        if verb == "insert":
            return [request.enqueue_insert(table, rows[0]).id or 0]
        return [receipt.id or 0 for receipt in request.enqueue_bulk_insert(table, rows)]

    # reads ------------------------------------------------------------------------------------------------------

    def compare_pending(self) -> None:
        for tenant, ours in self.ours.items():
            for (table, _), (here, there) in self.ids.items():
                try:
                    row = ours.run(
                        lambda ours=ours, table=table, here=here: pipeline.get(
                            ours.db[table], here, pending=True, on_stale="error", wait_s=0.01
                        )
                    )
                except StaleRead:
                    continue  # how two texts compare only the database can tell
                assert shown(row) == shown(self.plain[tenant][table](there)), (tenant, table)

    def compare(self) -> None:
        self.box.drain()
        for tenant, ours in self.ours.items():
            plain = self.plain[tenant]
            for table in ("sale", "visit"):
                for way, (read, model) in READS.items():
                    found = ours.run(lambda read=read, table=table, ours=ours: read(ours.db, ours.db[table]))
                    assert found == model(plain, plain[table]), (tenant, table, way)
            for (table, _), (here, there) in self.ids.items():
                expected = shown(plain[table](there))
                for read in GETS:
                    row = ours.run(
                        lambda read=read, table=table, here=here, ours=ours: shown(read(ours.db[table], here))
                    )
                    assert row == expected, (tenant, table)


def shown(row: Any) -> Any:
    return row and (row.mark, row.name, row.n)


def through_pydal(db: Any, table: Any, change: Callable[[], Any]) -> None:
    """Let pyDAL's own words write to the table, attached for as long."""
    pipeline.attach(table)
    try:
        change()
    finally:
        detach(table)
    assert not attached(table)


def ignoring(db: Any, query: Any) -> Any:
    return db(query, ignore_common_filters=True)


#: (request, db, table, id, name, n)
WRITES: dict[str, Callable[..., Any]] = {
    "update": lambda r, db, t, i, name, n: r.enqueue_update(t.name == name, n=n),
    "update a set": lambda r, db, t, i, name, n: r.enqueue_update(db((t.name == name) & (t.n < n)), n=t.n + 1),
    "update by id": lambda r, db, t, i, name, n: r.enqueue_update(t.id == i, {"n": n}),
    "update table and id": lambda r, db, t, i, name, n: r.enqueue_update(t, i, n=n),
    "update ignoring": lambda r, db, t, i, name, n: r.enqueue_update(ignoring(db, t.name == name), n=n),
    "delete": lambda r, db, t, i, name, n: r.enqueue_delete((t.name == name) & (t.n == n)),
    "delete by id": lambda r, db, t, i, name, n: r.enqueue_delete(t, i),
    "delete ignoring": lambda r, db, t, i, name, n: r.enqueue_delete(ignoring(db, (t.id == i) & (t.n > n))),
    "pydal update": lambda r, db, t, i, name, n: through_pydal(db, t, lambda: db(t.n > n).update(n=n)),
    "pydal update by id": lambda r, db, t, i, name, n: through_pydal(db, t, lambda: db(t.id == i).update(n=n)),
    "pydal delete": lambda r, db, t, i, name, n: through_pydal(db, t, lambda: db(t.n == n).delete()),
    "pydal delete by id": lambda r, db, t, i, name, n: through_pydal(db, t, lambda: db(t.id == i).delete()),
    "pydal ignoring": lambda r, db, t, i, name, n: through_pydal(db, t, lambda: ignoring(db, t.n > n).update(n=n)),
}
PLAIN: dict[str, Callable[..., Any]] = {
    "update": lambda db, t, i, name, n: db(t.name == name).update(n=n),
    "update a set": lambda db, t, i, name, n: db((t.name == name) & (t.n < n)).update(n=t.n + 1),
    "update by id": lambda db, t, i, name, n: db(t.id == i).update(n=n),
    "update table and id": lambda db, t, i, name, n: db(t.id == i).update(n=n),
    "update ignoring": lambda db, t, i, name, n: ignoring(db, t.name == name).update(n=n),
    "delete": lambda db, t, i, name, n: db((t.name == name) & (t.n == n)).delete(),
    "delete by id": lambda db, t, i, name, n: db(t.id == i).delete(),
    "delete ignoring": lambda db, t, i, name, n: ignoring(db, (t.id == i) & (t.n > n)).delete(),
    "pydal update": lambda db, t, i, name, n: db(t.n > n).update(n=n),
    "pydal update by id": lambda db, t, i, name, n: db(t.id == i).update(n=n),
    "pydal delete": lambda db, t, i, name, n: db(t.n == n).delete(),
    "pydal delete by id": lambda db, t, i, name, n: db(t.id == i).delete(),
    "pydal ignoring": lambda db, t, i, name, n: ignoring(db, t.n > n).update(n=n),
}


def marks(rows: Any) -> list[int]:
    return sorted(row.mark for row in rows)


def by_node(open_node: Callable[[Any, str], Any], read: Callable[[Any, Any, str], Any]) -> Callable[[Any, Any], Any]:
    """Return what reads the rows of each name on the node that has them."""

    def every(db: Any, table: Any) -> list[Any]:
        found = []
        for name in NAMES:
            with open_node(table, name) as node:
                found.append(read(node, node[table._tablename], name))
        return found

    return every


class Primary:
    """`get_db` as a block, for `by_node`."""

    def __init__(self, table: Any, name: str):
        self.db = pipeline.get_db(table, name)

    def __enter__(self) -> Any:
        return self.db

    def __exit__(self, *error: Any) -> None:
        self.db.rollback()


def of_names(read: Callable[[Any, Any, str], Any]) -> Callable[[Any, Any], Any]:
    return lambda db, table: [read(db, table, name) for name in NAMES]


NODE_READS: dict[str, Callable[[Any, Any, str], Any]] = {
    "select": lambda db, t, name: marks(db(t.name == name).select()),
    "iterselect": lambda db, t, name: marks(list(db(t.name == name).iterselect())),
    "count": lambda db, t, name: db(t.name == name).count(),
    "isempty": lambda db, t, name: bool(db(t.name == name).isempty()),
    "sum": lambda db, t, name: db(t.name == name).select(t.n.sum()).first()[t.n.sum()],
    "nested": lambda db, t, name: marks(
        db((t.name == name) & t.id.belongs(db(t.name == name).nested_select(t.id, correlated=False))).select()
    ),
    "ignoring": lambda db, t, name: marks(ignoring(db, t.name == name).select()),
}


def grouped(rows: Any, t: Any) -> list[Any]:
    return sorted((row[t.name], row[t.id.count()], row[t.n.max()]) for row in rows)


def joined(rows: Any) -> list[Any]:
    return sorted((row.sale.mark, row.visit.mark or 0) for row in rows)


#: Each read of the pipeline, and what plain pyDAL says.
READS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "select": (lambda db, t: marks(pipeline.select(t)), lambda db, t: marks(db(t).select())),
    "select a set": (
        lambda db, t: marks(pipeline.select(db(t.n > 1), t.mark)),
        lambda db, t: marks(db(t.n > 1).select(t.mark)),
    ),
    "select ignoring": (
        lambda db, t: marks(pipeline.select(ignoring(db, t.n > 1))),
        lambda db, t: marks(ignoring(db, t.n > 1).select()),
    ),
    "by shard key": (
        of_names(lambda db, t, name: marks(pipeline.select(t.name == name))),
        of_names(lambda db, t, name: marks(db(t.name == name).select())),
    ),
    "count": (lambda db, t: pipeline.count(t), lambda db, t: db(t).count()),
    "count distinct": (lambda db, t: pipeline.count(t, t.name), lambda db, t: db(t).count(t.name)),
    "sum": (
        lambda db, t: pipeline.select(t, t.n.sum()).first()[t.n.sum()],
        lambda db, t: db(t).select(t.n.sum()).first()[t.n.sum()],
    ),
    "groups": (
        lambda db, t: grouped(pipeline.select(t, t.name, t.id.count(), t.n.max(), groupby=t.name), t),
        lambda db, t: grouped(db(t).select(t.name, t.id.count(), t.n.max(), groupby=t.name), t),
    ),
    "subselect": (
        lambda db, t: marks(pipeline.select(t.name.belongs(db(t.n > 1).nested_select(t.name, correlated=False)))),
        lambda db, t: marks(db(t.name.belongs(db(t.n > 1).nested_select(t.name, correlated=False))).select()),
    ),
    "left join": (
        lambda db, t: joined(pipeline.select(db.sale, left=db.visit.on(db.visit.name == db.sale.name))),
        lambda db, t: joined(
            db(db.sale).select(db.sale.ALL, db.visit.ALL, left=db.visit.on(db.visit.name == db.sale.name))
        ),
    ),
    **{
        f"{way} of a {kind}": (by_node(opened, read), of_names(read))
        for way, read in NODE_READS.items()
        for kind, opened in (("read", pipeline.read), ("primary", Primary))
    },
}


def of_node(table: Any, row_id: int) -> Any:
    for name in NAMES:
        with pipeline.read(table, name) as node:
            if (row := node[table._tablename](row_id)) is not None:
                return row
    return None


GETS: list[Callable[[Any, int], Any]] = [
    lambda table, row_id: pipeline.get(table, row_id),
    lambda table, row_id: pipeline.get(table, row_id, pending=True),
    lambda table, row_id: Request(pipeline.current()).get(table, row_id),
    of_node,
]

STEP = st.tuples(
    st.sampled_from(TENANTS),
    st.sampled_from(["sale", "visit"]),
    st.sampled_from(["insert", "insert", "bulk", *WRITES]),
    st.sampled_from(NAMES),
    st.integers(0, 3),
    st.integers(0, 9),
)


@pytest.mark.parametrize(("face", "shards"), [("web2py", 1), ("web2py", 2), ("py4web", 2)])
@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=3, max_size=14))
def test_a_tenant_sees_and_changes_what_plain_pydal_lets_it(
    tmp_path_factory: pytest.TempPathFactory, face: str, shards: int, steps: list[Any]
) -> None:
    with sandbox(TABLES, shards=shards) as box:
        world = World(box, tmp_path_factory.mktemp("plain"), face)
        try:
            for step in steps:
                world.do(*step)
                world.compare_pending()
            world.compare()
        finally:
            world.close()
