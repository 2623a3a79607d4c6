"""What deploy/ ships is run whole: its servers, accounts, units and users; every call and command has its rights."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from support.servers.deploying import DEPLOY, PATH, needs, within
from support.servers.shipped import Node, install_mariadb, mariadb_node, redis_client, redis_server, replica_of_log
from support.servers.units import PIPELINE, WEB, Host, install_pipeline

from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports

pytestmark = [
    pytest.mark.mariadb,
    needs("mariadbd"),
    needs("redis-server"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as the units' users"),
]
SHARDS = ("s0", "s1")
#: Every process of the deployment signs, and takes what is signed only.
SIGN_KEY = "k" * 40
#: What a program sends to a terminal beside words.
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WEB_CODE = Path(__file__).parents[2] / "support" / "servers" / "boot_web.py"


IN_ONE = """
import json, sys
from pipeline.cli import pipeline
for words in json.loads(sys.argv[1]):
    print(words, flush=True)
    try:
        pipeline(words)
    except SystemExit as end:
        if end.code not in (None, 0, 1):
            raise
"""


class Deployment:
    """A machine with all that deploy/ ships, up.

    Attributes:
        manager: where the worker of s0 finds the service manager.
    """

    manager: socket.socket

    def __init__(self, home: Path, host: Host, nodes: dict[str, Node], words: dict[str, str]):
        self.home, self.host, self.nodes, self.words = home, host, nodes, words

    def admin(self, role: str) -> Any:
        """Connect to a Redis as its administrator."""
        return redis_client(self.host.ports[ADDRESSES[role]], "admin", self.words["REDIS_ADMIN_PASSWORD"])

    def web(self, what: str) -> dict[str, Any]:
        """Let the web application do something, as its user."""
        done = self.host.run(WEB, "web.env", f"{self.host.opt}/bin/python", str(WEB_CODE), what, str(self.home / "web"))
        assert done.returncode == 0, done.stderr[-6000:]
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def command(self, *words: str, exits: int = 0, **more: str) -> str:
        """Run a command as the operator does: as the user `pipeline`, with the workers' environment."""
        done = self.host.run(PIPELINE, "pipeline.env", f"{self.host.opt}/bin/pipeline", *words, **more)
        assert done.returncode == exits, f"{words}: {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
        return done.stdout + done.stderr

    def commands(self, *each: list[str]) -> None:
        """Run commands one after the other in one process, which is quicker; each may find faults, and none fails."""
        done = self.host.run(PIPELINE, "pipeline.env", f"{self.host.opt}/bin/python", "-c", IN_ONE, json.dumps(each))
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


CHECKERS = (("log", "worker"), ("broker", "pipeline"))
#: What the kernel says of a sender: process, user, group.
CREDENTIALS = struct.Struct("3i")
ADDRESSES = {"log": "redis-log:6379", "broker": "redis-broker:6380"}


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployment]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boot-")))
        home.chmod(0o755)  # as / is: other users pass
        yield boot(stack, home)


