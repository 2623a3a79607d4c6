"""Check the servers: reachable, recent, strict, durable; replicas that follow; addresses that nobody else can hear.

A primary's user reads and writes, a replica's user reads. A replica that was absent for too long has to be rebuilt: the
log no longer keeps what it lacks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address

from pipeline.admin.check.evidence import ERROR, WARNING, Evidence, Finding, database_cure
from pipeline.config.uris import Address, parse
from pipeline.errors import PipelineError
from pipeline.shard import ddl
from pipeline.shard.survey import Survey
from pipeline.shard.survey.mysql import differences

#: The first releases with SELECT … FOR UPDATE SKIP LOCKED.
LEAST_SERVERS = {"mariadb": (10, 6), "mysql": (8, 0)}
#: The least `max_allowed_packet`: a larger statement would be rejected for good.
LEAST_PACKET_BYTES = 1_000_000
#: The right to see a server's replication: MariaDB 10.5 has split it off.
_SEES_REPLICATION = {"mariadb": "SLAVE MONITOR", "mysql": "REPLICATION CLIENT"}
#: What a worker's user needs on a primary.
_OF_A_WORKER = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRIGGER")
_STRICT = ("strict_trans_tables", "strict_all_tables")


def server_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is wrong with each node.

    Args:
        evidence: what the servers answered.
    """
    for node, found in evidence.nodes.items():
        if isinstance(found, PipelineError):
            shard = evidence.primary_of.get(node, node)
            why = str(found).removeprefix(f"node {node!r}: ")
            yield Finding(ERROR, "", f"cannot be asked: {why}", database_cure(why, shard), (node,))
        elif found.engine == "mysql":
            yield from server(found)
            if node in evidence.primary_of:
                yield from _replica(found, evidence)
            else:
                yield from _primary(found, evidence)


def privilege_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield which privileges a user lacks.

    Args:
        evidence: what the servers answered.
    """
    for node in evidence.surveys:
        verbs = defaultdict(list)
        for verb, table in node.denied:
            verbs[table].append(verb)
        tables = defaultdict(list)
        for table, missing in verbs.items():
            tables[tuple(missing)].append(table)
        for missing_verbs, names in tables.items():
            wanted = ("SELECT",) if node.node in evidence.primary_of else _OF_A_WORKER
            what = f"the user {node.account} may not {', '.join(missing_verbs)}"
            fix = ddl.grant(wanted, node.database, node.account)
            # only workers write rows, and trim logs
            if evidence.untrimmed and "SELECT" not in missing_verbs:
                cure = f"nothing, if this is a web host's user; else {fix}"
                yield Finding(WARNING, ", ".join(names), what, cure, (node.node,))
            else:
                yield Finding(ERROR, ", ".join(names), what, fix, (node.node,))
        if not (node.denied or node.sees_triggers or node.node in evidence.primary_of):
            what = f"the user {node.account} may not see them: workers apply ops as if every table had some, and slower"
            fix = f"{ddl.grant(('TRIGGER',), node.database, node.account)}; then restart workers"
            yield Finding(WARNING, "triggers", what, fix, (node.node,))


def absence_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield each replica that upkeep has taken out of account.

    Args:
        evidence: what the servers answered.
    """
    for node, why in evidence.unfit.items():
        what, _, fix = why.rpartition(": ")
        yield Finding(ERROR, "", f"is unfit, and serves no read: {what}", fix, (node,))


def server(node: Survey) -> Iterator[Finding]:
    """Yield what is wrong with any MySQL or MariaDB, whatever its role.

    Args:
        node: what one server answered.
    """
    product, numbers = node.release
    variables, least = node.variables, LEAST_SERVERS[product]
    if numbers < least:
        yield Finding(
            ERROR,
            "version",
            f"is {node.version}, which has no SKIP LOCKED",
            f"upgrade to {product} {least[0]}.{least[1]} or later",
            (node.node,),
        )
    if not any(mode in variables.get("sql_mode", "") for mode in _STRICT):
        yield Finding(
            WARNING,
            "sql_mode",
            "is not strict: what other programs write is cut to fit (the pipeline's own sessions are strict)",
            "SET GLOBAL sql_mode = CONCAT(@@GLOBAL.sql_mode, ',STRICT_TRANS_TABLES'), and in my.cnf",
            (node.node,),
        )
    size = int(variables.get("max_allowed_packet", LEAST_PACKET_BYTES))
    if size < LEAST_PACKET_BYTES:
        yield Finding(
            WARNING,
            "max_allowed_packet",
            f"is {size:,} bytes; a larger op would be rejected",
            "SET GLOBAL max_allowed_packet = 16777216, and in my.cnf",
            (node.node,),
        )


