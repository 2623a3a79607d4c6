"""The tables: everything belongs to a ticket, and a ticket to a project."""

from py4web import Field


def define_tables(db):
    db.define_table("person", Field("name", unique=True), format="%(name)s")
    db.define_table("project", Field("name", unique=True), Field("lead", "reference person"))
    db.define_table(
        "ticket",
        Field("project", "reference project"),
        Field("title"),
        Field("state", length=10, default="open"),
        Field("votes", "integer", default=0),
        Field("opened_by", "reference person"),
    )
    db.define_table(
        "comment", Field("ticket", "reference ticket"), Field("body", "text"), Field("person", "reference person")
    )
    db.define_table("vote", Field("ticket", "reference ticket"), Field("person", "reference person"))
