"""How the controllers read and save the customers' rows; all else is in the controllers."""


def customer_of(customer):
    return db.customer(customer)


def customers(query=db.customer):
    return db(query).select(orderby=db.customer.name)


def sale_of(sale):
    return db.sale(sale)


def sales_of(customer):
    return db(db.sale.customer == customer.id).select(orderby=db.sale.number)


def lines_of(sale):
    joined = (db.sale_line.sale == sale.id) & (db.sale_line.product == db.product.id)
    return db(joined).select(orderby=db.sale_line.position)


def total_of(sale):
    total = (db.sale_line.price * db.sale_line.qty).sum()
    return db(db.sale_line.sale == sale.id).select(total).first()[total] or 0


def turnover():
    """(customer's name, number of orders, their sum), customers without orders too."""
    orders, total = db.sale.id.count(), db.sale.total.sum()
    rows = db(db.customer).select(
        db.customer.name,
        orders,
        total,
        left=db.sale.on(db.sale.customer == db.customer.id),
        groupby=db.customer.name,
        orderby=db.customer.name,
    )
    return [(row.customer.name, row[orders], row[total]) for row in rows]


def add_line(sale, customer, **values):
    return db.sale_line.insert(sale=sale, **values)


def saved(form):
    return form.process().accepted
