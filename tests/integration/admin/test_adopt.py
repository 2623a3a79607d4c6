"""`pipeline adopt` on a database that pyDAL's defaults and old hands have made: it tells all, and changes nothing."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydal import DAL
from support.servers.admin import Servers, servers
from support.servers.legacy import legacy, tables

from pipeline import cli
from pipeline.admin.adopt import adopt
from pipeline.admin.check import check
from pipeline.admin.migration import migrate
from pipeline.apply.applier import Applier
from pipeline.config.settings import TableSettings
from pipeline.errors import PipelineError
from pipeline.shard import NodeSession

pytestmark = pytest.mark.mariadb

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers(tmp_path_factory.mktemp("adopt"), replicas=0) as up:
        yield up


@pytest.fixture(scope="module")
def messy(here: Servers) -> tuple[str, str]:
    """A database that no test changes."""
    return legacy(here)


MUST = {
    "an INT id": ("customer.id", "cannot hold a 53-bit id"),
    "an INT reference": ("purchase.customer", "refers to customer, whose ids have 64 bits"),
    "an INT reference without a foreign key": ("visit.customer", "guessed by its name"),
    "a reference to a table that stays": ("purchase.created_by", "is int(11), but refers to auth_user"),
    "three-byte texts": ("purchase.note", "is utf8"),
    "a three-byte database": ("database legacy", "has the default character set utf8"),
    "MyISAM": ("visit", "is MyISAM"),
    "a primary key of two columns": ("tag", "its primary key is (customer, word)"),
    "no primary key": ("hits", "has no primary key"),
    "a foreign key out of the shard": ("purchase.created_by", "which stays in this database"),
    "what that key did": ("purchase.created_by", "nobody does its ON DELETE CASCADE"),
    "no shard key": ("item", "has no column customer"),
    "an id of any table": ("auth_permission.record_id", "holds ids by its name"),
    "an id by name and values": ("bookmark.item_ref", "holds ids of item (by its name and its values)"),
}
NOTES = {
    "a unique index without the shard key": ("customer (name)", "holds within a shard only"),
    "a trigger": ("trigger noted on purchase", "runs when a worker applies"),
    "AUTO_INCREMENT": ("AUTO_INCREMENT of ", "goes on behind the largest id"),
    "ids of one second": ("ids of ", "not in the order of their inserts"),
    "a name that pyDAL cannot use": ("table 'odd$name'", "has a name"),
    "an id by its values alone": ("bookmark.about", "all its values are ids of item"),
    "a cascade": ("item.purchase", "ON DELETE CASCADE"),
}


@pytest.mark.parametrize("fault", [*MUST, *NOTES])
def test_what_must_change_is_told_by_its_place(messy: tuple[str, str], fault: str) -> None:
    place, what = (MUST | NOTES)[fault]

    found = adopt(messy[1]).findings

    told = [one for one in found if place in one.place and what in one.what]
    assert told, [(one.place, one.what) for one in found]
    assert {one.severity for one in told} == {"error" if fault in MUST else "warning"}
    assert all(one.fix for one in told)


def test_nothing_is_changed_by_looking(here: Servers, messy: tuple[str, str]) -> None:
    before = state(here, messy[0])

    for options in ([], ["--json"], ["--sql"]):
        assert run(messy[1], *options).exit_code == 1

    assert state(here, messy[0]) == before


def test_every_session_that_looks_is_one_in_which_the_server_refuses_writes(
    messy: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    close = NodeSession.discard

    def closing(session: NodeSession) -> None:
        with pytest.raises(Exception, match="READ ONLY"):
            session.execute("UPDATE customer SET name = 'changed'")
        looked.append(session.node)
        close(session)

    monkeypatch.setattr(NodeSession, "discard", closing)

    adopt(messy[1])

    assert len(looked) >= 2
    assert set(looked) == {"database"}


def test_the_printed_sql_makes_adopt_and_check_content_and_keeps_every_row(here: Servers) -> None:
    name, uri = legacy(here)
    before = rows(here, name)
    script = run(uri, "--sql").output

    here.sql("s0", f"USE {name}; {script}")

    suggested = tomllib.loads(json.loads(run(uri, "--json").output)["tables"]).get("tables", {})
    after = run(uri, "--json")
    assert after.exit_code == 0, after.output
    assert json.loads(after.output)["sql"] == []
    assert rows(here, name) == before
    assert here.sql("s0", f"SELECT DISTINCT p.customer = i.customer AS alike FROM {name}.item i JOIN {name}.purchase p"
                    " ON p.id = i.purchase").split()[1:] == ["1"]  # fmt: skip
    assert checked(here, name, suggested) == []


def test_a_text_by_which_rows_shall_be_spread_must_tell_all_texts_apart(here: Servers) -> None:
    name, uri = legacy(here, tidy=True)
    decided = {"customer": TableSettings("customer", shard_key="name")}
    advice = adopt(uri, decided=decided)
    [told] = [one for one in advice.findings if one.place == "customer.name" and "shard key" in one.what]

    here.sql("s0", f"USE {name}; {'; '.join(advice.sql)}")

    assert told.fix in advice.sql
    assert [one for one in adopt(uri, decided=decided).findings if one.place == "customer.name"] == []
    shown = here.sql("s0", f"SHOW CREATE TABLE {name}.customer")
    assert "varchar(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" in shown


def test_a_single_shard_keeps_its_foreign_keys(here: Servers) -> None:
    name, uri = legacy(here, tidy=True)
    keys = foreign_keys(here, name)

    here.sql("s0", f"USE {name}; {run(uri, '--sql', '--shards', '1').output}")

    assert foreign_keys(here, name) == keys
    assert run(uri, "--shards", "1").exit_code == 0


def test_the_suggested_tables_are_a_configuration(messy: tuple[str, str]) -> None:
    text = adopt(messy[1]).tables

    found = tomllib.loads(text)["tables"]

    assert "A guess" in text
    assert found == {
        "country": {"reference": True},
        "item": {"shard_key": "customer"},
        "purchase": {"shard_key": "customer"},
        "tag": {"shard_key": "customer", "unique": [["customer", "word"]]},
        "visit": {"shard_key": "customer"},
    }


def test_the_lines_of_the_model_that_must_change_are_printed(messy: tuple[str, str]) -> None:
    found = adopt(messy[1])

    lines = [
        line.removeprefix("# change in the model: ") for line in found.tables.splitlines() if "in the model" in line
    ]
    assert lines == [
        'db.auth_permission.record_id.type, db.auth_permission.record_id.requires = "bigint", None'
        "  # behind auth.define_tables()",
        'bookmark: Field("item_ref", "reference item" or "bigint")',
        'bookmark: Field("about", "reference item" or "bigint")',
        'tag: Field("customer", "reference customer" or "bigint")',
        'visit: Field("customer", "reference customer" or "bigint")',
    ]
    assert not [one for one in found.findings if "facebook_id" in one.place or "stars" in one.place]
    assert [one.place for one in found.findings if "can be on the shard of one only" in one.what] == []


def test_a_shard_of_the_configuration_is_looked_at_by_its_name_and_its_tables_are_no_guess(
    here: Servers, messy: tuple[str, str], tmp_path: Path
) -> None:
    config = here.cluster.config.read_text().replace("/shop", f"/{messy[0]}").replace("[tables.purchase]", TABLE)
    path = tmp_path / "pipeline.toml"
    path.write_text(config)

    named, first = run("s0", "--config", str(path), "--json"), run("--config", str(path), "--json")
    unknown = CliRunner().invoke(cli.pipeline, ["adopt", "s00", "--config", str(path)])

    assert named.output == first.output
    assert "tables.country" not in json.loads(named.output)["tables"]
    assert isinstance(unknown.exception, PipelineError)
    assert "did you mean 's0'" in str(unknown.exception)


def test_people_get_a_table_and_the_sql_unfolded(messy: tuple[str, str]) -> None:
    shown = run(messy[1]).output

    assert "must" in shown
    assert "things must change in 14 tables" in shown
    sql = adopt(messy[1]).sql
    assert all(f"{statement};" in shown for statement in sql)


def test_a_password_is_never_shown(messy: tuple[str, str]) -> None:
    bad = CliRunner().invoke(cli.pipeline, ["adopt", "mysql:pymysql://app:sesame@127.0.0.1:1/shop"])

    assert isinstance(bad.exception, PipelineError)
    assert "sesame" not in str(bad.exception)


def test_old_rows_stay_where_they_are_and_new_ones_go_to_both_shards(
    here: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, uri = legacy(here, tidy=True)
    here.sql("s0", f"USE {name}; {run(uri, '--sql').output}")
    section = re.search(r"```python\n# placement.py.*?\n(.*?)```", (DOCS / "adopting.md").read_text(), re.DOTALL)
    assert section
    (tmp_path / "placement.py").write_text(section[1])
    monkeypatch.syspath_prepend(tmp_path)
    rule = {"rule": "placement:keep_old_rows"}
    keyed = {"shard_key": "customer", **rule}
    tables_ = {
        "customer": {"shard_key": "id", **rule},
        "purchase": keyed,
        "item": keyed,
        "country": {"reference": True},
    }

    assert checked(here, name, tables_) == []
    config, db = two_shards(here, name, tables_)
    client = here.client(config)
    client.define_tables(db)
    for old in range(1, 6):
        client.enqueue_update(db.customer, old, {"name": f"renamed {old}"})
    new = [client.enqueue_insert(db.customer, name=f"new {n}").id for n in range(32)]  # each bucket once
    orders = [client.enqueue_insert(db.purchase, customer=customer, note="new") for customer in [1, 2, 3, 4, 5, *new]]
    for shard in client.topology.shards:
        applier = Applier(shard, client.nodes.primary(shard), client.log, client.settings.apply)
        while applier.apply().left:
            pass

    assert {order.status() for order in orders} <= {"applied", "durable"}
    client.close()
    ask = f"SELECT name FROM {name}.customer ORDER BY id"
    on = {shard: here.sql(shard, ask).splitlines()[1:] for shard in ("s0", "s1")}
    assert [one for one in on["s0"] if not one.startswith("new")] == [f"renamed {old}" for old in range(1, 6)]
    assert [len([one for one in names if one.startswith("new")]) for names in on.values()] == [16, 16]
    orphans = "SELECT COUNT(*) FROM {0}.purchase p LEFT JOIN {0}.customer c ON p.customer = c.id WHERE c.id IS NULL"
    assert [here.sql(shard, orphans.format(name)).split()[1] for shard in ("s0", "s1")] == ["0", "0"]


TABLE = """[tables.country]
reference = true
[tables.purchase]"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.pipeline, ["adopt", *arguments])


