"""Findings that several verbs make."""

from __future__ import annotations

from collections.abc import Sequence

from pharmabackup import ids
from pharmabackup.clock import from_ns, iso
from pharmabackup.engine.history import CONTESTED_REMEDY, Committed, History, told_contested
from pharmabackup.engine.index import Index
from pharmabackup.engine.target_layout import Layout
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.events import Finding
from pharmabackup.format.manifest import Entry
from pharmabackup.retention import AHEAD_NS
from pharmabackup.sources.base import Source
from pharmabackup.storage.disks import on_one_disk

RANGES_TOLD = 20  # of one file
Ranges = list[tuple[int, int]]  # begin and end


def history_findings(history: History, location: str) -> list[Finding]:
    """What is wrong with a repository's history: it goes on, and says so."""
    found: list[Finding] = []
    for name, error in sorted(history.damaged.items()):
        kind, remedy = "snapshot-damaged", "Run check. Restore that snapshot from another location."
        if not name.startswith("snapshots/"):
            kind, remedy = "mark-damaged", "Restore that object from another location. Until then nothing is let go."
        found.append(
            Finding(
                code=kind, severity="critical", subject=name, message=error.message, remedy=remedy, location=location
            )
        )
    for name, error in sorted(history.void.items()):
        found.append(
            Finding(
                code={"snapshot-revoked": "snapshot-revoked", "carry": "copy-void"}.get(error.kind, "mark-void"),
                severity="warning",
                subject=name,
                message=error.message,
                remedy=error.remedy,
                location=location,
            )
        )
    for name, (own, brought) in sorted(history.contested.items()):
        found.append(
            Finding(
                code="record-contested",
                severity="critical",
                subject=name,
                message=told_contested(name, own, brought),
                remedy=CONTESTED_REMEDY,
                location=location,
            )
        )
    if history.vanished:
        message = f"{len(history.vanished)} snapshots, marks or lists of keys that were there are gone."
        remedy = "Somebody deleted them or turned the storage back: find out who, and why."
        for record, (roster, slot) in sorted(history.unlisted.items())[:1]:
            message += f" {slot.name!r}, which signed {record}, has seen {roster}."
            others = sorted({other.name for _, other in history.unlisted.values()} - {slot.name})
            if others:
                message += f" Others cite such lists, too: {', '.join(map(repr, others))}."
            remedy += f" If it is {slot.name!r} that was stolen, revoke it: then nobody heeds what it says of lists."
            remedy += " Revoke all that were stolen in one call, or one stops the other's." if others else ""
        found.append(
            Finding(
                code="history-forked",
                severity="critical",
                subject=history.vanished[0],
                message=message,
                remedy=remedy,
                location=location,
            )
        )
    return found


def keyring_finding(name: str, location: str) -> Finding:
    """A keyring that is not brought to `location`."""
    return Finding(
        code="keyring-differs",
        severity="warning",
        subject=name,
        message="A keyring is damaged, here or there, or it has a number after which none is left for the next. "
        "It was left where it is. Who needs it may not be able to open that place.",
        remedy="Run check in both places. Find out who put it there, or put the whole one in the place of the other.",
        location=location,
    )


def clock_findings(history: History, now: int, location: str) -> list[Finding]:
    """Snapshots whose time lies in the future, or before that of one that they follow.

    `now`: by the storage's clock, or else this machine's.
    """
    found: list[Finding] = []
    ahead = [item for item in history.newest() if item.snapshot.time > now + AHEAD_NS]
    if ahead:
        found.append(
            Finding(
                code="time-ahead",
                severity="warning",
                subject=ahead[-1].transaction.hex(),
                message=f"{len(ahead)} snapshots have a time that lies in the future, up to "
                f"{iso(from_ns(ahead[0].snapshot.time))}: a clock was wrong, or is.",
                remedy="Set the clocks of the storage and of this machine right. Until then these and later "
                "snapshots share one time, and rules let none of them go.",
                location=location,
            )
        )
    behind: dict[str, list[Committed]] = {}
    for item in history.newest():
        before = (history.committed.get(head.transaction) for head in item.snapshot.heads)
        if any(other is not None and other.snapshot.time > item.snapshot.time for other in before):
            behind.setdefault(item.slot.name, []).append(item)
    for who, items in sorted(behind.items()):
        found.append(
            Finding(
                code="time-behind",
                severity="warning",
                subject=items[0].transaction.hex(),
                message=f"{len(items)} snapshots of {who!r} say that they are older than what they follow.",
                remedy="No backup does that: find out who has its key, and revoke it. They take no other's place.",
                location=location,
            )
        )
    return found


def in_file(entry: Entry, stored: Ranges) -> Ranges:
    """Stretches of a file's stored content as stretches of the file, in order: in a sparse one they lie elsewhere."""
    layout, found = Layout(entry.extents), Ranges()
    for begin, end in sorted(stored):
        for place, first, last in layout.spans(begin, end - begin):
            if found and found[-1][1] == place:
                found[-1] = found[-1][0], place + last - first
            else:
                found.append((place, place + last - first))
    return found


def told_ranges(ranges: Ranges) -> str:
    """Where in a file, in words: bytes 0-4,095 and 8,192-12,287."""
    told = [f"{begin:,}-{end - 1:,}" for begin, end in ranges[:RANGES_TOLD]]
    if len(ranges) > RANGES_TOLD:
        told.append(f"{len(ranges) - RANGES_TOLD:,} more places")
    return "bytes " + (" and ".join([", ".join(told[:-1]), told[-1]]) if len(told) > 1 else told[0])


def index_findings(index: Index, location: str) -> list[Finding]:
    """What was passed over, since it is damaged."""
    packs = [
        Finding(
            code="pack-damaged",
            severity="warning",
            subject=ids.pack_name(pack),
            message=f"{error.message} What it holds was not looked for; snapshots that need it may be hurt.",
            remedy="Run check to see what is affected.",
            location=location,
        )
        for pack, error in sorted(index.damaged.items())
    ]
    segments = [
        Finding(
            code="index-damaged",
            severity="warning",
            subject=ids.index_name(segment),
            message=f"{error.message} It was passed over; what it said stands in the packs.",
            remedy=error.remedy,
            location=location,
        )
        for segment, error in sorted(index.changed.items())
    ]
    return packs + segments


def same_device_findings(unlocked: Unlocked, sources: Sequence[Source]) -> list[Finding]:
    """Of each source whose disk the repository lies on, or another part of it."""
    return [
        Finding(
            code="same-device",
            severity="critical",
            subject=source.name,
            message=f"The backup of {source.name} lies on the disk that holds the data itself.",
            remedy="Back up to another disk too: if this one breaks, both are lost.",
            location=unlocked.storage.location,
        )
        for source in sources
        if _on_same_device(unlocked, source)
    ]


def _on_same_device(unlocked: Unlocked, source: Source) -> bool:
    root, location = unlocked.storage.local_root(), source.location()
    if root is None or location is None:
        return False
    try:
        return on_one_disk(root, location)
    except OSError:
        return False
