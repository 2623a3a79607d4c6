"""Files with `autodelete` of an attached table: removed once their op is applied, and never for one that is not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.attachment import detach, hooks
from pipeline.errors import ShardUnavailable
from pipeline.testing import Sandbox, sandbox
from pipeline.web.request import Request

ROW = 2**49 + 1


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox() as made:
        hooks._waiting.clear()
        yield made
        hooks._waiting.clear()


@pytest.fixture
def db(box: Sandbox, tmp_path: Path) -> Iterator[Any]:
    """A DAL that has the rows, as one on the primary has."""
    db = DAL("sqlite:memory", folder=str(tmp_path), bigint_id=True)
    db.define_table(
        "picture",
        Field("name", length=20, unique=True),
        Field("file", "upload", autodelete=True, uploadfolder=str(tmp_path)),
        Field("draft", "upload", uploadfolder=str(tmp_path)),
    )
    pipeline.define_tables(db)
    yield db
    db.close()


@pytest.fixture
def store(box: Sandbox, db: Any, tmp_path: Path) -> Callable[..., Path]:
    """Return what makes a row with a file, there and here, and returns the file's path."""

    def made(row_id: int = ROW, name: str = "a") -> Path:
        row = {"id": row_id, "name": name, "file": stored(db, "old")}
        pipeline.enqueue_insert(db.picture, row)
        box.drain()
        detach(db.picture)
        db.picture.insert(**row)
        pipeline.attach(db.picture)
        return tmp_path / row["file"]

    return made


def stored(db: Any, content: str) -> str:
    return str(db.picture.file.store(io.BytesIO(content.encode()), f"{content}.txt"))


def test_a_deleted_rows_file_goes_once_the_delete_is_applied(box: Sandbox, db: Any, store: Callable[..., Path]):
    file = store()

    db(db.picture.id == ROW).delete()
    pipeline.attach(db.picture)
    queued = file.exists()
    box.drain()
    pipeline.attach(db.picture)

    assert (queued, file.exists()) == (True, False)


def test_a_replaced_file_goes_and_the_new_one_stays(box: Sandbox, db: Any, store: Callable[..., Path], tmp_path: Path):
    file, new = store(), stored(db, "new")

    db(db.picture.id == ROW).update(file=new)
    box.drain()
    db(db.picture.id == ROW).update(name="b")  # any write looks

    assert not file.exists()
    assert (tmp_path / new).exists()


def test_a_file_that_the_update_gives_again_stays(box: Sandbox, db: Any, store: Callable[..., Path]):
    file = store()

    db(db.picture.id == ROW).update(file=file.name, name="b")
    box.drain()
    hooks.sweep()

    assert file.exists()


def test_a_rejected_op_leaves_the_file(box: Sandbox, db: Any, store: Callable[..., Path]):
    file = store()
    pipeline.enqueue_insert(db.picture, name="taken")

    db(db.picture.id == ROW).update(file=stored(db, "new"), name="taken")
    for shard in box.client.topology.shards:  # wherever the other row is
        session = box.client.nodes.primary(shard)
        session.execute("INSERT OR IGNORE INTO picture (id, name) VALUES (1, 'taken')")
        session.adapter.commit()
    outcome = box.drain()
    hooks.sweep()

    assert outcome.rejected >= 1
    assert file.exists()
    assert not hooks._waiting


def test_a_request_that_failed_leaves_the_file(box: Sandbox, db: Any, store: Callable[..., Path]):
    file = store()
    request = Request(box.client, box.client.held())
    request.attach(db.picture)

    db(db.picture.id == ROW).delete()
    request.drop()
    hooks.sweep()

    assert file.exists()


def test_a_request_that_went_well_takes_the_file_along(box: Sandbox, db: Any, store: Callable[..., Path]):
    file = store()
    request = Request(box.client, box.client.held())
    request.attach(db.picture)

    db(db.picture.id == ROW).delete()
    hooks.sweep()
    unsent = file.exists()
    request.finish()
    box.drain()
    hooks.sweep()

    assert (unsent, file.exists()) == (True, False)


def test_a_write_that_may_not_match_any_more_leaves_the_file(box: Sandbox, db: Any, store: Callable[..., Path]):
    file = store()

    db((db.picture.id == ROW) & (db.picture.name == "a")).update(draft="x")
    db((db.picture.id == ROW) & (db.picture.name == "a")).delete()
    box.drain()
    hooks.sweep()

    assert file.exists()
    assert box.rows(db.picture) == []


def test_a_forbidden_write_leaves_the_file(box: Sandbox, db: Any, store: Callable[..., Path]):
    file = store()
    db.picture._before_delete.append(lambda dbset: True)
    query = db(db.picture.id == ROW)

    assert query.delete() == 0
    db(db.picture.id == 2**49).delete_naive()
    box.drain()
    hooks.sweep()

    assert file.exists()


def test_a_version_keeps_its_file(box: Sandbox, db: Any, store: Callable[..., Path]):
    file = store()
    db.picture._enable_record_versioning()

    db(db.picture.id == ROW).update(file=stored(db, "new"))
    box.drain()
    hooks.sweep()

    assert [row["file"] for row in box.rows("picture_archive")] == [file.name]
    assert file.exists()


def test_what_nobody_can_tell_now_is_asked_again_and_forgotten_at_last(
    box: Sandbox, db: Any, store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    file = store()
    db(db.picture.id == ROW).delete()
    box.drain()

    def away(receipt: Any) -> str:
        raise ShardUnavailable("s0", "away")

    with monkeypatch.context() as patch:
        patch.setattr(box.client.follower, "status", away)
        hooks.sweep()
        assert len(hooks._waiting) == 1
        patch.setattr(hooks, "MOST_S", 0.0)
        hooks.sweep()

    hooks.sweep()
    assert file.exists()


def test_a_detached_tables_file_goes_at_once(db: Any, store: Callable[..., Path]):
    file = store()
    detach(db.picture)

    db(db.picture.id == ROW).delete()

    assert not file.exists()
