"""The recovery kit: one page that says what is backed up, where, who has the shares, and what to type after a fire.

No secret is on it, so that it can lie where it is found: no share, no passphrase, no value of a storage's option.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pharmabackup as pb
from pharmabackup.report.pages import rendered
from pharmabackup.results import Slot, sized
from pharmabackup.wholefile import write_whole

DATASETS_MAX = 12  # on the page; of more the first tiers are
PLACES_MAX = 6
HOLDERS_MAX = 16  # as many as there can be shares
TEXT_MAX = 60  # characters of a name
ADDRESS_MAX = 300
OPTIONS_MAX = 8
POINTS, POINTS_MIN = 9.2, 6.0  # of the letters
LINES, FIXED = 62.0, 46.0  # of the page at that size; of what always stands on it
LINE, HALF = 90, 35  # characters
COMMANDS = 5  # that begin with the address
WITH_USER = ("sftp", "ssh", "ftp", "ftps", "smb")  # where the name before an @ is a user's, and is needed
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*://)([^/?#]*)([^?#]*)(.*)", re.DOTALL)
PORT = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:]*)(:[0-9]*)?")
TYPABLE = re.compile(r"[\w:/\\.~@+,=() -]+")  # within double quotes, in every shell


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the repository lies. `url` as for `Repository.open`; what could be a secret in it is not printed.

    `options`: the names of the storage options that it takes (of a mapping, its values are not looked at). `note`:
    what a person has to know, such as "the disk in the fire safe".
    """

    url: str | os.PathLike[str]
    options: Iterable[str] = ()
    note: str = ""


def recovery_kit(
    path: str | os.PathLike[str],
    repository: pb.Repository,
    *,
    holders: Sequence[str],
    threshold: int = 2,
    places: Sequence[Place] = (),
    name: str = "",
    contact: str = "",
) -> Path:
    """Write the page, as HTML that is printed on one sheet of A4. It replaces an older one.

    `holders`: who has share 1, 2 and so on; `threshold`: so many of them open, as it was said to `split_recovery`. If
    the audit log says otherwise, nothing is written. `places`: all of them, the one to try first at the front; else
    where it was opened. `name`: whose it is; `contact`: whom to ring.
    InvalidInput, NotFound when there is no recovery key, SourceFailed, Unsupported without the extra; and as
    `Repository.slots` and `snapshots`.
    """
    _check(holders, threshold, places, [name, contact])
    slot = _recovery(repository)
    _check_split(repository, slot, f"{threshold} of {len(holders)}")
    found = [_place(place) for place in places or [Place(url=repository.url)]]
    newest: dict[str, pb.Snapshot] = {}
    for snapshot in repository.snapshots():
        if not snapshot.forgotten:
            newest.setdefault(snapshot.dataset, snapshot)
    ordered = sorted(newest.values(), key=lambda snapshot: (snapshot.tier, snapshot.dataset))
    first = str(found[0]["url"])
    shown = ordered[:DATASETS_MAX]
    facts = {
        "points": _points([snapshot.dataset for snapshot in shown], found, holders),
        "name": _short(name),
        "contact": _short(contact, 2 * TEXT_MAX),
        "made": _day(datetime.now(UTC)),
        "version": pb.__version__,
        "repository": repository.id,
        "datasets": [
            {
                "name": _short(snapshot.dataset),
                "tier": snapshot.tier,
                "until": _minute(snapshot.data_until),
                "size": sized(snapshot.size),
                "whole": snapshot.complete,
            }
            for snapshot in shown
        ],
        "more": len(ordered) - DATASETS_MAX if len(ordered) > DATASETS_MAX else 0,
        "size": sized(sum(snapshot.size for snapshot in ordered)),
        "places": found,
        "address": first if TYPABLE.fullmatch(first) else "ADDRESS",
        "options": any(place["options"] for place in found),
        "holders": [_short(holder) for holder in holders],
        "threshold": threshold,
        "fingerprint": slot.fingerprint,
        "split": _day(slot.created),
    }
    write_whole(path, [rendered("recovery_kit.html", facts)])
    return Path(path)


