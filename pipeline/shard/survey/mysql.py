"""Query MySQL and MariaDB about themselves, with an ordinary user's rights; judge how like a replica is its primary.

Judge whether a replica is like its primary: each row gets there, only replication writes, texts and times are equal. A
replica's watermarks say what was applied. Watermarks prove nothing of rows that a filter left out, or whose errors were
passed over: they moved all the same. Pure; `survey.mysql.traits` reads what is judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import PipelineError
from pipeline.shard import NodeSession
from pipeline.shard.driver_errors import code_of, sentence_of
from pipeline.shard.records import text_literal
from pipeline.shard.table_facts import rows_about

if TYPE_CHECKING:
    from pipeline.shard.survey import SurveyedTable


_EMPTY: Mapping[str, str] = {}
#: How many columns of another collation are named.
NAMED = 3
#: Access denied: to a database, to a command on a table, to a column, to a statement that needs a global privilege.
_DENIED = {1044, 1142, 1143, 1227}
#: A year's two time offsets, as the server's own time zone has them: a name of a zone may stand for either.
_CLOCK = ", ".join(f"CONVERT_TZ('2026-{month}-15 12:00', '+00:00', @@global.time_zone)" for month in ("01", "07"))
#: SQL that asks what time it is in the session's time zone.
_NOW = r"(current_?(time|date)|local_?time|sysdate|now *[(]|cur(date|time) *[(])"
#: From here on the numbers are the client's: no connection, no answer.
_CLIENT_ERRORS = 2000
#: Statements that show whether a write is allowed: EXPLAIN checks privileges and runs nothing.
_TRIALS = {
    "INSERT": "EXPLAIN INSERT INTO {0} SELECT * FROM {0} WHERE 1=0",
    "UPDATE": "EXPLAIN UPDATE {0} SET {1}={1} WHERE 1=0",
    "DELETE": "EXPLAIN DELETE FROM {0} WHERE 1=0",
}
_VARIABLES = (
    "binlog_format", "innodb_flush_log_at_trx_commit", "log_bin", "max_allowed_packet", "read_only", "server_id",
    "sql_mode", "super_read_only", "sync_binlog",
)  # fmt: skip


class Traits(NamedTuple):
    """What of a node decides whether a replica shows what its primary has. Names and values are in lower case.

    Attributes:
        database: its name.
        settings: global settings, and filters of the replication's channels, by the settings' names.
        seen: whether the user may see all filters; else only those among the global settings.
        replicates: whether it follows another server; None where that is not known.
        clock: what its own time zone makes of two moments of a year.
        collations: by `table.column`; the empty name is the database itself.
    """

    database: str
    settings: Mapping[str, str]
    seen: bool = True
    replicates: bool | None = None
    clock: str = ""
    collations: Mapping[str, str] = _EMPTY


class Difference(NamedTuple):
    """One way in which a replica is not like its primary.

    Attributes:
        place: a setting or a column.
        what: what is there; the sentence continues after the place.
        cure: the SQL, or what to change.
        lasting: whether rows may be missing for good, also once the cause is gone: the replica has to be rebuilt.
    """

    place: str
    what: str
    cure: str
    lasting: bool = False


def differences(replica: Traits, primary: Traits) -> Iterator[Difference]:
    """Yield in what a replica is not like its primary.

    Args:
        replica: what the replica answered.
        primary: what its primary answered, at about the same time.
    """
    yield from _left_out(replica)
    if _is_off(replica, "read_only") and _is_off(primary, "read_only") and replica.replicates is not False:
        what = "is OFF: anything could write here, and the replica would differ from its primary"
        yield Difference("read_only", what, "SET GLOBAL read_only = ON, and in my.cnf")
    if replica.clock != primary.clock:
        what = f"makes {replica.clock} of what its primary takes for {primary.clock}"
        yield Difference("time_zone", what, "give both servers the same time_zone, also in my.cnf")
    yield from _collated_otherwise(replica.collations, primary.collations)


def _left_out(replica: Traits) -> Iterator[Difference]:
    """Yield each setting for which rows do not get to a replica though its watermarks move."""
    settings = replica.settings
    for name, value in _filters(replica):
        what = f"is {value}: what it leaves out is missing here, and watermarks do not show it"
        yield Difference(name, what, "remove the filter, also from my.cnf", lasting=True)
    for name in ("slave_exec_mode", "replica_exec_mode"):
        if settings.get(name) == "idempotent":
            what = "is IDEMPOTENT: a change of a row that is missing here is passed over"
            yield Difference(name, what, f"SET GLOBAL {name} = STRICT, and in my.cnf", lasting=True)
            break  # MySQL 8 has the setting under both names
    for name in ("slave_skip_errors", "replica_skip_errors"):
        if settings.get(name, "off") not in ("", "off"):
            what = f"is {settings[name]}: changes that fail with such an error are passed over"
            yield Difference(name, what, "remove it from my.cnf, and restart the server", lasting=True)
            break


def _filters(replica: Traits) -> Iterator[tuple[str, str]]:
    """Yield each filter that may leave out changes of the database, by its setting's name. Others are no fault."""
    own = replica.database
    hits: dict[str, bool] = {}
    listed = {name: _list(value) for name, value in replica.settings.items() if name.startswith("replicate_")}
    hits["replicate_do_db"] = own not in listed.get("replicate_do_db", [own])
    hits["replicate_ignore_db"] = own in listed.get("replicate_ignore_db", ())
    everything = f"{own}.%" in listed.get("replicate_wild_do_table", ())
    for name in ("replicate_do_table", "replicate_wild_do_table"):
        hits[name] = not everything
    for name in ("replicate_ignore_table", "replicate_wild_ignore_table"):
        hits[name] = any(_may_be_in(own, pattern) for pattern in listed.get(name, ()))
    hits["replicate_rewrite_db"] = any(own in pair for pair in listed.get("replicate_rewrite_db", ()))
    for name in ("replicate_do_domain_ids", "replicate_ignore_domain_ids"):
        hits[name] = True
    for name, hit in hits.items():
        if hit and listed.get(name):
            yield name, replica.settings[name]


