"""What `python -m examples.web2py` asks for once: the tables made known, and something to look at."""

import random

ITEMS = (
    ("Atlas of clouds", "34.00", "#7aa5d8"),
    ("Brass compass", "58.50", "#d8a657"),
    ("Field notebook", "9.80", "#8fae6b"),
    ("Pocket telescope", "129.00", "#6d6fb3"),
    ("Star chart", "18.20", "#43577a"),
    ("Tide clock", "240.00", "#4fa3a0"),
)
FIRST = "Ada Bela Chloe Dag Elin Femi Gita Hugo Ines Jun Kofi Lena Mio Nils Olga Paul Rosa Sven Tove Uma".split()
LAST = "Abel Berg Costa Dahl Eriksen Fischer Garcia Holm Ito Jansen Kaya Lind".split()
CITIES = "Bergen Delft Porto Tartu Graz Lund Ghent Cork".split()
CUSTOMERS, PURCHASES = 40, 3


def tables():
    """The models have run, so the pipeline knows the tables."""
    return "known"


def fill():
    """Queue a catalogue, customers and purchases, once."""
    if not request.is_local or not db(db.auth_user).isempty():
        return "there already"
    secret = db.auth_user.password.validate("pipeline")[0]
    for name in ("Ada", "Bob"):
        db.auth_user.insert(first_name=name, last_name="", email="%s@example.com" % name.lower(), password=str(secret))
    for name, price, colour in ITEMS:
        pipeline.enqueue_insert(db.item, name=name, price=price, colour=colour)
    chance = random.Random(7)
    for number in range(CUSTOMERS):
        first, last = FIRST[number % len(FIRST)], LAST[number % len(LAST)]
        receipt = pipeline.enqueue_insert(
            db.customer,
            name="%s %s" % (first, last),
            email="%s.%s@example.com" % (first.lower(), last.lower()),
            city=chance.choice(CITIES),
        )
        for _ in range(chance.randint(0, PURCHASES)):
            item, price, _ = chance.choice(ITEMS)
            pipeline.enqueue_insert(db.purchase, customer=receipt.id, item=item, price=price, qty=chance.randint(1, 4))
    return "filled"
