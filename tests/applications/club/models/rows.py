"""How the controllers read and save pages; all else is in the controllers."""


def page_of(page):
    return db.page(page)


def pages(query):
    return db(query).select(orderby=db.page.slug)


def remarks_of(page):
    return db(db.remark.page == page.id).select(orderby=db.remark.body)


def versions_of(page):
    return db(db.page_archive.current_record == page.id).select(orderby=db.page_archive.id)


def bookmarks_of(user):
    return db(db.bookmark.auth_user == user).select()


def saved(form):
    return form.process().accepted
