"""Forgetting: first what would go and why, then exactly that.

What goes is decided by rules or by name; what stays whatever they say is decided here, both times: held snapshots,
and of each dataset of each device the newest, the newest whole and the last that was verified. Forgotten is not gone:
the owner's delay runs first, and as many people as he asked for have to agree.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pharmabackup.clock import from_ns, iso, now_ns
from pharmabackup.engine.history import ENDLESS, Committed, History
from pharmabackup.engine.historyreader import sound_history
from pharmabackup.engine.reading import BlockReader, relied_by
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import InvalidInput, NotFound
from pharmabackup.events import Finding, Progress
from pharmabackup.results import Proposal, Report
from pharmabackup.retention import Class, Dated, Keep, kept, late, zone
from pharmabackup.verbs.check_schedule import known_damage
from pharmabackup.verbs.configure import keep_of
from pharmabackup.verbs.hurt import hurt
from pharmabackup.verbs.log_kept import needed
from pharmabackup.verbs.marks import permit, say
from pharmabackup.verbs.proposals import stale
from pharmabackup.verbs.reporter import Reporter
from pharmabackup.verbs.standing import NOTHING, Standing, standings

if TYPE_CHECKING:
    from pharmabackup.snapshot import Snapshot

Shower = Callable[[Committed], "Snapshot"]
STAYS = {
    "held": "it is held",
    "newest": "it is the newest of its dataset and device",
    "newest whole": "it is the newest whole one of its dataset and device",
    "last verified": "it is the last of its dataset and device that was verified",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller asked for. `keep`: None: the owner's rules. `names`: snapshots' ids, and then no rules."""

    keep: Mapping[str, Keep] | None
    names: tuple[str, ...]
    time_zone: str


def propose_forget(
    unlocked: Unlocked, wish: Wish, *, blocks: Callable[[], BlockReader], shower: Callable[[History], Shower]
) -> Proposal:
    """`blocks`: a fresh one. InvalidInput, NotFound, NotPermitted, Damaged, StorageFailed."""
    permit(unlocked, "forget")
    if wish.keep is not None and wish.names:
        raise InvalidInput("Rules and named snapshots do not go together.", remedy="Give one of them.")
    history = sound_history(unlocked)
    reader = blocks()
    damaged = hurt(unlocked, reader, history, but=history.gone(ENDLESS - 1))
    chosen, findings = _choose(unlocked, history, wish, damaged)
    if damaged:
        findings.append(_damaged(unlocked, len(damaged)))
    show, now = shower(history), now_ns()
    stand = history.standing_forgets()
    agreed = all(
        1 + len(stand.get((about or b"", transaction), ())) >= history.quorum
        for about, transactions in _marks(history, unlocked.slot.id, {item.transaction for item in chosen}).items()
        for transaction in transactions
    )
    return Proposal(
        verb="forget",
        repository=unlocked.repository.hex(),
        created=from_ns(now),
        not_before=from_ns(now + history.delay) if agreed else None,
        snapshots=tuple(show(item) for item in chosen),
        bytes_freed=_freed(reader, history, {item.transaction for item in chosen}),
        findings=tuple(findings),
        wish=wish,
    )


def apply_forget(
    unlocked: Unlocked,
    proposal: Proposal,
    *,
    blocks: Callable[[], BlockReader],
    progress: Progress | None,
    cancel: threading.Event | None,
) -> Report:
    """Say it. Conflict when one of the snapshots would not be forgotten any more; NotPermitted, StorageFailed."""
    permit(unlocked, "forget")
    reporter = Reporter("forget", progress, cancel)
    assert isinstance(proposal.wish, Wish)
    history = sound_history(unlocked)
    wanted = {bytes.fromhex(snapshot.id) for snapshot in proposal.snapshots}
    damaged = frozenset[bytes]()
    if any(known_damage(unlocked)):  # what is only missing lets no prune go on
        damaged = hurt(unlocked, blocks(), history, but=history.gone(ENDLESS - 1))
    if not wanted <= {item.transaction for item in _choose(unlocked, history, proposal.wish, damaged)[0]}:
        raise stale(
            "What was proposed is no longer true: one of these snapshots has to stay now, or is forgotten already."
        )
    for finding in proposal.findings:
        reporter.find(finding)
    reporter.check_cancelled()
    for about, transactions in _marks(history, unlocked.slot.id, wanted).items():
        say(unlocked, "forget", sorted(transactions), about=about)
    return reporter.report({})