def boot(stack: ExitStack, home: Path) -> Deployment:
    """Follow deploy/README.md."""
    names = [f"{shard}{role}" for shard in SHARDS for role in ("", "-r0")]
    ports = dict(zip([f"{name}:3306" for name in names], free_ports(len(names)), strict=True))
    prepared = prepare(home, ports)
    words = dict(line.split("=", 1) for line in (home / "prepared" / ".env").read_text().splitlines())
    passwords = {"root": "", "worker": words["DB_PASSWORD"], "web": words["WEB_DB_PASSWORD"]}
    passwords["flower"] = words["FLOWER_DB_PASSWORD"]
    with ThreadPoolExecutor() as pool:
        pool.submit(install_mariadb, home / "empty").result()
        started = {
            name: pool.submit(
                stack.enter_context,
                mariadb_node(
                    home / name, ports[f"{name}:3306"], "replica" if "-" in name else "primary", i, passwords,
                    empty=home / "empty",
                ),
            )
            for i, name in enumerate(names, 10)
        }  # fmt: skip
        nodes = {name: one.result() for name, one in started.items()}
    for shard in SHARDS:
        nodes[shard].script(prepared / "accounts.sql")
        nodes[f"{shard}-r0"].script(prepared / f"replicate-{shard}.sql")
    for role, address in ADDRESSES.items():
        (home / role).mkdir()
        ports[address] = stack.enter_context(redis_server(role, prepared, home / role))
    admin = "admin", words["REDIS_ADMIN_PASSWORD"]
    stack.enter_context(replica_of_log(ports[ADDRESSES["log"]], prepared, home, *admin))
    ports["5555"], ports["9540"] = free_ports(2)
    host = Host(home / "opt", home / "etc", home / "state", ports)
    install(host, prepared)
    (home / "web").mkdir()
    os.chown(home / "web", WEB, WEB)
    made = Deployment(home, host, nodes, words)
    made.web("publish")
    made.command("migrate", DB_USER="migrate", DB_PASSWORD=words["MIGRATE_PASSWORD"])
    for shard in SHARDS:
        nodes[shard].script(prepared / "web.sql")
    made.manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    made.manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # systemd asks who says so, too
    made.manager.bind(str(home / "notify"))
    (home / "notify").chmod(0o777)
    words_to = {"s0": {"NOTIFY_SOCKET": str(home / "notify")}, "s1": {}}
    for shard in SHARDS:
        log = home / f"worker-{shard}"
        stack.enter_context(
            host.unit(
                "pipeline-worker@.service", shard, log, lambda log=log: " ready." in log.read_text(), **words_to[shard]
            )
        )
    log = home / "flower"
    stack.enter_context(host.unit("pipeline-flower.service", "", log, lambda: "Connected to" in log.read_text()))
    return made


def prepare(home: Path, ports: dict[str, int]) -> Path:
    """Run prepare.sh, and give each replica its primary's port."""
    (home / "prepared").mkdir(mode=0o700)
    environ = {"PATH": PATH, "SHARDS": " ".join(SHARDS)}
    subprocess.run([DEPLOY / "prepare.sh", home / "prepared"], env=environ, check=True, timeout=30, capture_output=True)
    for shard in SHARDS:
        file = home / "prepared" / "secrets" / f"replicate-{shard}.sql"
        text = file.read_text().replace(f"'{shard}'", "'127.0.0.1'").replace("3306", str(ports[f"{shard}:3306"]))
        file.write_text(text)
    return home / "prepared" / "secrets"


def install(host: Host, prepared: Path) -> None:
    """Put each file where the README puts it, with its owner and mode."""
    install_pipeline(host.opt)
    host.etc.mkdir(mode=0o750)
    host.state.mkdir()
    os.chown(host.etc, 0, PIPELINE)
    text = host.local((DEPLOY / "pipeline.example.toml").read_text())
    text = text.replace('# unique = [["customer"', 'unique = [["customer"').replace("# port =", "port =")
    text = text.replace("# sign_key =", "sign_key =")
    files = {"pipeline.toml": text, "flowerconfig.py": (DEPLOY / "flowerconfig.py").read_text()}
    for name, content in files.items():
        (host.etc / name).write_text(content)
        (host.etc / name).chmod(0o640)
        os.chown(host.etc / name, 0, PIPELINE)
    for name in ("pipeline.env", "web.env", "flower.env"):
        (host.etc / name).write_text(f"{(prepared / name).read_text()}\nPIPELINE_SIGN_KEY={SIGN_KEY}\n")
        (host.etc / name).chmod(0o600)


def denied(deployed: Deployment) -> list[str]:
    """Return what the two Redis have denied to anybody since they were last asked."""
    found = []
    for role in ADDRESSES:
        with deployed.admin(role) as admin:
            found += [f"{role}: {one['username']} {one['reason']} {one['object']}" for one in admin.acl_log()]
            admin.acl_log_reset()
    return found


