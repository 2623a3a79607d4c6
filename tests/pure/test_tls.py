"""What PyMySQL's connections share. No server is needed: the context is made before one is asked."""

from __future__ import annotations

import ssl

from pipeline.config.uris import TLS
from pipeline.shard.mysql_connection import NodeConnection


def test_connections_share_one_context_so_the_machine_s_certificates_are_read_once() -> None:
    one, other = NodeConnection(defer_connect=True), NodeConnection(defer_connect=True)

    assert one.ctx is other.ctx
    assert not one._ssl_required
    assert one.ctx.verify_mode is ssl.CERT_NONE


def test_who_asks_for_verified_certificates_gets_a_context_of_his_own() -> None:
    verifying = NodeConnection(defer_connect=True, tls=TLS())

    assert verifying.ctx is not NodeConnection(defer_connect=True).ctx
    assert verifying.ctx.verify_mode is ssl.CERT_REQUIRED
    assert verifying.ctx.check_hostname
