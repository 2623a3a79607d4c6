"""Query MySQL and MariaDB about themselves. Every query runs with an ordinary user's rights, or says that it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import PipelineError
from pipeline.shard.driver_errors import code_of, sentence_of
from pipeline.shard.records.ledger import text_literal
from pipeline.shard.session import NodeSession
from pipeline.shard.survey.likeness import Traits
from pipeline.shard.table_facts import rows_about

if TYPE_CHECKING:
    from pipeline.shard.survey import SurveyedTable

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
