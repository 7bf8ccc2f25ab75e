"""The records that no snapshot needs and that a collector cannot do without: can they be read?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pharmabackup import ids
from pharmabackup.engine.collections import parse_name
from pharmabackup.engine.garbage import Look, list_intents, pinned_in
from pharmabackup.engine.keyrings import NUMBER
from pharmabackup.engine.opening import REPOSITORY
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound, Unsupported
from pharmabackup.events import Severity
from pharmabackup.format.repository import REPOSITORY_MAX, decode_repository, odd_members
from pharmabackup.format.transaction import RECORD_MAX, Audit, Condemn, Done, Execute
from pharmabackup.format.wire import Kind, Record, malformed
from pharmabackup.verbs.findings import damaged_keyrings

PARTS: tuple[tuple[str, Kind, type[Record]], ...] = (
    ("condemn", Kind.CONDEMN, Condemn),
    ("execute", Kind.EXECUTE, Execute),
    ("done", Kind.DONE, Done),
)
Find = Callable[[str, Severity, str, str, str], None]


def check_records(unlocked: Unlocked, find: Find, look: Look) -> None:
    """The repository's own record, keyrings, intents, collections and audit records. StorageFailed."""
    _repository(unlocked, find)
    for finding in damaged_keyrings(unlocked):
        find(finding.code, finding.severity, finding.subject, finding.message, finding.remedy)
    _audit(unlocked, find, look)
    for own in list_intents(unlocked).values():
        look()
        for name in own.names:
            try:
                pinned_in(unlocked, name)
            except NotFound:
                continue  # a collection has deleted it
            except Damaged as error:
                remedy = "Nothing is lost. A prune may wait until it is a day old; then it takes it away."
                find("intent-damaged", "warning", name, f"{name}: {error.message}", remedy)
    _collections(unlocked, find, look)


def _repository(unlocked: Unlocked, find: Find) -> None:
    """Nobody signs it, since it is read before any key: a changed name in it looks like a later version's."""
    remedy = "It is a text: put right by hand what it says, or ask for help. What is backed up is unharmed."
    try:
        data = unlocked.storage.get(REPOSITORY, limit=REPOSITORY_MAX)
        missing, unknown = odd_members(data)
    except (Damaged, NotFound, Unsupported) as error:
        find("repository-damaged", "critical", REPOSITORY, f"{REPOSITORY}: {error.message}", remedy)
        return
    problems, said, own = [], decode_repository(data).id, unlocked.repository.hex()
    if said != own:
        problems.append(f"its id is {own}, in small letters")
    if missing:
        problems.append(f"it lacks {', '.join(missing)}" + (f" and has {', '.join(unknown)}" if unknown else ""))
    if problems:
        what, opens = "; ".join(problems), said.lower() == own
        severity: Severity = "warning" if opens else "critical"
        find("repository-damaged", severity, REPOSITORY, f"{REPOSITORY} is not what was written: {what}.", remedy)


def _audit(unlocked: Unlocked, find: Find, look: Look) -> None:
    """Each slot's chain: no record is missing, changed or put between."""
    chains: dict[str, set[int]] = {}
    for info in unlocked.storage.list("audit"):
        folder, _, last = info.name.rpartition("/")
        if NUMBER.fullmatch(last):
            chains.setdefault(folder, set()).add(int(last))
        else:
            message = f"{info.name} is not part of a repository."
            find("object-unknown", "info", info.name, message, "Find out who put it there.")
    for folder, numbers in sorted(chains.items()):
        previous: bytes | None = None  # the hash of the one before; None: it cannot be known
        for number in sorted(numbers):
            look()
            if number and number - 1 not in numbers:
                previous = None
                _tell_audit(find, f"{folder}/{number - 1}", "it is missing")
            name = f"{folder}/{number}"
            try:
                data = unlocked.storage.get(name, limit=RECORD_MAX)
                opened = unlocked.open(Kind.AUDIT, name, data, Audit)
                record = opened.record
                if record.number != number or (number == 0) != (record.previous is None):
                    raise malformed("audit", "it is another one")
                if opened.slot.id.hex() != folder.partition("/")[2]:
                    raise malformed("audit", "somebody else wrote it")
            except (Damaged, NotFound) as error:
                previous = None
                _tell_audit(find, name, error.message.rstrip("."))
                continue
            if previous is not None and record.previous != previous:
                _tell_audit(find, name, "it does not follow from the one before it")
            previous = hashlib.sha256(data).digest()


def _tell_audit(find: Find, name: str, why: str) -> None:
    find(
        "audit-damaged",
        "warning",
        name,
        f"What {name} says was done cannot be relied on: {why}.",
        "Copy that object from another location. What is backed up is unharmed.",
    )


def _collections(unlocked: Unlocked, find: Find, look: Look) -> None:
    parts: dict[int, set[str]] = {}
    for info in unlocked.storage.list("collections"):
        try:
            number, part = parse_name(info.name)
        except Damaged:
            _tell(find, info.name, "it is no name of such a record")
        else:
            parts.setdefault(number, set()).add(part)
    for number in sorted(parts):
        look()
        if number > 1 and number - 1 not in parts:
            _tell(find, ids.collection_name(number - 1, "condemn"), "it is missing")
        for name, kind, shape in _expected(number, parts[number], ended=number + 1 in parts):
            try:
                unlocked.get(kind, name, shape)
            except NotFound:
                _tell(find, name, "it is missing")
            except Damaged as error:
                _tell(find, name, error.message.rstrip("."))


def _expected(number: int, there: set[str], *, ended: bool) -> list[tuple[str, Kind, type[Record]]]:
    """Of the last collection, which may be going on, all that come before one that is there."""
    last = len(PARTS) if ended else max(place for place, (part, _, _) in enumerate(PARTS, 1) if part in there)
    return [(ids.collection_name(number, part), kind, shape) for part, kind, shape in PARTS[:last]]


def _tell(find: Find, name: str, why: str) -> None:
    find(
        "collection-damaged",
        "critical",
        name,
        f"{name} cannot be read, and says what a prune deleted: {why}.",
        "Copy that object from another location; without it prunes, or backups too, may stop.",
    )