def test_every_call_and_command_has_the_rights_that_it_needs(deployed: Deployment) -> None:
    wrote = deployed.web("write")
    with redis_answering_nobody(deployed):
        spooled = deployed.web("spool")
    deployed.command("spool", "drain")
    checked = deployed.command("check")

    assert wrote | {"node": "", "receipt": "", "fsync": ""} == {
        "pending": "queued", "status": "applied", "got": 5, "upserted": [9], "same": True, "count": 36, "primary": 1,
        "node": "", "receipt": "", "fsync": "",
    }  # fmt: skip
    if wrote["fsync"] != "applied":  # see `test_deploy_redis.py` for a server that can
        assert "needs Redis 7.2 or Valkey with appendonly yes; the op is queued (unknown command" in wrote["fsync"]
    assert spooled == {"status": "spooled"}
    assert "warning" not in checked
    on_web_host = deployed.host.run(WEB, "web.env", f"{deployed.host.opt}/bin/pipeline", "check")
    assert on_web_host.returncode == 0, on_web_host.stdout
    assert "if this is a web host's user" in on_web_host.stdout
    denied(deployed)
    deployed.commands(["pause", "purchase"], ["check"])
    assert set_aside(deployed) == [], "check has sent an op to a table that is stopped"
    deployed.commands(["resume", "purchase"])
    deployed.web("refused")
    deployed.commands(
        ["status", "--max-age", "60"], ["why", wrote["receipt"]], ["why", "s0"], ["pause", "purchase"],
        ["resume", "purchase"], ["drain", "s0"], ["resume", "s0"], ["tables", "list"], ["spool", "status"],
        ["migrate", "--plan"],
    )  # fmt: skip
    assert within(30, lambda: len(set_aside(deployed)) > 0)
    deployed.commands(["dead", "replay", "--all"], ["dead", "drop", "--all"])
    assert set_aside(deployed) == []
    with deployed.admin("log") as admin:
        logs = list(admin.scan_iter("pl:log:*"))
        assert len(logs) > 10
        assert within(40, lambda: sum(map(admin.xlen, logs)) == 0), "never trimmed"
    # `check` asks for the settings, and does without where it may not read them
    assert set(denied(deployed)) <= {f"{role}: {user} command config|get" for role, user in CHECKERS}


def test_adopt_looks_with_a_workers_rights(deployed: Deployment) -> None:
    denied(deployed)
    advice = json.loads(deployed.command("adopt", "--json"))

    assert advice["ready"]
    assert "left in their database, written as ever: pipeline_actions" in advice["tables"]
    assert denied(deployed) == []


def test_top_shows_a_shard_and_stops_and_releases_it_with_the_operators_rights(deployed: Deployment) -> None:
    denied(deployed)
    command = (f"{deployed.host.opt}/bin/pipeline", "top")
    with deployed.host.on_terminal(PIPELINE, "pipeline.env", *command) as terminal:
        for keys, words in (
            ("", "s1"), ("x", "nothing of s0 is set aside"), ("p", "pause shard s0?"), ("y", "is paused"),
            ("r", "resume shard s0?"), ("y", "are settled"), ("\r", "esc back"),
        ):  # fmt: skip
            os.write(terminal, keys.encode())
            seen = shown(terminal, words)
            assert words in seen, seen[-3000:]
        os.write(terminal, b"q")
        with suppress(OSError):  # the other end is closed
            while os.read(terminal, 65_536):
                pass

    assert denied(deployed) == []


def shown(terminal: int, words: str) -> str:
    """Return what a terminal shows from now on, without its control sequences, until it has shown some words."""
    found = ""
    for _ in polls(30, first_s=0.0, most_s=0.0):
        if words in found or not select.select([terminal], [], [], 30)[0]:
            break
        found = CONTROLS.sub("", found + os.read(terminal, 65_536).decode(errors="ignore"))
    return found


def set_aside(deployed: Deployment) -> list[Any]:
    """Return the ops that are set aside."""
    done = deployed.host.run(PIPELINE, "pipeline.env", f"{deployed.host.opt}/bin/pipeline", "dead", "list", "--json")
    found: list[Any] = json.loads(done.stdout)
    return found


