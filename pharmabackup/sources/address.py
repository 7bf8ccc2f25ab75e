"""A database's address: what is in a URL, and what must not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from pharmabackup.errors import Error, InvalidInput


@dataclass(frozen=True, slots=True)
class Address:
    """The parts that were given; empty, or None, where they were not."""

    database: str
    host: str | None
    port: int | None
    user: str | None
    options: dict[str, str]


def address(url: str, *, schemes: Sequence[str], product: str, kept: str, whole: bool = False) -> Address:
    """The parts of "name" or "scheme://user@host:port/name?option=…". `kept`: where a password is, if not given.

    `whole`: of a server, and so without a name. InvalidInput, also where there is a password in it.
    """

    def bad(why: str) -> Error:
        return bad_address(why, schemes[0], product, whole=whole)

    if "://" not in url and not whole:
        if {"@", ":", "/", "="} & set(url):
            raise bad("it is neither a name nor a URL")
        parts = urlsplit(f"{schemes[0]}:///")
        database = url
    else:
        parts = urlsplit(url)
        database = unquote(parts.path.removeprefix("/"))
    try:
        port = parts.port
    except ValueError:
        raise bad("its port is no number") from None
    if parts.scheme not in schemes:
        raise bad(f"it does not begin with {schemes[0]}://")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.password is not None or "password" in options:
        raise InvalidInput(
            "A database's URL must not hold its password, since URLs are logged.",
            remedy=f"Give it as `password`, or keep it in {kept}.",
        )
    if whole and database:
        raise bad("it names one database, and all are copied")
    if (not whole and (not database or "/" in database)) or "\0" in unquote(url):
        raise bad("it names no database")
    return Address(
        database,
        unquote(parts.hostname) if parts.hostname else None,
        port,
        unquote(parts.username) if parts.username else None,
        options,
    )


def bad_address(why: str, scheme: str, product: str, *, whole: bool = False) -> Error:
    return InvalidInput(
        f"That is no address of a {product} {'server' if whole else 'database'}: {why}.",
        remedy=f'Write "{scheme}://user@host".' if whole else f'Write "pmr" or "{scheme}://user@host/pmr".',
    )
