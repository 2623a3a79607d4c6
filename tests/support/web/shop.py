"""A web2py application, its folder and its servers: a shop whose sales are sharded and whose users are web2py's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydal import DAL

from pipeline.admin.migration import migrate
from pipeline.clock import polls
from pipeline.reads.health import NodeState
from support.servers.rig import Rig, rig_of
from support.web.web2py_server import Site

TABLES_TOML = """\
[tables.sale]
shard_key = "customer"
on_reject = "skip"

[tables.country]
reference = true

[tables.product]
reference = true

[tables.paper]
reference = true

[tables.paper_archive]
reference = true
"""
#: The application's own database has users, sessions and the outbox; the sharded tables are only defined in it.
MODEL = """\
from gluon.contrib.appconfig import AppConfig
from gluon.tools import Auth
from pipeline.web2py import Pipeline

configuration = AppConfig()
db = DAL(configuration.take("db.uri"), pool_size=5, migrate_enabled=True, bigint_id=True, check_reserved=None)
auth = Auth(db)
auth.define_tables(username=False, signature=False)
db.define_table(
    "sale",
    Field("customer", "integer", notnull=True),
    Field("qty", "integer", default=1),
    Field("name", length=40),
    Field("secret", "password", length=255),
    Field("day", "date", default=request.now),
    Field("at", "datetime", default=request.now),
    Field("tags", "list:string"),
    auth.signature,
    migrate=False,
)
db.define_table("country", Field("name", length=60), migrate=False)
"""


class Shop:
    """The servers, and room for applications beside each other."""

    def __init__(self, rig: Rig, folder: Path):
        self.rig, self.folder = rig, folder

    @property
    def own_uri(self) -> str:
        """The address of a database for an application that is alone."""
        return self.uri_of("web")

    def uri_of(self, name: str) -> str:
        """Return the address of an application's own database."""
        return self.rig.primaries["s0"].replace("/shop", f"/own_{name}")

    def application(
        self, name: str, controllers: Mapping[str, str], pipeline_model: str, ini: str = "", model: str = MODEL
    ) -> Path:
        """Write an application, and return its folder.

        Args:
            controllers: the text of each.
            pipeline_model: what comes after `db` and its tables.
            model: `db` and its tables.
            ini: the section `[pipeline]`; by default it names the cluster's TOML file.
        """
        folder = self.folder / "applications" / name
        for part in ("models", "controllers", "private"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self.ask("s0", f"CREATE DATABASE own_{name} CHARACTER SET utf8mb4")
        section = ini or f"[pipeline]\nconfig = {self.rig.config}\n"
        (folder / "private" / "appconfig.ini").write_text(f"[db]\nuri = {self.uri_of(name)}\n{section}")
        (folder / "models" / "db.py").write_text(model)
        (folder / "models" / "pipeline.py").write_text(pipeline_model)
        for controller, text in controllers.items():
            (folder / "controllers" / f"{controller}.py").write_text(text)
        return folder

    def py4web_application(self, text: str, own: str, **given: str) -> Path:
        """Write py4web's application `shop`, and return its folder.

        Args:
            text: has places for `own`, the address of its own database, for `config`, and for what is given besides.
            own: the name of that database.
        """
        folder = self.folder / "apps" / "shop"
        folder.mkdir(parents=True)
        self.ask("s0", f"CREATE DATABASE own_{own} CHARACTER SET utf8mb4")
        (folder / "__init__.py").write_text(text.format(own=self.uri_of(own), config=str(self.rig.config), **given))
        return folder

    def prepare(self, site: Site, path: str) -> None:
        """Let an application publish its tables, by asking for a page; then create them on the shards."""
        site.browser().get(path)
        migrate(self.rig.client)
        self.settle()

    def ask(self, node: str, sql: str) -> str:
        """Run statements on a node as root."""
        return self.rig.cluster.sql(node, sql)

    def sales(self, where: str = "1=1", fields: str = "qty") -> list[str]:
        """Return what the primaries hold, a line per row, once everything that was queued is applied."""
        self.rig.client.barrier("sale", 30)
        found = [self.ask(shard, f"SELECT {fields} FROM shop.sale WHERE {where}") for shard in self.rig.primaries]
        return sorted(line for text in found for line in text.splitlines()[1:])

    @contextmanager
    def lagging(self) -> Iterator[None]:
        """Let no replica apply anything in the block."""
        replicas = [f"{shard}-r0" for shard in self.rig.replicas]
        for node in replicas:
            self.ask(node, "STOP SLAVE SQL_THREAD")
        try:
            yield
        finally:
            for node in replicas:
                self.ask(node, "START SLAVE")

    def settle(self, timeout_s: float = 60) -> None:
        """Wait until every replica is in rotation."""
        for _ in polls(timeout_s):
            reports = [self.rig.client.health.report(f"{shard}-r0") for shard in self.rig.replicas]
            if all(report.state is NodeState.IN and (report.lag_s or 0) < 3 for report in reports):
                return
        raise AssertionError(f"the replicas do not come back: {reports}")


@contextmanager
def shop_of(directory: Path) -> Iterator[Shop]:
    """Bring the servers up, and down at the end."""

    def define(rig: Rig) -> None:
        rig.db = DAL("sqlite:memory", migrate=False)  # the application publishes its own
        rig.cluster.sql("s0", "CREATE DATABASE own_web CHARACTER SET utf8mb4")

    with rig_of(directory / "cluster", "mariadb", before=define, tables=TABLES_TOML, workers=1) as rig:
        folder = directory / "site"
        folder.mkdir()
        yield Shop(rig, folder)
