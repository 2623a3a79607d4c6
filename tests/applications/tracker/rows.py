"""How the controllers read tickets and what belongs to them."""

from .common import db


def projects():
    return db(db.project).select(orderby=db.project.name)


def ticket_of(ticket):
    return db.ticket(ticket)


def tickets_of(project):
    return db(db.ticket.project == project).select(orderby=db.ticket.title)


def comments_of(ticket):
    joined = (db.comment.ticket == ticket) & (db.comment.person == db.person.id)
    return [(row.person.name, row.comment.body) for row in db(joined).select(orderby=db.comment.body | db.person.name)]


def votes_of(ticket, person=None):
    query = db.vote.ticket == ticket
    return db(query & (db.vote.person == person) if person else query).count()
