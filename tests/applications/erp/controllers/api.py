"""What other programs of the trader ask, in JSON."""


def index():
    return response.json({"lines have": db.sale_line.fields})


def customer():
    return response.json({"id": db.customer.insert(name=request.post_vars.name)})


def product():
    return response.json({"id": db.product.insert(sku=request.post_vars.sku, price=request.post_vars.price)})


def sale():
    """An order with its lines; the sum is what the lines come to."""
    customer = int(request.post_vars.customer)
    sale = db.sale.insert(number=request.post_vars.number, customer=customer)
    for position, sku in enumerate(request.post_vars.basket.split(",")):
        row = db.product(sku=sku)
        add_line(sale, customer, product=row.id, position=position + 1, qty=1, price=row.price)
    return response.json({"id": sale, "sum": str(total_of(sale_of(sale)))})


def report():
    return response.json([[name, orders] for name, orders, total in turnover() if orders])
