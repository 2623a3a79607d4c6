"""Check what others on the network could hear or forge: addresses without TLS, and a remote log without a key."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from pipeline.admin.check.evidence import Evidence
from pipeline.admin.check.finding import WARNING, Finding
from pipeline.config.address import Address, parse


def transport_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield each address of another machine without TLS, and a log there whose ops are not signed.

    Args:
        evidence: the settings.
    """
    settings = evidence.settings
    redis = settings.redis
    logs = {"[redis] url": redis.url} | {f"[redis.{name}] url": one.url for name, one in settings.groups.items()}
    addresses = {**logs, "[redis] broker_url": redis.broker_url}
    for shard in settings.shards.values():
        addresses[f"[shards.{shard.name}] primary"] = shard.primary
        addresses |= {f"[shards.{shard.name}] replicas, {n}": uri for n, uri in enumerate(shard.replicas, 1)}
    for place, uri in addresses.items():
        if _is_remote(uri) and parse(uri).tls is None:
            fix = "add ?ssl_ca=FILE" if uri.startswith("mysql") else "write rediss://, or add ?ssl_ca=FILE"
            what = "is of another machine, and has no TLS: who is between reads and changes what passes"
            yield Finding(WARNING, place, what, f"{fix}; nothing, where a tunnel or the network itself encrypts")
    if any(map(_is_remote, logs.values())) and not redis.sign_key:
        what = "is not set, and the log is on another machine: who writes to that Redis enqueues any op"
        fix = "one key for all processes; see docs/configuration.md on signing"
        yield Finding(WARNING, "[redis] sign_key", what, fix)


def _is_remote(uri: str) -> bool:
    """Return whether another machine has the server; what is no address of a server has none."""
    if not uri.startswith(("mysql", "redis", "sentinel")):
        return False
    address = parse(uri)
    return not (address.on_socket or address.arguments.get("unix_socket") or _is_here(address))


def _is_here(address: Address) -> bool:
    for host, _ in address.hosts:
        try:
            if host != "localhost" and not ip_address(host.strip("[]")).is_loopback:
                return False
        except ValueError:  # a name
            return False
    return True
