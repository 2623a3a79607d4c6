"""How the controllers read and save the customers' rows: on the shard that has them, or on both."""


def customer_of(customer):
    return pipeline.get(db.customer, int(customer))


def customers(query=db.customer):
    return pipeline.select(query, orderby=db.customer.name)


def sale_of(sale):
    return pipeline.get(db.sale, int(sale))


def sales_of(customer):
    return pipeline.select(db.sale.customer == customer.id, orderby=db.sale.number)


def lines_of(sale):
    ours = (db.sale_line.customer == sale.customer) & (db.sale_line.sale == sale.id)
    return pipeline.select(ours & (db.sale_line.product == db.product.id), orderby=db.sale_line.position)


def total_of(sale):
    total = (db.sale_line.price * db.sale_line.qty).sum()
    ours = (db.sale_line.customer == sale.customer) & (db.sale_line.sale == sale.id)
    return pipeline.select(ours, total).first()[total] or 0


def turnover():
    """(customer's name, number of orders, their sum), customers without orders too."""
    orders, total = db.sale.id.count(), db.sale.total.sum()
    rows = pipeline.select(
        db.customer.id > 0,
        db.customer.name,
        orders,
        total,
        left=db.sale.on(db.sale.customer == db.customer.id),
        groupby=db.customer.name,
        orderby=db.customer.name,
    )
    return [(row.customer.name, row[orders], row[total]) for row in rows]


def add_line(sale, customer, **values):
    return db.sale_line.insert(sale=sale, customer=customer, **values)


def saved(form):
    accepted = form.process(dbio=False).accepted
    if accepted:
        pipeline.enqueue_form(form)
    return accepted
