"""What a repair is to do, and its first steps: keys and records of replicas. Before them no more can be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pharmabackup import ids
from pharmabackup.clock import from_ns, now_ns
from pharmabackup.engine.grants import COLLECTORS
from pharmabackup.engine.history import History
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.events import Finding
from pharmabackup.results import Proposal
from pharmabackup.sources.base import Source
from pharmabackup.verbs.check_keyrings import keyring_findings
from pharmabackup.verbs.copy_plan import plan_copy
from pharmabackup.verbs.findings import keyring_finding

Block = tuple[bytes, bytes]  # domain and id
ATTEMPTS = 3  # when another collector is faster
RECORDS_TOLD = 50  # one by one


@dataclass(frozen=True, slots=True)
class Wish:
    """What a proposal showed."""

    objects: frozenset[str] = frozenset()  # rosters and keyrings that are copied from a replica
    records: frozenset[str] = frozenset()  # fates and marks that are carried here from a replica
    segments: frozenset[bytes] = frozenset()  # whose bytes have changed
    damaged: frozenset[bytes] = frozenset()  # packs
    blocks: frozenset[Block] = frozenset()  # that go into new packs
    made: frozenset[Block] = frozenset()  # of these, what is made anew from sources
    going: frozenset[bytes] = frozenset()  # packs that are condemned
    replicas: tuple[Unlocked, ...] = ()
    sources: tuple[Source, ...] = ()
    bereft: bool = False  # it was pickled, and what it was made with stayed behind: that is open, and holds keys

    def __reduce__(self) -> tuple[object, ...]:
        travels = {item.name: getattr(self, item.name) for item in fields(self)}
        bereft = self.bereft or bool(self.replicas or self.sources)
        return _arrived, (travels | {"replicas": (), "sources": (), "bereft": bereft},)

    @property
    def snapshots(self) -> set[bytes]:
        """Those of the records that are fates, by their transactions."""
        return {ids.hex_tail(name) or b"" for name in self.records if name.startswith("snapshots/")}

    @property
    def marks(self) -> frozenset[str]:
        return self.records - {ids.fate_name(who) for who in self.snapshots}


def _arrived(travels: dict[str, Any]) -> Wish:
    return Wish(**travels)


def permit(unlocked: Unlocked) -> None:
    if unlocked.keyring.role not in COLLECTORS:
        raise unlocked.not_permitted("repair", who=COLLECTORS)


def keys_first(unlocked: Unlocked, wish: Wish, findings: Iterable[Finding]) -> Proposal:
    """Without the newest list of keys, what cites it would be taken for damaged."""
    count = counted(sum(name.startswith("roster/") for name in wish.objects), "list of keys", "lists of keys")
    text = f"{count} copied from a replica. Open the repository again then, and repair it."
    return _first(unlocked, [text, *keyrings_told(wish)], wish, findings)


def keyrings_told(wish: Wish) -> list[str]:
    """The keyrings that come, in a sentence."""
    count = sum(name.startswith("keys/") for name in wish.objects)
    return [f"{counted(count, 'sealed keyring')} copied from a replica."] if count else []


def records_first(
    unlocked: Unlocked,
    history: History,
    there: Sequence[tuple[Unlocked, History]],
    wish: Wish,
    findings: Iterable[Finding],
) -> Proposal:
    """Nothing is let go while a record cannot be read: it might be a hold."""
    told: dict[str, str] = {}
    for _, other in there:
        plan = plan_copy(other, history, wish.snapshots, wish.marks)
        for item, content in plan.records:
            what = "" if content else ": its record alone, which another one names"
            text = f"The snapshot {item.transaction.hex()[:8]} of {item.snapshot.dataset}{what}."
            told.setdefault(ids.fate_name(item.transaction), text)
        for said in other.said:
            name = ids.mark_name(said.id)
            if name in plan.marks:
                about = ", ".join(sorted(who.hex()[:8] for who in said.transactions))
                reason = f" ({said.mark.reason})" if said.mark.reason else ""
                told.setdefault(name, f"What was said: {said.mark.kind} {about}{reason}.")
    first = f"{counted(len(told), 'record')} taken from a replica, with what they need. Repair again then."
    lines = list(told.values())
    if len(lines) > RECORDS_TOLD:
        lines[RECORDS_TOLD:] = [f"{len(lines) - RECORDS_TOLD:,} more."]
    return _first(unlocked, [first, *lines], wish, findings)


def _first(unlocked: Unlocked, steps: Sequence[str], wish: Wish, findings: Iterable[Finding]) -> Proposal:
    """A repair of one step, before which nothing more can be said."""
    moment = from_ns(now_ns())
    return Proposal(
        verb="repair",
        repository=unlocked.repository.hex(),
        created=moment,
        not_before=moment,
        snapshots=(),
        bytes_freed=0,
        findings=tuple(findings),
        steps=tuple(steps),
        wish=wish,
    )


def key_findings(unlocked: Unlocked, refused: Iterable[str]) -> list[Finding]:
    """Keyrings that are damaged here, and those of replicas that are not taken."""
    location = unlocked.storage.location
    damaged = [finding for finding in keyring_findings(unlocked) if finding.code == "keyring-damaged"]
    return [*damaged, *(keyring_finding(name, location) for name in sorted(set(refused)))]


def counted(count: int, one: str, many: str = "") -> str:
    """So many of something are, or one is."""
    return f"{count:,} {many or one + 's'} are" if count > 1 else f"{count:,} {one} is"