def checked(here: Servers, name: str, tables_toml: dict[str, Any]) -> list[str]:
    """Return the errors of `pipeline check` with the database as the only shard, the model published and migrated."""
    here.sql("s1", f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    config, db = two_shards(here, name, tables_toml)
    client = here.client(config)
    client.define_tables(db)
    migrate(client)
    client.close()
    return [f"{one.where} {one.what}" for one in check(config).findings if one.severity == "error"]


def two_shards(here: Servers, name: str, tables_toml: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return a configuration with the database on s0 and an empty one on s1, and the application's model."""
    config = here.config()
    config["redis"]["prefix"], config["tables"] = name, tables_toml
    for shard in ("s0", "s1"):
        config["shards"][shard]["primary"] = config["shards"][shard]["primary"].replace("/shop", f"/{name}")
    db = DAL(None, migrate=False)
    tables(db, "adopted")
    return config, db


def state(here: Servers, name: str) -> str:
    """Return everything that looking could have changed."""
    listed = here.sql("s0", f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{name}'").split()[
        1:
    ]
    checksum = here.sql("s0", f"USE {name}; CHECKSUM TABLE {', '.join(listed)}")
    # the indexes are in SHOW CREATE TABLE; `statistics` also has estimates, which the server renews when it likes
    views = ("columns", "key_column_usage", "triggers", "referential_constraints")
    schemas = {view: "trigger_schema" if view == "triggers" else "table_schema" for view in views}
    schemas["referential_constraints"] = "constraint_schema"
    catalog = [here.sql("s0", f"SELECT * FROM information_schema.{v} WHERE {s} = '{name}'") for v, s in schemas.items()]
    made = [here.sql("s0", f"SHOW CREATE TABLE {name}.{table}") for table in listed]
    return "\n".join([checksum, *catalog, *made, here.sql("s0", f"SHOW CREATE DATABASE {name}")])


def rows(here: Servers, name: str) -> dict[str, str]:
    """Return the rows of each table, in the columns that it had."""
    columns = {
        "auth_user": "id, email", "country": "id, name", "customer": "id, name, country",
        "purchase": "id, customer, note, price, created_by", "item": "id, purchase, qty",
        "visit": "id, customer, page, at", "tag": "customer, word", "hits": "page, n", "audit": "what, id",
        "old": "id, word, kind, born", "numbered": "page, n",
        "auth_permission": "id, record_id", "bookmark": "id, item_ref, about, facebook_id, stars",
    }  # fmt: skip
    return {t: here.sql("s0", f"SELECT {c} FROM {name}.{t} ORDER BY {c}") for t, c in columns.items()}


def foreign_keys(here: Servers, name: str) -> str:
    return here.sql(
        "s0",
        "SELECT table_name, constraint_name, referenced_table_name, delete_rule, update_rule"
        f" FROM information_schema.referential_constraints WHERE constraint_schema = '{name}' ORDER BY 1, 2",
    )
