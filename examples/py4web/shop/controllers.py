"""The pages. `pipeline` stands before `db`, so ops are sent once db has committed."""

import datetime

from py4web import HTTP, URL, Field, action, redirect
from py4web.utils.form import Form
from pydal.validators import IS_IN_SET

from pipeline.errors import StaleRead

from .common import db, pipeline, session
from .tables import PRODUCTS

RECENT = 12
#: A list may lack what is still queued; the page says "stale" then, rather than wait.
LISTS = {"on_stale": "stale"}


@action("index")
@action.uses("index.html", session, pipeline, db)
def index():
    """Show the customers and the newest orders of all shards."""
    customers = pipeline.select(db.customer.id > 0, orderby=db.customer.name, limitby=(0, 100), **LISTS)
    names = {customer.id: customer.name for customer in customers}
    orders = pipeline.select(db.purchase.id > 0, orderby=~db.purchase.id, limitby=(0, RECENT), **LISTS)
    count = pipeline.count(db.purchase.id > 0, **LISTS)
    return {"customers": customers, "names": names, "orders": orders, "count": count, "nodes": orders.read_info}


@action("new", method=["GET", "POST"])
@action.uses("new.html", session, pipeline, db)
def new():
    """Take an order: the form checks it, the pipeline writes it."""
    customers = pipeline.select(db.customer.id > 0, orderby=db.customer.name, **LISTS)
    form = Form(
        [
            Field("customer", requires=IS_IN_SET({str(one.id): one.name for one in customers}, zero="choose …")),
            Field("product", requires=IS_IN_SET(list(PRODUCTS), zero=None)),
            db.purchase.qty,
        ],
        dbio=False,
        csrf_session=session,
        form_name="order",
        submit_value="Place the order",
    )
    if form.accepted:
        customer, product, qty = int(form.vars["customer"]), form.vars["product"], form.vars["qty"]
        receipt = pipeline.enqueue_insert(
            db.purchase,
            customer=customer,
            product=product,
            qty=qty,
            price=PRODUCTS[product] * qty,
            placed_at=datetime.datetime.now(datetime.UTC).replace(microsecond=0, tzinfo=None),
        )
        # the row's id is known before the row is there
        redirect(URL("order", customer, receipt.id))
    return {"form": form}


@action("customer", method=["GET", "POST"])
@action.uses("customer.html", session, pipeline, db)
def customer():
    """Take a new customer."""
    form = Form(db.customer, dbio=False, csrf_session=session, form_name="customer", submit_value="Add the customer")
    if form.accepted:
        pipeline.enqueue_insert(db.customer, name=form.vars["name"], city=form.vars["city"])
        redirect(URL("index"))
    return {"form": form}


@action("order/<customer:int>/<order:int>")
@action.uses("order.html", session, pipeline, db)
def order(customer, order):
    """Show an order, from a node that has this user's own writes."""
    try:
        with pipeline.read(db.purchase, shard_key=customer) as node:
            row, info = node(node.purchase.id == order).select().first(), node.read_info
    except StaleRead:  # no worker was quick enough: what is queued is laid over what is there
        row, info = with_queued(db.purchase, order), None
    if row is None:
        raise HTTP(404, "There is no such order.")
    state = "queued" if info is None else state_of(order)
    return {"order": row, "buyer": with_queued(db.customer, customer), "info": info, "state": state}


@action("state/<order:int>")
@action.uses(session, pipeline, db)
def state(order):
    """Tell whether ops of an order still wait; the page asks until none does."""
    return {"state": state_of(order)}


@action("more/<customer:int>/<order:int>", method="POST")
@action.uses(session, pipeline, db)
def more(customer, order):
    """Order one more: the worker adds to what is there, so that two clicks are two more."""
    unit = with_queued(db.purchase, order)
    if unit is None:
        raise HTTP(404, "There is no such order.")
    pipeline.enqueue_update(
        (db.purchase.id == order) & (db.purchase.customer == customer),
        qty=db.purchase.qty + 1,
        price=db.purchase.price + PRODUCTS[unit.product],
    )
    redirect(URL("order", customer, order))


def state_of(order):
    """Return queued, if an op of this order waits to be applied, else applied."""
    row = with_queued(db.purchase, order)
    return "queued" if row is not None and row.get("pending") else "applied"


def with_queued(table, row_id):
    """Return a row as it will be once all that is queued for it is applied; waits for nothing."""
    return pipeline.get(table, row_id, pending=True, fresh=False, on_stale="stale")
