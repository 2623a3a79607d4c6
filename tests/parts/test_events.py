"""The log: a line an event, stable names and keys, ids and counts; no value of a row, no password."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.events import Event, Lines, without_values

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("workers/**/*.py")])
#: A row of the table in the documentation: its event, level and keys.
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)
MARK = "bob@example.org's"
#: What MariaDB, MySQL and PyMySQL say about a value, and what is left of it.
SENTENCES = {
    f"Duplicate entry '{MARK}' for key 'email'": "Duplicate entry for key 'email'",
    f"""(1062, "Duplicate entry '{MARK}' for key 'email'")""": """(1062, "Duplicate entry for key 'email'")""",
    f"Incorrect integer value: '{MARK}' for column `shop`.`sale`.`qty` at row 3":
        "Incorrect integer value for column `shop`.`sale`.`qty` at row 3",
    f"Truncated incorrect DECIMAL value: '{MARK}'": "Truncated incorrect DECIMAL value",
    f"BIGINT value is out of range in '({MARK} + 1)'": "BIGINT value is out of range",
    f"an error in your SQL syntax near '{MARK}' at line 1": "an error in your SQL syntax near at line 1",
    f'waits behind the op at 3:1-2, which holds the row sale {{"code": "{MARK}"}}':
        "waits behind the op at 3:1-2, which holds the row sale",
    f"cannot connect to mysql:pymysql://app:{MARK}@db0/shop": "cannot connect to mysql:pymysql://app:***@db0/shop",
    f"redis://h/0?password={MARK}".replace("'", ""): "redis://h/0?password=***",
    "Data too long for column 'note' at row 1": "Data too long for column 'note' at row 1",
    "a foreign key constraint fails (`shop`.`sale`, CONSTRAINT `c` FOREIGN KEY (`who`) REFERENCES `user` (`id`))":
        "a foreign key constraint fails (`shop`.`sale`, CONSTRAINT `c` FOREIGN KEY (`who`) REFERENCES `user` (`id`))",
}  # fmt: skip


def calls(path: Path) -> Iterator[tuple[str, ast.expr]]:
    """Yield the level and the message of each call of a logger."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of, level = node.func.value, node.func.attr
            if isinstance(of, ast.Name) and of.id == "logger":
                yield level, node.args[level == "log"]


def events() -> Iterator[tuple[str, set[str]]]:
    """Yield the name and the keys of each event that the code makes."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Event":
                for name in (one for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)):
                    if isinstance(name.value, str):
                        yield name.value, {key.arg for key in node.keywords if key.arg}


def record(message: object, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("pipeline.apply", logging.WARNING, "", 0, message, arguments, info)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_database_s_sentence_is_told_without_the_value(sentence: str):
    assert without_values(sentence) == SENTENCES[sentence]
    assert str(Event("refused", error=ValueError(sentence))).count(MARK) == 0


def test_an_event_is_one_line_of_key_value_with_what_needs_it_quoted():
    event = Event("bucket_rests", shard="s0", bucket=17, rest_s=1.23456, why='a "b"\nc', halted=True, node=None)

    assert str(event) == r'bucket_rests shard=s0 bucket=17 rest_s=1.235 why="a \"b\"\nc" halted=true'


def test_a_line_is_text_or_json_with_the_same_keys():
    one = record(Event("bucket_rests", shard="s0", bucket=17, why="a b"))
    one.created = 1_764_322_222.5

    text, parsed = Lines("text").format(one), json.loads(Lines("json").format(one))

    assert text == (
        "at=2025-11-28T09:30:22.500Z level=warning logger=pipeline.apply event=bucket_rests shard=s0 bucket=17 "
        'why="a b"'
    )
    assert parsed == {
        "at": "2025-11-28T09:30:22.500Z", "level": "warning", "logger": "pipeline.apply", "event": "bucket_rests",
        "shard": "s0", "bucket": 17, "why": "a b",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_another_library_logs_is_one_line_without_values_too_and_its_traceback_is_a_key(form: str):
    try:
        raise ValueError(f"Duplicate entry '{MARK}' for key 'email'")
    except ValueError as error:
        line = Lines(form).format(record("task %s\nfailed", "x", error=error))

    assert "\n" not in line
    assert MARK not in line
    assert "Traceback" in line
    assert "Duplicate entry for key" in line


def test_every_call_of_a_logger_logs_an_event():
    found = [(path.name, ast.unparse(message)) for path in FILES for _, message in calls(path)
             if "Event(" not in ast.unparse(message)]  # fmt: skip

    assert found == []
    assert sum(1 for path in FILES for _ in calls(path)) > 80


def test_the_documentation_has_each_event_with_its_keys():
    documented = {name: set(re.findall(r"`(\w+)`", keys)) for name, _, keys in
                  ROW.findall((ROOT / "docs/logs.md").read_text(encoding="utf-8"))}  # fmt: skip
    made: dict[str, set[str]] = {}
    for name, keys in events():
        made.setdefault(name, set()).update(keys)
    del made["message"]  # of other libraries

    assert sorted(documented) == sorted(made)
    assert {name: made[name] - documented[name] for name in made if made[name] - documented[name]} == {}
