"""Applications of other kinds: an outbox and a crash, sessions in a database, a configuration of a few flat keys."""

from __future__ import annotations

import subprocess
import sys
from http.client import RemoteDisconnected

import pytest
from support.web.shop import Shop
from support.web.web2py_server import ROOT, START_S, Site, serving, start

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
    rows = db.sale.customer == int(request.vars.customer)
    if request.vars.attached:
        pipeline.attach(db.sale)
    for letter in request.vars.letters:
        if request.vars.attached:
            db(rows).update(name=db.sale.name + letter)
        else:
            pipeline.enqueue_update(rows, name=db.sale.name + letter)

def fail():
    note()
    1 / 0

def note_by_hand():
    rows = db.sale.customer == int(request.vars.customer)
    for letter, end in zip("abc", (db.commit, db.rollback, db.commit)):
        pipeline.enqueue_update(rows, name=db.sale.name + letter)
        end()
    if request.vars.fail:
        1 / 0

def kept():
    return response.json(db(db.pipeline_outbox).count())
"""
IN_DATABASE = """\
pipeline = Pipeline(db, configuration)
session.connect(request, response, db)
"""
SHOW = """\
def index():
    return "ready"

def forgetful():
    session.forget(response)
    pipeline.enqueue_insert(db.sale, customer=int(request.vars.customer))

def add():
    receipt = pipeline.enqueue_insert(db.sale, customer=int(request.vars.customer))
    redirect(URL("show", args=receipt.id))

def show():
    return response.json(bool(pipeline.get(db.sale, request.args(0, cast=int))))
"""
HOOKED = """\
import os

def _note(word):
    with open(os.path.join(request.folder, "private", "hooks.txt"), "a") as log:
        log.write(word + " ")

def _commit(adapter):
    if adapter:
        adapter.commit()
    else:
        _note("committed")

def _rollback():
    _note("rolled-back")
    type(db._adapter).close_all_instances("rollback")

