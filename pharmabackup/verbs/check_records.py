"""The records that no snapshot needs and that a collector cannot do without: can they be read?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pharmabackup import ids
from pharmabackup.engine.condemned import parse_name
from pharmabackup.engine.garbage import Look, list_intents, pinned_in
from pharmabackup.engine.lanes import objects_in_lanes
from pharmabackup.engine.opening import REPOSITORY
from pharmabackup.engine.unlocked import BODY_MAX, Unlocked
from pharmabackup.errors import Damaged, NotFound, Unsupported
from pharmabackup.events import Severity
from pharmabackup.format.repository import REPOSITORY_MAX, decode_repository, odd_members
from pharmabackup.format.transaction import Condemn, Done, Execute
from pharmabackup.format.wire import Kind, Record
from pharmabackup.verbs.audit_chains import Chains
from pharmabackup.verbs.check_keyrings import keyring_findings

PARTS: tuple[tuple[str, Kind, type[Record]], ...] = (
    ("condemn", Kind.CONDEMN, Condemn),
    ("execute", Kind.EXECUTE, Execute),
    ("done", Kind.DONE, Done),
)
Find = Callable[[str, Severity, str, str, str], None]


def check_records(unlocked: Unlocked, find: Find, look: Look, share: float) -> None:
    """The repository's own record, keyrings, intents, collections and audit records. StorageFailed.

    `share`: of the audit records that this machine has verified before.
    """
    _repository(unlocked, find)
    with suppress(Damaged):  # of a list that was damaged just now; it is read whenever something is opened
        for finding in keyring_findings(unlocked):
            find(finding.code, finding.severity, finding.subject, finding.message, finding.remedy)
    chains = Chains(unlocked, look, share=share)
    for finding in chains.findings("warning"):
        find(finding.code, finding.severity, finding.subject, finding.message, finding.remedy)
    for name in chains.strangers:
        find("object-unknown", "info", name, f"{name} is not part of a repository.", "Find out who put it there.")
    names = [name for own in list_intents(unlocked).values() for name in own.names]
    with objects_in_lanes(unlocked.storage, names, limit=BODY_MAX) as stored:
        for name, get in stored:
            look()
            try:
                pinned_in(unlocked, name, get)
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


def _collections(unlocked: Unlocked, find: Find, look: Look) -> None:
    parts: dict[int, set[str]] = {}
    for info in unlocked.storage.list("collections"):
        try:
            number, part = parse_name(info.name)
        except Damaged:
            _tell(find, info.name, "it is no name of such a record")
        else:
            parts.setdefault(number, set()).add(part)
    expected = {
        number: _expected(number, there, ended=number + 1 in parts) for number, there in sorted(parts.items())
    }
    names = [name for records in expected.values() for name, _, _ in records]
    with objects_in_lanes(unlocked.storage, names, limit=BODY_MAX) as stored:
        for number, records in expected.items():
            look()
            if number > 1 and number - 1 not in parts:
                _tell(find, ids.collection_name(number - 1, "condemn"), "it is missing")
            for name, kind, shape in records:
                try:
                    unlocked.open(kind, name, next(stored)[1](), shape)
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
