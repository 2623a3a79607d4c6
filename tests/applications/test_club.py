"""A club's pages: groups, record permissions, tags, versions, values of other kinds; plain, on one shard, on two."""

from __future__ import annotations

import pytest
from support.applications.ground import Ground
from support.applications.journey import Journey
from support.applications.moving import Application, Placed, known, same_pages, same_rows
from support.applications.rows import Model
from support.web.web2py_server import Site

pytestmark = pytest.mark.mariadb

SIGNED = ("page", "page_archive", "remark")
MODEL = Model(
    keys={
        "auth_user": ("email",),
        "auth_group": ("role",),
        "auth_membership": ("user_id", "group_id"),
        "auth_permission": ("group_id", "name", "record_id"),
        "tag": ("name",),
        "page": ("slug",),
        "page_archive": ("current_record", "title", "body"),
        "remark": ("page", "body"),
        "bookmark": ("auth_user", "page_id"),
    },
    references={
        ("auth_membership", "user_id"): "auth_user",
        ("auth_membership", "group_id"): "auth_group",
        ("auth_permission", "group_id"): "auth_group",
        ("auth_permission", "record_id"): "page",
        ("bookmark", "page_id"): "page",
        ("page_archive", "current_record"): "page",
        ("page", "tags"): "tag",
        ("page_archive", "tags"): "tag",
        **{(table, column): "auth_user" for table in SIGNED for column in ("created_by", "modified_by")},
    },
    by_chance=frozenset({"created_on", "modified_on", "password", "registration_id"}),
)
#: As `pipeline adopt` says: what holds ids of pages is as wide as they are.
WIDE = ("models/db.py", 'Field("page_id", "integer")', 'Field("page_id", "bigint")')
RULE = 'rule = "placement:keep_old_rows"'
TWO_SHARDS = "\n".join(
    [
        "[tables.tag]\nreference = true",
        *(
            f'[tables.{table}]\nshard_key = "{key}"\n{RULE}'
            for table, key in {
                "page": "id",
                "page_archive": "current_record",
                "remark": "page",
                "bookmark": "page_id",
            }.items()
        ),
    ]
)
AUTH = "auth.define_tables(username=False, signature=False)\n"
RECORD_ID = 'db.auth_permission.record_id.type, db.auth_permission.record_id.requires = "bigint", None\n'
CHANGES = [WIDE, ("models/db.py", AUTH, AUTH + RECORD_ID)]
CLUB = Application(
    "club",
    MODEL,
    {1: ["club_one_shard"], 2: ["club_one_shard", "club_two_shards"]},
    {1: "", 2: TWO_SHARDS},
    {1: CHANGES, 2: CHANGES},
)


def before(visit: Journey) -> None:
    """What is there when the application moves."""
    known(visit, "ada", "bob", "eve")
    for name in ("ada", "bob"):
        visit.post(name, "join", group="editors")
    visit.post("eve", "join", group="readers")
    visit.send("ada", "tags/new/tag", {"name": "old"})
    page = visit.send(
        "ada", "page_new", {"slug": "rules", "title": "Rules", "body": "Be kind."}, named="old", group="editors"
    )
    visit.send("bob", f"page_edit/{page}", {"body": "Be very kind."})
    visit.post("eve", f"remark/{page}", body="so be it")
    visit.post("eve", f"bookmark/{page}")


def write(visit: Journey) -> None:
    """What is done after it has moved; all are still logged in."""
    visit.send("ada", "tags/new/tag", {"name": "news"})
    visit.open("ada", "tags")
    news = visit.send(
        "ada", "page_new", {"slug": "news", "title": "News", "body": "None"}, named="news,old,fresh", group="readers"
    )
    visit.open("bob", "pages_list")
    visit.open("bob", "pages_list", tag="fresh")
    visit.send("eve", f"page_edit/{news}", {"title": "News!", "body": "Some"})
    visit.send("eve", f"page_edit/{news}", {"body": "Grüße, 漢字"})
    visit.post("ada", f"body/{news}", text="sent as bytes: ü")
    visit.open("bob", f"page_edit/{news}")
    visit.post("ada", f"measure/{news}")
    visit.open("eve", f"page/{news}")
    for name in ("eve", "bob", "ada"):
        visit.post(name, f"remark/{news}", body=f"by {name}")
        visit.post(name, f"bookmark/{news}")
    for n in range(5):
        page = visit.send("bob", "page_new", {"slug": f"p{n}", "title": f"Page {n}"}, named=f"t{n}", group="editors")
        visit.open("bob", "pages_list")
        visit.send("bob", f"page_edit/{page}", {"title": f"Page no. {n}"})
        visit.open("ada", "pages_list")
    visit.send("ada", f"page_edit/{page}", {"delete_this_record": "on"})
    visit.open("ada", "pages_list")
    visit.open("bob", f"history/{news}")
    visit.open("eve", "bookmarks")


@pytest.fixture(scope="module")
def plain(ground: Ground, site: Site) -> Placed:
    return Placed(ground, site, CLUB, "plain").lived(before, write)


@pytest.fixture(scope="module")
def one(ground: Ground, site: Site) -> Placed:
    return Placed(ground, site, CLUB, "one").lived(before, write, shards=1)


@pytest.mark.parametrize("place", ["auth_permission.record_id", "bookmark.page_id", "remark.page"])
def test_each_column_that_holds_ids_is_named_before(one: Placed, place: str) -> None:
    assert [finding["what"] for finding in one.must if finding["place"] == place and "int(11)" in finding["what"]]


def test_on_one_shard_each_row_is_that_of_the_plain_copy(plain: Placed, one: Placed) -> None:
    same_rows(plain, one)


def test_on_one_shard_each_page_is_that_of_the_plain_copy(plain: Placed, one: Placed) -> None:
    same_pages(plain, one)


@pytest.fixture(scope="module")
def two(ground: Ground, site: Site) -> Placed:
    return Placed(ground, site, CLUB, "two").lived(before, write, shards=2)


def test_on_two_shards_each_row_is_that_of_the_plain_copy(plain: Placed, two: Placed) -> None:
    same_rows(plain, two)


def test_on_two_shards_each_page_is_that_of_the_plain_copy(plain: Placed, two: Placed) -> None:
    same_pages(plain, two)