response.custom_commit, response._custom_rollback = _commit, _rollback
pipeline = Pipeline(db, configuration)
"""
COMPILE = """\
import sys
from pathlib import Path
from examples.web2py.server import wsgi_application
wsgi_application(Path(sys.argv[1]))
from gluon.compileapp import compile_application
compile_application(sys.argv[2], skip_failed_views=True)
"""
IN_A_SHELL = """\
import sys
from pathlib import Path
from examples.web2py.server import wsgi_application
wsgi_application(Path(sys.argv[1]))
from gluon.shell import env
model = env("flat", import_models=True)
receipt = model["pipeline"].enqueue_insert(model["db"].sale, customer=int(sys.argv[2]), qty=4)
print(receipt.position is not None, receipt.wait(20))
"""
RCONN = """\
from gluon.contrib.redis_utils import RConn
pipeline = Pipeline(db, configuration, redis_conn=RConn(host="127.0.0.1", port=REDIS_PORT, password="PASSWORD", db=0))
"""
BROKEN = "[pipeline]\nredis = http://nowhere\nbrokr = redis://localhost\nshard_keys = sale\n"


@pytest.fixture(scope="module", autouse=True)
def _applications(shop: Shop, site: Site) -> None:
    shop.application("boxed", {"default": NOTES}, OUTBOX)
    shop.application("kept", {"default": SHOW}, IN_DATABASE)
    flat = "[pipeline]\n" + "".join(f"shard_{name} = {uri}\n" for name, uri in shop.rig.primaries.items())
    flat += "".join(f"replicas_{name} = {uri}\n" for name, uri in shop.rig.replicas.items())
    flat += f"broker = {shop.rig.client.settings.redis.broker_url}\nbuckets = 32\n"
    flat += "shard_keys = sale: customer\nreferences = country\n"
    model = RCONN.replace("REDIS_PORT", str(shop.rig.port("redis"))).replace("PASSWORD", shop.rig.cluster.password)
    shop.application("flat", {"default": SHOW}, model, flat)
    shop.application("hooked", {"default": NOTES}, HOOKED)
    shop.application("compiled", {"default": NOTES}, "pipeline = Pipeline(db, configuration)\n")
    shop.application("broken", {"default": SHOW}, "pipeline = Pipeline(db, configuration)\n", BROKEN)
    shop.prepare(site, "/boxed/default/index")


# the outbox -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("when", "how"), [("before sending", {}), ("before deleting", {"attached": "yes"})])
def test_a_server_killed_after_its_commit_loses_and_doubles_nothing(
    shop: Shop, customer: int, when: str, how: dict[str, str]
):
    doomed = start(shop.folder)
    ada = doomed.browser("/boxed/default")
    ada.post("add", customer=customer)

    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        ada.post("note", how, customer=customer, letters="ab", die=when)
    doomed.process.wait(START_S)
    with serving(shop.folder) as heir:
        bob = heir.browser("/boxed/default")
        assert bob.get("kept").json() == 2
        bob.post("note", how, customer=customer, letters="cd")

        assert bob.get("kept").json() == 0
    assert shop.sales(f"customer={customer}", "name") == ["abcd"]


@pytest.mark.parametrize("fails", [{}, {"fail": "yes"}])
def test_rows_that_were_committed_by_hand_are_sent_and_those_rolled_back_are_not(
    site: Site, shop: Shop, customer: int, fails: dict[str, str]
):
    ada = site.browser("/boxed/default", tickets=True)
    ada.post("add", customer=customer)

    answer = ada.post("note_by_hand", fails, customer=customer)

    assert answer.status == (500 if fails else 200)
    assert len(site.forget_tickets()) == len(fails)
    assert shop.sales(f"customer={customer}", "name") == ["ac"]
    assert ada.get("kept").json() == 0


def test_a_ticket_leaves_nothing_in_the_outbox(site: Site, shop: Shop, customer: int):
    ada = site.browser("/boxed/default", tickets=True)
    ada.post("add", customer=customer)

    answer = ada.post("fail", customer=customer, letters="a")

    assert answer.status == 500
    assert len(site.forget_tickets()) == 1
    assert ada.get("kept").json() == 0
    assert shop.sales(f"customer={customer}", "name") == [""]


def test_the_command_relays_what_a_killed_server_left(shop: Shop, customer: int):
    doomed = start(shop.folder)
    ada = doomed.browser("/boxed/default")
    ada.post("add", customer=customer)
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        ada.post("note", customer=customer, letters="abc", die="before sending")
    doomed.process.wait(START_S)

    command = [sys.executable, "-m", "pipeline", "outbox", "relay", "--config", str(shop.rig.config)]
    done = subprocess.run(
        [*command, "--uri", shop.uri_of("boxed")], capture_output=True, text=True, timeout=60, check=False
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


def test_a_session_that_is_forgotten_leaves_no_cookie(site: Site, customer: int):
    ada = site.browser("/kept/default")

    ada.post("forgetful", customer=customer)

    assert [cookie for cookie in ada.cookies if cookie.name == "pipeline_kept"] == []


# hooks and other places -----------------------------------------------------------------------------------------


def test_hooks_that_were_there_before_are_called(site: Site, shop: Shop, customer: int):
    ada = site.browser("/hooked/default", tickets=True)
    hooks = site.folder / "applications" / "hooked" / "private" / "hooks.txt"

    ada.post("add", customer=customer)
    after_success = hooks.read_text()
    ada.post("fail", customer=customer, letters="a")

    assert after_success.split()[-1] == "committed"
    assert hooks.read_text().split()[-1] == "rolled-back"
    assert len(site.forget_tickets()) == 1
    assert shop.sales(f"customer={customer}", "name") == [""]


def test_in_a_shell_ops_are_sent_at_the_call(site: Site, shop: Shop, customer: int):
    site.browser().get("/flat/default/index")  # which makes the application's folders
    command = [sys.executable, "-c", IN_A_SHELL, str(site.folder), str(customer)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    assert done.stdout == "True applied\n", done.stderr
    assert shop.sales(f"customer={customer}") == ["4"]


def test_a_compiled_application_writes_as_its_sources_do(site: Site, shop: Shop, customer: int):
    folder = site.folder / "applications" / "compiled"
    site.browser().get("/compiled/default/index")  # which makes the application's folders
    command = [sys.executable, "-c", COMPILE, str(site.folder), str(folder)]
    subprocess.run(command, check=True, timeout=60, cwd=ROOT)
    (folder / "controllers" / "default.py").unlink()

    site.browser("/compiled/default").post("add", customer=customer)

    assert shop.sales(f"customer={customer}") == ["0"]


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
