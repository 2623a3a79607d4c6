"""The steps of docs/adopting.md from a plain web2py application to one on the pipeline, and what each of them said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.client import Client
from support.applications.ground import Ground
from support.applications.journey import Journey, differing_pages
from support.applications.rows import Copy, Model, differing_rows
from support.web.web2py_server import Site

#: What is done with an application.
Visit = Callable[[Journey], None]
HERE = Path(__file__).parents[2] / "applications"


class Application(NamedTuple):
    """An application of `tests/applications`, and what is done to its copies.

    Attributes:
        name: its folder.
        model: what identifies its rows.
        overlays: by number of shards, the folders whose files are laid over the plain one's.
        tables: by number of shards, the sections of `pipeline.toml`.
        edits: by number of shards, what is changed in a file: its name, the text, the new text.
    """

    name: str
    model: Model
    overlays: Mapping[int, Sequence[str]]
    tables: Mapping[int, str]
    edits: Mapping[int, Sequence[tuple[str, str, str]]]


class Moving:
    """One copy of an application: its folder, its database, the shards that it has by now."""

    def __init__(self, ground: Ground, application: Application, kind: str, applications: Path, private: str = "."):
        self.ground, self.application = ground, application
        self.name = f"{application.name}_{kind}"
        self.folder = applications / self.name
        self.config = self.folder / private / "pipeline.toml"
        self.shards = ["s0"]
        self.must: list[dict[str, Any]] = []
        ground.create("s0", self.name)
        shutil.copytree(HERE / application.name, self.folder)

    @property
    def uri(self) -> str:
        return self.ground.uri("s0", self.name)

    def adopt(self, shards: int) -> None:
        """Write the configuration, run `pipeline adopt` and its SQL; keep what must change by its words."""
        self.shards = [f"s{number}" for number in range(shards)]
        for shard in self.shards[1:]:
            self.ground.create(shard, self.name)
        uris = {shard: self.ground.uri(shard, self.name) for shard in self.shards}
        self.ground.configuration(self.config, uris, self.application.tables[shards])
        asked = ("adopt", "s0", "--config", str(self.config))
        found = json.loads(run(*asked, "--json", exits=1))
        self.ground.ask("s0", self.name, run(*asked, "--sql", exits=1))
        run(*asked)
        self.must = [one for one in found["findings"] if one["severity"] == "error"]

    def change(self) -> None:
        """Lay the files that change over the plain ones."""
        for overlay in self.application.overlays[len(self.shards)]:
            shutil.copytree(HERE / overlay, self.folder, dirs_exist_ok=True)
        for file, old, new in self.application.edits[len(self.shards)]:
            path = self.folder / file
            assert path.read_text().count(old) == 1
            path.write_text(path.read_text().replace(old, new))

    def begin(self) -> None:
        """Once the tables are published: migrate, copy what is on every shard, check; meanwhile a worker starts."""
        run("migrate", "--config", str(self.config))
        ready = self.ground.start_worker(self.config)
        for shard in self.shards[1:]:
            for table in self.references:
                self._copy_rows(table, shard)
        run("check", "--config", str(self.config))
        ready()

    def settle(self) -> None:
        """Wait until everything that was queued is applied."""
        if self.config.exists():
            with closing(Client(self.config)) as client:
                for table in self.application.model.keys:
                    if not table.startswith("auth_"):
                        client.barrier(table, 60)

    def copy(self) -> Copy:
        """Return all rows, once everything that was queued is applied."""
        self.settle()
        places = [(shard, self.name) for shard in self.shards]
        return Copy(self.ground, self.application.model, places, self.references)

    @property
    def refused(self) -> list[dict[str, Any]]:
        """The ops that the database has refused."""
        return list(json.loads(run("dead", "list", "--json", "--config", str(self.config))))

    @property
    def references(self) -> list[str]:
        """The tables of which each shard has a copy."""
        return re.findall(r"\[tables\.(\w+)\]\s+reference", self.application.tables.get(len(self.shards), ""))

    def _copy_rows(self, table: str, shard: str) -> None:
        dump, own = [*self._client("mariadb-dump", "s0"), "--no-create-info", self.name, table], self.ground.environment
        text = subprocess.run(dump, capture_output=True, check=True, timeout=30, env=own).stdout
        subprocess.run([*self._client("mariadb", shard), self.name], input=text, check=True, timeout=30, env=own)

    def _client(self, program: str, shard: str) -> list[str]:
        port = self.ground.port(shard)
        return [program, "--no-defaults", "--protocol=tcp", "--host=127.0.0.1", f"--port={port}", "--user=root"]


class Placed(Moving):
    """A copy that the shared web2py serves."""

    def __init__(self, ground: Ground, site: Site, application: Application, kind: str):
        super().__init__(ground, application, kind, site.folder / "applications", "private")
        self._site = site
        (self.folder / "private").mkdir(exist_ok=True)
        (self.folder / "private" / "appconfig.ini").write_text(f"[db]\nuri = {self.uri}\n")
        self.journey = Journey(site, f"/{self.name}/default")
        self._ask()  # creates the tables
        ground.spread_ids("s0", self.name)

    def move(self) -> None:
        """Take all steps behind `adopt`. At its first start pyDAL believes what it finds, and tables are published."""
        self.change()
        ini = self.folder / "private" / "appconfig.ini"
        ini.write_text(f"{ini.read_text()}[pipeline]\nconfig = pipeline.toml\n")
        model = self.folder / "models" / "db.py"
        wide = model.read_text().replace("pool_size=5", "pool_size=5, bigint_id=True")
        model.write_text(wide.replace("bigint_id=True", "bigint_id=True, fake_migrate_all=True"))
        self._ask()
        model.write_text(wide)
        self.begin()
        self.journey.settle = self.settle

    def lived(self, before: Visit, after: Visit, shards: int = 0) -> Placed:
        """Do what is done before the application moves and what is done then; it moves to so many shards, or stays."""
        before(self.journey)
        if shards:
            self.adopt(shards)
            self.move()
        after(self.journey)
        return self

    def _ask(self) -> None:
        self._site.browser().get(f"/{self.name}/default/index")


def run(*arguments: str, exits: int = 0) -> str:
    """Run `pipeline` with some arguments and return what it printed."""
    done = CliRunner().invoke(cli.pipeline, arguments)
    assert done.exit_code == exits, f"{arguments}: {done.output} {done.exception!r}"
    return str(done.output)


def known(visit: Journey, *names: str) -> None:
    """Register users by web2py's own form, and log each of them in."""
    for name in names:
        told = {"first_name": name.title(), "last_name": "X", "email": f"{name}@example.com", "password": "secret-1"}
        visit.send("nobody", "user/register", told, password_two="secret-1")
        visit.post("nobody", "user/logout")
        visit.send(name, "user/login", {"email": f"{name}@example.com", "password": "secret-1"})


def same_rows(plain: Moving, moved: Moving) -> None:
    """Fail with all rows that differ, or with what the database has refused."""
    nothing_differs(differing_rows(plain.copy(), moved.copy()))
    assert moved.refused == []


def same_pages(plain: Placed, moved: Placed) -> None:
    """Fail with all pages that differ."""
    nothing_differs(differing_pages(plain.journey.pages, moved.journey.pages))


def nothing_differs(found: Sequence[str]) -> None:
    """Fail with all that differs."""
    if found:
        pytest.fail("\n".join(found), pytrace=False)
