"""An appconfig.ini: few keys stand for a whole configuration, and what is wrong is named by file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.settings import load
from pipeline.config.uris import zone_of
from pipeline.errors import ConfigError

OWN = "mysql:pymysql://app:secret%23@db0/shop"
PLAIN = "mysql:pymysql://app:secret@db0/shop"
WRITTEN = OWN.replace("%", "%%")
FULL = """\
[db]
uri = mysql:pymysql://app:x@db9/web
[pipeline]
redis = redis://log:6379/0
broker = redis://log:6379/1
prefix = shop
buckets = 64
shard_s0 = mysql:pymysql://app:secret%%23@db0/shop
replicas_s0 = mysql:pymysql://ro:x@db0-r1/shop, mysql:pymysql://ro:x@db0-r2/shop
shard_s1 = mysql:pymysql://app:${WORD}@db1/shop
shard_keys = purchase: customer, Line: customer
references = country, currency
mode = outbox
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "appconfig.ini"
    path.write_text(text)
    return path


def test_flat_keys_are_a_whole_configuration(tmp_path: Path):
    settings = load(written(tmp_path, FULL), {"WORD": "pass"})

    assert (settings.redis.url, settings.redis.broker_url) == ("redis://log:6379/0", "redis://log:6379/1")
    assert (settings.redis.prefix, settings.buckets) == ("shop", 64)
    assert settings.shards["s0"].primary == OWN
    assert [uri.rpartition("@")[2] for uri in settings.shards["s0"].replicas] == ["db0-r1/shop", "db0-r2/shop"]
    assert settings.shards["s1"].primary == "mysql:pymysql://app:pass@db1/shop"
    assert {name: table.shard_key for name, table in settings.tables.items() if table.shard_key} == {
        "purchase": "customer",
        "Line": "customer",
    }
    assert [name for name, table in settings.tables.items() if table.reference] == ["country", "currency"]
    assert settings.source.endswith("appconfig.ini")


def test_without_shards_the_applications_own_database_is_the_one_shard(tmp_path: Path):
    text = f"[db]\nuri = {PLAIN}\n[pipeline]\nredis = redis://log\nreplicas = mysql:pymysql://ro:x@db0-r1/shop\n"

    [shard] = load(written(tmp_path, text), {}).shards.values()

    assert (shard.name, shard.primary) == ("s0", PLAIN)
    assert shard.replicas == ("mysql:pymysql://ro:x@db0-r1/shop",)


def test_a_toml_file_is_named_relative_to_the_ini_file(tmp_path: Path):
    (tmp_path / "pipeline.toml").write_text(f'[redis]\nurl = "redis://log"\n[shards.s0]\nprimary = "{OWN}"\n')

    settings = load(written(tmp_path, "[pipeline]\nconfig = pipeline.toml\n"), {})

    assert settings.shards["s0"].primary == OWN
    assert settings.source.endswith("pipeline.toml")


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[db]\nuri = x\n", ["has no section [pipeline]"]),
        ("no section at all", ["is not an ini file"]),
        (f"[pipeline]\nredis = redis://log\nshard_s0 = {OWN}\n", ["[pipeline] shard_s0 has a lone '%'"]),
        (
            f"[db]\nuri = {PLAIN}\n[pipeline]\nredis = redis://log\nbrokr = x\nbuckets = many\nshard_keys = a\n"
            "reads = mine\n",
            [
                "[pipeline] has an unknown key 'brokr'; did you mean 'broker'",
                "[pipeline] buckets must be a whole number",
                "[pipeline] reads is own or next, not 'mine'",
                "[pipeline] shard_keys takes TABLE: FIELD, TABLE: FIELD; 'a' is neither",
            ],
        ),
        (
            f"[pipeline]\nshard_s0 = {WRITTEN}\nreplicas_s1 = {WRITTEN}\nreplicas = {WRITTEN}\n",
            [
                "redis is missing",
                "replicas does not say of which shard: write replicas_s0",
                "replicas_s1 has no shard_s1",
            ],
        ),
        ("[pipeline]\nconfig = nowhere.toml\n", ["[pipeline] config names a file, but", "nowhere.toml"]),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key_and_no_password_is_shown(tmp_path: Path, text: str, faults: list[str]):
    path = written(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load(path, {})

    for fault in (*faults, str(path)):
        assert fault in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_documented_configuration_is_one(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "web2py.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```ini\n(.*?)```", page, re.DOTALL)

    settings = load(written(tmp_path, block), {"DB_PASSWORD": "x"})

    assert list(settings.shards) == ["s0", "s1"]
    assert len(settings.shards["s0"].replicas) == 2
    assert list(settings.tables) == ["purchase", "line", "country", "currency"]


def test_a_time_zone_and_tables_to_leave_alone_have_keys_of_their_own(tmp_path: Path):
    text = f"[db]\nuri = {PLAIN}\n[pipeline]\nredis = redis://log\ntime_zone = Europe/Berlin\nignore = report, old_*\n"

    settings = load(written(tmp_path, text), {})

    assert settings.shards["s0"].time_zone == "Europe/Berlin"
    assert zone_of(settings.shards["s0"].primary) == (PLAIN, "Europe/Berlin")
    assert settings.ignore == ("report", "old_*")


def test_a_time_zone_that_is_none_is_named_by_its_key(tmp_path: Path):
    text = f"[db]\nuri = {PLAIN}\n[pipeline]\nredis = redis://log\ntime_zone = 2 hours\n"

    with pytest.raises(ConfigError, match=r"appconfig.ini: \[pipeline\] time_zone is a text; it must be \+02:00"):
        load(written(tmp_path, text), {})


def test_an_escape_in_the_applications_own_login_is_never_guessed_at(tmp_path: Path):
    text = f"[db]\nuri = {WRITTEN}\n[pipeline]\nredis = redis://log\n"

    with pytest.raises(ConfigError, match=r"\[db\] uri has an escape such as %40 in its login") as caught:
        load(written(tmp_path, text), {})

    assert "secret" not in str(caught.value)
    assert load(written(tmp_path, f"{text}shard_s0 = {WRITTEN}\n"), {}).shards["s0"].primary == OWN


def test_an_argument_that_no_address_takes_is_named_with_its_line(tmp_path: Path):
    text = f"[db]\nuri = x\n[pipeline]\nredis = rediss://log?ssl_ca_certs=/ca\nshard_s0 = {PLAIN}?ssl_cax=/ca\n"

    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), {})

    redis, shard = sorted(caught.value.faults)
    assert (
        "[pipeline] redis has an unknown argument 'ssl_ca_certs'; write ssl_ca; an address of rediss:// takes" in redis
    )
    assert "(appconfig.ini, line 4)" in redis
    assert "[pipeline] shard_s0 has an unknown argument 'ssl_cax'; did you mean 'ssl_ca'?; an address" in shard
    assert "set_encoding, unix_socket, ssl_ca, ssl_cert, ssl_key, ssl_verify" in shard
    assert "(appconfig.ini, line 5)" in shard
