"""A real web2py over HTTP: forms, grid, appadmin and CSV of attached tables, and forms that are enqueued."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from support.web.appadmin import appadmin
from support.web.shop import Shop, shop_of
from support.web.web2py_forms import form_fields
from support.web.web2py_server import Browser, Site, needs_web2py, serving

pytestmark = pytest.mark.mariadb

#: Its own database is a shard's primary, which has all of a reference table: a first step with one database.
ONE_DATABASE = """\
from gluon.contrib.appconfig import AppConfig
from pipeline.web2py import Pipeline
import gluon.fileutils

gluon.fileutils.check_credentials = lambda *args, **options: True  # appadmin asks for an administrator
configuration = AppConfig()
db = DAL(configuration.take("db.uri"), pool_size=5, migrate_enabled=False, bigint_id=True, check_reserved=None)
db.define_table(
    "product",
    Field("name", length=40, requires=IS_NOT_EMPTY()),
    Field("qty", "integer", default=1),
    Field("photo", "upload", autodelete=True),
    Field("price", "decimal(8,2)", default=1),
    Field("tags", "list:string"),
    Field("made_by", length=20, default="the shop", writable=False),
    migrate=False,
)
db.define_table("country", Field("name", length=60), migrate=False)
pipeline = Pipeline(db, configuration)
pipeline.attach(db.product)
"""
#: Each request has a connection of its own, on which something is read before the table is attached.
READ_BEFORE = ONE_DATABASE.replace("pool_size=5", "pool_size=0, after_connection=at_read_committed").replace(
    "pipeline.attach(db.product)", "db(db.country).count()\npipeline.attach(db.product, request.vars.reads)"
)
READ_BEFORE = (
    """\
def at_read_committed(adapter):
    if request.vars.cured:
        adapter.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

"""
    + READ_BEFORE
)
ATTACHED = """\
import io

def index():
    return "ready"

def create():
    form = SQLFORM(db.product)
    if form.process().accepted:
        redirect(URL("show", args=form.vars.id))
    return form.xml()

def edit():
    form = SQLFORM(db.product, request.args(0), deletable=True)
    return "saved" if form.process().accepted else form.xml()

def grid():
    return SQLFORM.grid(db.product, user_signature=False, csv=False, paginate=5).xml()

def names():
    return response.json([row.name for row in db(db.product).select()])

def members():
    db(db.country).count()  # as requires_membership reads its groups, before anything else
    return response.json([row.name for row in db(db.product).select()])

def create_and_list():
    row_id = db.product.insert(name=request.args(0))
    listed = db(db.product.name == request.args(0)).count()
    db(db.product.id == row_id).update(qty=77)
    return response.json([listed, [row.name for row in db(db.product.qty == 77).select()]])

def create_list_and_fail():
    db.product.insert(name=request.args(0))
    assert not db(db.product.name == request.args(0)).count()

def bulk():
    ids = db.product.bulk_insert([dict(name=name) for name in request.args])
    return response.json([[str(id) for id in ids], pipeline.waiting])
"""
#: The sharded table is only defined in the application's own database; its forms show rows read from the shards.
ENQUEUED = """\
def index():
    return "ready"

def create():
    form = SQLFORM(db.sale)
    if form.process(dbio=False).accepted:
        pipeline.enqueue_form(form)
        redirect(URL("show", args=form.vars.id))
    return form.xml()

def edit():
    form = SQLFORM(db.sale, pipeline.get(db.sale, request.args(0, cast=int)), deletable=request.get_vars.fixed is None)
    if form.process(dbio=False).accepted:
        receipt = pipeline.enqueue_form(form)
        return response.json(dict(id=str(form.vars.id), queued=receipt is not None))
    return form.xml()

def write():
    pipeline.attach(db.sale)
    customers = [int(text) for text in request.args]
    return response.json([str(db.sale.insert(customer=customer, qty=5)) for customer in customers])

def rewrite():
    pipeline.attach(db.sale)
    least, most = int(request.args(0)), int(request.args(1))
    ours = (db.sale.customer >= least) & (db.sale.customer <= most)
    found = db(ours & (db.sale.qty > 4))
    return response.json(found.delete() if request.get_vars.delete else found.update(qty=db.sale.qty + 1))