def _choose(
    unlocked: Unlocked, history: History, wish: Wish, damaged: frozenset[bytes]
) -> tuple[list[Committed], list[Finding]]:
    """What goes, newest first, and what stays although it was named, or for its hold alone.

    Snapshots that are `damaged` take the place of none that is not.
    """
    names = {bytes.fromhex(name) for name in wish.names}
    if not names <= set(history.committed):
        raise NotFound(
            "A snapshot that was named is not here.", kind="snapshot", remedy="List what there is with snapshots()."
        )
    rules, where, now = [] if names else _rules(unlocked, wish), zone(wish.time_zone), now_ns()
    keeps = [keep for _, keep in rules] or [Keep()]
    said, asked = standings(history), {*history.forgets(), *history.deleted}
    own = {who for (_, who), slots in history.standing_forgets().items() if unlocked.slot.id in slots}
    groups: dict[tuple[bytes, str, bytes], list[Committed]] = {}
    for item in history.newest():
        groups.setdefault((item.snapshot.domain, item.snapshot.dataset, item.slot.id), []).append(item)
    chosen: list[Committed] = []
    findings: list[Finding] = []
    for ever in groups.values():
        # Also by those that are forgotten: or what came late would be in time when they have gone.
        apart = set[bytes]() if names else late([_came(item) for item in ever])
        items = [item for item in ever if item.transaction not in asked]
        dated = [
            _dated(
                item,
                said.get(item.transaction, NOTHING),
                0 if names else _rule(rules, item),
                damaged=item.transaction in damaged,
                named=bool(names),
            )
            for item in items
        ]
        reasons = kept(dated, keeps, where, now, apart)
        if apart:
            alone = kept([replace(item, came=None, way="") for item in dated], keeps, where, now)
            if stays := len(reasons.keys() - alone.keys()):
                findings.append(_late(unlocked, items[0], len(apart), stays))
        for item in items:
            reason = reasons.get(item.transaction)
            if reason is None or (names and reason == "undated"):  # what a person names needs no date
                if item.transaction not in own and (not names or item.transaction in names):
                    chosen.append(item)
            elif item.transaction in names or reason == "held":
                findings.append(_stays(unlocked, item, reason))
    if not names:
        there = [item for item in history.newest() if item.transaction not in asked]
        stay = needed(there, {item.transaction for item in chosen}, damaged)
        chosen = [item for item in chosen if item.transaction not in stay]
    chosen.sort(key=lambda item: (item.snapshot.time, item.snapshot.sequence), reverse=True)
    return chosen, findings


def _rules(unlocked: Unlocked, wish: Wish) -> list[tuple[Class, Keep]]:
    """InvalidInput."""
    if wish.keep is not None:
        return [(Class(pattern), keep) for pattern, keep in wish.keep.items()]
    return [(Class(rule.dataset), keep_of(rule)) for rule in unlocked.roster.policy.keep]


def _rule(rules: list[tuple[Class, Keep]], item: Committed) -> int | None:
    """The number of the first that is for a snapshot."""
    dataset, device, label = item.snapshot.dataset, item.slot.name, item.snapshot.reason
    return next((number for number, (of, _) in enumerate(rules) if of.fits(dataset, device, label)), None)


def _dated(item: Committed, said: Standing, rule: int | None, *, damaged: bool, named: bool) -> Dated:
    record = item.snapshot
    return Dated(
        item.transaction,
        record.time,
        record.sequence,
        complete=record.complete,
        verified=said.verified is not None,
        held=said.held is not None,
        rule=rule,
        damaged=damaged,
        came=None if named else item.came,  # whoever names some has looked at them
        way="" if named else item.way,
    )


def _came(item: Committed) -> Dated:
    return _dated(item, NOTHING, None, damaged=False, named=False)


def _stays(unlocked: Unlocked, item: Committed, reason: str) -> Finding:
    return Finding(
        code="snapshot-stays",
        severity="info",
        subject=item.transaction.hex(),
        message=f"{item.snapshot.dataset} of {iso(from_ns(item.snapshot.time))} is not forgotten: {STAYS[reason]}.",
        remedy="Release it first." if reason == "held" else "Nothing to do.",
        location=unlocked.storage.location,
    )


def _late(unlocked: Unlocked, one: Committed, count: int, stays: int) -> Finding:
    return Finding(
        code="late-stays",
        severity="info",
        subject=f"{one.slot.name}/{one.snapshot.dataset}",
        message=f"{count} snapshots of {one.snapshot.dataset} that {one.slot.name!r} made came here after some of a "
        f"later time. They are judged apart, and so {stays} more stay.",
        remedy="So it is with what was copied, or where a place was not reached for a while. If neither was, "
        "somebody else may have that key: revoke it. What you name goes all the same.",
        location=unlocked.storage.location,
    )


def _damaged(unlocked: Unlocked, count: int) -> Finding:
    return Finding(
        code="snapshots-damaged",
        severity="warning",
        subject="snapshots",
        message=f"{count} snapshots are damaged, as far as was checked here: they take no other's place.",
        remedy="Run check, and mend what it names with propose_repair.",
        location=unlocked.storage.location,
    )


def _marks(history: History, slot: bytes, wanted: set[bytes]) -> dict[bytes | None, set[bytes]]:
    """The marks that say it: seconding another's first forget where there is one that needs more people."""
    found: dict[bytes | None, set[bytes]] = {}
    left = set(wanted)
    if history.quorum > 1:
        for (first, transaction), slots in history.standing_forgets().items():
            if transaction in left and slot not in slots:
                found.setdefault(first, set()).add(transaction)
                left.discard(transaction)
    if left:
        found[None] = left
    return found


def _freed(blocks: BlockReader, history: History, chosen: set[bytes]) -> int:
    """Bytes of the blocks that nothing else relies on. Damaged, StorageFailed."""
    if not chosen:
        return 0
    forgotten, table = history.gone(ENDLESS - 1), blocks.index.blocks  # what is asked for already goes as well
    there = [item for item in history.newest() if item.transaction not in forgotten]
    going = relied_by(blocks, (item.snapshot for item in there if item.transaction in chosen))
    staying = relied_by(blocks, (item.snapshot for item in there if item.transaction not in chosen))
    return sum(
        table.length[number]
        for domain, found in going.items()
        for block in found - staying.get(domain, set())
        if (number := table.find(block, domain)) is not None
    )
