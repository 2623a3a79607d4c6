"""How the controllers read and save pages: on the shard that has them, or on both."""


def page_of(page):
    return pipeline.get(db.page, int(page))


def pages(query):
    return pipeline.select(query, orderby=db.page.slug)


def remarks_of(page):
    return pipeline.select(db.remark.page == page.id, orderby=db.remark.body)


def versions_of(page):
    return pipeline.select(db.page_archive.current_record == page.id, orderby=db.page_archive.id)


def bookmarks_of(user):
    return pipeline.select(db.bookmark.auth_user == user)


def saved(form):
    return form.process().accepted
