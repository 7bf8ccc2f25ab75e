"""What is backed up, as it is named on a command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import click

import pharmabackup as pb
from pharmabackup.cli.settings import named

TIER = 3
ANY, REQUIRED = "[NAME=]", "NAME="
# By option: how a name and what else stand behind it, and what it says about itself.
OPTIONS = {
    "files": (f"{ANY}PATH", "A folder and all that is in it."),
    "sqlite": (f"{ANY}PATH", "An SQLite database, in use or not."),
    "postgresql": (f"{ANY}URL", "A PostgreSQL database; PGPASSWORD or ~/.pgpass."),
    "mysql": (f"{ANY}URL", "A MariaDB or MySQL database; MYSQL_PWD."),
    "sqlserver": (f"{ANY}URL", "A SQL Server database: mssql://HOST/NAME?staging=FOLDER; SQLCMDPASSWORD."),
    "postgresql-cluster": (f"{REQUIRED}URL", "A whole PostgreSQL server, as its files."),
    "mariadb-instance": (f"{REQUIRED}URL", "A whole MariaDB server, as its files; MYSQL_PWD."),
}
Named = Mapping[str, tuple[str, ...]]
"""By the options' names, with _ for -."""


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all options that name sources; they come as keywords."""
    for option, (metavar, text) in reversed(OPTIONS.items()):
        command = click.option(f"--{option}", metavar=metavar, multiple=True, help=text)(command)
    return command


def sources_of(
    given: Named, tiers: dict[str, object], exclude: Sequence[str] = (), *, shadow: bool = False
) -> list[pb.Source]:
    """The sources that were named. Tiers are taken out of `tiers`; what is left there is of none."""
    sources: list[pb.Source] = []
    for option, (metavar, _) in OPTIONS.items():
        for text in given.get(option.replace("-", "_"), ()):
            name, place = named(text)
            if name is None and metavar.startswith(REQUIRED):
                raise click.BadParameter(f"give it as {metavar}.", param_hint=f"--{option}")
            source = _source(option, place, name, TIER, exclude, shadow)
            tier = tiers.pop(source.name, None)
            sources.append(source if tier is None else _source(option, place, name, int(str(tier)), exclude, shadow))
    if tiers:
        raise click.BadParameter(f"there is no dataset {', '.join(sorted(tiers))} here.", param_hint="--tier")
    return sources


def _source(option: str, place: str, name: str | None, tier: int, exclude: Sequence[str], shadow: bool) -> pb.Source:
    match option:
        case "files":
            return pb.Files(place, name=name, tier=tier, exclude=exclude, shadow=shadow)
        case "sqlite":
            return pb.SQLite(place, name=name, tier=tier)
        case "postgresql":
            return pb.PostgreSQL(place, name=name, tier=tier)
        case "mysql":
            return pb.MySQL(place, name=name, tier=tier)
        case "sqlserver":
            return sqlserver(place, name, tier)
        case "postgresql-cluster":
            return pb.PostgreSQLCluster(place, name=name or "", tier=tier)
        case "mariadb-instance":
            return pb.MariaDBInstance(place, name=name or "", tier=tier)
        case _:
            raise AssertionError(option)


def sqlserver(url: str, name: str | None, tier: int = TIER) -> pb.Source:
    """mssql://[USER@]HOST[:PORT]/DATABASE?staging=FOLDER; the host may be HOST%5CINSTANCE."""
    try:
        parts = urlsplit(url, allow_fragments=False)
        port = parts.port
    except ValueError:
        raise _no_sqlserver() from None
    option, _, staging = parts.query.partition("=")
    if parts.scheme != "mssql" or parts.password is not None or option != "staging" or not staging:
        raise _no_sqlserver()
    host = unquote(parts.netloc.rpartition("@")[2].removesuffix(f":{port}").strip("[]")) or "."
    return pb.SQLServer(
        unquote(parts.path.removeprefix("/")),
        server=f"{host},{port}" if port else host,
        staging=unquote(staging),
        name=name,
        tier=tier,
        user=unquote(parts.username) if parts.username else None,
    )


def _no_sqlserver() -> click.UsageError:
    return click.UsageError("Write mssql://[USER@]HOST/DATABASE?staging=FOLDER, without a password.")
