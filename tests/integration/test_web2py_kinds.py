"""Applications of other kinds: an outbox and a crash, sessions in a database, a configuration of a few flat keys."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.client import RemoteDisconnected

import pytest
from support.shop import Shop, shop_of
from support.web2py_server import START_S, Site, needs_web2py, serving, start

from pipeline.clock import polls

pytestmark = pytest.mark.mariadb

OUTBOX = """\
import os, signal
import pipeline.web.outbox
pipeline = Pipeline(db, configuration, mode="outbox")
if request.vars.die == "before sending":
    pipeline.request._held.send = lambda: os.kill(os.getpid(), signal.SIGKILL)
if request.vars.die == "before deleting":
    pipeline.request._held.send.__globals__["delete"] = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
"""
NOTES = """\
def index():
    return "ready"

def add():
    pipeline.enqueue_insert(db.sale, customer=int(request.vars.customer), name="", qty=0)

def note():
    for letter in request.vars.letters:
        pipeline.enqueue_update(db.sale.customer == int(request.vars.customer), name=db.sale.name + letter)

def fail():
    note()
    1 / 0

def kept():
    return response.json(db(db.pipeline_outbox).count())
"""
IN_DATABASE = """\
session.connect(request, response, db)
pipeline = Pipeline(db, configuration)
"""
SHOW = """\
def index():
    return "ready"

def add():
    receipt = pipeline.enqueue_insert(db.sale, customer=int(request.vars.customer))
    redirect(URL("show", args=receipt.id))

def show():
    return response.json(bool(pipeline.get(db.sale, request.args(0, cast=int))))
"""
RCONN = """\
from gluon.contrib.redis_utils import RConn
pipeline = Pipeline(db, configuration, redis_conn=RConn(host="127.0.0.1", port=REDIS_PORT, db=0))
"""
BROKEN = "[pipeline]\nredis = http://nowhere\nbrokr = redis://localhost\nshard_keys = sale\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    needs_web2py()
    with shop_of(tmp_path_factory.mktemp("kinds")) as made:
        made.application("boxed", {"default": NOTES}, OUTBOX)
        made.application("kept", {"default": SHOW}, IN_DATABASE)
        flat = "[pipeline]\n" + "".join(f"shard_{name} = {uri}\n" for name, uri in made.rig.primaries.items())
        flat += "".join(f"replicas_{name} = {uri}\n" for name, uri in made.rig.replicas.items())
        flat += f"broker = redis://127.0.0.1:{made.rig.port('redis')}/1\nbuckets = 32\n"
        flat += "shard_keys = sale: customer\nreferences = country\n"
        model = RCONN.replace("REDIS_PORT", str(made.rig.port("redis")))
        made.application("flat", {"default": SHOW}, model, flat)
        made.application("broken", {"default": SHOW}, "pipeline = Pipeline(db, configuration)\n", BROKEN)
        yield made


@pytest.fixture(scope="module")
def site(shop: Shop) -> Iterator[Site]:
    with serving(shop.folder) as made:
        shop.prepare(made, "/boxed/default/index")
        yield made


@pytest.fixture
def customer(shop: Shop) -> int:
    return shop.rig.owners(1)[0]


# the outbox -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")  # which has migrated
@pytest.mark.parametrize("when", ["before sending", "before deleting"])
def test_a_server_killed_after_its_commit_loses_and_doubles_nothing(shop: Shop, customer: int, when: str):
    doomed = start(shop.folder)
    ada = doomed.browser("/boxed/default")
    ada.post("add", customer=customer)

    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        ada.post("note", customer=customer, letters="ab", die=when)
    doomed.process.wait(START_S)
    with serving(shop.folder) as heir:
        bob = heir.browser("/boxed/default")
        assert bob.get("kept").json() == 2
        bob.post("note", customer=customer, letters="cd")

        assert bob.get("kept").json() == 0
    assert shop.sales(f"customer={customer}", "name") == ["abcd"]


def test_a_ticket_leaves_nothing_in_the_outbox(site: Site, shop: Shop, customer: int):
    ada = site.browser("/boxed/default", tickets=True)
    ada.post("add", customer=customer)

    answer = ada.post("fail", customer=customer, letters="a")

    assert answer.status == 500
    assert len(site.forget_tickets()) == 1
    assert ada.get("kept").json() == 0
    assert shop.sales(f"customer={customer}", "name") == [""]


@pytest.mark.usefixtures("site")
def test_the_command_relays_what_a_killed_server_left(shop: Shop, customer: int):
    doomed = start(shop.folder)
    ada = doomed.browser("/boxed/default")
    ada.post("add", customer=customer)
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        ada.post("note", customer=customer, letters="abc", die="before sending")
    doomed.process.wait(START_S)

    command = [sys.executable, "-m", "pipeline", "outbox", "relay", "--config", str(shop.rig.config)]
    done = subprocess.run(
        [*command, "--uri", shop.own_uri("boxed")], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout) == (0, "3 ops were sent\n"), done.stderr
    assert shop.sales(f"customer={customer}", "name") == ["abc"]


# sessions -------------------------------------------------------------------------------------------------------


def test_a_session_kept_in_a_database_needs_the_position_that_comes_after_its_commit(
    site: Site, shop: Shop, customer: int
):
    ada = site.browser("/kept/default")
    ada.get("index")

    with shop.lagging():
        shown = ada.get(ada.post("add", customer=customer).location).json()

    assert shown is True
    [cookie] = [cookie for cookie in ada.cookies if cookie.name == "pipeline_kept"]
    assert cookie.has_nonstandard_attr("HttpOnly")
    shop.settle()
    [sale] = shop.sales(f"customer={customer}", "id")
    for _ in polls(30):  # once every node has it, there is nothing to remember
        ada.get(f"show/{sale}")
        if not [cookie for cookie in ada.cookies if cookie.name == "pipeline_kept"]:
            return
    pytest.fail("the token stays for ever")


# configuration --------------------------------------------------------------------------------------------------


def test_flat_keys_and_web2pys_own_redis_connection_are_enough(site: Site, shop: Shop, customer: int):
    ada = site.browser("/flat/default")

    shown = ada.get(ada.post("add", customer=customer).location).json()

    assert shown is True
    assert shop.sales(f"customer={customer}") == ["1"]


def test_a_wrong_configuration_names_the_file_and_every_key(site: Site):
    site.browser("/broken/default", tickets=True).get("index")

    [ticket] = site.forget_tickets()
    for text in (
        "broken/private/appconfig.ini [pipeline] has an unknown key 'brokr'; did you mean 'broker'",
        "appconfig.ini [pipeline] shard_keys takes TABLE: FIELD",
    ):
        assert text in ticket
