"""The application's own database, which is also a shard's, and its tables. Nothing here knows of the pipeline."""

from gluon.contrib.appconfig import AppConfig
from gluon.tools import Auth

configuration = AppConfig()
db = DAL(configuration.take("db.uri"), pool_size=5, bigint_id=True, check_reserved=None)

auth = Auth(db)
auth.settings.formstyle = "divs"
auth.settings.actions_disabled = ["request_reset_password", "retrieve_username", "profile", "change_password"]
auth.settings.login_next = auth.settings.register_next = URL("default", "index")
auth.settings.logout_next = auth.settings.logged_url = URL("default", "index")
auth.define_tables(username=False, signature=False)

response.formstyle = "divs"

# the tables that are on the shards: defined here, created there by `pipeline migrate`
db.define_table(
    "item",
    Field("name", length=60, requires=IS_NOT_EMPTY()),
    Field("price", "decimal(10,2)", requires=IS_DECIMAL_IN_RANGE(0, 100000)),
    Field("colour", length=7, default="#7aa5d8"),
    migrate=False,
)
db.define_table(
    "customer",
    Field("name", length=60, requires=IS_NOT_EMPTY()),
    Field("email", length=120, requires=IS_EMPTY_OR(IS_EMAIL())),
    Field("city", length=60),
    Field("photo", "upload", length=255, autodelete=False, requires=IS_EMPTY_OR(IS_IMAGE(extensions=("png", "jpeg")))),
    auth.signature,
    migrate=False,
    format="%(name)s",
)
db.define_table(
    "purchase",
    Field("customer", "bigint", notnull=True, writable=False, readable=False),
    Field("item", length=60, notnull=True),
    Field("qty", "integer", default=1, requires=IS_INT_IN_RANGE(1, 1000)),
    Field("price", "decimal(10,2)", writable=False),
    Field("note", length=200),
    auth.signature,
    migrate=False,
)
