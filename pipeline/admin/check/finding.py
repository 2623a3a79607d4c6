"""Hold a finding: what is wrong, where, and what to do about it; of a server's refusal, by its own words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

ERROR, WARNING = "error", "warning"
#: Words of Redis, and the cure; the first that fits counts. `{key}` is the setting with the address.
_REDIS = (
    (
        ("READONLY", "read only replica", "ReadOnlyError"),
        "this Redis is a replica: follow the primary, with its address or sentinel:// in {key}",
    ),
    (("WRONGPASS", "NOAUTH", "Authentication", "invalid username-password"), "correct user and password in {key}"),
    (
        ("NOPERM", "no permissions", "NoPermission", "this user has no", "can't run this command"),
        "ACL SETUSER as its user in deploy/redis/log.acl, or broker.acl, with ~<prefix>:* of [redis] prefix",
    ),
    (("MISCONF",), "make room on the disk of this Redis: it cannot save, so it refuses to write"),
    (("NOREPLICAS", "good replicas"), "start the replicas of this Redis, or lower min-replicas-to-write"),
    (("maxmemory", "OOM"), "give this Redis more memory (maxmemory), and start workers"),
    (("LOADING", "loading the dataset"), "wait until this Redis has loaded its data"),
)
#: Words of the databases.
_DATABASE = (
    (("to database", "command denied"), "GRANT the user of [shards.{key}] its rights on this database"),
    (
        ("Access denied for user", "(1045", "caching_sha2", "auth_gssapi"),
        "correct user and password in [shards.{key}], or create the user, and GRANT it the database",
    ),
    (("Unknown database",), "create the database, or correct its name in [shards.{key}]"),
    (("Too many connections", "max_user_connections"), "raise max_connections, or start fewer processes"),
    (("is blocked because",), "run mariadb-admin flush-hosts on this node"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. An error keeps ops from being applied, or from being exact; a warning is a risk.

    Attributes:
        severity: `error` or `warning`.
        place: a table, a column, a setting or a key of the configuration.
        what: what is there; the sentence continues after the place.
        fix: the SQL, the setting or the command.
        nodes: the servers concerned; empty where the whole deployment is.
    """

    severity: str
    place: str
    what: str
    fix: str
    nodes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Nodes and place in one text."""
        return ": ".join(part for part in (", ".join(self.nodes), self.place) if part)

    def as_json(self) -> dict[str, object]:
        """Return the finding for programs."""
        return {
            "severity": self.severity,
            "nodes": list(self.nodes),
            "place": self.place,
            "what": self.what,
            "fix": self.fix,
        }


def merged_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Return errors before warnings, and one finding for what several nodes share.

    Args:
        findings: of any order.
    """
    together: dict[Finding, dict[str, None]] = {}
    for finding in findings:
        together.setdefault(replace(finding, nodes=()), {}).update(dict.fromkeys(finding.nodes))
    found = [replace(finding, nodes=tuple(nodes)) for finding, nodes in together.items()]
    return sorted(found, key=lambda finding: finding.severity != ERROR)


def without_copies(findings: Iterable[Finding], primary_of: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings without those that a replica has from its primary: a repair of the primary repairs both.

    Args:
        findings: of all nodes.
        primary_of: the primary of each replica.
    """
    for finding in merged_findings(findings):
        own = tuple(node for node in finding.nodes if primary_of.get(node) not in finding.nodes)
        yield replace(finding, nodes=own)


def redis_cure(why: str, key: str) -> str:
    """Return the cure of what Redis said.

    Args:
        why: its words, or the driver's.
        key: the setting with the address.
    """
    return _cure(_REDIS, why, key) or f"start the server, or correct {key}"


def database_cure(why: str, shard: str) -> str:
    """Return the cure of what a database said.

    Args:
        why: its words, or the driver's.
        shard: the node's shard.
    """
    return _cure(_DATABASE, why, shard) or f"start the server, or correct [shards.{shard}]"


def _cure(table: Sequence[tuple[tuple[str, ...], str]], why: str, key: str) -> str:
    found = (cure for words, cure in table if any(word in why for word in words))
    return next(found, "").format(key=key)
