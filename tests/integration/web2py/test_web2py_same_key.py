"""A form that is sent twice at once to a real web2py, to one process or to two: one row, and both pages show it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.web.doubled import MEET, both_show_the_one_row, sent_at_once, the_second_wrote_the_row
from support.web.shop import Shop
from support.web.web2py_server import Browser, Site, serving

pytestmark = pytest.mark.mariadb

MODEL = f"""\
{MEET}
pipeline = Pipeline(db, configuration, mode=request.get_vars.mode or "on_commit")
"""
CONTROLLER = """\
def index():
    db(db.pipeline_outbox).count() if "pipeline_outbox" in db.tables else None
    return "ready"

def add():
    meet(request.folder, "before", request.get_vars)
    values = dict(customer=int(request.post_vars.customer), qty=int(request.post_vars.qty))
    receipt = pipeline.enqueue_insert(db.sale, values, idempotency_key=request.get_vars.key)
    meet(request.folder, "told", request.get_vars)
    if request.get_vars.failing == request.get_vars.who:
        1 / 0
    redirect(URL("show", args=receipt.id))

def show():
    row = pipeline.get(db.sale, request.args(0, cast=int), wait_s=10)
    return response.json(dict(id=str(row.id), qty=row.qty) if row else None)
"""
MODES = ["now", "on_commit", "outbox"]


@pytest.fixture(scope="module")
def sites(shop: Shop, site: Site) -> Iterator[list[Site]]:
    """Two processes that serve one application."""
    shop.application("doubled", {"default": CONTROLLER}, MODEL)
    with serving(shop.folder) as other:
        shop.prepare(site, "/doubled/default/index")
        site.browser().get("/doubled/default/index?mode=outbox")  # it makes its table
        yield [site, other]


def users(sites: list[Site]) -> list[Browser]:
    return [site.browser("/doubled/default", tickets=True) for site in sites]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_both_are_redirected_to_the_one_row(sites: list[Site], shop: Shop, customer: int, mode: str, processes: int):
    pair = users([sites[0], sites[processes - 1]])

    answers = sent_at_once(pair, "add", {"customer": customer}, mode=mode, key=f"form-{customer}")

    both_show_the_one_row(pair, answers, shop, customer)


@pytest.mark.parametrize("mode", ["on_commit", "outbox"])
def test_a_ticket_of_the_first_leaves_the_row_to_the_second_under_the_id_that_both_were_told(
    sites: list[Site], shop: Shop, customer: int, mode: str
):
    pair = users(sites)

    answers = sent_at_once(pair, "add", {"customer": customer}, mode=mode, key=f"form-{customer}", failing="first")

    assert len(sites[0].forget_tickets()) == 1
    the_second_wrote_the_row(pair, answers, shop, customer)
