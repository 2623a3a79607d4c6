"""The page, and the JSON that its script reads and posts."""

import os

from py4web import HTTP, action, request

from . import rows
from .common import FOLDER, db, session, uses

PAGE = """<!DOCTYPE html><html><head><title>Tracker</title></head><body><main></main>
<script src="static/tracker.js"></script></body></html>"""


def me():
    if not session.get("person"):
        raise HTTP(403)
    return session["person"]


@action("index")
def index():
    return PAGE


@action("static/tracker.js")
def script():
    with open(os.path.join(FOLDER, "static", "tracker.js"), encoding="utf-8") as text:
        return text.read()


@action("api/login", method="POST")
@action.uses(*uses)
def login():
    name = request.json["name"]
    person = db.person(name=name)
    session["person"] = int(person.id if person else db.person.insert(name=name))
    return {"name": name}


@action("api/projects", method=["GET", "POST"])
@action.uses(*uses)
def projects():
    """All projects; a new one comes with its first ticket."""
    if request.method == "POST":
        project = db.project.insert(name=request.json["name"], lead=me())
        db.ticket.insert(project=project, title="Set up " + request.json["name"], opened_by=me())
        return {"id": project}
    return {"projects": [{"id": row.id, "name": row.name, "lead": row.lead.name} for row in rows.projects()]}


@action("api/tickets/<project:int>", method=["GET", "POST"])
@action.uses(*uses)
def tickets(project):
    if request.method == "POST":
        return {"id": db.ticket.insert(project=project, title=request.json["title"], opened_by=me())}
    return {
        "tickets": [
            {
                "id": row.id,
                "title": row.title,
                "state": row.state,
                "votes": row.votes,
                "comments": rows.comments_of(row.id),
            }
            for row in rows.tickets_of(project)
        ]
    }


def named_ticket():
    """The ticket that the request is about."""
    ticket = rows.ticket_of(request.json["ticket"])
    if ticket is None:
        raise HTTP(404)
    return ticket


@action("api/comments", method="POST")
@action.uses(*uses)
def comment():
    ticket = named_ticket()
    return {"id": db.comment.insert(ticket=ticket.id, body=request.json["body"], person=me())}


@action("api/votes", method="POST")
@action.uses(*uses)
def vote():
    """A second vote of a person takes the first one back."""
    ticket = named_ticket()
    if rows.votes_of(ticket.id, me()):
        db((db.vote.ticket == ticket.id) & (db.vote.person == me())).delete()
    else:
        db.vote.insert(ticket=ticket.id, person=me())
    db(db.ticket.id == ticket.id).update(votes=rows.votes_of(ticket.id))
    return {"voted": True}


@action("api/close", method="POST")
@action.uses(*uses)
def close():
    ticket = named_ticket()
    db(db.ticket.id == ticket.id).update(state="closed")
    db.comment.insert(ticket=ticket.id, body="closed with %s votes" % ticket.votes, person=me())
    return {"closed": True}
