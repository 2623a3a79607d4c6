"""To whom a connection to Redis gives its login: a small server, right or wrong in one way, notes what it gets."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from flower.utils.broker import Broker
from support.servers.certificates import Authority, Certificate, listening, self_signed

from pipeline.oplog.doorbell import broker_settings
from pipeline.oplog.redis.connection import connect

PASSWORD = "s3cr3t-pass"


@dataclass
class Server:
    """Takes connections, with TLS if it has a certificate; hears what a client says, and answers nothing."""

    certificate: Certificate | None
    heard: list[bytes] = field(default_factory=list)
    port: int = 0

    def serve(self, listening: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.certificate:
            context.load_cert_chain(self.certificate.cert, self.certificate.key)
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            with suppress(OSError), sock:
                sock.settimeout(5)
                if not self.certificate:
                    self.heard.append(sock.recv(4096))
                    continue
                with context.wrap_socket(sock, server_side=True) as secure:
                    self.heard.append(secure.recv(4096))


def _log(url: str) -> None:
    connect(url, read_s=2, connect_s=2).ping()


def _app(url: str) -> Celery:
    app = Celery("test", set_as_current=False)
    app.conf.update(broker_settings(url, "pl", ["s0"]))
    return app


def _celery(url: str) -> None:
    with _app(url).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)


def _flower(url: str) -> None:
    conf = _app(url).conf
    broker = Broker(
        _app(url).connection().as_uri(include_password=True),
        broker_options=conf.broker_transport_options,
        broker_use_ssl=conf.broker_use_ssl,
    )
    asyncio.run(broker.queues(["shard.s0"]))


CLIENTS = pytest.mark.parametrize("client", [_log, _celery, _flower])
SCHEMES = pytest.mark.parametrize("scheme", ["rediss", "sentinel"])


def told(client: Callable[[str], None], scheme: str, server: Server, arguments: str) -> str:
    """Connect, and return what the error says: the small server never answers."""
    user = f"app:{PASSWORD}@" if scheme == "rediss" else ""
    path = "0" if scheme == "rediss" else "main/0"
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of redis-py, or of kombu
        client(f"{scheme}://{user}127.0.0.1:{server.port}/{path}{arguments}")
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> dict[str, Certificate | None]:
    folder = tmp_path_factory.mktemp("wrong")
    return {
        "another authority": Authority(folder / "theirs", "theirs").signs("right"),
        "self-signed": self_signed(folder, "right"),
        "another name": authority.signs("other", ("redis9.example.org",)),
        "expired": authority.signs("old", days=-2),
        "no TLS": None,
    }


@CLIENTS
@SCHEMES
def test_the_right_server_is_spoken_to(authority: Authority, client: Callable[[str], None], scheme: str):
    with listening(Server(authority.signs("right"))) as server:
        assert "CERTIFICATE" not in told(client, scheme, server, f"?ssl_ca={authority.ca}")

    heard = b"".join(server.heard)
    assert (PASSWORD.encode() if scheme == "rediss" else b"\r\n") in heard


@CLIENTS
@SCHEMES
@pytest.mark.parametrize("how", ["another authority", "self-signed", "another name", "expired", "no TLS"])
def test_a_wrong_server_hears_nothing(
    authority: Authority, wrong: dict[str, Any], client: Callable[[str], None], scheme: str, how: str
):
    with listening(Server(wrong[how])) as server:
        told(client, scheme, server, f"?ssl_ca={authority.ca}")

    assert not any(PASSWORD.encode() in packet or b"*" in packet[:1] for packet in server.heard)


@CLIENTS
def test_without_any_argument_a_server_of_an_unknown_authority_hears_nothing(
    authority: Authority, client: Callable[[str], None]
):
    with listening(Server(authority.signs("right"))) as server:
        assert "CERTIFICATE_VERIFY_FAILED" in told(client, "rediss", server, "")

    assert not any(server.heard)


@CLIENTS
def test_who_says_so_speaks_to_a_server_unverified(tmp_path: Path, client: Callable[[str], None]):
    with listening(Server(self_signed(tmp_path, "right"))) as server:
        told(client, "rediss", server, "?ssl_verify=false")

    assert PASSWORD.encode() in b"".join(server.heard)
