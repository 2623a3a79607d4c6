"""The shop's pages. Writes go through the queue and return at once; reads come from a replica that has them."""

from uuid import uuid4

from gluon.storage import Storage

#: Customers on a page.
PAGE = 12
#: What an edit form of the grid shows is read from the application's own database.
OWN_DATABASE = Storage(node="s0", role="primary", reason="the application's own database")


def index():
    """The latest purchases of all shards, and what there is to buy."""
    latest = pipeline.select(
        db.purchase.customer == db.customer.id,
        db.purchase.ALL,
        db.customer.name,
        orderby=~db.purchase.id,
        limitby=(0, 8),
    )
    served(*latest.read_info)
    return dict(
        latest=latest, items=_items(), customers=pipeline.count(db.customer), purchases=pipeline.count(db.purchase)
    )


def customers():
    """All customers, sorted over all shards, a page at a time."""
    asked = request.get_vars.page or "0"
    page = int(asked) if asked.isdigit() else 0
    found = pipeline.select(
        db.customer, orderby=db.customer.name | db.customer.id, limitby=(page * PAGE, (page + 1) * PAGE + 1)
    )
    served(*found.read_info)
    return dict(customers=list(found)[:PAGE], page=page, more=len(found) > PAGE)


def customer():
    """One customer with his purchases: they have the same shard key, so one node has them all."""
    rdb = pipeline.read_db(db, "purchase", _number())
    served(rdb.read_info)
    row = rdb(rdb.customer.id == _number()).select().first() or _not_found()
    rdb.purchase.id.readable = False
    purchases = SQLFORM.grid(
        rdb.purchase.customer == row.id,
        fields=[rdb.purchase.id, rdb.purchase.item, rdb.purchase.qty, rdb.purchase.price, rdb.purchase.created_on],
        links=[_buttons],
        orderby=~rdb.purchase.id,
        paginate=PAGE,
        args=[row.id],
        **dict.fromkeys(("create", "editable", "deletable", "details", "csv", "searchable"), False),
    )
    return dict(customer=row, purchases=purchases, items=_items(), once=str(uuid4()))


@auth.requires_login()
def customer_new():
    """A form whose insert is queued; the new page exists at once for whoever wrote it."""
    form = SQLFORM(db.customer, submit_button="Add the customer")
    if form.process(dbio=False).accepted:
        receipt = follow("%s added" % form.vars.name, pipeline.enqueue_form(form))
        redirect(URL("customer", args=receipt.id))
    return dict(form=form, title="New customer")


@auth.requires_login()
def customer_edit():
    """A form that queues what was changed, or the delete."""
    rdb = pipeline.read_db(db, "customer", _number())
    served(rdb.read_info)
    row = rdb(rdb.customer.id == _number()).select().first() or _not_found()
    form = SQLFORM(db.customer, row, deletable=True, showid=False, upload=URL("download"), submit_button="Save")
    if form.process(dbio=False).accepted:
        if form.deleted:
            pipeline.enqueue_delete(db.purchase.customer == row.id)
        follow("%s %s" % (row.name, "deleted" if form.deleted else "edited"), pipeline.enqueue_form(form))
        redirect(URL("customers") if form.deleted else URL("customer", args=row.id))
    return dict(form=form, title="Edit %s" % row.name)


@auth.requires_signature()
def buy():
    """A purchase; the key makes one row of a form that is sent twice."""
    customer, once = _number(), request.post_vars.once or _not_found()
    item = {item.name: item for item in _items()}.get(request.post_vars.item) or _not_found()
    receipt = pipeline.enqueue_insert(
        db.purchase,
        dict(customer=customer, item=item.name, price=item.price, qty=int(request.post_vars.qty or 1)),
        idempotency_key="buy-%s" % once,
    )
    follow("%s bought" % item.name, receipt)
    redirect(URL("customer", args=customer))


def purchase():
    """One purchase: its id alone tells where it is."""
    row = pipeline.get(db.purchase, _number()) or _not_found()
    rdb = pipeline.read_db(db, "customer", row.customer)
    served(rdb.read_info)
    return dict(purchase=row, customer=rdb(rdb.customer.id == row.customer).select().first())


@auth.requires_login()
def purchase_edit():
    """As `customer_edit`."""
    row = pipeline.get(db.purchase, _number()) or _not_found()
    served(pipeline.read_db(db, "purchase", row.customer).read_info)
    form = SQLFORM(db.purchase, row, deletable=True, showid=False, submit_button="Save")
    if form.process(dbio=False).accepted:
        follow("%s %s" % (row.item, "deleted" if form.deleted else "edited"), pipeline.enqueue_form(form))
        redirect(URL("customer", args=row.customer) if form.deleted else URL("purchase", args=row.id))
    return dict(form=form, title="Edit the purchase")


@auth.requires_signature()
def purchase_delete():
    """What the button in the grid posts."""
    row = pipeline.get(db.purchase, _number()) or _not_found()
    if request.env.request_method == "POST":
        follow("%s deleted" % row.item, pipeline.enqueue_delete(db.purchase.id == row.id))
    redirect(URL("customer", args=row.customer))


@auth.requires_login()
def catalogue():
    """A grid as web2py makes it: the table is attached, so its writes are queued; the list is read from a replica."""
    source = db if request.args else pipeline.read_db(db, "item")
    served(OWN_DATABASE if request.args else source.read_info)
    source.item.id.readable = False
    source.item.colour.represent = lambda colour, row: SPAN(colour, _class="dot", _style="--ink: %s" % colour)
    db.item.colour.requires = IS_MATCH("#[0-9a-f]{6}", strict=True, error_message="Like #7aa5d8")
    grid = SQLFORM.grid(source.item, orderby=source.item.name, csv=False, details=False, searchable=False)
    return dict(form=grid, title="Catalogue")


def writes():
    """How far this user's last writes have come; the pages ask once a second."""
    session.forget(response)
    states = [dict(what=kept["what"], state=_state(kept["receipt"])) for kept in session.writes or []]
    return response.json(dict(writes=states))


def download():
    return response.download(request, db)


def user():
    return dict(form=auth(), title="Sign up" if request.args(0) == "register" else "Log in")


# parts --------------------------------------------------------------------------------------------------------------


def _items():
    """Return the catalogue: a reference table, of which every shard has a copy."""
    rdb = pipeline.read_db(db, "item")
    served(rdb.read_info)
    return rdb(rdb.item).select(orderby=rdb.item.name)


def _buttons(row):
    """Return what stands in a line of the grid."""
    look = A("Look", _href=URL("purchase", args=row.id))
    if not auth.user:
        return look
    remove = URL("purchase_delete", args=row.id, user_signature=True)
    return DIV(
        look,
        A("Edit", _href=URL("purchase_edit", args=row.id)),
        TAG.form(TAG.button("Delete", _class="plain"), _method="post", _action=remove),
        _class="links",
    )


def _state(receipt):
    from pipeline.errors import PipelineError

    try:
        return pipeline.Receipt.parse(receipt).status()
    except PipelineError as error:
        return "unknown: %s" % error


def _number():
    text = request.args(0) or ""
    return int(text) if text.isdigit() else _not_found()


def _not_found():
    raise HTTP(404, "There is no such page here.")