@contextmanager
def redis_answering_nobody(deployed: Deployment) -> Iterator[None]:
    with deployed.admin("log") as admin:
        admin.client_pause(60_000, all=False)  # of writes: what ends it is heard
    try:
        yield
    finally:
        with deployed.admin("log") as admin:
            admin.client_unpause()


NEIGHBOURLY = (
    "FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET maxmemory 1", "SHUTDOWN NOSAVE",
    "GET other:x", "SET other:x 1", "SET pl 1", "SET plx:y 1", "DEL celery", "ACL LIST", "MONITOR", "REPLICAOF NO ONE",
    "SCRIPT FLUSH", "FUNCTION FLUSH", "CLIENT KILL TYPE normal", "CLIENT PAUSE 1", "SUBSCRIBE x", "PUBLISH x y", "SAVE",
    "BGREWRITEAOF", "SWAPDB 0 1", "RANDOMKEY", "MODULE LIST", "SLOWLOG GET", "RENAME pl:a pl:b", "FLUSHALL ASYNC",
)  # fmt: skip
FOREIGN_SCRIPTS = ("redis.call('FLUSHALL')", "redis.call('SET', 'other:x', '1')", "redis.call('KEYS', '*')")


@pytest.mark.parametrize("user", ["web", "worker"])
def test_a_user_of_the_log_reaches_nothing_but_the_log(deployed: Deployment, user: str) -> None:
    password = deployed.words["REDIS_WEB_PASSWORD" if user == "web" else "REDIS_PASSWORD"]
    more = ("SCAN 0", "XTRIM pl:log:0 MAXLEN 0") if user == "web" else ()
    with redis_client(deployed.host.ports[ADDRESSES["log"]], user, password) as client:
        for command in (*NEIGHBOURLY, *more):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
        with pytest.raises(redis.exceptions.ResponseError, match="not allowed"):  # by the server, before the rights
            client.execute_command("DEBUG", "SLEEP", "0")
        for script in FOREIGN_SCRIPTS:
            with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|acl failure|can't (run|access)"):
                client.eval(script, 0)
        assert client.set("pl:mine", "1", px=1)
    denied(deployed)


def test_workers_with_the_key_apply_nothing_that_was_written_by_hand(deployed: Deployment) -> None:
    deployed.web("spool")  # Redis answers: one op
    with deployed.admin("log") as admin:
        for log in admin.scan_iter("pl:log:*"):
            epoch = admin.xinfo_stream(log)["last-generated-id"].partition(b"-")[0].decode()
            admin.execute_command("XADD", log, f"{epoch}-*", "p", "5", "s", "1", "o", '["delete","purchase","h",1.5,1]')
    deployed.web("spool")  # behind what is forged

    assert within(30, lambda: forged(deployed) > 0)
    assert set_aside(deployed) == []
    denied(deployed)


def forged(deployed: Deployment) -> int:
    """Return how many entries without a right signature the shards have met."""
    done = deployed.host.run(PIPELINE, "pipeline.env", f"{deployed.host.opt}/bin/pipeline", "status", "--json")
    return sum(one["forged"] or 0 for one in json.loads(done.stdout)["shards"])


def test_the_web_side_rings_and_commands_no_worker(deployed: Deployment) -> None:
    password = deployed.words["BROKER_WEB_PASSWORD"]
    with redis_client(deployed.host.ports[ADDRESSES["broker"]], "web", password) as client:
        for command in (
            *NEIGHBOURLY, "PUBLISH pl:celery:/0.celery.pidbox x", "SUBSCRIBE pl:celery:/0.celeryev/worker.online",
            "BRPOP pl:celery:shard.s0 1", "LRANGE pl:celery:shard.s0 0 9", "DEL pl:celery:shard.s0",
            "EVAL return(1) 0",
        ):  # fmt: skip
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
        assert client.llen("pl:celery:shard.s0") >= 0
    denied(deployed)


