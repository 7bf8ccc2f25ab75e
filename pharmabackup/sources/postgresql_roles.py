"""Who there is on a server, and what a database itself is like: what pg_dump leaves out, as JSON.

Roles are created where a server lacks them, with what they may do, but for what makes them masters of a server:
SUPERUSER, REPLICATION and BYPASSRLS are never granted by a restore. Those that are there stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pharmabackup.sources.postgresql_server import major, one

if TYPE_CHECKING:
    from pharmabackup.sources.postgresql_server import Connection

ATTRIBUTES = {
    "rolinherit": "INHERIT",
    "rolcreaterole": "CREATEROLE",
    "rolcreatedb": "CREATEDB",
    "rolcanlogin": "LOGIN",
}
ROLES = (
    "SELECT rolname, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolconnlimit, rolvaliduntil::text"
    " FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY rolname"
)
MEMBERS = (
    "SELECT DISTINCT r.rolname, m.rolname, admin_option, {} FROM pg_auth_members a"
    " JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member ORDER BY 1, 2, 3"
)
OPTIONS_SINCE = 16  # a membership says whether its member inherits, and may become the role
MASTERS = (
    "WITH RECURSIVE masters AS (SELECT oid FROM pg_roles WHERE rolsuper OR rolreplication OR rolbypassrls"
    " OR rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')"
    " UNION SELECT member FROM pg_auth_members a JOIN masters ON masters.oid = a.roleid)"
    " SELECT rolname FROM pg_roles JOIN masters USING (oid)"
)
LISTS = ("local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces")
PASSWORDS = "SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL"
DATABASE = (
    "SELECT pg_get_userbyid(datdba), datconnlimit, shobj_description(oid, 'pg_database'), datacl IS NULL"
    " FROM pg_database WHERE datname = current_database()"
)
ACCESS = (
    "SELECT CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END, privilege_type, is_grantable"
    " FROM pg_database, aclexplode(datacl) WHERE datname = current_database() ORDER BY 1, 2"
)
SETTINGS = (
    "SELECT unnest(setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
    " WHERE setrole = 0 AND datname = current_database()"
)


def read_roles(connection: Connection) -> bytes:
    """All roles of the server, with the hashes of their passwords where this user may see them."""
    from psycopg import sql

    sees = one(connection, "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0]
    passwords: dict[str, str] = dict(connection.execute(PASSWORDS).fetchall()) if sees else {}
    names = ("name", *ATTRIBUTES.values(), "connections", "until")
    roles = [dict(zip(names, row, strict=True)) for row in connection.execute(ROLES)]
    for role in roles:
        role["password"] = passwords.get(role["name"])
    more = "inherit_option, set_option" if major(connection) >= OPTIONS_SINCE else "NULL, NULL"
    members = [list(row) for row in connection.execute(sql.SQL(MEMBERS).format(sql.SQL(more)))]
    return json.dumps({"roles": roles, "members": members}, indent=1, ensure_ascii=False).encode()


def create_roles(connection: Connection, stored: bytes) -> None:
    """Those that this server lacks, all or none."""
    from psycopg import sql

    found: dict[str, Any] = json.loads(stored)
    with connection.transaction():
        there = {str(row[0]) for row in connection.execute("SELECT rolname FROM pg_roles")}
        missing = {role["name"]: role for role in found["roles"] if role["name"] not in there}
        for name, role in missing.items():
            words = [word if role[word] else f"NO{word}" for word in ATTRIBUTES.values()]
            more: list[sql.Composable] = [
                sql.SQL(word) for word in words if word not in ("NOCREATEROLE", "NOCREATEDB", "NOLOGIN", "INHERIT")
            ]
            if role["connections"] >= 0:
                more.append(sql.SQL("CONNECTION LIMIT {}").format(sql.Literal(role["connections"])))
            if role["until"]:
                more.append(sql.SQL("VALID UNTIL {}").format(sql.Literal(role["until"])))
            if role["password"]:
                more.append(sql.SQL("PASSWORD {}").format(sql.Literal(role["password"])))
            connection.execute(sql.SQL(" ").join([sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)), *more]))
        known = there | set(missing)
        masters = {str(row[0]) for row in connection.execute(MASTERS)}
        options = major(connection) >= OPTIONS_SINCE
        for role_name, member, admin, inherits, sets in found["members"]:
            if member not in missing or role_name not in known or role_name in masters:
                continue
            grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(role_name), sql.Identifier(member))
            if options and inherits is not None:
                grant += sql.SQL(" WITH ADMIN {}, INHERIT {}, SET {}").format(
                    *(sql.SQL(str(bool(option))) for option in (admin, inherits, sets))
                )
            elif admin:
                grant += sql.SQL(" WITH ADMIN OPTION")
            connection.execute(grant)


def read_database(connection: Connection) -> dict[str, object]:
    """What this database is like: its owner, who may connect, its settings."""
    owner, limit, comment, default = one(connection, DATABASE)
    return {
        "owner": owner,
        "connections": limit,
        "comment": comment or "",
        "access": [] if default else [list(row) for row in connection.execute(ACCESS)],
        "access_is_default": bool(default),
        "settings": [str(row[0]) for row in connection.execute(SETTINGS)],
    }


def apply_to_database(connection: Connection, name: str, like: Mapping[str, Any]) -> list[str]:
    """Make a database like that. What could not be, by name: who is not on this server owns, and may, nothing."""
    from psycopg import Error, sql

    database, missed = sql.Identifier(name), list[str]()
    there = {str(row[0]) for row in connection.execute("SELECT rolname FROM pg_roles")}

    def apply(what: str, *statements: sql.Composed) -> None:
        try:
            with connection.transaction():
                for statement in statements:
                    connection.execute(statement)
        except Error as error:
            if connection.closed:
                raise
            missed.append(f"{what} ({error.sqlstate})")

    for setting in like["settings"]:
        key, _, value = setting.partition("=")
        named = sql.Identifier(*key.split("."))
        if key in LISTS:  # whose parts are quoted already
            set_here = sql.SQL("SELECT set_config({}, {}, true)").format(sql.Literal(key), sql.Literal(value))
            apply(key, set_here, sql.SQL("ALTER DATABASE {} SET {} FROM CURRENT").format(database, named))
        else:
            change = sql.SQL("ALTER DATABASE {} SET {} TO {}")
            apply(key, change.format(database, named, sql.Literal(value)))
    if like["connections"] >= 0:
        limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
        apply("connection limit", limit.format(database, sql.Literal(like["connections"])))
    if not like["access_is_default"]:
        grants = [sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database)]
        for grantee, privilege, grantable in like["access"]:
            if grantee is None or grantee in there:
                who = sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
                grant = sql.SQL("GRANT {} ON DATABASE {} TO {}").format(sql.SQL(privilege), database, who)
                grants.append(grant + sql.SQL(" WITH GRANT OPTION") if grantable else grant)
        apply("who may connect", *grants)
    if like["owner"] in there:
        owner = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        apply("owner", owner.format(database, sql.Identifier(like["owner"])))
    return missed
