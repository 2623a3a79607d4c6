"""To whom a connection to MariaDB gives what: a small server, right or wrong in one way, notes what it gets."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pymysql.constants import CLIENT
from pymysql.err import OperationalError
from support.servers.certificates import Authority, Certificate, listening, self_signed

from pipeline.shard.mysql_connection import Endpoint

PASSWORD = "s3cr3t-pass"
TLS_OFFERED = CLIENT.CAPABILITIES | CLIENT.SSL | CLIENT.PLUGIN_AUTH | CLIENT.SECURE_CONNECTION


@dataclass
class Server:
    """Greets as MariaDB does, and hears what a client then says."""

    certificate: Certificate | None
    default_plugin: str = "mysql_native_password"
    switch_to: bytes = b""
    heard: list[bytes] = field(default_factory=list)
    encrypted: bool = False
    port: int = 0

    def serve(self, listening: socket.socket) -> None:
        with suppress(OSError):
            sock, _ = listening.accept()
            with sock:
                sock.settimeout(5)
                self._greet(sock)
                if self.certificate and len(self._packet(sock)) == 32:  # the request for TLS has nothing but flags
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(self.certificate.cert, self.certificate.key)
                    with context.wrap_socket(sock, server_side=True) as secure:
                        self.encrypted = True
                        self._log_in(secure)
                else:
                    self._log_in(sock)

    def _greet(self, sock: socket.socket) -> None:
        flags = TLS_OFFERED if self.certificate else TLS_OFFERED & ~CLIENT.SSL
        salt = b"12345678", b"123456789012\0"
        greeting = b"\x0a11.4.0-MariaDB\0" + struct.pack("<I", 7) + salt[0] + b"\0"
        greeting += struct.pack("<HBHHB", flags & 0xFFFF, 45, 2, flags >> 16, 21) + b"\0" * 10 + salt[1]
        self._send(sock, 0, greeting + self.default_plugin.encode() + b"\0")

    def _log_in(self, sock: socket.socket) -> None:
        self._packet(sock)
        if self.switch_to:
            self._send(
                sock,
                2 + self.encrypted,
                b"\xfe" + self.switch_to + b"\0" + b"Password: " * (self.switch_to == b"dialog"),
            )
            self._packet(sock)
        self._send(sock, 2 + self.encrypted + 2 * bool(self.switch_to), b"\xff\x15\x04#28000no entry")

    def _packet(self, sock: socket.socket) -> bytes:
        head = self._exactly(sock, 4)
        body = self._exactly(sock, int.from_bytes(head[:3], "little"))
        self.heard.append(body)
        return body

    @staticmethod
    def _exactly(sock: socket.socket, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = sock.recv(size - len(found))
            if not more:
                raise OSError("closed")
            found += more
        return found

    @staticmethod
    def _send(sock: socket.socket, number: int, body: bytes) -> None:
        sock.sendall(len(body).to_bytes(3, "little") + bytes([number]) + body)


def attempt(server: Server, arguments: str, host: str = "127.0.0.1") -> str:
    """Connect, and return what the driver says; the small server lets nobody in."""
    endpoint = Endpoint(f"mysql:pymysql://app:{PASSWORD}@{host}:{server.port}/shop{arguments}")
    with pytest.raises(OperationalError) as caught:
        endpoint.connect({"connect_timeout": 5, "read_timeout": 5})
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "theirs")


def test_the_right_server_gets_the_login(authority: Authority):
    with listening(Server(authority.signs("right"))) as server:
        attempt(server, f"?ssl_ca={authority.ca}")

    assert server.encrypted
    assert b"app\0" in server.heard[1]


@pytest.mark.parametrize("wrong", ["another authority", "self-signed", "another name", "expired"])
def test_a_server_with_a_wrong_certificate_gets_nothing(
    authority: Authority, stranger: Authority, tmp_path: Path, wrong: str
):
    certificate = {
        "another authority": lambda: stranger.signs("right"),
        "self-signed": lambda: self_signed(tmp_path, "right"),
        "another name": lambda: authority.signs("other", ("db9.example.org",)),
        "expired": lambda: authority.signs("old", days=-2),
    }[wrong]()
    with listening(Server(certificate)) as server:
        told = attempt(server, f"?ssl_ca={authority.ca}")

    assert "CERTIFICATE_VERIFY_FAILED" in told
    assert not any(b"app\0" in packet for packet in server.heard)


@pytest.mark.parametrize("arguments", ["ssl_verify=true", "ssl_verify=false", "ssl_ca={ca}", "ssl_cert={ca}"])
def test_a_server_without_tls_gets_nothing_where_the_address_asks_for_it(authority: Authority, arguments: str):
    own = authority.signs("client")
    given = arguments.format(ca=authority.ca) if "cert" not in arguments else f"ssl_cert={own.cert}&ssl_key={own.key}"
    with listening(Server(None)) as server:
        told = attempt(server, f"?{given}")

    assert "the server offers no TLS, which its address asks for: give the server ssl_cert and ssl_key" in told
    assert server.heard == []


def test_a_machine_that_does_not_know_the_authority_refuses_its_server(authority: Authority):
    with listening(Server(authority.signs("right"))) as server:
        assert "CERTIFICATE_VERIFY_FAILED" in attempt(server, "?ssl_verify=true")

    assert not any(b"app\0" in packet for packet in server.heard)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("plugin", [b"mysql_clear_password", b"dialog", b"sha256_password", b"caching_sha2_password"])
def test_no_server_gets_the_password_by_asking_unless_the_address_trusts_it(
    authority: Authority, plugin: bytes, tls: bool
):
    with listening(Server(authority.signs("any") if tls else None, switch_to=plugin)) as server:
        told = attempt(server, "")

    assert server.encrypted is tls
    assert not any(PASSWORD.encode() in packet for packet in server.heard)
    assert "add ssl_ca=" in told


@pytest.mark.parametrize("tls", [False, True])
def test_a_server_whose_default_plugin_is_a_telling_one_gets_no_password_in_the_first_packet(
    authority: Authority, tls: bool
):
    with listening(Server(authority.signs("any") if tls else None, default_plugin="sha256_password")) as server:
        attempt(server, "")

    assert server.encrypted is tls
    assert not any(PASSWORD.encode() in packet for packet in server.heard)
    assert b"mysql_native_password" in server.heard[tls]


def test_a_verified_server_may_ask_for_the_password(authority: Authority):
    with listening(Server(authority.signs("right"), switch_to=b"mysql_clear_password")) as server:
        attempt(server, f"?ssl_ca={authority.ca}")

    assert PASSWORD.encode() + b"\0" in server.heard


@pytest.mark.parametrize("file", ["missing", "no certificate"])
def test_a_file_that_is_missing_or_no_certificate_is_named(authority: Authority, tmp_path: Path, file: str):
    path = tmp_path / "ca.pem"
    if file == "no certificate":
        path.write_text("not a certificate")
    with listening(Server(authority.signs("right"))) as server:
        told = attempt(server, f"?ssl_ca={path}")

    assert f"ssl_ca={path} cannot be used" in told
    assert server.heard == []


def test_a_renewed_authority_is_read_without_a_restart(authority: Authority, stranger: Authority, tmp_path: Path):
    path = tmp_path / "ca.pem"
    path.write_bytes(stranger.ca.read_bytes())
    with listening(Server(authority.signs("right"))) as server:
        assert "CERTIFICATE_VERIFY_FAILED" in attempt(server, f"?ssl_ca={path}")
    path.write_bytes(authority.ca.read_bytes())

    with listening(Server(authority.signs("right"))) as server:
        assert "CERTIFICATE_VERIFY_FAILED" not in attempt(server, f"?ssl_ca={path}")