def _points(datasets: Sequence[str], places: Sequence[dict[str, object]], holders: Sequence[str]) -> float:
    """The size of the letters with which all of it fits on the page; measured in a browser, by tests."""
    address = str(places[0]["url"])
    letters = [sum(len(str(value)) for value in place.values()) for place in places]
    names = [1 + min(len(name), TEXT_MAX) // HALF for name in (*datasets, *holders)]
    lines = sum(names[: len(datasets)]) + sum(names[len(datasets) :]) / 2 + sum(1 + count / LINE for count in letters)
    lines += COMMANDS * len(address) / LINE
    return round(max(POINTS_MIN, min(POINTS, POINTS * LINES / (FIXED + lines))), 1)


def _check(holders: Sequence[str], threshold: int, places: Sequence[Place], texts: Sequence[str]) -> None:
    if isinstance(holders, str) or not all(isinstance(text, str) and text.strip() for text in holders):
        raise pb.InvalidInput("A holder of a share has a name.", kind="holders", remedy="Give a list of names.")
    if not 2 <= threshold <= len(holders) <= HOLDERS_MAX:
        raise pb.InvalidInput(
            f"There are no {threshold} of {len(holders)} shares.",
            kind="holders",
            remedy="Name the holder of each share, and give the threshold that the key was split with.",
        )
    if len(places) > PLACES_MAX:
        raise pb.InvalidInput(
            f"{len(places)} places do not fit on one page.", kind="places", remedy=f"Give the first {PLACES_MAX}."
        )
    if not all(isinstance(text, str) for text in texts):
        raise pb.InvalidInput("A name is a text.", remedy="Give name and contact as text.")


def _recovery(repository: pb.Repository) -> Slot:
    slots = [slot for slot in repository.slots() if slot.kind == "shares" and slot.revoked is None]
    if not slots:
        raise pb.NotFound(
            "This repository has no recovery key, so that nobody could use the page.",
            kind="recovery-key",
            remedy="Split one first: split_recovery().",
        )
    return slots[-1]


def _check_split(repository: pb.Repository, slot: Slot, given: str) -> None:
    """After a fire the right number of people has to come. InvalidInput when the key was split in another way.

    Owners alone split: what others write into the log says nothing about it.
    """
    owners = {one.name for one in repository.slots() if one.role == "owner"}
    records = (record for record in repository.audit(since=slot.created) if record.slot in owners)
    split = [record.subject for record in records if record.event == "split-recovery" and record.outcome == "done"]
    if split and split[-1] != given:
        raise pb.InvalidInput(
            f"The recovery key was not split {given}: {split[-1]} shares open.",
            kind="holders",
            remedy="Name the holder of each share, and give that threshold.",
        )


def _place(place: Place) -> dict[str, object]:
    options = sorted(map(str, place.options))
    if len(options) > OPTIONS_MAX or any("=" in option for option in options):  # a value may be a secret
        raise pb.InvalidInput(
            "These are no names of storage options.", kind="places", remedy="Name those that are needed to open it."
        )
    url = str.__str__(printed(place.url))
    if "://" not in url:
        url = os.path.abspath(url)
    note = _short(place.note, 2 * TEXT_MAX)
    return {
        "url": url,
        "options": [_short(option, 30) for option in options],
        "note": note,
    }


def printed(url: str | os.PathLike[str]) -> str:
    """An address as it may lie in a drawer: without password, key or signature. InvalidInput; it shows none."""
    text: str | None = os.fspath(url)
    if text is not None and "://" in text:
        text = _without_secrets(text)
    if not text or len(text) > ADDRESS_MAX:
        raise pb.InvalidInput(
            "One of the addresses cannot be printed: it is none, or it may hold a password.",
            kind="places",
            remedy=f"Give it without user and password, in {ADDRESS_MAX} characters at most.",
        )
    return text


def _without_secrets(url: str) -> str | None:
    """None where it cannot be told what is a password: one that holds a / or a ? makes another address of it."""
    found = ADDRESS.fullmatch(url)
    if found is None:
        return None
    scheme, server, rest, query = found.groups()
    kind = scheme.removesuffix("://").rpartition("::")[2].lower()
    user, at, host = server.rpartition("@")
    doubtful = "@" in rest and (":" in server + rest.partition("@")[0] or kind.startswith(("http", "webdav")))
    if doubtful or "@" in query or not PORT.fullmatch(host):
        return None
    user = user.partition(":")[0] if kind in WITH_USER else ""
    return f"{scheme}{user}{at if user else ''}{host}{rest}"


def _short(text: str, limit: int = TEXT_MAX) -> str:
    text = str.__str__(text)  # of a kind of text that says that it is markup, the text
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%d %b %Y}".lstrip("0")


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%d %b %Y, %H:%M}".lstrip("0")
