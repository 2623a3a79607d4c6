"""How the controllers read tickets and what belongs to them: on the shard that has them, or on both."""

from .common import db, pipeline


def projects():
    return db(db.project).select(orderby=db.project.name)


def ticket_of(ticket):
    return pipeline.get(db.ticket, ticket)


def tickets_of(project):
    return pipeline.select(db.ticket.project == project, orderby=db.ticket.title)


def comments_of(ticket):
    joined = (db.comment.ticket == ticket) & (db.comment.person == db.person.id)
    return [
        (row.person.name, row.comment.body) for row in pipeline.select(joined, orderby=db.comment.body | db.person.name)
    ]


def votes_of(ticket, person=None):
    query = db.vote.ticket == ticket
    return pipeline.count(query & (db.vote.person == person) if person else query)
