"""Orders of a small trader: customers, suppliers, products in many categories, orders with their lines."""

from gluon.contrib.appconfig import AppConfig
from gluon.tools import Auth

configuration = AppConfig(reload=True)
db = DAL(configuration.take("db.uri"), pool_size=5)
auth = Auth(db)
auth.define_tables(username=False, signature=False)

db.define_table("category", Field("name", unique=True), Field("parent", "reference category"), format="%(name)s")
db.define_table("supplier", Field("name"), Field("city"), auth.signature, format="%(name)s")
db.define_table(
    "product",
    Field("sku", length=20, unique=True, requires=IS_NOT_EMPTY()),
    Field("name", requires=IS_NOT_EMPTY()),
    Field("price", "decimal(10,2)", default=0),
    Field("stock", "integer", default=0),
    Field("supplier", "reference supplier"),
    auth.signature,
    format="%(sku)s",
)
db.define_table("product_category", Field("product", "reference product"), Field("category", "reference category"))
db.define_table(
    "customer",
    Field("name", requires=IS_NOT_EMPTY()),
    Field("email"),
    Field("credit", "decimal(10,2)", default=100),
    Field("active", "boolean", default=True),
    auth.signature,
    format="%(name)s",
)
db.define_table(
    "sale",
    Field("number", length=20, requires=IS_NOT_EMPTY()),
    Field("customer", "reference customer", writable=False),
    Field("status", length=10, default="open", writable=False),
    Field("day", "date"),
    Field("total", "decimal(10,2)", default=0, writable=False),
    Field("closed_on", "datetime", writable=False),
    auth.signature,
)
db.define_table(
    "sale_line",
    Field("sale", "reference sale"),
    Field("product", "reference product"),
    Field("position", "integer"),
    Field("qty", "integer"),
    Field("price", "decimal(10,2)"),
)
db.sale.mine = Field.Virtual("mine", lambda row: row.sale.created_by == auth.user_id)
