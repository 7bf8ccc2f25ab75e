"""Who there is on a server, and what a database itself is like: what pg_dump leaves out, as JSON.

Roles are created where a server lacks them, with what they may do, but for what makes them masters of a server:
SUPERUSER, REPLICATION and BYPASSRLS are never granted by a restore. Those that are there stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pharmabackup.sources.postgresql_server import one

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
    "SELECT DISTINCT r.rolname, m.rolname, admin_option FROM pg_auth_members a"
    " JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member ORDER BY 1, 2, 3"
)
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
    sees = one(connection, "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0]
    passwords: dict[str, str] = dict(connection.execute(PASSWORDS).fetchall()) if sees else {}
    names = ("name", *ATTRIBUTES.values(), "connections", "until")
    roles = [dict(zip(names, row, strict=True)) for row in connection.execute(ROLES)]
    for role in roles:
        role["password"] = passwords.get(role["name"])
    members = [list(row) for row in connection.execute(MEMBERS)]
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
        for role_name, member, admin in found["members"]:
            if member in missing and role_name in known:
                grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(role_name), sql.Identifier(member))
                connection.execute(grant + sql.SQL(" WITH ADMIN OPTION") if admin else grant)


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


def apply_to_database(connection: Connection, name: str, like: Mapping[str, Any]) -> None:
    """Make a database like that, all or nothing. Who is not on this server owns, and may, nothing."""
    from psycopg import sql

    database = sql.Identifier(name)
    with connection.transaction():
        there = {str(row[0]) for row in connection.execute("SELECT rolname FROM pg_roles")}
        for setting in like["settings"]:
            key, _, value = setting.partition("=")
            connection.execute("SELECT set_config(%s, %s, true)", (key, value))  # so that nothing has to be quoted
            keep = sql.SQL("ALTER DATABASE {} SET {} FROM CURRENT")
            connection.execute(keep.format(database, sql.Identifier(*key.split("."))))
        if like["connections"] >= 0:
            limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
            connection.execute(limit.format(database, sql.Literal(like["connections"])))
        if not like["access_is_default"]:
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
            for grantee, privilege, grantable in like["access"]:
                if grantee is None or grantee in there:
                    who = sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
                    grant = sql.SQL("GRANT {} ON DATABASE {} TO {}").format(sql.SQL(privilege), database, who)
                    connection.execute(grant + sql.SQL(" WITH GRANT OPTION") if grantable else grant)
        if like["owner"] in there:
            owner = sql.SQL("ALTER DATABASE {} OWNER TO {}")
            connection.execute(owner.format(database, sql.Identifier(like["owner"])))
