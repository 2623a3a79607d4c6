"""A club's pages: editors write them, each may be allowed to one group, and every version is kept."""

from gluon.contrib.appconfig import AppConfig
from gluon.tools import Auth

configuration = AppConfig(reload=True)
db = DAL(configuration.take("db.uri"), pool_size=5)
auth = Auth(db)
auth.define_tables(username=False, signature=False)

db.define_table("tag", Field("name", unique=True), format="%(name)s")
db.define_table(
    "page",
    Field("slug", length=40, requires=IS_SLUG()),
    Field("title", requires=IS_NOT_EMPTY()),
    Field("body", "text"),
    Field("tags", "list:reference tag"),
    Field("words", "list:string"),
    Field("facts", "json", readable=False, writable=False),
    Field("views", "integer", default=0, writable=False),
    auth.signature,
    format="%(title)s",
)
db.define_table("remark", Field("page", "reference page"), Field("body", "text"), auth.signature)
db.define_table("bookmark", Field("auth_user", "reference auth_user"), Field("page_id", "integer"))
auth.enable_record_versioning([db.page])
db.page.yours = Field.Virtual("yours", lambda row: row.page.created_by == auth.user_id)
db.page.headline = Field.Method("headline", lambda row, mark="#": "%s %s" % (mark, row.page.title.upper()))
db.page.title.represent = lambda value, row: "%s for %s" % (value, auth.user.first_name if auth.user else "all")