def not_accepted():
    try:
        pipeline.enqueue_form(SQLFORM(db.sale))
    except Exception as error:
        return str(error)
"""
#: web2py shows the microseconds of a default, and does not take them back.
MOMENTS = {"day": "2026-05-06", "at": "2026-05-06 07:08:09"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    needs_web2py()
    with shop_of(tmp_path_factory.mktemp("web2py_attach")) as made:
        made.application("shop", {"default": ENQUEUED}, "pipeline = Pipeline(db, configuration)\n")
        folder = made.application("one", {"default": ATTACHED}, "", model=ONE_DATABASE)
        ini = folder / "private" / "appconfig.ini"
        ini.write_text(ini.read_text().replace(made.uri_of("one"), made.rig.primaries["s0"]))
        appadmin(folder)
        # another name of the same host: a pool of connections of its own, which are at READ COMMITTED
        own = made.application("own", {"default": ATTACHED}, "", model=ONE_DATABASE) / "private" / "appconfig.ini"
        primary = made.rig.primaries["s0"].replace("127.0.0.1", "localhost")
        own.write_text(own.read_text().replace(made.uri_of("own"), primary) + "reads = own\n")
        late = made.application("late", {"default": ATTACHED}, "", model=READ_BEFORE) / "private" / "appconfig.ini"
        late.write_text(late.read_text().replace(made.uri_of("late"), made.rig.primaries["s0"]))
        yield made


@pytest.fixture(scope="module")
def site(shop: Shop) -> Iterator[Site]:
    with serving(shop.folder) as made:
        made.browser().get("/one/default/index")
        shop.prepare(made, "/shop/default/index")
        yield made


@pytest.fixture
def ada(site: Site) -> Iterator[Browser]:
    yield site.browser("/one/default")
    assert site.tickets() == []


@pytest.fixture
def eve(site: Site) -> Iterator[Browser]:
    """A user of the application whose rows are on two shards."""
    yield site.browser("/shop/default")
    assert site.tickets() == []


def products(shop: Shop, where: str = "1=1", fields: str = "name, qty") -> list[str]:
    shop.rig.client.barrier("product", 30)
    return shop.ask("s0", f"SELECT {fields} FROM shop.product WHERE {where} ORDER BY name").splitlines()[1:]


def created(ada: Browser, shop: Shop, name: str, **fields: str) -> str:
    """Create a product by its form, and return its id once it is there."""
    row_id = ada.submit("create", {"name": name, **fields}).location.rpartition("/")[2]
    assert products(shop, f"id={row_id}", "name") == [name]
    return row_id


def test_a_form_creates_a_row_and_redirects_to_its_real_id(ada: Browser, shop: Shop):
    answer = ada.submit("create", {"name": "pen", "qty": "3", "price": "2.50"}, {"photo": ("a.txt", b"a photo")})

    row_id = answer.location.rpartition("/")[2]
    [line] = products(shop, f"id={row_id}", "name, qty, price, made_by, photo")
    *values, photo = line.split("\t")
    assert values == ["pen", "3", "2.50", "the shop"]
    assert (shop.folder / "applications" / "one" / "uploads" / photo).read_bytes() == b"a photo"


def test_a_replaced_photo_goes_with_a_request_after_its_op_is_applied(ada: Browser, shop: Shop):
    row_id = ada.submit("create", {"name": "seen"}, {"photo": ("a.txt", b"old")}).location.rpartition("/")[2]
    [old] = products(shop, f"id={row_id}", "photo")
    uploads = shop.folder / "applications" / "one" / "uploads"

    with shop.rig.frozen():
        ada.submit(f"edit/{row_id}", {}, {"photo": ("b.txt", b"new")})
        ada.get("index")
        while_queued = (uploads / old).exists()
    [new] = products(shop, f"id={row_id}", "photo")
    ada.get("index")

    assert while_queued
    assert not (uploads / old).exists()
    assert (uploads / new).read_bytes() == b"new"


def test_a_form_with_a_fault_queues_nothing(ada: Browser, shop: Shop):
    before = products(shop)

    page = ada.submit("create", {"name": ""})

    assert "Enter a value" in page.text
    assert products(shop) == before


def test_an_edit_form_ships_what_was_changed_so_two_edits_in_the_queue_both_stand(ada: Browser, shop: Shop):
    row_id = created(ada, shop, "first")

    with shop.rig.frozen():  # both forms show the row as it was
        assert ada.submit(f"edit/{row_id}", {"qty": "9"}).text == "saved"
        assert ada.submit(f"edit/{row_id}", {"name": "second"}).text == "saved"

    assert products(shop, f"id={row_id}") == ["second\t9"]


def test_a_page_of_an_attached_table_waits_for_its_users_own_row_and_for_nobody_elses(
    ada: Browser, site: Site, shop: Shop
):
    with ThreadPoolExecutor(1) as pool:
        with shop.rig.frozen():
            ada.submit("create", {"name": "fresh"})
            for_another = site.browser("/one/default").get("names").json()
            page = pool.submit(ada.get, "names")
            waits = not wait([page], 0.3).done
        for_ada = page.result().json()

    assert waits
    assert "fresh" in for_ada
    assert "fresh" not in for_another


def test_a_form_deletes_its_row(ada: Browser, shop: Shop):
    row_id = created(ada, shop, "short-lived")

    assert ada.submit(f"edit/{row_id}", {"delete_this_record": "on"}).text == "saved"

    assert products(shop, f"id={row_id}") == []


def test_the_grid_creates_edits_and_deletes(ada: Browser, shop: Shop):
    ada.submit("grid/new/product", {"name": "by grid"})
    [row_id] = products(shop, "name='by grid'", "id")

    ada.submit(f"grid/edit/product/{row_id}", {"qty": "7"})
    edited = products(shop, f"id={row_id}")
    page = ada.get("grid").text
    ada.get(f"grid/delete/product/{row_id}")

    assert edited == ["by grid\t7"]
    assert "by grid" in page
    assert products(shop, f"id={row_id}") == []


def test_appadmin_inserts_edits_and_writes_to_all_rows_of_a_query(ada: Browser, shop: Shop):
    ada.submit("/one/appadmin/insert/db/product", {"name": "by appadmin", "qty": "41"})
    [row_id] = products(shop, "name='by appadmin'", "id")

    ada.submit(f"/one/appadmin/update/db/product/{row_id}", {"price": "5.00"})
    ada.submit(
        "/one/appadmin/select/db", {"query": "db.product.qty>40", "update_check": "on", "update_fields": "qty=42"}
    )
    changed = products(shop, f"id={row_id}", "name, qty, price")
    ada.submit("/one/appadmin/select/db", {"query": "db.product.qty>40", "delete_check": "on"})

    assert changed == ["by appadmin\t42\t5.00"]
    assert products(shop, f"id={row_id}") == []


def test_appadmin_imports_a_csv_file(ada: Browser, shop: Shop):
    text = b"product.name,product.qty\r\nfrom csv 1,1\r\nfrom csv 2,2\r\n"

    page = ada.submit(
        "/one/appadmin/select/db?query=db.product.id>0",
        {"table": "product"},
        {"csvfile": ("p.csv", text)},
    )

    assert "data uploaded" in page.text, page.text
    assert products(shop, "name LIKE 'from csv%'") == ["from csv 1\t1", "from csv 2\t2"]


def test_a_bulk_insert_of_three_is_three_ops(ada: Browser, shop: Shop):
    ids, waiting = ada.get("bulk/x1/x2/x3").json()

    assert waiting == 3
    assert products(shop, f"id IN ({','.join(ids)})", "name") == ["x1", "x2", "x3"]


def test_an_enqueued_form_creates_edits_what_was_changed_and_deletes(eve: Browser, shop: Shop):
    [customer] = shop.rig.owners(1)
    answer = eve.submit("create", {"customer": customer, "qty": "2", "name": "ink", **MOMENTS})
    assert answer.location, answer.text
    row_id = answer.location.rpartition("/")[2]
    [made] = shop.sales(f"id={row_id}", "customer, qty, name")

    with shop.rig.frozen():
        changed = eve.submit(f"edit/{row_id}", {"qty": "9"}).json()
    stands = shop.sales(f"id={row_id}", "qty, name")
    unchanged = eve.submit(f"edit/{row_id}", {"qty": "9"}).json()
    refused = eve.submit(f"edit/{row_id}?fixed=1", {"qty": "9", "delete_this_record": "on"}).json()
    still_there = shop.sales(f"id={row_id}", "qty")
    deleted = eve.submit(f"edit/{row_id}", {"qty": "9", "delete_this_record": "on"}).json()

    assert made == f"{customer}\t2\tink"
    assert changed == {"id": row_id, "queued": True}
    assert stands == ["9\tink"]
    assert unchanged == {"id": row_id, "queued": False}
    assert refused == {"id": row_id, "queued": False}
    assert still_there == ["9"]
    assert deleted == {"id": row_id, "queued": True}
    assert shop.sales(f"id={row_id}") == []


def test_a_table_on_two_shards_can_be_attached_though_the_applications_database_has_it_not(eve: Browser, shop: Shop):
    customers = sorted(shop.rig.owners(4))
    ids = eve.get("write/" + "/".join(map(str, customers))).json()
    written = shop.sales(f"id IN ({','.join(ids)})")

    path = f"rewrite/{customers[0]}/{customers[-1]}"
    updated = eve.get(path).json()
    rewritten = shop.sales(f"id IN ({','.join(ids)})")
    deleted = eve.get(path, delete=1).json()

    assert (written, updated) == (["5"] * 4, 4)
    assert (rewritten, deleted) == (["6"] * 4, 4)
    assert shop.sales(f"id IN ({','.join(ids)})") == []


def test_a_form_that_was_not_accepted_is_refused(eve: Browser):
    assert "was not accepted" in eve.get("not_accepted").text


def test_inputs_of_web2pys_list_widget_that_were_left_empty_are_no_items(ada: Browser, shop: Shop):
    shown = form_fields(ada.get("create").text, "name")

    answer = ada.post("create", shown | {"name": "tagged", "tags": ["red", "", "blue"]})

    row_id = answer.location.rpartition("/")[2]
    assert products(shop, f"id={row_id}", "tags") == ["|red|blue|"]


def test_own_writes_are_there_though_the_page_reads_another_table_first(ada: Browser, shop: Shop):
    with ThreadPoolExecutor(1) as pool:
        with shop.rig.frozen():
            ada.submit("create", {"name": "behind members"})
            page = pool.submit(ada.get, "members")
            waits = not wait([page], 0.3).done
        names = page.result().json()

    assert waits
    assert "behind members" in names


def test_a_page_that_reads_what_it_has_just_written_is_warned_of_or_right(site: Site, ada: Browser, shop: Shop):
    by_default = ada.get("create_and_list/default").json()
    own = site.browser("/own/default")
    seen = [own.get(f"create_and_list/own{n}").json() for n in range(5)]

    assert by_default == [0, []]
    log = (shop.folder / "server.log").read_text()
    assert log.count("one/default/create_and_list text=\"reads 'product', to which it has written") == 1
    assert "own/default/create_and_list" not in log
    assert [listed for listed, _ in seen] == [1] * 5
    assert [set(names) >= {f"own{n}"} for n, (_, names) in enumerate(seen)] == [True] * 5


def test_what_was_sent_for_a_read_stands_though_the_request_fails(site: Site, ada: Browser, shop: Shop):
    ada.get("index")
    owner = site.browser("/own/default", tickets=True)

    answer = owner.get("create_list_and_fail/halfway")

    assert answer.status == 500
    assert len(site.forget_tickets()) == 1
    assert products(shop, "name='halfway'", "name") == ["halfway"]
    assert "rolled_back_after_send action=own/default/create_list_and_fail" in (shop.folder / "server.log").read_text()


def test_a_transaction_that_had_begun_before_its_table_was_attached_never_shows_an_older_state_in_silence(
    site: Site, shop: Shop
):
    late = site.browser("/late/default", tickets=True)

    refused = late.get("create_and_list/refused", reads="own")
    told = "".join(site.forget_tickets())
    cured = late.get("create_and_list/cured", reads="own", cured=1).json()
    with ThreadPoolExecutor(1) as pool:
        with shop.rig.frozen():
            late.get("bulk/warned")
            page = pool.submit(late.get, "names")
            wait([page], 0.3)
        page.result()

    assert refused.status == 500
    assert "the transaction had begun before 'product' was attached" in told
    assert products(shop, "name='refused'") == []
    assert cured[0] == 1
    assert "cured" in cured[1]
    assert (
        'action=late/default/names text="has read or written before its tables were attached'
        in (shop.folder / "server.log").read_text()
    )