def test_the_web_side_writes_no_row_and_reads_no_password_of_a_worker(deployed: Deployment) -> None:
    primary, database = deployed.nodes["s0"], deployed.words["DB_NAME"]
    for sql in (
        f"INSERT INTO {database}.purchase (id) VALUES (1)",
        f"UPDATE {database}.purchase SET qty = 9",
        f"DELETE FROM {database}.purchase",
        f"DELETE FROM {database}.pipeline_epochs",
        f"UPDATE {database}.pipeline_watermarks SET seq = 0",
        f"DROP TABLE {database}.purchase",
    ):
        assert primary.refuses("web", sql), sql

    for file in ("pipeline.env", "flower.env"):
        read = deployed.host.run(WEB, "web.env", "cat", str(deployed.host.etc / file))
        assert "Permission denied" in read.stderr, file


@pytest.mark.parametrize("path", ["workers", "metrics"])
def test_flower_asks_for_its_login_on_loopback(deployed: Deployment, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{deployed.host.ports['5555']}/{path}", timeout=5)


def scrape(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def scraped(text: str) -> dict[tuple[str, ...], float]:
    """Return what a text says: by a metric's name and its labels' values, in the order of the labels' names."""
    families = text_string_to_metric_families(text)
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def workers_metrics(deployed: Deployment) -> dict[tuple[str, ...], float]:
    """Return what all workers show; each worker has one shard, and says at which port it shows."""
    logs = "".join((deployed.home / f"worker-{shard}").read_text() for shard in SHARDS)
    ports = re.findall(r"metrics_served host=127\.0\.0\.1 port=(\d+)", logs)
    assert len(ports) == len(SHARDS), logs[-5000:]
    found: dict[tuple[str, ...], float] = {}
    for port in ports:
        found |= scraped(scrape(f"http://127.0.0.1:{port}/metrics"))
    return found


def test_each_worker_shows_what_its_processes_have_applied(deployed: Deployment) -> None:
    deployed.web("spool")  # Redis answers: one op
    inserts = [("pipeline_worker_ops_applied_total", "insert", shard, "purchase") for shard in SHARDS]
    found: dict[tuple[str, ...], float] = {}

    def shown() -> bool:
        found.update(workers_metrics(deployed))
        return any(applied in found for applied in inserts)

    assert within(30, shown), found
    assert {labels[0].split(".")[0] for name, *labels in found if name == "pipeline_worker_info"} == set(SHARDS)
    shard = next(applied[2] for applied in inserts if applied in found)
    assert found["pipeline_worker_commit_seconds_count", shard] > 0


def heard(manager: socket.socket, within_s: float) -> int | None:
    """Return the process that says next that it consumes; None where none does."""
    manager.settimeout(within_s)
    try:
        words, extra, _, _ = manager.recvmsg(99, socket.CMSG_SPACE(CREDENTIALS.size))
    except TimeoutError:
        return None
    assert words == b"WATCHDOG=1"
    pid: int = CREDENTIALS.unpack(extra[0][2])[0]
    return pid


def test_the_units_worker_feeds_the_watchdog_until_it_hangs_and_again_when_it_goes_on(deployed: Deployment) -> None:
    worker = heard(deployed.manager, 30)
    assert worker is not None
    assert "-Q\0shard.s0" in Path(f"/proc/{worker}/cmdline").read_text(), "NotifyAccess=main takes no child's word"
    os.kill(worker, signal.SIGSTOP)
    try:
        while heard(deployed.manager, 0.5) is not None:
            pass  # what was said before
        assert heard(deployed.manager, 4) is None
    finally:
        os.kill(worker, signal.SIGCONT)

    assert heard(deployed.manager, 30) == worker


def flowers_metrics(deployed: Deployment) -> str:
    return flowers_page(deployed, "metrics")


def said(page: str) -> str:
    """Return what a page says of the last order."""
    found = re.search(r'role="status">([^<]*)<', page.replace('id="pl-fresh" role="status"', ""))
    return found[1] if found else ""


def flowers_page(deployed: Deployment, path: str) -> str:
    login = base64.b64encode(deployed.words["FLOWER_BASIC_AUTH"].encode()).decode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{deployed.host.ports['5555']}/{path}", headers={"Authorization": f"Basic {login}"}
    )
    # a cookie carries what could not be done to the next page
    with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(asked, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


@needs("promtool")
def test_promtool_has_nothing_to_say_of_any_name(deployed: Deployment) -> None:
    assert within(30, lambda: "pipeline_queue_ops{" in flowers_metrics(deployed))
    ours = "".join(f"{line}\n" for line in flowers_metrics(deployed).splitlines() if "pipeline_" in line)

    done = subprocess.run(["promtool", "check", "metrics"], input=ours, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_flower_shows_the_deployments_metrics_with_its_own_rights(deployed: Deployment) -> None:
    denied(deployed)
    deployed.web("spool")
    found: dict[tuple[str, ...], float] = {}
    enqueued = [("pipeline_ops_enqueued_total", "insert", shard, "purchase", "direct") for shard in SHARDS]

    def complete() -> bool:
        found.update(scraped(flowers_metrics(deployed)))
        return found.get(("pipeline_known",)) == 1 and any(one in found for one in enqueued)

    assert within(30, complete), found
    assert any(name == "pipeline_enqueue_seconds_bucket" for name, *_ in found)
    for shard in SHARDS:
        assert ("pipeline_queue_ops", shard) in found
        assert ("pipeline_node_state", f"{shard}-r0", "replica", shard, "in") in found
    assert any(name == "flower_events_total" for name, *_ in found)
    assert denied(deployed) == []


def test_the_pipeline_tab_shows_the_shards_with_flowers_rights(deployed: Deployment) -> None:
    denied(deployed)
    pages = {path: flowers_page(deployed, path) for path in ("pipeline", "pipeline/shard/s0", "pipeline/hosts")}

    assert ">s0</a>" in pages["pipeline"]
    assert "s0-r0" in pages["pipeline/shard/s0"]
    assert denied(deployed) == []


def test_the_pipeline_tab_lists_what_is_set_aside_and_says_which_grant_shows_an_op(deployed: Deployment) -> None:
    deployed.web("refused")
    assert within(30, lambda: len(set_aside(deployed)) > 0)
    denied(deployed)
    listed = flowers_page(deployed, "pipeline/dead")
    [path, *_] = re.findall(r'href="/(pipeline/dead/op/[^"]+)"', listed)
    told = said(flowers_page(deployed, path))
    for shard in SHARDS:
        assert deployed.nodes[shard].refuses("flower", f"SELECT * FROM {deployed.words['DB_NAME']}.country")
        deployed.nodes[shard].rows("root", f"GRANT SELECT ON `{deployed.words['DB_NAME']}`.* TO 'flower'@'%'")
    shown = flowers_page(deployed, path)
    assert said(shown) == ""
    for shard in SHARDS:
        deployed.nodes[shard].rows("root", f"REVOKE SELECT ON `{deployed.words['DB_NAME']}`.* FROM 'flower'@'%'")

    assert "Duplicate entry" in listed
    assert 'name="act"' not in listed, "a button that its account cannot press"
    assert "SELECT command denied to user" in told
    assert "deploy/mariadb/web.sql and deploy/redis/log.acl have what it needs" in told
    assert re.search(r">[&#x27;quot\"]*Peru[&#x27;quot\"]*<", shown), shown[shown.find("pl-page") :]
    assert denied(deployed) == []
    deployed.commands(["dead", "drop", "--all"])


def test_flowers_user_reads_no_op_and_writes_nothing(deployed: Deployment) -> None:
    password = deployed.words["REDIS_FLOWER_PASSWORD"]
    with redis_client(deployed.host.ports[ADDRESSES["log"]], "flower", password) as client:
        for command in (
            *NEIGHBOURLY, "XRANGE pl:log:0 - +", "GET pl:secret", "SET pl:record:s0 1", "LPUSH pl:recent:s0 1",
            "DEL pl:record:s0", "EVAL return(1) 0", "INFO",
        ):  # fmt: skip
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
        assert client.get("pl:record:s0")
    denied(deployed)
