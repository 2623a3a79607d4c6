"""Flower by the printed command: on this machine only, and beyond it only with a login."""

from __future__ import annotations

import os
import sys

import flower.command  # noqa: F401  # as Celery's command does, for all of its commands
import pytest
from tornado.options import options

from workers.signals import VARIABLE, refuse_strangers


@pytest.fixture(autouse=True)
def _flower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["celery", "-A", "workers", "flower"])
    give(monkeypatch, address="", basic_auth=[], auth="", unix_socket="")


def give(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        monkeypatch.setattr(options.mockable(), name, value)


def test_it_listens_on_this_machine_where_nobody_says_otherwise() -> None:
    assert os.environ[VARIABLE] == "127.0.0.1"


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "192.0.2.7", "example.org"])
@pytest.mark.parametrize("login", [[], [""]])
def test_beyond_this_machine_it_does_not_start_without_a_login(
    monkeypatch: pytest.MonkeyPatch, address: str, login: list[str]
) -> None:
    give(monkeypatch, address=address, basic_auth=login)

    with pytest.raises(SystemExit, match=r"without a login; give it --address=127\.0\.0\.1, or set FLOWER_BASIC_AUTH"):
        refuse_strangers()


@pytest.mark.parametrize(
    "given",
    [
        {"address": "127.0.0.1"},
        {"address": "::1"},
        {"address": "localhost"},
        {"basic_auth": ["a:b"]},
        {"auth": ".*@example.org"},
        {"unix_socket": "/run/flower.sock"},
    ],
)
def test_with_a_login_or_for_this_machine_it_starts(monkeypatch: pytest.MonkeyPatch, given: dict[str, object]) -> None:
    give(monkeypatch, **given)

    refuse_strangers()


def test_no_other_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["celery", "-A", "workers", "worker"])

    refuse_strangers()
