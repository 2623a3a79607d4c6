import datetime
import decimal
import uuid


def shown(title, *parts):
    flash, session.shown = session.shown or "", None
    return HTML(BODY(H1(title), P(flash, _class="flash"), *parts)).xml()


def say(text, *path):
    session.shown = text
    redirect(URL(*path[:1], args=path[1:]))


def index():
    return shown("Club", auth.user.first_name if auth.user else "nobody")


def user():
    return shown("User", auth())


@auth.requires_login()
def join():
    """Become a member of a group, which is made by its first member."""
    group = auth.id_group(request.post_vars.group) or auth.add_group(request.post_vars.group)
    auth.add_membership(group, auth.user_id)
    redirect(URL("index"))


@auth.requires_membership("editors")
def tags():
    grid = SQLFORM.grid(db.tag, orderby=db.tag.name, user_signature=False, csv=False)
    return shown("Tags", grid)


@auth.requires_membership("editors")
def page_new():
    """A page with the tags that its author names, and who may edit it."""
    form = SQLFORM(db.page, fields=["slug", "title", "body", "words"])
    if saved(form):
        names = [name for name in request.post_vars.named.split(",") if name]
        found = [db.tag(name=name) for name in names]
        ids = [row.id if row else db.tag.insert(name=name) for name, row in zip(names, found, strict=True)]
        db(db.page.id == form.vars.id).update(tags=ids)
        auth.add_permission(auth.id_group(request.post_vars.group), "edit", db.page, form.vars.id)
        redirect(URL("page", args=form.vars.id))
    return shown("New page", form)


@auth.requires_login()
def page():
    row = page_of(request.args(0)) or say("no such page", "pages_list")
    db(db.page.id == row.id).update(views=db.page.views + 1)
    tagged = ", ".join(sorted(db.tag(tag).name for tag in row.tags or []))
    may = "may edit" if auth.has_permission("edit", db.page, row.id) else "may not edit"
    by = row.created_by.first_name if row.created_by else "-"
    facts = P("%s; %s; %s; by %s%s" % (tagged, row.words, may, by, ", yours" if row.yours else ""))
    remarks = UL(*[LI(remark.body, " by ", remark.created_by.first_name) for remark in remarks_of(row)])
    return shown(row.headline(), PRE(row.body), facts, P("%s" % row.facts), remarks)


@auth.requires_login()
def page_edit():
    row = page_of(request.args(0))
    if not auth.has_permission("edit", db.page, row.id):
        say("not allowed", "page", row.id)
    form = SQLFORM(db.page, row, fields=["title", "body"], deletable=True, showid=False)
    if saved(form):
        say("saved", "page", row.id)
    return shown("Edit", form)


@auth.requires_membership("editors")
def body():
    """The body as it is sent: bytes."""
    db(db.page.id == request.args(0)).update(body=request.body.read())
    redirect(URL("page", args=request.args(0)))


@auth.requires_membership("editors")
def measure():
    """Values of other kinds than their columns, all of which pyDAL takes."""
    price, moment = decimal.Decimal("12.50"), datetime.datetime(2026, 2, 3, 4, 5, 6)
    facts = {"price": price, "moment": moment, "tags": [1, 2]}
    db(db.page.id == request.args(0)).update(words=[1, 2, 30], facts=facts)
    kinds = (price, 2.5, True, datetime.date(2026, 2, 3), uuid.UUID(int=7), 42, b"bytes")
    for value in kinds:
        db.remark.insert(page=request.args(0), body=value)
    redirect(URL("page", args=request.args(0)))


@auth.requires_login()
def remark():
    db.remark.insert(page=request.args(0), body=request.post_vars.body)
    redirect(URL("page", args=request.args(0)))


@auth.requires_login()
def bookmark():
    db.bookmark.insert(auth_user=auth.user_id, page_id=request.args(0))
    redirect(URL("bookmarks"))


@auth.requires_login()
def bookmarks():
    titles = sorted(page_of(row.page_id).title for row in bookmarks_of(auth.user_id))
    return shown("Bookmarks", UL(*[LI(title) for title in titles]))


@auth.requires_membership("editors")
def pages_list():
    """All pages, or those with a tag."""
    query = db.page.is_active == True  # noqa: E712
    if request.get_vars.tag:
        query &= db.page.tags.contains(db.tag(name=request.get_vars.tag).id)
    rows = pages(query)
    items = [LI(A(row.title, _href=URL("page", args=row.id)), " ", row.views) for row in rows]
    return shown("Pages", UL(*items), TABLE(*[TR(db.page.title.represent(row.title, row)) for row in rows]))


@auth.requires_login()
def history():
    row = page_of(request.args(0))
    return shown("History", UL(*[LI(old.title, ": ", old.body) for old in versions_of(row)]))
