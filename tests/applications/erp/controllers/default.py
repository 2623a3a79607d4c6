def page(title, *parts):
    flash, session.shown = session.shown or "", None
    return HTML(BODY(H1(title), P(flash, _class="flash"), *parts)).xml()


def say(text, *path):
    session.shown = text
    redirect(URL(*path[:1], args=path[1:]))


def listed(rows, *fields):
    return TABLE(*[TR(*[row[field] if row[field] is not None else "-" for field in fields]) for row in rows])


def index():
    return page("Trader", auth.user.first_name if auth.user else "nobody")


def user():
    return page("User", auth())


@auth.requires_login()
def categories():
    """The names in a path are created below each other where they are new."""
    form = SQLFORM.factory(Field("path", requires=IS_NOT_EMPTY()))
    if form.process().accepted:
        parent = None
        for name in form.vars.path.split("/"):
            row = db.category(name=name)
            parent = row.id if row else db.category.insert(name=name, parent=parent)
        say("%s categories" % db(db.category).count(), "categories")
    rows = db(db.category).select(orderby=db.category.name)
    return page("Categories", form, UL(*[LI(row.name, " in ", row.parent.name if row.parent else "-") for row in rows]))


@auth.requires_login()
def suppliers():
    return page(
        "Suppliers", SQLFORM.grid(db.supplier, orderby=db.supplier.name, user_signature=False, csv=False, paginate=10)
    )


@auth.requires_login()
def deliveries():
    """Suppliers with their first product each, a line per supplier."""
    form = SQLFORM.factory(Field("lines", "text"))
    if form.process().accepted:
        for line in form.vars.lines.splitlines():
            name, city, sku, price = line.split(";")
            supplier = db.supplier.insert(name=name, city=city)
            db.product.insert(sku=sku, name="first of " + name, price=price, stock=1, supplier=supplier)
        say("%s suppliers, %s products" % (db(db.supplier).count(), db(db.product).count()), "deliveries")
    return page("Deliveries", form)


@auth.requires_login()
def products():
    grid = SQLFORM.grid(db.product, orderby=db.product.sku, user_signature=False, csv=False, paginate=20)
    return page("Products", grid)


@auth.requires_login()
def product_new():
    form = SQLFORM(db.product)
    if form.process().accepted:
        for name in request.post_vars.categories.split(","):
            category = db.category(name=name)
            category = category.id if category else db.category.insert(name=name)
            db.product_category.insert(product=form.vars.id, category=category)
        redirect(URL("product", args=form.vars.id))
    return page("New product", form)


@auth.requires_login()
def product():
    row = db.product(request.args(0)) or say("no such product", "products")
    joined = (db.product_category.product == row.id) & (db.product_category.category == db.category.id)
    names = [found.name for found in db(joined).select(db.category.name, orderby=db.category.name)]
    supplier = row.supplier.name if row.supplier else "-"
    return page(row.sku, P(row.name, " ", row.price, " ", row.stock, " of ", supplier), P(", ".join(names)))


@auth.requires_login()
def customer_list():
    return page("Customers", UL(*[LI(A(row.name, _href=URL("customer", args=row.id))) for row in customers()]))


@auth.requires_login()
def customer_new():
    form = SQLFORM(db.customer)
    if saved(form):
        redirect(URL("customer", args=form.vars.id))
    return page("New customer", form)


@auth.requires_login()
def customer_edit():
    form = SQLFORM(db.customer, customer_of(request.args(0)), deletable=True, showid=False)
    if saved(form):
        say("saved", "customer", request.args(0))
    return page("Customer", form)


@auth.requires_login()
def customer():
    row = customer_of(request.args(0)) or say("no such customer", "customer_list")
    by = row.created_by.first_name if row.created_by else "-"
    facts = P("%s %s %s by %s" % (row.email, row.credit, row.active, by))
    return page(row.name, facts, listed(sales_of(row), "number", "status", "day", "total", "mine"))


@auth.requires_login()
def sale_new():
    """An order and its lines, `SKU*QTY,…`, in one request."""
    form = SQLFORM(db.sale, fields=["number", "day"])
    form.vars.customer = request.args(0)
    if saved(form):
        total = 0
        for position, text in enumerate(request.post_vars.basket.split(",")):
            sku, qty = text.split("*")
            row = db.product(sku=sku)
            values = dict(product=row.id, position=position + 1, qty=int(qty), price=row.price)
            add_line(form.vars.id, request.args(0), **values)
            total += int(qty) * row.price
        db(db.sale.id == form.vars.id).update(total=total)
        redirect(URL("sale", args=form.vars.id))
    return page("New order", form)


@auth.requires_login()
def sale():
    row = sale_of(request.args(0)) or say("no such order", "customer_list")
    lines = [
        TR(line.sale_line.position, line.product.sku, line.sale_line.qty, line.sale_line.price)
        for line in lines_of(row)
    ]
    state = "%s %s %s%s" % (row.status, row.day, row.total, " yours" if row.mine else "")
    return page(row.number, P(state), TABLE(*lines), P("sum ", total_of(row)))


@auth.requires_login()
def line_new():
    """Another line; the total is what the lines then come to."""
    row = sale_of(request.args(0))
    found = db.product(sku=request.post_vars.sku)
    values = dict(product=found.id, position=len(lines_of(row)) + 1, qty=int(request.post_vars.qty), price=found.price)
    add_line(row.id, row.customer, **values)
    db(db.sale.id == row.id).update(total=total_of(row))
    redirect(URL("sale", args=row.id))


@auth.requires_login()
def close():
    """Close an order, if all that it needs is there; two lines may name one product."""
    row = sale_of(request.args(0))
    lines, needed = lines_of(row), {}
    for line in lines:
        needed[line.product.id] = needed.get(line.product.id, 0) + line.sale_line.qty
        if line.product.stock < needed[line.product.id]:
            say("not enough of %s" % line.product.sku, "sale", row.id)
    for line in lines:
        found = db.product(line.product.id)
        found.update_record(stock=found.stock - line.sale_line.qty)
    db(db.sale.id == row.id).update(status="closed", closed_on=request.now, total=total_of(row))
    redirect(URL("sale", args=row.id))


@auth.requires_login()
def report():
    return page("Report", TABLE(*[TR(name, orders, total or 0) for name, orders, total in turnover()]))