def _may_be_in(database: str, pattern: str) -> bool:
    """Return whether tables of the database may match a filter's pattern; a `%` or `_` is never taken literally."""
    place = pattern.replace("\\", "").partition(".")[0]
    return fnmatchcase(database, place.replace("%", "*").replace("_", "?"))


def _collated_otherwise(replica: Mapping[str, str], primary: Mapping[str, str]) -> Iterator[Difference]:
    """Yield what has another collation; a column that one of the two lacks is for another check."""
    others = [name for name, collation in replica.items() if primary.get(name, collation) != collation]
    if not others:
        return
    first = others[0]
    names = ", ".join(name or "the database" for name in others[:NAMED])
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    what = f"has {replica[first]} where its primary has {primary[first]}: texts compare otherwise"
    yield Difference(f"collation of {names}{more}", what, "give both the same collation, or rebuild the replica")


def _is_off(node: Traits, name: str) -> bool:
    return node.settings.get(name) in ("0", "off")


def _list(value: str) -> Sequence[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


class Replication(NamedTuple):
    """Whether a replica follows; None where the user may not see that. `why` are the server's words."""

    running: bool | None
    why: str = ""
    source_id: str = ""


def about(session: NodeSession) -> dict[str, Any]:
    """Return version, account, database and the database's character set, by their names in `Survey`.

    Args:
        session: of the node.
    """
    names = ("version", "account", "database", "charset")
    found = session.query(
        "SELECT VERSION(), CURRENT_USER(), DATABASE(), (SELECT default_character_set_name"
        " FROM information_schema.schemata WHERE schema_name = DATABASE())"
    )
    return dict(zip(names, found[0], strict=True))


def variables(session: NodeSession) -> dict[str, str]:
    """Return those global settings that matter and that the server has.

    Args:
        session: of the node.
    """
    names = ", ".join(map(text_literal, _VARIABLES))
    found = session.query(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")
    return {str(name).lower(): str(value).lower() for name, value in found}


def columns(
    session: NodeSession, tables: Sequence[str]
) -> list[tuple[str, str, str, str | None, bool, str, str | None]]:
    """Return of each column: table in lower case, name, type, character set, whether INSERTs must name it,
    what fills it, and its collation; see `survey.SurveyedColumn`.

    Args:
        session: of the node.
        tables: their names in the database.
    """
    found = session.rows(
        "SELECT table_name, column_name, column_type, character_set_name, is_nullable = 'NO' AND column_default IS NULL"
        " AND extra NOT LIKE '%auto_increment%' AND extra NOT LIKE '%GENERATED%',"
        " CASE WHEN COALESCE(generation_expression, '') <> '' THEN 'generated'"
        f" WHEN CONCAT(COALESCE(column_default, ''), ' ', extra) REGEXP '{_NOW}' THEN 'now' ELSE '' END, collation_name"
        f" FROM information_schema.columns WHERE {rows_about(tables)} ORDER BY ordinal_position"
    )
    return [
        (str(table).lower(), name, str(kind).lower(), charset, bool(required), filled, collation)
        for table, name, kind, charset, required, filled, collation in found
    ]


def other_zone(session: NodeSession) -> str:
    """Return the server's own time zone, in winter and in summer, if the session has another; else the empty text.

    Args:
        session: of the node, in the zone of the pipeline's.
    """
    offsets = (_offset(scope, day) for scope in ("global", "session") for day in ("01-15", "07-15"))
    [minutes] = session.query(f"SELECT {', '.join(offsets)}")
    if minutes[:2] == minutes[2:]:
        return ""
    shown = (f"{'-' if one < 0 else '+'}{abs(one) // 60:02}:{abs(one) % 60:02}" for one in minutes[:2])
    return " and ".join(dict.fromkeys(shown))


def _offset(scope: str, day: str) -> str:
    noon = f"'2026-{day} 12:00'"
    return f"TIMESTAMPDIFF(MINUTE, {noon}, CONVERT_TZ({noon}, '+00:00', @@{scope}.time_zone))"


def clock_triggers(session: NodeSession) -> list[tuple[str, str]]:
    """Return (table, trigger) of each trigger that asks what time it is, as far as the user may see triggers.

    Args:
        session: of the node.
    """
    found = session.query(
        "SELECT event_object_table, trigger_name FROM information_schema.triggers"
        f" WHERE trigger_schema = DATABASE() AND action_statement REGEXP '{_NOW}' ORDER BY 1, 2"
    )
    return [(str(table), str(trigger)) for table, trigger in found]


def engines(session: NodeSession, tables: Sequence[str]) -> dict[str, str]:
    """Return each table's storage engine by its name in lower case; the empty string for a view.

    Args:
        session: of the node.
        tables: their names in the database.
    """
    found = session.rows(f"SELECT table_name, engine FROM information_schema.tables WHERE {rows_about(tables)}")
    return {str(table).lower(): str(engine or "") for table, engine in found}


def unsafe_engines(session: NodeSession, known: Iterable[str]) -> dict[str, str]:
    """Return the engines of all other tables in the database that cannot roll back.

    Args:
        session: of the node.
        known: the tables to leave out.
    """
    seen = {table.lower() for table in known}
    found = session.query(
        "SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE()"
        " AND table_type = 'BASE TABLE' AND engine IN ('MyISAM', 'Aria', 'MEMORY', 'CSV', 'ARCHIVE', 'MRG_MyISAM')"
    )
    return {name: kind for name, kind in found if name.lower() not in seen}


def denied(
    session: NodeSession, tables: Sequence[str], there: Mapping[str, SurveyedTable], *, writes: bool
) -> list[tuple[str, str]]:
    """Return (verb, table) of what this user may not do although the pipeline does it; nothing is written.

    Args:
        session: of the node.
        tables: their names in the database.
        there: what the user sees of them, by their names in lower case.
        writes: whether the pipeline writes here.
    """
    refused = []
    for table in tables:
        name = session.dialect.quote(table)
        if _refused(session, f"SELECT * FROM {name} LIMIT 0"):
            refused.append(("SELECT", table))
        elif writes and table.lower() in there:
            column = session.dialect.quote(next(iter(there[table.lower()].columns)))
            refused += [(verb, table) for verb, sql in _TRIALS.items() if _refused(session, sql.format(name, column))]
    return refused


def replication(session: NodeSession) -> Replication:
    """Return whether the server follows another one.

    Args:
        session: of the node.
    """
    why = ""
    for sql in ("SHOW REPLICA STATUS", "SHOW SLAVE STATUS"):
        try:
            return _judged(_named(session, sql))
        except PipelineError as error:
            why = sentence_of(error.__cause__ or error)
    runs = _runs(session)
    return Replication(runs, why if runs is None else "the server says no more to this user")


def traits(session: NodeSession) -> Traits:
    """Return what decides whether a replica shows what its primary has; of an engine without replication, nothing.

    Args:
        session: of the node, be it replica or primary.
    """
    if session.dialect.name != "mysql":
        return Traits("", {})
    found = session.query(
        "SHOW GLOBAL VARIABLES WHERE Variable_name LIKE 'replicate%' OR Variable_name LIKE '%_exec_mode'"
        " OR Variable_name LIKE '%_skip_errors' OR Variable_name = 'read_only'"
    )
    settings = {str(name).lower(): str(value).lower() for name, value in found}
    channels = _channels(session)
    for channel in channels or ():
        for name, value in channel.items():
            if name.startswith("replicate_") and value:
                parts = dict.fromkeys([*settings.get(name, "").split(","), *value.lower().split(",")])
                settings[name] = ",".join(filter(None, parts))
    (database, collation, *clock), *_ = session.query(f"SELECT DATABASE(), @@collation_database, {_CLOCK}")
    columns = session.query(
        "SELECT CONCAT(table_name, '.', column_name), collation_name FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND collation_name IS NOT NULL"
    )
    collations = {"": str(collation), **{str(name).lower(): str(kind) for name, kind in columns}}
    replicates = bool(channels) if channels is not None else _runs(session)
    texts = " and ".join(str(moment)[5:16] for moment in clock)
    return Traits(str(database).lower(), settings, channels is not None, replicates, texts, collations)


def _channels(session: NodeSession) -> list[dict[str, str]] | None:
    """Return what the server says of each of its channels; None where the user may not see that."""
    for sql in ("SHOW ALL SLAVES STATUS", "SHOW REPLICA STATUS", "SHOW SLAVE STATUS"):
        try:
            return _named(session, sql)
        except PipelineError as error:
            if code_of(error.__cause__ or error) in _DENIED:
                return None
    return None


def _runs(session: NodeSession) -> bool | None:
    """Return whether the server follows another; MariaDB shows this much to every user."""
    found = session.query("SHOW GLOBAL STATUS LIKE 'Slave_running'")
    return str(found[0][1]).upper() == "ON" if found else None


def _judged(rows: list[dict[str, str]]) -> Replication:
    if not rows:
        return Replication(False, "no replication is configured")
    one = rows[0]
    threads = [
        one.get(f"{who}_{thread}_running", "").lower() for who in ("slave", "replica") for thread in ("io", "sql")
    ]
    errors = [one[key] for key in ("last_io_error", "last_sql_error") if one.get(key)]
    source = one.get("master_server_id") or one.get("source_server_id") or ""
    why = "; ".join(errors) or "its threads are stopped"
    return Replication([state for state in threads if state] == ["yes", "yes"], why, source)


def _named(session: NodeSession, sql: str) -> list[dict[str, str]]:
    rows = session.query(sql)
    names = [str(column[0]).lower() for column in session.adapter.cursor.description or ()] if rows else []
    return [{name: str(value or "") for name, value in zip(names, row, strict=True)} for row in rows]


def _refused(session: NodeSession, sql: str) -> bool:
    """Return whether the user lacks the privilege; other faults of a table are for another check to find."""
    with session.translated():
        try:
            session.rows(sql)
        except Exception as error:
            code = code_of(error)
            if code is None or code >= _CLIENT_ERRORS:
                raise  # the server went away, so the privilege is unknown
            return code in _DENIED
    return False