def _primary(node: Survey, evidence: Evidence) -> Iterator[Finding]:
    variables = node.variables

    def unwise(setting: str, wanted: str, why: str) -> Iterator[Finding]:
        value = variables.get(setting)
        if value is not None and value != wanted:
            fix = f"SET GLOBAL {setting} = {wanted.upper()}, and in my.cnf"
            yield Finding(WARNING, setting, f"is {value.upper()}: {why}", fix, (node.node,))

    if variables.get("read_only") in ("1", "on"):
        yield Finding(ERROR, "read_only", "is ON: nothing can be applied", "SET GLOBAL read_only = OFF", (node.node,))
    yield from unwise("innodb_flush_log_at_trx_commit", "1", "a crash of the machine forgets commits")
    if variables.get("log_bin") in ("1", "on"):
        if variables.get("binlog_format") == "statement":
            yield Finding(
                ERROR,
                "binlog_format",
                "is STATEMENT, with which InnoDB refuses every write under READ COMMITTED (error 1665)",
                "SET GLOBAL binlog_format = ROW, and in my.cnf",
                (node.node,),
            )
        yield from unwise("sync_binlog", "1", "after a crash replicas may have what the primary has not")
    if not node.takes_several:
        yield Finding(
            WARNING,
            "statements",
            "go one at a time, and batches take longer: sent together, only the first was answered",
            f"give [shards.{node.node}] an address past its proxy, if it has one",
            (node.node,),
        )
    if node.node not in evidence.primary_of.values():
        return
    if variables.get("log_bin") in ("0", "off"):
        yield Finding(
            WARNING,
            "log_bin",
            "is OFF, but the shard has replicas: they get nothing",
            "log_bin in my.cnf",
            (node.node,),
        )
    if variables.get("binlog_format") == "mixed":
        yield from unwise("binlog_format", "row", "a statement may give other rows on a replica")


def _replica(node: Survey, evidence: Evidence) -> Iterator[Finding]:
    if node.variables.get("read_only") in ("0", "off"):
        yield Finding(
            ERROR,
            "read_only",
            "is OFF: anything could write here, and the replica would differ from its primary",
            "SET GLOBAL read_only = ON, and in my.cnf",
            (node.node,),
        )
    replication = node.replication
    if replication is None or replication.running is None:
        why = replication.why if replication else ""
        yield Finding(
            WARNING,
            "replication",
            f"cannot be seen by this user ({why})",
            f"GRANT {_SEES_REPLICATION[node.release[0]]} ON *.* TO {_account(node)}",
            (node.node,),
        )
    elif not replication.running:
        yield Finding(
            ERROR,
            "replication",
            f"is not running: {replication.why}",
            "look at SHOW SLAVE STATUS, then START SLAVE (MySQL 8.4: REPLICA)",
            (node.node,),
        )
    primary = evidence.nodes[evidence.primary_of[node.node]]
    if isinstance(primary, Survey):
        yield from _beside(node, primary)


def _beside(node: Survey, primary: Survey) -> Iterator[Finding]:
    """Yield where a replica does not fit its primary."""
    replication = node.replication
    if node.traits and primary.traits:
        for one in differences(node.traits, primary.traits):
            again = f", then rebuild the replica from its primary, and run pipeline rebuilt {node.node}" * one.lasting
            yield Finding(ERROR, one.place, one.what, one.cure + again, (node.node,))
    if replication and replication.source_id:
        expected = primary.variables.get("server_id", replication.source_id)
        if replication.source_id not in ("0", expected):
            yield Finding(
                WARNING,
                "replication",
                f"follows the server with the id {replication.source_id}, not its primary (id {expected})",
                "correct the shard's addresses, unless this chain is meant",
                (node.node,),
            )


def _account(node: Survey) -> str:
    user, _, host = node.account.rpartition("@")
    return f"'{user}'@'{host}'"


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
