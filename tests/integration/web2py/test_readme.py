"""The README's first blocks are a web2py application: they are taken as printed, and asked over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.web.shop import Shop, shop_of
from support.web.web2py_server import Browser, Site, serving

pytestmark = pytest.mark.mariadb
README = Path(__file__).parents[3] / "README.md"
#: What every web2py application has: db and auth; a generic view. Older ones have no `configuration`.
SCAFFOLD = """\
from gluon.contrib.appconfig import AppConfig
from gluon.tools import Auth

myconf = AppConfig()
db = DAL(myconf.take("db.uri"), pool_size=5, bigint_id=True)
auth = Auth(db)
auth.define_tables(username=False, signature=False)
response.generic_patterns = ["*"]
"""
VIEW = "{{from gluon.serializers import json}}{{=XML(json(response._vars))}}"
#: A model that web2py runs after `models/pipeline.py`.
LATER = 'db.define_table("visit", Field("page", length=40), migrate=False)\n'
#: Beside the README's own: a user is logged in without a form.
LOGIN = """
def enter():
    user_id = db.auth_user.insert(email=request.vars.email, first_name="x", last_name="y")
    auth.login_user(db.auth_user[user_id])
"""


def printed_files() -> dict[str, str]:
    """Return what the README's blocks put into which file."""
    blocks = re.findall(r"```(?:python|ini)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    marked = re.compile(r"^[#;] ((?:models|controllers|private)/\w+\.\w+)\b.*\n", re.MULTILINE)
    files: dict[str, str] = {}
    for block in blocks:
        _, *parts = marked.split(block)
        files |= dict(zip(parts[::2], parts[1::2], strict=True))
    return files


def with_addresses(ini: str, shop: Shop) -> str:
    """Return the printed configuration with the addresses of the servers that are there."""
    addresses = {f"shard_{name}": uri for name, uri in shop.rig.primaries.items()}
    addresses |= {f"replicas_{name}": uri for name, uri in shop.rig.replicas.items()}
    addresses["redis"] = shop.rig.client.settings.redis.url
    for key, address in addresses.items():
        ini = re.sub(rf"^({key}\s*=).*", rf"\1 {address}", ini, flags=re.MULTILINE)
    assert "secret" not in ini
    # the deployment has tables of other applications, too
    ini = ini.replace("purchase: customer", "purchase: customer, sale: customer")
    return f"{ini}broker = {shop.rig.client.settings.redis.broker_url}\nbuckets = 32\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Servers of its own: the deployment is configured by the README, and other modules' is not."""
    with shop_of(tmp_path_factory.mktemp("readme")) as made:
        yield made


@pytest.fixture(scope="module")
def site(shop: Shop) -> Iterator[Site]:
    with serving(shop.folder) as made:
        yield made


@pytest.fixture(scope="module")
def readers(shop: Shop, site: Site) -> list[Browser]:
    files = printed_files()
    assert files.keys() == {"models/pipeline.py", "controllers/default.py", "private/appconfig.ini"}
    ini = with_addresses(files["private/appconfig.ini"], shop)
    controllers = {"default": files["controllers/default.py"] + LOGIN}
    folder = shop.application("readme", controllers, files["models/pipeline.py"], ini, model=SCAFFOLD)
    (folder / "models" / "tables.py").write_text(LATER)
    (folder / "views").mkdir()
    (folder / "views" / "generic.json").write_text(VIEW)
    shop.prepare(site, "/readme/default/mine.json")
    return [site.browser("/readme/default"), site.browser("/readme/default")]


def test_the_readmes_application_runs_as_printed(readers: list[Browser], shop: Shop, site: Site):
    ada, bob = readers
    for name, browser in {"ada": ada, "bob": bob}.items():
        browser.post("enter.json", email=f"{name}@example.com")

    with shop.lagging():
        bought = ada.post("buy.json", qty=3)
        shown = ada.get(bought.location).json()["purchase"]
        hers, his = ada.get("mine.json").json()["purchases"], bob.get("mine.json").json()["purchases"]

    assert (bought.status, shown["qty"]) == (303, 3)
    assert shown["created_by"] == shown["customer"]
    assert ([row["qty"] for row in hers], his) == ([3], [])
    assert ada.get(bought.location).json()["purchase"] == shown
    assert site.tickets() == []
    shop.settle()


def test_who_is_not_logged_in_buys_nothing(readers: list[Browser], shop: Shop, site: Site):
    stranger = site.browser("/readme/default")

    answer = stranger.post("buy.json", qty=99)

    assert answer.location.startswith("/readme/default/user")
    assert shop.ask("s0", "SELECT COUNT(*) FROM shop.purchase WHERE qty = 99").splitlines() == ["COUNT(*)", "0"]


def test_tables_of_models_that_run_after_the_pipelines_are_published_too(readers: list[Browser], shop: Shop):
    for shard in shop.rig.primaries:
        assert shop.ask(shard, "SHOW TABLES FROM shop LIKE 'visit'").splitlines()[1:] == ["visit"]
